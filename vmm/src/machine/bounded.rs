//! Calls of a file system that may not answer, with a limit of time.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;
use std::time::Duration;

use crate::channel::channel;

/// Maximum time of a call.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of calls without an answer. A client could otherwise grow the process by repeated requests.
const MAX_CALLS: usize = 4;

/// Calls that run, late ones included.
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Reason why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The call takes too long.
    #[error("its file system does not answer within {} s; repeat the request when it does", TIMEOUT.as_secs())]
    Timeout,
    /// Earlier calls still run.
    #[error(
        "{MAX_CALLS} earlier calls wait for file systems that do not answer; repeat the request when they do"
    )]
    Full,
    /// No thread can be created.
    #[error("cannot start a thread; raise the limits of memory and threads (ulimit -v, -u, pids.max)")]
    Thread(#[source] io::Error),
}

/// Runs `call` on a thread of its own, and returns its result. A late result is dropped.
///
/// # Errors
/// [`Error`]
pub fn run<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    run_within(TIMEOUT, call)
}

fn run_within<T: Send + 'static>(
    timeout: Duration,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let running = Running::begin().ok_or(Error::Full)?;
    let (sender, result) = channel();
    let body = move || {
        // Fails if the caller no longer waits.
        let _ = sender.send(call());
        drop(running);
    };
    let thread = Builder::new().name("mayfly_open".to_owned());
    thread.spawn(body).map_err(Error::Thread)?;
    result.receive_within(timeout).map_err(|_| Error::Timeout)
}

/// Place of a running call among [`MAX_CALLS`].
struct Running;

impl Running {
    fn begin() -> Option<Self> {
        if CALLS.fetch_add(1, Ordering::Relaxed) < MAX_CALLS {
            return Some(Self);
        }
        CALLS.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        CALLS.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::{CALLS, Error, MAX_CALLS, run, run_within};

    /// One test: the number of calls is that of the process.
    #[test]
    fn calls_without_answer_are_limited() {
        assert_eq!(run(|| 7).unwrap(), 7);
        let gates = (0..MAX_CALLS).map(|_| {
            let (gate, opened) = mpsc::channel::<()>();
            let late = run_within(Duration::from_millis(1), move || {
                let _ = opened.recv_timeout(scratch::TIMEOUT);
            });
            assert!(matches!(late, Err(Error::Timeout)), "{late:?}");
            gate
        });
        let gates: Vec<_> = gates.collect();
        assert!(matches!(run(|| ()), Err(Error::Full)));
        drop(gates);
        scratch::wait_until("the end of the calls", || CALLS.load(Ordering::Relaxed) == 0);
        run(|| ()).unwrap();
    }
}
