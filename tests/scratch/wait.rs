//! Waits with a limit. A wait that exceeds [`TIMEOUT`] panics with its subject, so that a hung program fails its test alone.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{self, Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// Limit of each wait. Far above every regular time: only a hung program reaches it.
pub const TIMEOUT: Duration = Duration::from_secs(180);
/// Interval between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Waits until `condition` is true.
///
/// # Panics
/// Panics with `subject` after [`TIMEOUT`].
#[track_caller]
pub fn wait_until(subject: &str, condition: impl FnMut() -> bool) {
    assert!(
        is_true_within(TIMEOUT, condition),
        "{subject}: not within {TIMEOUT:?}"
    );
}

/// Waits until `find` returns a value.
///
/// # Panics
/// Panics with `subject` after [`TIMEOUT`].
#[track_caller]
pub fn wait_for<T>(subject: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    wait_until(subject, || {
        found = find();
        found.is_some()
    });
    found.unwrap()
}

fn is_true_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(POLL_INTERVAL);
    }
    true
}

/// Runs `command` without input to its end and returns its output.
///
/// # Panics
/// Panics if the command cannot start. Kills it and panics after [`TIMEOUT`].
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    run_with_input(command, Stdio::null())
}

/// Runs `command` as [`run`] does, for at most `limit`.
///
/// # Panics
/// Panics as [`run`] does, after `limit`.
#[track_caller]
pub fn run_within(limit: Duration, command: &mut Command) -> Output {
    finish_within(limit, start(command, Stdio::null()))
}

/// Runs `command` with `input` to its end and returns its output.
///
/// # Panics
/// Panics as [`run`] does.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: impl Into<Stdio>) -> Output {
    finish(start(command, input))
}

#[track_caller]
fn start(command: &mut Command, input: impl Into<Stdio>) -> Child {
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn();
    child.unwrap_or_else(|error| {
        panic!("cannot run {command:?}: {error}; `make setup` installs missing programs")
    })
}

/// Waits for the end of `child` and of its piped output, as [`Child::wait_with_output`] does.
///
/// # Panics
/// Kills the process and panics with its output after [`TIMEOUT`].
#[track_caller]
pub fn finish(child: Child) -> Output {
    finish_within(TIMEOUT, child)
}

#[track_caller]
fn finish_within(limit: Duration, mut child: Child) -> Output {
    drop(child.stdin.take());
    let stdout = child.stdout.take().map(read_in_background);
    let stderr = child.stderr.take().map(read_in_background);
    let status = exit_within(&mut child, limit);
    if status.is_none() {
        let _ = child.kill();
    }
    // A process that inherited the output may outlive the child.
    let collect = |pipe: Option<Receiver<Vec<u8>>>| pipe.map_or((Vec::new(), true), |pipe| collect(&pipe));
    let ((stdout, has_ended), (stderr, has_stderr_ended)) = (collect(stdout), collect(stderr));
    let Some(status) = status.filter(|_| has_ended && has_stderr_ended) else {
        panic!(
            "process {} or its output did not end within {limit:?}\n--- stdout ---\n{}\n--- stderr ---\n{}",
            child.id(),
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        );
    };
    Output {
        status,
        stdout,
        stderr,
    }
}

/// Waits for the end of `child`.
///
/// # Panics
/// Kills the process and panics after [`TIMEOUT`].
#[track_caller]
pub fn wait_exit(child: &mut Child) -> ExitStatus {
    exit_within(child, TIMEOUT).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("process {} did not end within {TIMEOUT:?}", child.id())
    })
}

/// Sends SIGKILL to `child` and waits for its end. Returns `None` after [`TIMEOUT`]: a thread of the process is stuck in the kernel.
pub fn kill(child: &mut Child) -> Option<ExitStatus> {
    // Fails if the process has been waited for.
    let _ = child.kill();
    exit_within(child, TIMEOUT)
}

/// A child process that does not outlive its test: drop kills it.
#[derive(Debug)]
pub struct KillOnDrop(pub Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = kill(&mut self.0);
    }
}

