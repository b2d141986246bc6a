//! One mayfly behind a socket, with all that it prints.

use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

pub use scratch::Folder;

use super::http::{Answer, Client, DONE};
use crate::guest::LIMIT;
use crate::guests::{file, heed_hang_up, program};

/// A new FIFO; its path.
pub fn fifo(folder: &Folder, name: &str) -> String {
    folder.fifo(name);
    folder.text(name)
}

/// Connects to the socket as soon as there is one; who listens must then answer.
pub fn connect(socket: &Path) -> Client {
    let deadline = Instant::now() + LIMIT;
    loop {
        match Client::connect(socket) {
            Ok(client) => return client,
            Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {
                thread::yield_now();
            }
            Err(error) => panic!("{}: {error}", socket.display()),
        }
    }
}

/// A running mayfly. Dropped, it is gone.
pub struct Served {
    pub folder: Folder,
    mayfly: Child,
    output: Receiver<Vec<u8>>,
    messages: Receiver<Vec<u8>>,
    printed: String,
    seen: usize,
    deadline: Instant,
}

impl Served {
    /// mayfly with nothing but a socket.
    pub fn start() -> Self {
        Self::with(Folder::new(), &[])
    }

    /// mayfly with a socket in `folder` and more `flags`.
    pub fn with(folder: Folder, flags: &[&str]) -> Self {
        let socket = folder.text("api.sock");
        let flags = [&["--api-sock", &socket], flags].concat();
        Self::called(folder, Command::new(program()).args(flags))
    }

    /// As `command` calls it.
    pub fn called(folder: Folder, command: &mut Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        heed_hang_up(command);
        let mut mayfly = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            folder,
            output: received(mayfly.stdout.take().unwrap()),
            messages: received(mayfly.stderr.take().unwrap()),
            mayfly,
            printed: String::new(),
            seen: 0,
            deadline: Instant::now() + LIMIT,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path("api.sock")
    }

    pub fn id(&self) -> u32 {
        self.mayfly.id()
    }

    pub fn connect(&self) -> Client {
        connect(&self.socket())
    }

    /// The answer to one request on a connection of its own.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.connect().ask(method, path, body)
    }

    /// Has it done, which is answered byte for byte.
    pub fn done(&self, method: &str, path: &str, body: &str) {
        assert_eq!(self.ask(method, path, body).text, DONE, "{method} {path} {body}");
    }

    /// Names the guest `name` as what is to boot.
    pub fn boots(&self, name: &str) {
        let body = format!("{{\"kernel_image_path\":\"{}\"}}", file(name));
        self.done("PUT", "/boot-source", &body);
    }

    pub fn act(&self, action: &str) {
        self.done("PUT", "/actions", &format!("{{\"action_type\":\"{action}\"}}"));
    }

    pub fn state(&self) -> String {
        self.ask("GET", "/", "").json()["state"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Waits until the guest prints `text` after all that was expected before.
    pub fn expect(&mut self, text: &str) {
        loop {
            if let Some(place) = self.printed[self.seen..].find(text) {
                self.seen += place + text.len();
                return;
            }
            if !self.more() {
                self.fail(&format!("it did not print {text:?}"));
            }
        }
    }

    /// What comes before the end of the line, after all that was expected before.
    pub fn line(&mut self) -> String {
        let start = self.seen;
        self.expect("\n");
        self.printed[start..self.seen - 1].to_owned()
    }

    pub fn signal(&self, signal: libc::c_int) {
        let process = i32::try_from(self.mayfly.id()).unwrap();
        // SAFETY: kill takes no pointers, and the process is a child that has not been waited for.
        let sent = unsafe { libc::kill(process, signal) };
        assert_eq!(sent, 0);
    }

    /// Waits for its end, which must be of itself, with `code`, and with its socket gone; what the guest has printed and mayfly
    /// has said.
    pub fn ends_with(mut self, code: i32) -> (String, String) {
        let status = self.end();
        let said = self.said();
        assert_eq!(status.code(), Some(code), "{status}: {}{said}", self.printed);
        assert!(!self.socket().exists(), "the socket's file is left behind");
        (std::mem::take(&mut self.printed), said)
    }

    /// Ends it by SIGTERM, by which it must end, with its socket gone.
    pub fn terminate(mut self) {
        self.signal(libc::SIGTERM);
        let status = self.end();
        assert_eq!(status.signal(), Some(libc::SIGTERM), "{status}: {}", self.said());
        assert!(!self.socket().exists(), "the socket's file is left behind");
    }

    /// Ends it by SIGKILL; what the guest has printed.
    pub fn kill(mut self) -> String {
        self.signal(libc::SIGKILL);
        while self.more() {}
        std::mem::take(&mut self.printed)
    }

    fn end(&mut self) -> ExitStatus {
        while self.more() {}
        while Instant::now() < self.deadline {
            if let Some(status) = self.mayfly.try_wait().unwrap() {
                return status;
            }
            // It has closed its output, so that this is rarely waited for.
            thread::sleep(Duration::from_millis(1));
        }
        self.fail("it did not end");
    }

    fn more(&mut self) -> bool {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.output.recv_timeout(left) {
            Ok(bytes) => {
                self.printed.push_str(&String::from_utf8_lossy(&bytes));
                true
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }

    /// What mayfly says until it is gone.
    fn said(&self) -> String {
        let left = || self.deadline.saturating_duration_since(Instant::now());
        let mut bytes = Vec::new();
        while let Ok(more) = self.messages.recv_timeout(left()) {
            bytes.extend(more);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn fail(&mut self, why: &str) -> ! {
        let _ = self.mayfly.kill();
        let status = self.mayfly.wait();
        panic!(
            "{why}\nits end: {status:?}\n--- serial ---\n{}\n--- stderr ---\n{}",
            self.printed,
            self.said()
        );
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.mayfly.kill();
        let _ = self.mayfly.wait();
    }
}

/// All that comes from a pipe, for as long as somebody receives it.
fn received(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut bytes) {
            if sender.send(bytes[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}
