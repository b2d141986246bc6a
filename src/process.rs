//! The process around a command: what comes before it and after it.
//!
//! It begins here and not in the standard library's `main`, which reads and parses `/proc/self/maps` and gives the thread and
//! all others a second stack, so that an overflow is told from other faults: some 25 system calls of a start. Of what is left
//! out, the rest is done here: that descriptors 0 to 2 are open, and that what is printed is flushed.

#[cfg(not(test))]
use std::io::{self, Write};

#[cfg(not(test))]
use vmm::event_loop::ignore_output_signals;

/// Exit status of a command that did what it was to do.
pub const SUCCESS: u8 = 0;
/// Exit status of one that did not.
pub const FAILURE: u8 = 1;

/// What the C library calls.
#[cfg(not(test))]
// SAFETY: there is no other symbol of that name, and its arguments, which are not used, are an integer's and a pointer's.
#[unsafe(no_mangle)]
extern "C" fn main(_count: libc::c_int, _arguments: *const *const libc::c_char) -> libc::c_int {
    open_standard_descriptors();
    limit_malloc_arenas();
    ignore_output_signals();
    let status = crate::command();
    // Nobody is left to be told.
    let _ = io::stdout().flush();
    libc::c_int::from(status)
}

/// Opens `/dev/null` where a standard descriptor is closed, lest a file that is opened later becomes the guest's console.
#[cfg(not(test))]
fn open_standard_descriptors() {
    let mut standard = [0, 1, 2].map(|fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    });
    // SAFETY: the three structures are valid for reads and writes.
    unsafe { libc::poll(standard.as_mut_ptr(), 3, 0) };
    for descriptor in &standard {
        if descriptor.revents & libc::POLLNVAL != 0 {
            // The lowest number that is free is this one. Where there is no such device, nothing can be done about it.
            // SAFETY: the path is a string of C.
            unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        }
    }
}

/// Keeps the C library from giving each thread a heap of its own: mapping one takes longer than a vCPU's thread could
/// ever win by it.
#[cfg(not(test))]
fn limit_malloc_arenas() {
    // SAFETY: the call changes a parameter of the allocator, before there is a second thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