/// Kills a VMM that is no child of the test. Its PID cannot be reused meanwhile: nothing waits for it but its parent, which does not
/// know it.
pub struct KillDaemon(pub u32);

impl Drop for KillDaemon {
    fn drop(&mut self) {
        // SAFETY: the call takes no pointer.
        unsafe { libc::kill(i32::try_from(self.0).unwrap(), libc::SIGKILL) };
    }
}

/// Runs `test`, whose own waits have no limit, on a thread with the limit of [`join`].
///
/// # Panics
/// Panics if `test` panics, and after [`TIMEOUT`].
#[track_caller]
pub fn limited<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    join(thread::spawn(test))
}

fn exit_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let mut status = None;
    is_true_within(limit, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status
}

/// Reads `pipe` on a thread, which a hung program keeps, until its end or the drop of the receiver.
pub fn read_in_background(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
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

/// Returns all bytes, and true if the pipe has ended.
fn collect(pipe: &Receiver<Vec<u8>>) -> (Vec<u8>, bool) {
    let deadline = Instant::now() + TIMEOUT;
    let mut all = Vec::new();
    loop {
        match pipe.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => all.extend(bytes),
            Err(error) => return (all, error == RecvTimeoutError::Disconnected),
        }
    }
}

/// A thread that can be waited for.
pub trait Thread {
    /// Value that the thread returns.
    type Value;
    /// True once the thread has ended.
    fn has_ended(&self) -> bool;
    /// Returns the value of the ended thread, or the payload of its panic.
    fn value(self) -> thread::Result<Self::Value>;
}

macro_rules! implement_thread {
    ($($handle:ty),*) => {
        $(impl<T> Thread for $handle {
            type Value = T;
            fn has_ended(&self) -> bool {
                self.is_finished()
            }
            #[allow(
                clippy::disallowed_methods,
                reason = "the caller has seen the end of the thread"
            )]
            fn value(self) -> thread::Result<T> {
                self.join()
            }
        })*
    };
}

