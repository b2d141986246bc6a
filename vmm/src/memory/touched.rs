//! How much of a guest's memory is there.

use snapshot::GuestMemory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::page_size;

/// Pages that one call asks for.
const PAGES: usize = 16 << 10;

/// Bytes of `memory` that are in the host's memory: what was touched, and what of a mapped file is in the page cache. Takes
/// some microseconds for each GiB that was not touched, and some hundred for each that was.
pub fn touched(memory: &GuestMemory) -> u64 {
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
    use vm_memory::{Bytes, GuestAddress};

    use super::touched;
    use crate::memory::{allocate, page_size};

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
