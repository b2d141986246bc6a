//! Last unclaimed accesses of a vCPU.

use devices::Counter;
use devices::sync::atomic::{AtomicU64, Ordering, fence};

use crate::arch::AddressSpace;

/// Number of different accesses that are kept. One for loom, whose time grows exponentially.
pub const KEPT_ACCESSES: usize = if cfg!(loom) { 1 } else { 8 };

/// Attempts of a reader to read an entry that the vCPU thread changes.
const READ_ATTEMPTS: usize = if cfg!(loom) { 2 } else { 8 };

/// Kind of an access, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Address space.
    pub space: AddressSpace,
    /// A write, not a read.
    pub is_write: bool,
    /// Width in bytes, up to 8.
    pub width: u8,
    /// Address.
    pub address: u64,
}

/// Unclaimed accesses of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnclaimedAccess {
    /// Kind.
    pub access: Access,
    /// Number since the entry was made.
    pub count: u64,
    /// Position of the last one among all unclaimed accesses of the vCPU.
    pub last: u64,
}

/// The last [`KEPT_ACCESSES`] different unclaimed accesses of a vCPU.
///
/// Only the vCPU thread writes. It takes no lock and allocates nothing, so that a guest that storms unclaimed addresses slows nobody
/// down. Any thread reads; a sequence number in each entry excludes a mix of two accesses.
#[derive(Debug, Default)]
pub struct UnclaimedAccesses {
    total: Counter,
    entries: [Entry; KEPT_ACCESSES],
}

/// One entry. `last` is 0 while the entry is free.
#[derive(Debug, Default)]
struct Entry {
    /// Odd while the vCPU thread replaces the access.
    sequence: AtomicU64,
    kind: Counter,
    address: Counter,
    count: Counter,
    last: Counter,
}

impl UnclaimedAccesses {
    /// Records `number` accesses of one kind, which follow each other. Only for the thread of the vCPU.
    pub fn record(&self, access: Access, number: u64) {
        self.total.add(number);
        let (kind, position) = (access.kind(), self.total.get());
        let mut oldest = &self.entries[0];
        for entry in &self.entries {
            if entry.last.get() != 0 && entry.kind.get() == kind && entry.address.get() == access.address {
                entry.count.add(number);
                entry.last.set(position);
                return;
            }
            if entry.last.get() < oldest.last.get() {
                oldest = entry;
            }
        }
        oldest.replace(kind, access.address, number, position);
    }

    /// Returns the accesses, the last one first. Leaves out an entry that the vCPU thread replaces all the time.
    pub fn list(&self) -> Vec<UnclaimedAccess> {
        let mut list: Vec<_> = self.entries.iter().filter_map(Entry::read).collect();
        list.sort_by_key(|access| std::cmp::Reverse(access.last));
        list
    }
}

impl Entry {
    /// Replaces the access.
    fn replace(&self, kind: u64, address: u64, count: u64, last: u64) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        // A reader that sees a new value sees the odd sequence number too.
        fence(Ordering::Release);
        self.kind.set(kind);
        self.address.set(address);
        self.count.set(count);
        self.last.set(last);
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// Returns the access, or `None` if the entry is free or changes.
    fn read(&self) -> Option<UnclaimedAccess> {
        for _ in 0..READ_ATTEMPTS {
            let before = self.sequence.load(Ordering::Acquire);
            let read = UnclaimedAccess {
                access: Access::new(self.kind.get(), self.address.get()),
                count: self.count.get(),
                last: self.last.get(),
            };
            // The values are read before the second read of the sequence number.
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before {
                return (read.last != 0).then_some(read);
            }
        }
        None
    }
}

impl Access {
    /// Returns everything but the address as a number.
    fn kind(self) -> u64 {
        u64::from(self.width) << 2 | u64::from(self.is_write) << 1 | u64::from(self.space == AddressSpace::Io)
    }

    fn new(kind: u64, address: u64) -> Self {
        Self {
            space: match kind & 1 {
                0 => AddressSpace::Memory,
                _ => AddressSpace::Io,
            },
            is_write: kind & 2 != 0,
            width: u8::try_from(kind >> 2).unwrap_or(u8::MAX),
            address,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::{Access, AddressSpace, KEPT_ACCESSES, UnclaimedAccesses};

    fn io(address: u64, width: u8) -> Access {
        Access {
            space: AddressSpace::Io,
            is_write: address.is_multiple_of(2),
            width,
            address,
        }
    }

    fn listed(accesses: &UnclaimedAccesses) -> Vec<(u64, u8, u64)> {
        let list = accesses.list();
        list.iter()
            .map(|entry| (entry.access.address, entry.access.width, entry.count))
            .collect()
    }

    #[test]
    fn accesses_are_counted_by_kind() {
        let accesses = UnclaimedAccesses::default();
        assert!(accesses.list().is_empty());
        for (address, width, number) in [(1, 1, 1), (2, 1, 4), (1, 2, 1), (1, 1, 1)] {
            accesses.record(io(address, width), number);
        }
        assert_eq!(listed(&accesses), [(1, 1, 2), (1, 2, 1), (2, 1, 4)]);
        let memory = Access {
            space: AddressSpace::Memory,
            ..io(1, 1)
        };
        accesses.record(memory, 1);
        let write = Access {
            is_write: true,
            ..memory
        };
        accesses.record(write, 1);
        let kinds = accesses.list();
        assert_eq!((kinds[0].access, kinds[1].access), (write, memory));
        assert_eq!(kinds[2].access, io(1, 1));
    }

    #[test]
    fn oldest_access_is_replaced() {
        let accesses = UnclaimedAccesses::default();
        for address in 0..20 {
            accesses.record(io(address, 1), 1);
            accesses.record(io(100, 4), 1);
        }
        let list = listed(&accesses);
        assert_eq!(list.len(), KEPT_ACCESSES);
        assert_eq!(list[..3], [(100, 4, 20), (19, 1, 1), (18, 1, 1)]);
        assert_eq!(list[7], (13, 1, 1));
    }

    #[test]
    fn reader_sees_no_mixed_access() {
        let accesses = Arc::new(UnclaimedAccesses::default());
        let ended = Arc::new(AtomicBool::new(false));
        let writer = {
            let (accesses, ended) = (accesses.clone(), ended.clone());
            thread::spawn(move || {
                for address in 0..20_000_u64 {
                    accesses.record(io(address, u8::try_from(address % 8).unwrap()), address + 1);
                }
                ended.store(true, Ordering::SeqCst);
            })
        };
        while !ended.load(Ordering::SeqCst) {
            for entry in accesses.list() {
                let Access { address, width, .. } = entry.access;
                assert_eq!((u64::from(width), entry.count), (address % 8, address + 1));
            }
        }
        scratch::join(writer);
    }
}
