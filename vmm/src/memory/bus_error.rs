//! Access to guest memory whose mapped file was truncated: the kernel sends SIGBUS to the thread.
//!
//! Devices access guest memory on several threads, and no access can be repeated. The handler therefore ends the process: it names
//! the file, restores the terminal and exits. An access by a system call or by the guest fails with EFAULT instead and raises no
//! signal.

use std::fmt::{self, Write};
use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use libc::{c_int, c_void, siginfo_t};

use crate::emergency;

/// Size of the message. A pipe accepts PIPE_BUF bytes at once (pipe(7)).
const CAPACITY: usize = 4096;

/// `BUS_ADRERR` of asm-generic/siginfo.h: the address has no page, for example beyond the end of a mapped file.
const BUS_ADRERR: c_int = 2;

/// Exit status after a truncation of a mapped file; 0 if none is set.
static STATUS: AtomicU8 = AtomicU8::new(0);
/// Installation of the handler. A second thread waits for it: the handler must be there before any mapping is used.
static INSTALLATION: Once = Once::new();
/// Range of addresses that contains all mapped files. Relaxed: a thread gets a mapping after it is watched, and the handler runs on the
/// thread that accesses it.
static START: AtomicUsize = AtomicUsize::new(usize::MAX);
static END: AtomicUsize = AtomicUsize::new(0);
/// Message, formatted ahead because the handler must not allocate.
static MESSAGE: [AtomicU8; CAPACITY] = [const { AtomicU8::new(0) }; CAPACITY];
static LENGTH: AtomicUsize = AtomicUsize::new(0);

/// Sets the exit status after a truncation of a mapped file, which is not 0. Any other bus error ends the process by SIGBUS.
pub fn set_exit_status(status: u8) {
    STATUS.store(status, Ordering::Relaxed);
}

/// Installs the handler, which first calls `restore` at any bus error. `restore` must be async-signal-safe. Only the function of the
/// first call is used.
pub fn install_with(restore: fn()) {
    emergency::set_restore(restore);
    install();
}

/// Sets the names of the files that are mapped as guest memory, for the message. No thread may access guest memory meanwhile.
pub fn set_files(files: fmt::Arguments<'_>) {
    let mut message = Message(0);
    // Fails if the names are too long; the message has their beginning then.
    let _ = write!(
        message,
        "mayfly: cannot access guest memory: {files} was truncated or cannot be read; keep it unchanged while a VM uses it"
    );
    MESSAGE[message.0].store(b'\n', Ordering::Relaxed);
    LENGTH.store(message.0 + 1, Ordering::Release);
}

/// Writer to [`MESSAGE`], and its position.
struct Message(usize);

impl fmt::Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // The last byte is for the line feed.
            if self.0 + 1 >= CAPACITY {
                return Err(fmt::Error);
            }
            MESSAGE[self.0].store(byte, Ordering::Relaxed);
            self.0 += 1;
        }
        Ok(())
    }
}

/// Adds a mapping of a file, of `length` bytes at the address `start`, and installs the handler.
pub(super) fn watch(start: usize, length: usize) {
    START.fetch_min(start, Ordering::Relaxed);
    END.fetch_max(start.saturating_add(length), Ordering::Relaxed);
    install();
}

/// Installs the handler for SIGBUS, unless it is installed.
fn install() {
    INSTALLATION.call_once(set_action);
}

fn set_action() {
    // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask, the default action.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // Fails only for an invalid signal number.
    // SAFETY: `action` is valid, and the handler has the type that SA_SIGINFO requires and is async-signal-safe.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) };
}

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    emergency::restore();
    let status = STATUS.load(Ordering::Relaxed);
    // SAFETY: the kernel passes a valid structure to a handler with SA_SIGINFO, until the handler returns.
    let info = unsafe { &*info };
    if info.si_code == BUS_ADRERR && status != 0 {
        // SAFETY: the kernel sets the address for this code.
        let address = unsafe { info.si_addr() }.addr();
        if (START.load(Ordering::Relaxed)..END.load(Ordering::Relaxed)).contains(&address) {
            end(status);
        }
    }
    // Any other bus error ends the process by the signal, so that its parent sees the cause. It is delivered when the handler
    // returns.
    // SAFETY: SIG_DFL is a valid action.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: the call takes no pointer and is safe in a signal handler.
    unsafe { libc::raise(signal) };
}

