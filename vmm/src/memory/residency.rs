//! Count of the resident bytes of guest memory.

use std::cell::Cell;
use std::time::{Duration, Instant};

use snapshot::GuestMemory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::map::page_size;

/// Pages per call of mincore(2).
const CHUNK_PAGES: usize = 4 << 10;

/// Minimum validity of a count.
const MIN_VALIDITY: Duration = Duration::from_secs(1);
/// Ratio of the validity of a count to the time that counting took.
const VALIDITY_FACTOR: u32 = 100;

/// Counter of the resident bytes of one guest memory.
///
/// A count stays valid for a second, or for a hundred times the duration of the count if that is longer: repeated
/// requests take at most one percent of the thread's time.
#[derive(Debug, Default)]
pub struct ResidencyCounter(Cell<Option<Count>>);

#[derive(Clone, Copy, Debug)]
struct Count {
    bytes: u64,
    until: Instant,
}

impl ResidencyCounter {
    /// Returns the resident bytes of `memory` from the last valid count, or counts again. Every call must pass the same memory.
    pub fn of(&self, memory: &GuestMemory) -> u64 {
        self.cached_count(Instant::now, || resident_bytes(memory))
    }

    fn cached_count(&self, now: impl Fn() -> Instant, count: impl FnOnce() -> u64) -> u64 {
        let start = now();
        if let Some(last) = self.0.get().filter(|last| start < last.until) {
            return last.bytes;
        }
        let bytes = count();
        let end = now();
        let validity = (end - start).saturating_mul(VALIDITY_FACTOR).max(MIN_VALIDITY);
        let count = end.checked_add(validity).map(|until| Count { bytes, until });
        self.0.set(count);
        bytes
    }
}

/// Counts the resident bytes of `memory`: touched pages, and pages of a mapped file in the page cache. Takes some
/// microseconds per absent GiB and some hundred microseconds per resident GiB.
fn resident_bytes(memory: &GuestMemory) -> u64 {
    let page = usize::try_from(page_size()).unwrap_or(4096);
    let mut resident = [0; CHUNK_PAGES];
    let mut count = 0;
    for region in memory.iter() {
        let size = usize::try_from(region.len()).unwrap_or(0);
        for offset in (0..size).step_by(CHUNK_PAGES * page) {
            let length = (size - offset).min(CHUNK_PAGES * page);
            // SAFETY: `offset` is less than the size of the mapping.
            let start = unsafe { region.as_ptr().add(offset) };
            // SAFETY: the range is mapped, and `resident` has a byte for each of its pages.
            let result = unsafe { libc::mincore(start.cast(), length, resident.as_mut_ptr()) };
            if result == 0 {
                let pages = &resident[..length.div_ceil(page)];
                count += pages.iter().filter(|page| **page & 1 != 0).count();
            }
        }
    }
    (count * page) as u64
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::{Duration, Instant};

    use vm_memory::{Bytes, GuestAddress};

    use super::{ResidencyCounter, resident_bytes};
    use crate::memory::{allocate, page_size};

    #[test]
    fn count_validity_follows_its_duration() {
        for (duration, validity) in [(0, 1000), (9, 1000), (50, 5000)] {
            let now = Cell::new(Instant::now());
            let advance = |ms| now.set(now.get() + Duration::from_millis(ms));
            let (counter, counts) = (ResidencyCounter::default(), Cell::new(0));
            let request = || {
                counter.cached_count(
                    || now.get(),
                    || {
                        advance(duration);
                        counts.set(counts.get() + 1);
                        counts.get()
                    },
                )
            };
            assert_eq!((request(), request()), (1, 1));
            advance(validity - 1);
            assert_eq!(request(), 1);
            advance(1);
            assert_eq!((request(), request()), (2, 2));
        }
    }

    #[test]
    fn written_pages_are_resident() {
        let memory = allocate(&[(GuestAddress(0), 256 << 20)]).unwrap();
        let before = resident_bytes(&memory);
        for address in [0, 100 << 20, (256 << 20) - 1] {
            memory.write_obj(1_u8, GuestAddress(address)).unwrap();
        }
        // A host with transparent huge pages set to `always` backs each write with 2 MiB.
        let after = resident_bytes(&memory);
        assert_eq!(before, 0);
        assert!((3 * page_size()..=3 * (2 << 20)).contains(&after), "{after}");
    }
}
