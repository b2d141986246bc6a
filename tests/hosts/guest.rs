//! One guest of mayfly: what it prints, what is typed, how it ends.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, mem};

/// How long one guest may run. Linux takes some 10 s in the emulated host when nothing else keeps the machine busy.
pub const LIMIT: Duration = Duration::from_secs(90);
/// How often the end of a process is looked for: it has closed its output by then, so that this is rarely waited for.
const GLANCE: Duration = Duration::from_millis(10);

/// How long the last messages of a mayfly that is gone may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A running `mayfly run` or `mayfly restore`. Whatever does not go as expected panics with all that was seen; dropped, the guest is gone.
pub struct Guest {
    arguments: String,
    mayfly: Child,
    input: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    /// What mayfly itself has said.
    messages: Receiver<Vec<u8>>,
    /// All that the guest has printed.
    printed: String,
    /// How much of it was expected before.
    seen: usize,
    deadline: Instant,
}

impl Guest {
    /// Starts `mayfly run` with `arguments`, separated by blanks.
    pub fn start(arguments: &str) -> Self {
        Self::launch(format!("run {arguments}"))
    }

    /// Sends SIGKILL, and has `mayfly restore` with `arguments` take over, as if there was one guest all along: what it
    /// prints then continues what it printed before.
    pub fn restart(mut self, arguments: &str) -> Self {
        let _ = self.mayfly.kill();
        let _ = self.mayfly.wait();
        while self.more() {}
        let mut next = Self::launch(format!("restore {arguments}"));
        next.printed = mem::take(&mut self.printed);
        next.seen = self.seen;
        next
    }

    fn launch(arguments: String) -> Self {
        let mut mayfly = mayfly()
            .args(arguments.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = received(mayfly.stdout.take().unwrap());
        let messages = received(mayfly.stderr.take().unwrap());
        Self {
            arguments,
            input: mayfly.stdin.take(),
            mayfly,
            output,
            messages,
            printed: String::new(),
            seen: 0,
            deadline: Instant::now() + LIMIT,
        }
    }

    /// Waits until the guest prints `text`, after all that was expected before; gives what it printed up to there.
    pub fn expect(&mut self, text: &str) -> String {
        loop {
            let new = &self.printed[self.seen..];
            if let Some(place) = new.find(text) {
                let before = new[..place].to_owned();
                self.seen += place + text.len();
                return before;
            }
            if !self.more() {
                self.fail(&format!("it did not print {text:?}"));
            }
        }
    }

    /// Types `line` and the return key.
    pub fn type_line(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        if let Err(error) = writeln!(input, "{line}").and_then(|()| input.flush()) {
            self.fail(&format!("it does not take {line:?}: {error}"));
        }
    }

    /// What the guest printed after all that was expected, as far as it is known.
    pub fn rest(&self) -> &str {
        &self.printed[self.seen..]
    }

    /// Waits for the end of mayfly, which must be of itself and with `code`; gives all that the guest has printed.
    pub fn ends_with(mut self, code: i32) -> String {
        let status = self.end();
        if status.code() != Some(code) {
            self.fail(&format!("it ended with {status}, not {code}"));
        }
        mem::take(&mut self.printed)
    }

    /// Sends SIGTERM, by which mayfly must end.
    pub fn terminate(mut self) {
        let process = i32::try_from(self.mayfly.id()).unwrap();
        // SAFETY: kill takes no pointers, and the process is a child that has not been waited for.
        if unsafe { libc::kill(process, libc::SIGTERM) } != 0 {
            self.fail("it cannot be signalled");
        }
        let status = self.end();
        if status.signal() != Some(libc::SIGTERM) {
            self.fail(&format!("after SIGTERM it ended with {status}"));
        }
    }

    fn end(&mut self) -> ExitStatus {
        while self.more() {}
        while Instant::now() < self.deadline {
            if let Some(status) = self.mayfly.try_wait().unwrap() {
                return status;
            }
            thread::sleep(GLANCE);
        }
        self.fail("it did not end");
    }

    /// Waits for more output; false when there is none until the end or the deadline.
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

    /// Panics with all that was seen of the guest.
    pub fn fail(&mut self, why: &str) -> ! {
        let _ = self.mayfly.kill();
        let status = self.mayfly.wait();
        let mut messages = Vec::new();
        while let Ok(bytes) = self.messages.recv_timeout(LAST_WORDS) {
            messages.extend(bytes);
        }
        panic!(
            "mayfly {}: {why}\nits end: {status:?}\n--- serial ---\n{}\n--- stderr ---\n{}",
            self.arguments,
            self.printed,
            String::from_utf8_lossy(&messages)
        );
    }
}

/// The mayfly under test.
pub fn mayfly() -> Command {
    Command::new(env::var_os("MAYFLY").unwrap_or_else(|| env!("CARGO_BIN_EXE_mayfly").into()))
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

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.mayfly.kill();
        let _ = self.mayfly.wait();
    }
}
