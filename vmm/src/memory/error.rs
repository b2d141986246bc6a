//! What can go wrong with guest memory.

use std::io;
use std::ops::Range;

use vm_memory::GuestRegionCollectionError;
use vm_memory::mmap::MmapRegionError;

use super::Bytes;

/// Why memory could not be had or filled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A region is empty, does not consist of whole pages, or goes beyond the last address.
    #[error("a memory region of {size} at {address:#x} cannot be: whole pages of {page_size} are needed")]
    Region {
        /// Guest-physical address of the region.
        address: u64,
        /// Size of the region.
        size: Bytes,
        /// The host's page size.
        page_size: Bytes,
    },
    /// The kernel gave no address space.
    #[error(
        "cannot reserve {size} for the guest; give it less memory, raise RLIMIT_AS (ulimit -v), or let the host \
         overcommit (sysctl vm.overcommit_memory=1)"
    )]
    Reserve {
        /// Size of the region.
        size: Bytes,
        /// The kernel's answer.
        #[source]
        source: MmapRegionError,
    },
    /// The regions overlap or are out of order.
    #[error("the memory regions cannot be put together")]
    Regions(#[source] GuestRegionCollectionError),
    /// The range does not lie within one region of guest memory.
    #[error("{:#x}..{:#x} does not lie within one region of guest memory", .0.start, .0.end)]
    Outside(Range<u64>),
    /// Only whole pages can be mapped.
    #[error(
        "{length:#x} bytes at {offset:#x} of a file cannot be mapped at {address:#x}: not multiples of the page size"
    )]
    Unaligned {
        /// Guest-physical address.
        address: u64,
        /// Offset in the file.
        offset: u64,
        /// Number of bytes.
        length: usize,
    },
    /// The file's size could not be found out.
    #[error("cannot find out the size of a file")]
    Size(#[source] io::Error),
    /// The file is shorter than what is to be put into memory.
    #[error(
        "bytes {:#x}..{:#x} of a file are needed, but it ends at {size:#x}; it must not change while it is used",
        .needed.start, .needed.end
    )]
    Short {
        /// The part of the file that is needed.
        needed: Range<u64>,
        /// Where the file ends.
        size: u64,
    },
    /// A snapshot's memory is in no folder, pipe or device.
    #[error("the memory file is no regular file")]
    Irregular,
    /// The memory file is of another machine, cut, or a difference without its base.
    #[error(
        "the memory file has {found} where the snapshot has {needed} of memory; it must be the one that was written with the \
         state file"
    )]
    Snapshot {
        /// Length of the file.
        found: Bytes,
        /// Size of guest memory.
        needed: Bytes,
    },
    /// The kernel refused to map the file.
    #[error("cannot map {length:#x} bytes at {offset:#x} of a file to {address:#x}")]
    Map {
        /// Guest-physical address.
        address: u64,
        /// Offset in the file.
        offset: u64,
        /// Number of bytes.
        length: usize,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file could not be read.
    #[error("cannot read {length:#x} bytes at {offset:#x} of a file")]
    Read {
        /// Offset in the file.
        offset: u64,
        /// Number of bytes.
        length: usize,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}
