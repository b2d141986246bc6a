//! Caches of instructions, which do not follow writes to memory.

use std::arch::asm;

use snapshot::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// Makes `length` bytes at `address`, which this thread has written, visible to later fetches of instructions by all processors: Arm
/// Architecture Reference Manual, "Concurrent modification and execution of instructions". Without such memory nothing happens.
pub fn sync_instructions(memory: &GuestMemory, address: GuestAddress, length: usize) {
    let Ok(slice) = memory.get_slice(address, length) else {
        return;
    };
    let guard = slice.ptr_guard();
    let start = guard.as_ptr().addr();
    let lines = line_sizes();
    for line in lines_of(start, length, lines.data) {
        // SAFETY: the address is in mapped memory, and the instruction changes no data.
        unsafe { asm!("dc cvau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    barrier();
    for line in lines_of(start, length, lines.instruction) {
        // SAFETY: the address is in mapped memory, and the instruction changes no data.
        unsafe { asm!("ic ivau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    barrier();
}

/// Sizes of the smallest lines of caches in bytes.
struct LineSizes {
    data: usize,
    instruction: usize,
}

fn line_sizes() -> LineSizes {
    let sizes: usize;
    // SAFETY: Linux permits EL0 to read the register, which has no side effect.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) sizes, options(nomem, nostack, preserves_flags)) };
    LineSizes {
        data: 4 << (sizes >> 16 & 0xf),
        instruction: 4 << (sizes & 0xf),
    }
}

/// Returns the addresses of the lines of `size` bytes, a power of two, with `length` bytes at `start`.
fn lines_of(start: usize, length: usize, size: usize) -> impl Iterator<Item = usize> {
    (start & !(size - 1)..start + length).step_by(size)
}

/// Waits until the maintenance of caches has finished on all processors.
fn barrier() {
    // SAFETY: the barrier has no other effect.
    unsafe { asm!("dsb ish", options(nostack, preserves_flags)) };
}
