//! Heap of the process: the allocator of the C library, with a documented end when it has no memory left.
//!
//! Code that allocates much checks for a failure and returns an error. Any other failure ends the process: mayfly cannot continue
//! without the value. The standard library would abort it, and would write to a stderr that nothing reads without a limit of time. It still does
//! so after the failure of an unchecked allocation of [`REPORTED_SIZE`] or more, before the handler of SIGABRT runs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::{self, Write};
use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use libc::c_int;
use vmm::emergency;

/// Exit status if the process has no memory left.
pub const OUT_OF_MEMORY: u8 = 122;

/// Size in bytes from which the caller receives the failure. Callers that can continue allocate more than this.
const REPORTED_SIZE: usize = 4096;

/// The allocator of the C library.
pub struct Allocator;

// SAFETY: all methods forward to the allocator of the C library, which fulfills the contract, and return its result.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the contract of the caller is the same.
        check(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the contract of the caller is the same.
        unsafe { System.dealloc(pointer, layout) };
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the contract of the caller is the same.
        check(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the contract of the caller is the same.
        check(unsafe { System.realloc(pointer, layout, size) }, size)
    }
}

fn check(pointer: *mut u8, size: usize) -> *mut u8 {
    if pointer.is_null() {
        handle_failure(size);
    }
    pointer
}

/// Size of the last failed allocation in bytes.
static FAILED: AtomicUsize = AtomicUsize::new(0);

/// Ends the process, or prepares its end for a caller that does not check for the failure: the standard library then aborts.
#[cold]
fn handle_failure(size: usize) {
    if size < REPORTED_SIZE {
        end(size);
    }
    FAILED.store(size, Ordering::Relaxed);
    // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask, the default action.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handle_abort as extern "C" fn(c_int) as usize;
    // SAFETY: `action` is valid, and the handler is async-signal-safe.
    unsafe { libc::sigaction(libc::SIGABRT, &raw const action, null_mut()) };
}

extern "C" fn handle_abort(signal: c_int) {
    if !thread::panicking() {
        end(FAILED.load(Ordering::Relaxed));
    }
    // A panic has another cause than the failed allocation, which was handled.
    emergency::restore();
    // SAFETY: SIG_DFL is a valid action.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: the call takes no pointer and is safe in a signal handler.
    unsafe { libc::raise(signal) };
}

/// Ends the process with a message about an allocation of `size` bytes.
fn end(size: usize) -> ! {
    let mut message = Message {
        bytes: [0; 256],
        length: 0,
    };
    // Cannot fail: the message is shorter than its buffer.
    let _ = writeln!(
        message,
        "mayfly: cannot allocate {size} bytes: out of memory; raise RLIMIT_AS (ulimit -v) and the memory limit of the container, \
         or free memory of the host"
    );
    emergency::end(OUT_OF_MEMORY, &message.bytes[..message.length])
}

/// Text without a heap.
struct Message {
    bytes: [u8; 256],
    length: usize,
}

impl Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let rest = self.bytes.get_mut(self.length..).ok_or(fmt::Error)?;
        rest.get_mut(..text.len())
            .ok_or(fmt::Error)?
            .copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::hint::black_box;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Output};

    use vmm::emergency;

    use super::OUT_OF_MEMORY;

    /// Variable with the kind of allocation in the [`victim`].
    const KIND: &str = "MAYFLY_TEST_ALLOCATION";

    /// Larger than any address space.
    const LARGE: usize = isize::MAX as usize - 1;

    /// Fails to allocate memory.
    fn victim(kind: &str) {
        emergency::set_restore(|| eprintln!("restored"));
        match kind {
            "small" => loop {
                // Leaks until the limit of the address space.
                black_box(Box::leak(Box::new([0_u8; 1024])));
            },
            "large" => drop(black_box(Vec::<u8>::with_capacity(LARGE))),
            "checked" => {
                Vec::<u8>::new().try_reserve_exact(LARGE).unwrap_err();
                eprintln!("continued");
                panic_without_unwinding();
            }
            _ => unreachable!(),
        }
    }

    extern "C" fn panic_without_unwinding() {
        panic!("another cause");
    }

    fn run_victim(kind: &str) -> Output {
        let shell = format!(
            "ulimit -v 300000; exec {:?} --exact {} --nocapture",
            env::current_exe().unwrap(),
            TEST
        );
        scratch::run(Command::new("sh").args(["-c", &shell]).env(KIND, kind))
    }

    const TEST: &str = "allocator::tests::failed_allocation_ends_process_with_message";

    #[test]
    fn failed_allocation_ends_process_with_message() {
        if let Ok(kind) = env::var(KIND) {
            return victim(&kind);
        }
        for (kind, bytes) in [("small", 1024), ("large", LARGE)] {
            let output = run_victim(kind);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(
                output.status.code(),
                Some(i32::from(OUT_OF_MEMORY)),
                "{kind}: {stderr}"
            );
            let message =
                format!("restored\nmayfly: cannot allocate {bytes} bytes: out of memory; raise RLIMIT_AS ");
            assert!(stderr.contains(&message), "{kind}: {stderr}");
        }
    }

    #[test]
    fn panic_after_failed_allocation_is_no_lack_of_memory() {
        let output = run_victim("checked");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{stderr}");
        assert!(
            stderr.contains("continued\n") && stderr.contains("restored\n"),
            "{stderr}"
        );
        assert!(!stderr.contains("cannot allocate"), "{stderr}");
    }
}
