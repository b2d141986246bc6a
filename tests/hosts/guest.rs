//! mayfly processes: output, input, exit.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs, mem};

pub use scratch::TIMEOUT;

/// Interval of checks for the exit of a process, which has closed its output before.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Timeout for the stderr of a process that has ended.
const STDERR_TIMEOUT: Duration = Duration::from_secs(1);

/// A running mayfly process. An unexpected event panics with all output. Drop kills the process.
pub struct Running {
    name: String,
    mayfly: Child,
    output: Receiver<Vec<u8>>,
    /// Stderr of mayfly.
    stderr: Receiver<Vec<u8>>,
    /// Output of the guest.
    printed: String,
    /// Length of the output up to the last expected text.
    consumed: usize,
    /// Deadline of the next expected event.
    deadline: Instant,
}

impl Running {
    /// Starts `command`. The caller sets its input.
    pub fn start(command: &mut Command) -> Self {
        let name = format!("{command:?}");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut mayfly = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        Self {
            name,
            output: scratch::read_in_background(mayfly.stdout.take().unwrap()),
            stderr: scratch::read_in_background(mayfly.stderr.take().unwrap()),
            mayfly,
            printed: String::new(),
            consumed: 0,
            deadline: Instant::now() + TIMEOUT,
        }
    }

    pub fn id(&self) -> u32 {
        self.mayfly.id()
    }

