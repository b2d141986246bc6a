//! Global allocator that records the peak of each thread's heap.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Allocated bytes since the last [`reset`], and their maximum. Negative if earlier memory was freed.
    static HEAP: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// The allocator.
pub struct Counting;

fn record(change: isize) {
    let _ = HEAP.try_with(|heap| {
        let (current, peak) = heap.get();
        let current = current.saturating_add(change);
        heap.set((current, peak.max(current)));
    });
}

// SAFETY: all calls go to the system's allocator; the counters allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        record(layout.size().cast_signed());
        // SAFETY: the caller passes a valid layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        record(layout.size().cast_signed());
        // SAFETY: the caller passes a valid layout.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        record(-layout.size().cast_signed());
        // SAFETY: the caller passes memory of this allocator with its layout.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        record(size.cast_signed() - layout.size().cast_signed());
        // SAFETY: the caller passes memory of this allocator with its layout, and a valid size.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// Starts a new count for this thread.
pub fn reset() {
    HEAP.set((0, 0));
}

/// Returns the maximum of allocated bytes since [`reset`].
pub fn peak() -> usize {
    HEAP.get().1.unsigned_abs()
}
