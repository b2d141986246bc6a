//! End of the process where it can neither allocate memory nor wait for a lock: in a signal handler, or without memory.
//!
//! No destructor runs. Guest output that is buffered is lost, and files of the process remain, such as the API socket.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::c_int;

/// Time for a reader of stderr to take the message, in milliseconds.
const OUTPUT_TIMEOUT: c_int = 100;

/// Function that restores the terminal.
static RESTORE: OnceLock<fn()> = OnceLock::new();
/// A thread ends the process.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Sets the function that restores the terminal, which must be async-signal-safe. Only the function of the first call is used.
pub fn set_restore(restore: fn()) {
    let _ = RESTORE.set(restore);
}

/// Restores the terminal. Async-signal-safe.
pub fn restore() {
    if let Some(restore) = RESTORE.get() {
        restore();
    }
}

/// Prints `message` on stderr without memory or a further descriptor. Drops it if stderr is closed or stays unread for 100 ms.
/// Returns true if stderr took it. Async-signal-safe.
pub fn print(message: &[u8]) -> bool {
    // A pipe that is ready has room for PIPE_BUF bytes (pipe(7)), so that the write does not block.
    for chunk in message.chunks(libc::PIPE_BUF) {
        let mut stderr = libc::pollfd {
            fd: libc::STDERR_FILENO,
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: `stderr` is one valid structure.
        if unsafe { libc::poll(&raw mut stderr, 1, OUTPUT_TIMEOUT) } != 1 {
            return false;
        }
        // SAFETY: `chunk` is valid for reads of its length.
        if unsafe { libc::write(libc::STDERR_FILENO, chunk.as_ptr().cast(), chunk.len()) } < 0 {
            return false;
        }
    }
    true
}

/// Restores the terminal, [prints](print()) `message` and ends the process with `status`. Async-signal-safe.
pub fn end(status: u8, message: &[u8]) -> ! {
    if ENDING.swap(true, Ordering::Relaxed) {
        // Another thread prints its message and then ends this one.
        loop {
            // SAFETY: the call has no preconditions.
            unsafe { libc::pause() };
        }
    }
    restore();
    print(message);
    // SAFETY: the call has no preconditions; it runs no destructors and takes no locks.
    unsafe { libc::_exit(c_int::from(status)) };
}
