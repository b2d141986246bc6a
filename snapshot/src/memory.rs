//! Guest memory, and the log of this process's writes to it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// Guest memory: one private mapping per region.
pub type GuestMemory = vm_memory::GuestMemoryMmap<HostWrites>;

/// Region of guest memory.
pub type GuestRegion = vm_memory::GuestRegionMmap<HostWrites>;

/// Part of a region.
pub type GuestSlice<'a> = vm_memory::VolatileSlice<'a, HostWritesSlice<'a>>;

const WORD_BITS: usize = u64::BITS as usize;

/// Log of written pages of one region, a bit for each.
#[derive(Debug)]
pub struct WriteLog {
    words: Box<[AtomicU64]>,
    page_size: usize,
}

impl WriteLog {
    /// Adds the pages that the bytes `offset..offset + length` touch. Ignores bytes beyond the region.
    fn mark(&self, offset: usize, length: usize) {
        let Some(last) = length.checked_sub(1) else {
            return;
        };
        let pages = offset / self.page_size..=offset.saturating_add(last) / self.page_size;
        for page in pages {
            let Some(word) = self.words.get(page / WORD_BITS) else {
                return;
            };
            let bit = 1 << (page % WORD_BITS);
            // Relaxed: the reader has paused all writers. The load keeps the cache line shared for a page that is written often.
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// Returns true if the page at `offset` is in the log.
    fn is_marked(&self, offset: usize) -> bool {
        let page = offset / self.page_size;
        let word = self.words.get(page / WORD_BITS);
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (page % WORD_BITS) & 1 != 0)
    }

    /// Adds the pages of another log of this region, a bit for each.
    pub fn merge(&self, log: &[u64]) {
        for (word, bits) in self.words.iter().zip(log) {
            if *bits != 0 {
                word.fetch_or(*bits, Ordering::Relaxed);
            }
        }
    }

    /// Removes all pages.
    pub fn clear(&self) {
        for word in &self.words {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Returns the written pages as sorted ranges of offsets in the region; no two are adjacent.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        let mut page = 0;
        std::iter::from_fn(move || {
            let start = self.next_page(page, true)?;
            let end = self.next_page(start, false)?;
            page = end;
            let offset = |page: usize| (page * self.page_size) as u64;
            Some(offset(start)..offset(end))
        })
    }

    /// Returns the first page from `page` on that is or is not `marked`. Pages beyond the region are not marked.
    fn next_page(&self, page: usize, marked: bool) -> Option<usize> {
        let mut at = page;
        while let Some(word) = self.words.get(at / WORD_BITS) {
            let word = word.load(Ordering::Relaxed);
            let found = if marked { word } else { !word } >> (at % WORD_BITS);
            if found != 0 {
                return Some(at + found.trailing_zeros() as usize);
            }
            at = (at / WORD_BITS + 1) * WORD_BITS;
        }
        (!marked).then_some(at)
    }
}

/// Log of the writes of this process to a region, if the VM requires one. Each write through vm-memory is in the log. A write by
/// a pointer, for example in a system call, must be [marked](Bitmap::mark_dirty).
#[derive(Debug, Default)]
pub struct HostWrites(Option<Box<WriteLog>>);

impl HostWrites {
    /// Creates a log for a region of `length` bytes with pages of `page_size` bytes.
    pub fn logged(length: usize, page_size: usize) -> Self {
        let words = length.div_ceil(page_size).div_ceil(WORD_BITS);
        Self(Some(Box::new(WriteLog {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            page_size,
        })))
    }
}

impl<'a> WithBitmapSlice<'a> for HostWrites {
    type S = HostWritesSlice<'a>;
}

impl Bitmap for HostWrites {
    fn mark_dirty(&self, offset: usize, length: usize) {
        self.slice_at(0).mark_dirty(offset, length);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.slice_at(0).dirty_at(offset)
    }

    #[inline]
    fn slice_at(&self, offset: usize) -> HostWritesSlice<'_> {
        HostWritesSlice {
            log: self.0.as_deref(),
            offset,
        }
    }
}

impl NewBitmap for HostWrites {
    /// Creates no log.
    fn with_len(_: usize) -> Self {
        Self(None)
    }
}

/// Log of a region, seen from an offset in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostWritesSlice<'a> {
    log: Option<&'a WriteLog>,
    offset: usize,
}

impl<'a> HostWritesSlice<'a> {
    /// Returns the log of the region, or `None` if it has none.
    pub fn log(&self) -> Option<&'a WriteLog> {
        self.log
    }
}

impl WithBitmapSlice<'_> for HostWritesSlice<'_> {
    type S = Self;
}

impl BitmapSlice for HostWritesSlice<'_> {}

impl Bitmap for HostWritesSlice<'_> {
    #[inline]
    fn mark_dirty(&self, offset: usize, length: usize) {
        if let Some(log) = self.log {
            log.mark(self.offset.saturating_add(offset), length);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.log
            .is_some_and(|log| log.is_marked(self.offset.saturating_add(offset)))
    }

    #[inline]
    fn slice_at(&self, offset: usize) -> Self {
        Self {
            log: self.log,
            offset: self.offset.saturating_add(offset),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::{any, prop_assert_eq, proptest};
    use vm_memory::bitmap::Bitmap;

    use super::HostWrites;

    const PAGE: usize = 4096;

    fn pages(writes: &HostWrites) -> Vec<u64> {
        let ranges = writes.slice_at(0).log().unwrap().ranges();
        ranges.flat_map(|range| range.step_by(PAGE)).collect()
    }

    #[test]
    fn memory_without_log_ignores_writes() {
        let writes = HostWrites::default();
        writes.mark_dirty(0, 1);
        assert!(!writes.dirty_at(0));
        assert!(writes.slice_at(0).log().is_none());
    }

    #[test]
    fn writes_beyond_region_are_ignored() {
        let writes = HostWrites::logged(64 * PAGE, PAGE);
        writes.mark_dirty(63 * PAGE, 2 * PAGE);
        writes.mark_dirty(usize::MAX, 2);
        writes.slice_at(usize::MAX).mark_dirty(usize::MAX, usize::MAX);
        writes.mark_dirty(PAGE, 0);
        assert_eq!(pages(&writes), [63 * PAGE as u64]);
        assert!(!writes.dirty_at(64 * PAGE));
    }

    proptest! {
        #[test]
        fn log_holds_touched_pages(
            writes in proptest::collection::vec((0..200 * PAGE, 0..3 * PAGE, any::<bool>()), 0..40),
            merged in proptest::collection::vec(any::<u64>(), 0..4),
        ) {
            let log = HostWrites::logged(200 * PAGE, PAGE);
            let mut expected = BTreeSet::new();
            for (offset, length, sliced) in writes {
                match sliced {
                    true => log.slice_at(offset / 2).slice_at(offset - offset / 2).mark_dirty(0, length),
                    false => log.mark_dirty(offset, length),
                }
                if length > 0 {
                    expected.extend(offset / PAGE..(offset + length).div_ceil(PAGE));
                }
            }
            log.slice_at(0).log().unwrap().merge(&merged);
            for (index, word) in merged.iter().enumerate() {
                expected.extend((0..64).filter(|bit| word >> bit & 1 != 0).map(|bit| index * 64 + bit));
            }
            // The last word has bits for 56 pages beyond the region.
            let expected: Vec<_> = expected.into_iter().filter(|page| *page < 256).map(|page| (page * PAGE) as u64).collect();
            prop_assert_eq!(pages(&log), expected);
            log.slice_at(0).log().unwrap().clear();
            prop_assert_eq!(pages(&log), Vec::<u64>::new());
        }
    }
}