implement_thread!(JoinHandle<T>, ScopedJoinHandle<'_, T>);

/// Waits for the end of `thread` and returns its value.
///
/// # Panics
/// Panics if the thread panicked, and after [`TIMEOUT`]. A scope waits for its threads without a limit: their own waits need one.
#[track_caller]
pub fn join<T: Thread>(thread: T) -> T::Value {
    wait_until("the end of a thread", || thread.has_ended());
    match thread.value() {
        Ok(value) => value,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

/// Limit of calls in this process that a test cannot end: aborts the process with a message unless dropped within five times
/// [`TIMEOUT`], because the abort ends the other tests too.
#[derive(Debug)]
pub struct AbortTimer {
    _running: Sender<()>,
}

impl AbortTimer {
    /// Starts the timer. `subject` names the calls.
    pub fn start(subject: &'static str) -> Self {
        let (running, stop) = mpsc::channel();
        let current = thread::current();
        let test = current.name().unwrap_or_default().to_owned();
        thread::spawn(move || {
            let limit = 5 * TIMEOUT;
            if stop.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let _ = writeln!(io::stderr(), "{test}: {subject} did not end within {limit:?}");
                process::abort();
            }
        });
        Self { _running: running }
    }
}

/// Receives from `channel`.
///
/// # Panics
/// Panics if all senders are gone, and after [`TIMEOUT`].
#[track_caller]
pub fn receive<T>(channel: &Receiver<T>) -> T {
    match channel.recv_timeout(TIMEOUT) {
        Ok(value) => value,
        Err(error) => panic!("no message: {error}"),
    }
}

/// A socket that accepts connections.
pub trait Listener: AsFd {
    /// Type of a connection.
    type Stream;
    /// Accepts a connection.
    ///
    /// # Errors
    /// Fails if `accept` fails.
    fn accept_one(&self) -> io::Result<Self::Stream>;
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    #[allow(clippy::disallowed_methods, reason = "the caller has polled the listener")]
    fn accept_one(&self) -> io::Result<UnixStream> {
        self.accept().map(|(stream, _)| stream)
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    #[allow(clippy::disallowed_methods, reason = "the caller has polled the listener")]
    fn accept_one(&self) -> io::Result<TcpStream> {
        self.accept().map(|(stream, _)| stream)
    }
}

/// Accepts a connection of `listener`.
///
/// # Panics
/// Panics if `accept` fails, and after [`TIMEOUT`].
#[track_caller]
pub fn accept<L: Listener>(listener: &L) -> L::Stream {
    await_readable(listener.as_fd()).unwrap_or_else(|error| panic!("no connection: {error}"));
    listener.accept_one().unwrap()
}

/// A pipe, socket or terminal whose reads have a limit: they fail with [`ErrorKind::TimedOut`] after [`TIMEOUT`].
#[derive(Debug)]
pub struct Limited<T>(pub T);

impl<T: Read + AsFd> Read for Limited<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        await_readable(self.0.as_fd())?;
        self.0.read(buffer)
    }
}

impl<T: Write> Write for Limited<T> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.write(buffer)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<T: AsRawFd> AsRawFd for Limited<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits until a read or accept of `file` does not block.
///
/// # Errors
/// Fails with [`ErrorKind::TimedOut`] after [`TIMEOUT`].
///
/// # Panics
/// Panics if `poll` fails.
pub fn await_readable(file: BorrowedFd) -> io::Result<()> {
    match await_events(file, libc::POLLIN) {
        true => Ok(()),
        false => {
            let text = format!("nothing to read within {TIMEOUT:?}");
            Err(io::Error::new(ErrorKind::TimedOut, text))
        }
    }
}

/// Waits until the other end of `file`, a pipe, socket or terminal, is closed. A child that another test starts keeps it open until its
/// `execve`.
///
/// # Panics
/// Panics if `poll` fails, and after [`TIMEOUT`].
#[track_caller]
pub fn await_hangup(file: BorrowedFd) {
    // The kernel reports errors and hang-ups without a request.
    assert!(
        await_events(file, 0),
        "the other end: not closed within {TIMEOUT:?}"
    );
}

/// Waits up to [`TIMEOUT`] for one of `events`, an error or a hang-up of `file`. Returns false if there is none.
fn await_events(file: BorrowedFd, events: libc::c_short) -> bool {
    let deadline = Instant::now() + TIMEOUT;
    let mut poll = libc::pollfd {
        fd: file.as_raw_fd(),
        events,
        revents: 0,
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let milliseconds = libc::c_int::try_from(left.as_millis()).unwrap();
        // SAFETY: `poll` is one structure, valid for reads and writes.
        match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
            1 => return true,
            0 => return false,
            _ => {
                let error = io::Error::last_os_error();
                assert_eq!(error.kind(), ErrorKind::Interrupted, "poll: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};
    use std::time::Duration;
    use std::{io, thread};

    use super::{Limited, await_hangup, exit_within, finish, is_true_within, join, run, wait_for};

    #[test]
    fn wait_ends_at_its_limit() {
        assert!(!is_true_within(Duration::from_millis(5), || false));
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        assert_eq!(exit_within(&mut child, Duration::from_millis(5)), None);
        assert!(!super::kill(&mut child).unwrap().success());
    }

    #[test]
    fn output_is_complete() {
        let output = run(Command::new("sh").args(["-c", "seq 100000; echo err >&2; exit 3"]));
        assert_eq!(output.status.code(), Some(3));
        assert!(output.stdout.ends_with(b"\n100000\n") && output.stdout.len() > 500_000);
        assert_eq!(output.stderr, b"err\n");
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(finish(child).status.success(), "its input ends");
    }

    #[test]
    fn values_are_returned() {
        assert_eq!(join(thread::spawn(|| 7)), 7);
        let mut count = 0;
        let found = wait_for("three", || {
            count += 1;
            (count == 3).then_some(count)
        });
        assert_eq!(found, 3);
        let (reader, writer) = io::pipe().unwrap();
        drop(writer);
        await_hangup(reader.as_fd());
        let mut end = Vec::new();
        assert_eq!(Limited(reader).read_to_end(&mut end).unwrap(), 0);
    }
}
