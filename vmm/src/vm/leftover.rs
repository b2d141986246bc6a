//! What the start of a VM leaves behind.

use crate::memory::page_size;

/// More than a start needs of the stack, in bytes.
const STACK_OF_A_START: usize = 64 << 10;

/// Gives back what the start of a VM took of the heap and of the calling thread's stack: there may be thousands of such
/// processes on a host.
#[inline(never)]
pub(super) fn release_startup_memory() {
    // SAFETY: the call takes no pointer, and touches only what is not in use.
    unsafe { libc::malloc_trim(0) };
    let Ok(page) = usize::try_from(page_size()) else {
        return;
    };
    let frame = 0_u8;
    let here = &raw const frame;
    // One page below that of the frame is left for the call itself.
    let unused = here.wrapping_sub(here.addr() % page + page + STACK_OF_A_START);
    // SAFETY: the stack grows downwards, so that below the frame of this function, which is its own and small because it is not
    // inlined, there is nothing that anybody has. Where the stack does not reach so far, the kernel says that there is no
    // memory, and leaves it at that.
    unsafe { libc::madvise(unused.cast_mut().cast(), STACK_OF_A_START, libc::MADV_DONTNEED) };
}
