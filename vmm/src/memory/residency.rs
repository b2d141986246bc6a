//! How much of a guest's memory is there.

use std::cell::Cell;
use std::time::{Duration, Instant};

use snapshot::GuestMemory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::map::page_size;

/// Pages that one call asks for.
const PAGES: usize = 16 << 10;

/// How long a count holds at least, and how much longer than the counting took.
const HOLDS: Duration = Duration::from_secs(1);
const TIMES: u32 = 100;

/// How much of a guest's memory is there, for those who ask again and again. The last count is the answer for a second, or
/// for a hundred times as long as the counting took, so that nobody keeps this thread busy by asking.
#[derive(Debug, Default)]
pub struct ResidencyCounter(Cell<Option<Count>>);

#[derive(Clone, Copy, Debug)]
struct Count {
    bytes: u64,
    until: Instant,
}

impl ResidencyCounter {
    /// Bytes of `memory`, always the same, that are or lately were in the host's memory.
    pub fn of(&self, memory: &GuestMemory) -> u64 {
        self.counted(Instant::now, || touched(memory))
    }

    fn counted(&self, now: impl Fn() -> Instant, count: impl FnOnce() -> u64) -> u64 {
        let start = now();
        if let Some(last) = self.0.get().filter(|last| start < last.until) {
            return last.bytes;
        }
        let bytes = count();
        let end = now();
        let holds = (end - start).saturating_mul(TIMES).max(HOLDS);
        let count = end.checked_add(holds).map(|until| Count { bytes, until });
        self.0.set(count);
        bytes
    }
}

/// Bytes of `memory` that are in the host's memory: what was touched, and what of a mapped file is in the page cache. Takes
/// some microseconds for each GiB that was not touched, and some hundred for each that was.
fn touched(memory: &GuestMemory) -> u64 {
    let page = usize::try_from(page_size()).unwrap_or(4096);
    let mut resident = vec![0; PAGES];
    let mut count = 0;
    for region in memory.iter() {
        let size = usize::try_from(region.len()).unwrap_or(0);
        for offset in (0..size).step_by(PAGES * page) {
            let length = (size - offset).min(PAGES * page);
            // SAFETY: `offset` is within the mapping.
            let start = unsafe { region.as_ptr().add(offset) };
            // SAFETY: the range is mapped, and `resident` has a byte for each of its pages.
            let asked = unsafe { libc::mincore(start.cast(), length, resident.as_mut_ptr()) };
            if asked == 0 {
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

    use super::{ResidencyCounter, touched};
    use crate::memory::{allocate, page_size};

    #[test]
    fn a_count_holds_as_long_as_it_is_cheap() {
        for (takes, holds) in [(0, 1000), (9, 1000), (50, 5000)] {
            let now = Cell::new(Instant::now());
            let pass = |ms| now.set(now.get() + Duration::from_millis(ms));
            let (touched, counts) = (ResidencyCounter::default(), Cell::new(0));
            let ask = || {
                touched.counted(
                    || now.get(),
                    || {
                        pass(takes);
                        counts.set(counts.get() + 1);
                        counts.get()
                    },
                )
            };
            assert_eq!((ask(), ask()), (1, 1));
            pass(holds - 1);
            assert_eq!(ask(), 1);
            pass(1);
            assert_eq!((ask(), ask()), (2, 2));
        }
    }

    #[test]
    fn what_was_written_is_there() {
        let memory = allocate(&[(GuestAddress(0), 256 << 20)]).unwrap();
        let before = touched(&memory);
        for address in [0, 100 << 20, (256 << 20) - 1] {
            memory.write_obj(1_u8, GuestAddress(address)).unwrap();
        }
        // A huge page, where the host uses them on its own accord, is more than was asked for.
        let after = touched(&memory);
        assert_eq!(before, 0);
        assert!((3 * page_size()..=3 * (2 << 20)).contains(&after), "{after}");
    }
}