    /// Panics if the process has ended, with its stderr.
    pub fn expect_alive(&self) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let has_ended = status.contains("\nState:\tZ");
        assert!(!has_ended, "{} has ended: {}", self.name, self.read_stderr());
    }

    /// Takes the write end of its input, if that is a pipe.
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.mayfly.stdin.take()
    }

    /// Waits until the guest prints `text`, after the last expected text. Returns the output in between.
    pub fn expect(&mut self, text: &str) -> String {
        loop {
            let new = self.rest();
            if let Some(place) = new.find(text) {
                let before = new[..place].to_owned();
                self.consumed += place + text.len();
                self.deadline = Instant::now() + TIMEOUT;
                return before;
            }
            if !self.receive() {
                self.fail(&format!("no output {text:?}"));
            }
        }
    }

    /// Returns the received output after the last expected text.
    pub fn rest(&self) -> &str {
        &self.printed[self.consumed..]
    }

    /// Takes all received output and leaves it empty.
    pub fn take_printed(&mut self) -> String {
        self.consumed = 0;
        mem::take(&mut self.printed)
    }

    pub fn signal(&mut self, signal: libc::c_int) {
        let process = i32::try_from(self.mayfly.id()).unwrap();
        // SAFETY: kill takes no pointers, and the process is a child that has not been waited for.
        if unsafe { libc::kill(process, signal) } != 0 {
            self.fail("cannot signal the process");
        }
    }

    /// Sends SIGKILL and waits for the end of the process and of its output.
    pub fn kill(&mut self) {
        scratch::kill(&mut self.mayfly);
        while self.receive() {}
    }

    /// Waits for exit with `code`.
    pub fn expect_exit(&mut self, code: i32) {
        let status = self.wait();
        if status.code() != Some(code) {
            self.fail(&format!("the process ended with {status}, not {code}"));
        }
    }

    /// Sends SIGTERM, which must end the process.
    pub fn terminate(&mut self) {
        self.signal(libc::SIGTERM);
        self.expect_signal(libc::SIGTERM);
    }

    /// Waits until `signal` ends the process.
    pub fn expect_signal(&mut self, signal: libc::c_int) {
        let status = self.wait();
        if status.signal() != Some(signal) {
            self.fail(&format!(
                "the process ended with {status}, not by signal {signal}"
            ));
        }
    }

    /// Waits for exit. Returns the status.
    pub fn wait(&mut self) -> ExitStatus {
        while self.receive() {}
        while Instant::now() < self.deadline {
            if let Some(status) = self.mayfly.try_wait().unwrap() {
                return status;
            }
            thread::sleep(POLL_INTERVAL);
        }
        self.fail("the process did not end");
    }

    /// Waits for more output. Returns false at the end of the output or at the deadline.
    fn receive(&mut self) -> bool {
        match self.output.recv_timeout(self.time_left()) {
            Ok(bytes) => {
                self.printed.push_str(&String::from_utf8_lossy(&bytes));
                true
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }

    fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Returns the stderr of the ended process.
    pub fn read_stderr(&self) -> String {
        self.read_stderr_within(|| self.time_left())
    }

    fn read_stderr_within(&self, timeout: impl Fn() -> Duration) -> String {
        let mut bytes = Vec::new();
        while let Ok(more) = self.stderr.recv_timeout(timeout()) {
            bytes.extend(more);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Panics with `reason` and all output.
    pub fn fail(&mut self, reason: &str) -> ! {
        let status = scratch::kill(&mut self.mayfly);
        panic!(
            "{}: {reason}\nexit: {status:?}\n--- serial ---\n{}\n--- stderr ---\n{}",
            self.name,
            self.printed,
            self.read_stderr_within(|| STDERR_TIMEOUT)
        );
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        scratch::kill(&mut self.mayfly);
    }
}

/// A running `mayfly run` or `mayfly restore` with a pipe as its input.
pub struct Guest {
    running: Running,
    input: Option<ChildStdin>,
}

impl Guest {
    /// Starts `mayfly run` with `arguments`, split at spaces.
    pub fn start(arguments: &str) -> Self {
        Self::launch(&format!("run {arguments}"))
    }

    /// Sends SIGKILL and starts mayfly with `arguments`. The output continues that of the killed process.
    pub fn restart(mut self, arguments: &str) -> Self {
        self.running.kill();
        self.continue_in(arguments)
    }

    /// Waits for exit with `code` and starts mayfly with `arguments`. The output continues that of the process before.
    pub fn restart_after_exit(mut self, code: i32, arguments: &str) -> Self {
        self.running.expect_exit(code);
        self.continue_in(arguments)
    }

    fn continue_in(mut self, arguments: &str) -> Self {
        let mut next = Self::launch(arguments);
        next.running.consumed = self.running.consumed;
        next.running.printed = self.running.take_printed();
        next
    }

    /// Starts mayfly with `arguments`, split at spaces.
    pub fn launch(arguments: &str) -> Self {
        let mut command = mayfly_command();
        command.args(arguments.split_whitespace()).stdin(Stdio::piped());
        let mut running = Running::start(&mut command);
        let input = running.take_input();
        Self { running, input }
    }

    pub fn id(&self) -> u32 {
        self.running.id()
    }

    /// As [`Running::expect`].
    pub fn expect(&mut self, text: &str) -> String {
        self.running.expect(text)
    }

    /// Types `line` and the return key.
    pub fn type_line(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        if let Err(error) = writeln!(input, "{line}").and_then(|()| input.flush()) {
            self.fail(&format!("cannot write the input {line:?}: {error}"));
        }
    }

    /// As [`Running::rest`].
    pub fn rest(&self) -> &str {
        self.running.rest()
    }

    /// As [`Running::expect_exit`]. Returns the output of the guest.
    pub fn expect_exit(mut self, code: i32) -> String {
        self.running.expect_exit(code);
        self.running.take_printed()
    }

    /// As [`Running::terminate`].
    pub fn terminate(mut self) {
        self.running.terminate();
    }

    /// As [`Running::fail`].
    pub fn fail(&mut self, reason: &str) -> ! {
        self.running.fail(reason)
    }
}

/// Returns a command for the mayfly under test.
pub fn mayfly_command() -> Command {
    Command::new(env::var_os("MAYFLY").unwrap_or_else(|| env!("CARGO_BIN_EXE_mayfly").into()))
}
