//! One mayfly: what it prints, what is typed, how it ends.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, mem};

/// How long a guest may take from one thing that is expected of it to the next, many times what any of them takes: only a
/// guest that hangs waits for it.
pub const LIMIT: Duration = Duration::from_secs(180);
/// How often the end of a process is looked for: it has closed its output by then, so that this is rarely waited for.
const GLANCE: Duration = Duration::from_millis(10);

/// How long the last messages of a mayfly that is gone may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A running mayfly. Whatever does not go as expected panics with all that was seen; dropped, mayfly is gone.
pub struct Running {
    name: String,
    mayfly: Child,
    output: Receiver<Vec<u8>>,
    /// What mayfly itself has said.
    messages: Receiver<Vec<u8>>,
    /// All that the guest has printed.
    printed: String,
    /// How much of it was expected before.
    seen: usize,
    /// By when what is expected next must have come.
    deadline: Instant,
}

impl Running {
    /// Starts `command`; its input is the caller's.
    pub fn start(command: &mut Command) -> Self {
        let name = format!("{command:?}");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut mayfly = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        Self {
            name,
            output: received(mayfly.stdout.take().unwrap()),
            messages: received(mayfly.stderr.take().unwrap()),
            mayfly,
            printed: String::new(),
            seen: 0,
            deadline: Instant::now() + LIMIT,
        }
    }

    pub fn id(&self) -> u32 {
        self.mayfly.id()
    }

    /// The other end of its input, once, if that is a pipe.
    pub fn input(&mut self) -> Option<ChildStdin> {
        self.mayfly.stdin.take()
    }

    /// Waits until the guest prints `text`, after all that was expected before; gives what it printed up to there.
    pub fn expect(&mut self, text: &str) -> String {
        loop {
            let new = self.rest();
            if let Some(place) = new.find(text) {
                let before = new[..place].to_owned();
                self.seen += place + text.len();
                self.deadline = Instant::now() + LIMIT;
                return before;
            }
            if !self.more() {
                self.fail(&format!("it did not print {text:?}"));
            }
        }
    }

    /// What the guest printed after all that was expected, as far as it is known.
    pub fn rest(&self) -> &str {
        &self.printed[self.seen..]
    }

    /// All that the guest has printed, as far as it is known; nothing is known of it afterwards.
    pub fn take_printed(&mut self) -> String {
        self.seen = 0;
        mem::take(&mut self.printed)
    }

    pub fn signal(&mut self, signal: libc::c_int) {
        let process = i32::try_from(self.mayfly.id()).unwrap();
        // SAFETY: kill takes no pointers, and the process is a child that has not been waited for.
        if unsafe { libc::kill(process, signal) } != 0 {
            self.fail("it cannot be signalled");
        }
    }

    /// Sends SIGKILL, and waits for its end and that of its output.
    pub fn kill(&mut self) {
        let _ = self.mayfly.kill();
        let _ = self.mayfly.wait();
        while self.more() {}
    }

    /// Waits for its end, which must be of itself and with `code`.
    pub fn ends_with(&mut self, code: i32) {
        let status = self.end();
        if status.code() != Some(code) {
            self.fail(&format!("it ended with {status}, not {code}"));
        }
    }

    /// Sends SIGTERM, by which it must end.
    pub fn terminate(&mut self) {
        self.signal(libc::SIGTERM);
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
        match self.output.recv_timeout(self.left()) {
            Ok(bytes) => {
                self.printed.push_str(&String::from_utf8_lossy(&bytes));
                true
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// What mayfly, of which the end has come, has said.
    pub fn said(&self) -> String {
        self.said_within(|| self.left())
    }

    fn said_within(&self, patience: impl Fn() -> Duration) -> String {
        let mut bytes = Vec::new();
        while let Ok(more) = self.messages.recv_timeout(patience()) {
            bytes.extend(more);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Panics with all that was seen.
    pub fn fail(&mut self, why: &str) -> ! {
        let _ = self.mayfly.kill();
        let status = self.mayfly.wait();
        panic!(
            "{}: {why}\nits end: {status:?}\n--- serial ---\n{}\n--- stderr ---\n{}",
            self.name,
            self.printed,
            self.said_within(|| LAST_WORDS)
        );
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.mayfly.kill();
        let _ = self.mayfly.wait();
    }
}

/// A running `mayfly run` or `mayfly restore` that is typed to.
pub struct Guest {
    running: Running,
    input: Option<ChildStdin>,
}

impl Guest {
    /// Starts `mayfly run` with `arguments`, separated by blanks.
    pub fn start(arguments: &str) -> Self {
        Self::launch(&format!("run {arguments}"))
    }

    /// Sends SIGKILL, and has a mayfly with `arguments` take over, as if there was one guest all along: what it prints then
    /// continues what it printed before.
    pub fn restart(mut self, arguments: &str) -> Self {
        self.running.kill();
        let mut next = Self::launch(arguments);
        next.running.seen = self.running.seen;
        next.running.printed = self.running.take_printed();
        next
    }

    fn launch(arguments: &str) -> Self {
        let mut command = mayfly();
        command.args(arguments.split_whitespace()).stdin(Stdio::piped());
        let mut running = Running::start(&mut command);
        let input = running.input();
        Self { running, input }
    }

    /// As [`Running::expect`].
    pub fn expect(&mut self, text: &str) -> String {
        self.running.expect(text)
    }

    /// Types `line` and the return key.
    pub fn type_line(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        if let Err(error) = writeln!(input, "{line}").and_then(|()| input.flush()) {
            self.fail(&format!("it does not take {line:?}: {error}"));
        }
    }

    /// As [`Running::rest`].
    pub fn rest(&self) -> &str {
        self.running.rest()
    }

    /// As [`Running::ends_with`]; gives all that the guest has printed.
    pub fn ends_with(mut self, code: i32) -> String {
        self.running.ends_with(code);
        self.running.take_printed()
    }

    /// As [`Running::terminate`].
    pub fn terminate(mut self) {
        self.running.terminate();
    }

    /// As [`Running::fail`].
    pub fn fail(&mut self, why: &str) -> ! {
        self.running.fail(why)
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
