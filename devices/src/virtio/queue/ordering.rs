//! Order of the accesses to the words of the rings that driver and device share, virtio 1.2 §2.7.
//!
//! The functions are generic over the memory: `tests/interleavings` runs them on loom's atomics.

use crate::sync::atomic::{Ordering, fence};

/// A 16-bit word of the rings, virtio 1.2 §2.7.6 and §2.7.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// `flags` of the available ring, from the driver.
    AvailableFlags,
    /// `idx` of the available ring, from the driver.
    AvailableIndex,
    /// An entry of the available ring, from the driver.
    AvailableEntry(u16),
    /// `used_event`, at the end of the available ring, from the driver.
    UsedEvent,
    /// `flags` of the used ring, from the device.
    UsedFlags,
    /// `idx` of the used ring, from the device.
    UsedIndex,
    /// `avail_event`, at the end of the used ring, from the device.
    AvailableEvent,
}

/// Value of the flags of a ring that suppresses notifications: VIRTQ_USED_F_NO_NOTIFY and VIRTQ_AVAIL_F_NO_INTERRUPT.
pub const SUPPRESS: u16 = 1;

/// Access to the words of one virtqueue.
pub trait SharedWords {
    /// Error of an access.
    type Error;

    /// Loads a word.
    fn load(&self, word: Word, order: Ordering) -> Result<u16, Self::Error>;

    /// Stores a word.
    fn store(&self, word: Word, value: u16, order: Ordering) -> Result<(), Self::Error>;

    /// Calls [`full_barrier`].
    #[inline]
    fn barrier(&self) {
        full_barrier();
    }
}

/// Orders the stores before it and the loads after it: SeqCst, because no weaker order covers a store before a load.
#[inline]
pub fn full_barrier() {
    fence(Ordering::SeqCst);
}

/// Returns the index of the driver in the available ring. Entries before it, and their descriptors and buffers, may be read.
///
/// # Errors
/// Fails if a word cannot be accessed, as do all functions of this module.
#[inline]
pub fn available_index<W: SharedWords>(words: &W) -> Result<u16, W::Error> {
    // Acquire: pairs with the barrier of the driver between entry and index, virtio 1.2 §2.7.13.2.
    words.load(Word::AvailableIndex, Ordering::Acquire)
}

/// Returns the entry `slot` of the available ring, after [`available_index`].
#[inline]
pub fn available_entry<W: SharedWords>(words: &W, slot: u16) -> Result<u16, W::Error> {
    words.load(Word::AvailableEntry(slot), Ordering::Relaxed)
}

/// Publishes the entries of the used ring before `index`.
#[inline]
pub fn publish_used<W: SharedWords>(words: &W, index: u16) -> Result<(), W::Error> {
    // Release: the driver must see entries and buffers before the index, virtio 1.2 §2.7.8. It also keeps the reads of the chain before
    // it: the driver may then reuse the descriptors.
    words.store(Word::UsedIndex, index, Ordering::Release)
}

/// Disables available buffer notifications. A late effect costs a notification only.
#[inline]
pub fn disable_notification<W: SharedWords>(words: &W) -> Result<(), W::Error> {
    words.store(Word::UsedFlags, SUPPRESS, Ordering::Relaxed)
}

/// Enables available buffer notifications for chains from the index `next` on. Returns true if there are some: the driver may send no
/// notification for them.
#[inline]
pub fn enable_notification<W: SharedWords>(words: &W, event_idx: bool, next: u16) -> Result<bool, W::Error> {
    match event_idx {
        true => words.store(Word::AvailableEvent, next, Ordering::Relaxed)?,
        false => words.store(Word::UsedFlags, 0, Ordering::Relaxed)?,
    }
    // Full barrier: the driver stores the index, then loads the event or flags. At least one side sees the store of the other.
    words.barrier();
    Ok(available_index(words)? != next)
}

/// Returns true if the driver expects a used buffer notification for the entries from index `old` to `next`, which are published; virtio
/// 1.2 §2.7.7.2.
#[inline]
pub fn needs_notification<W: SharedWords>(
    words: &W,
    event_idx: bool,
    old: u16,
    next: u16,
) -> Result<bool, W::Error> {
    // Full barrier: the driver stores its event or flags, then loads the used index. At least one side sees the store of the other.
    words.barrier();
    if event_idx {
        let event = words.load(Word::UsedEvent, Ordering::Relaxed)?;
        return Ok(is_event_passed(event, old, next));
    }
    Ok(words.load(Word::AvailableFlags, Ordering::Relaxed)? & SUPPRESS == 0)
}

/// Returns true if an index that moved from `old` to `next` has passed `event`: vring_need_event of virtio 1.2 §2.7.7.1.
#[inline]
pub fn is_event_passed(event: u16, old: u16, next: u16) -> bool {
    next.wrapping_sub(event).wrapping_sub(1) < next.wrapping_sub(old)
}
