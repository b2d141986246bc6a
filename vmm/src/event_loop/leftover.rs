//! Memory that the start of a VM leaves behind.

use crate::memory::page_size;

/// Stack below the caller's frame that a start used at most, in bytes.
const STARTUP_STACK: usize = 64 << 10;

/// Releases to the kernel the heap and stack memory that only the start used: a host may run thousands of such processes. Not inlined,
/// so that the frame of this function is the lowest in use.
#[inline(never)]
pub fn release_startup_memory() {
    // SAFETY: the call takes no pointer, and releases only unused memory.
    unsafe { libc::malloc_trim(0) };
    let Ok(page) = usize::try_from(page_size()) else {
        return;
    };
    let frame = 0_u8;
    let here = &raw const frame;
    // The page below that of the frame is kept for the call itself.
    let unused = here.wrapping_sub(here.addr() % page + page + STARTUP_STACK);
    // SAFETY: the stack grows downwards, so that nothing is in use below the page under this frame, which is small and not inlined.
    // Where the stack is shorter, the kernel returns ENOMEM and changes nothing.
    unsafe { libc::madvise(unused.cast_mut().cast(), STARTUP_STACK, libc::MADV_DONTNEED) };
}
