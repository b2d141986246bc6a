//! Fresh memory.

use snapshot::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use super::{Bytes, Error, page_size};

/// Maps each region, an address and a size in bytes, as zeros that take no memory until they are touched. The regions
/// are sorted by address.
///
/// # Errors
/// [`Error::Region`] when a region is no run of pages, [`Error::Reserve`] when the kernel gives no address space, and
/// [`Error::Regions`] when there is no region, or regions overlap or are not sorted.
pub fn allocate(regions: &[(GuestAddress, usize)]) -> Result<GuestMemory, Error> {
    let mapped = regions
        .iter()
        .map(|(address, size)| map(*address, *size))
        .collect::<Result<Vec<_>, _>>()?;
    GuestMemory::from_regions(mapped).map_err(Error::Regions)
}

fn map(address: GuestAddress, size: usize) -> Result<GuestRegionMmap<()>, Error> {
    let page_size = page_size();
    let bytes = size as u64;
    let impossible = || Error::Region {
        address: address.0,
        size: Bytes(bytes),
        page_size: Bytes(page_size),
    };
    if size == 0 || !bytes.is_multiple_of(page_size) || !address.0.is_multiple_of(page_size) {
        return Err(impossible());
    }
    // Private, anonymous, MAP_NORESERVE: the size counts against no limit but RLIMIT_AS and strict overcommit.
    let mapping = MmapRegion::new(size).map_err(|source| Error::Reserve {
        size: Bytes(bytes),
        source,
    })?;
    GuestRegionMmap::new(mapping, address).ok_or_else(impossible)
}

/// Asks the kernel to back `memory` by huge pages where it can. One that cannot is none the worse.
pub fn prefer_huge_pages(memory: &GuestMemory) {
    for region in memory.iter() {
        let size = usize::try_from(region.len()).unwrap_or(0);
        // SAFETY: the range is a live mapping; the advice changes no byte of it.
        unsafe { libc::madvise(region.as_ptr().cast(), size, libc::MADV_HUGEPAGE) };
    }
}
