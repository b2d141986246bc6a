//! One mayfly behind a socket, with all that it prints.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

pub use scratch::Directory;

use super::http::{Answer, Client, DONE};
use crate::guest::{LIMIT, Running};
use crate::guests::{file, program, reset_sighup};

/// A new FIFO; its path.
pub fn fifo(folder: &Directory, name: &str) -> String {
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

/// A running mayfly with a folder. Dropped, both are gone.
pub struct ApiProcess {
    pub folder: Directory,
    running: Running,
}

impl ApiProcess {
    /// mayfly with nothing but a socket.
    pub fn start() -> Self {
        Self::with(Directory::new(), &[])
    }

    /// mayfly with a socket in `folder` and more `flags`.
    pub fn with(folder: Directory, flags: &[&str]) -> Self {
        let socket = folder.text("api.sock");
        let flags = [&["--api-sock", &socket], flags].concat();
        Self::called(folder, Command::new(program()).args(flags))
    }

    /// As `command` calls it.
    pub fn called(folder: Directory, command: &mut Command) -> Self {
        command.stdin(Stdio::null());
        reset_sighup(command);
        let running = Running::start(command);
        Self { folder, running }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path("api.sock")
    }

    pub fn id(&self) -> u32 {
        self.running.id()
    }

    pub fn connect(&self) -> Client {
        connect(&self.socket())
    }

    /// The answer to one request on a connection of its own.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.connect().ask(method, path, body)
    }

    /// Has it done, which is answered byte for byte.
    pub fn expect_no_content(&self, method: &str, path: &str, body: &str) {
        assert_eq!(self.ask(method, path, body).text, DONE, "{method} {path} {body}");
    }

    /// Names the guest `name` as what is to boot.
    pub fn boots(&self, name: &str) {
        let body = format!("{{\"kernel_image_path\":\"{}\"}}", file(name));
        self.expect_no_content("PUT", "/boot-source", &body);
    }

    pub fn act(&self, action: &str) {
        self.expect_no_content("PUT", "/actions", &format!("{{\"action_type\":\"{action}\"}}"));
    }

    pub fn state(&self) -> String {
        self.ask("GET", "/", "").json()["state"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Waits until the guest prints `text` after all that was expected before.
    pub fn expect(&mut self, text: &str) {
        self.running.expect(text);
    }

    /// What comes before the end of the line, after all that was expected before.
    pub fn line(&mut self) -> String {
        self.running.expect("\n")
    }

    pub fn signal(&mut self, signal: libc::c_int) {
        self.running.signal(signal);
    }

    /// Waits for its end, which must be of itself, with `code`, and with its socket gone; what the guest has printed and mayfly
    /// has said.
    pub fn ends_with(mut self, code: i32) -> (String, String) {
        self.running.ends_with(code);
        assert!(!self.socket().exists(), "the socket's file is left behind");
        (self.running.take_printed(), self.running.said())
    }

    /// Ends it by SIGTERM, by which it must end, with its socket gone.
    pub fn terminate(mut self) {
        self.running.terminate();
        assert!(!self.socket().exists(), "the socket's file is left behind");
    }

    /// Ends it by SIGKILL; what the guest has printed.
    pub fn kill(mut self) -> String {
        self.running.kill();
        self.running.take_printed()
    }
}