/// Prints the message and ends the process.
fn end(status: u8) -> ! {
    let mut message = [0; CAPACITY];
    let length = LENGTH.load(Ordering::Acquire).min(CAPACITY);
    for (byte, stored) in message.iter_mut().zip(&MESSAGE) {
        *byte = stored.load(Ordering::Relaxed);
    }
    emergency::end(status, &message[..length])
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Output};
    use std::sync::atomic::Ordering;

    use scratch::Directory;
    use vm_memory::{Bytes, GuestAddress};

    use super::{CAPACITY, LENGTH, MESSAGE, install_with, set_exit_status, set_files};
    use crate::memory::{map_snapshot, page_size};

    const STATUS: u8 = 99;
    /// Variable with the cause of the bus error in the [`victim`].
    const CAUSE: &str = "MAYFLY_TEST_BUS_ERROR";

    fn message() -> String {
        let bytes = MESSAGE.iter().take(LENGTH.load(Ordering::Acquire));
        String::from_utf8(bytes.map(|byte| byte.load(Ordering::Relaxed)).collect()).unwrap()
    }

    fn restore() {
        eprintln!("restored");
    }

    /// Causes a bus error.
    fn victim(cause: &str) {
        let directory = Directory::new();
        let path = directory.path("memory");
        let file = File::create_new(&path).unwrap();
        file.set_len(2 * page_size()).unwrap();
        let size = usize::try_from(2 * page_size()).unwrap();
        let mapped = File::open(&path).unwrap();
        set_files(format_args!("the memory file {path:?}"));
        let memory = map_snapshot(&[(GuestAddress(0), size)], &mapped).unwrap();
        install_with(restore);
        set_exit_status(STATUS);
        memory.write_obj(7_u8, GuestAddress(page_size())).unwrap();
        file.set_len(page_size()).unwrap();
        if cause == "signal" {
            // SAFETY: the call takes no pointer.
            unsafe { libc::raise(libc::SIGBUS) };
        }
        // A device accesses guest memory on any thread.
        let read = || memory.read_obj::<u8>(GuestAddress(page_size()));
        std::thread::scope(|scope| scratch::join(scope.spawn(read))).unwrap();
    }

    fn run_victim(cause: &str) -> Output {
        let mut command = Command::new(env::current_exe().unwrap());
        let test = "memory::bus_error::tests::truncated_file_ends_process_with_its_name";
        command.args(["--exact", test, "--nocapture"]).env(CAUSE, cause);
        scratch::run(&mut command)
    }

    #[test]
    fn truncated_file_ends_process_with_its_name() {
        if let Ok(cause) = env::var(CAUSE) {
            return victim(&cause);
        }
        let output = run_victim("truncation");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(i32::from(STATUS)), "{stderr}");
        assert!(
            stderr.contains("restored\nmayfly: cannot access guest memory: the memory file \"/"),
            "{stderr}"
        );
    }

    #[test]
    fn other_bus_error_ends_process_by_signal() {
        let output = run_victim("signal");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{stderr}");
        assert!(
            stderr.contains("restored\n") && !stderr.contains("mayfly: "),
            "{stderr}"
        );
    }

    #[test]
    fn message_names_file_on_one_line() {
        let long = "x".repeat(2 * CAPACITY);
        for name in ["a\n\u{1b}[2J", "b", &long] {
            set_files(format_args!("the memory file {name:?}"));
            let message = message();
            assert_eq!(
                message.find(char::is_control),
                Some(message.len() - 1),
                "{message}"
            );
        }
        assert_eq!(message().len(), CAPACITY);
        set_files(format_args!("the memory file {:?}", "m"));
        assert!(message().starts_with(
            "mayfly: cannot access guest memory: the memory file \"m\" was truncated or cannot be read; "
        ));
    }
}
