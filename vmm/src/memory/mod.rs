//! Guest memory: its mappings, its dump to a file, and its pages' state.
//!
//! [`map`](map_file) maps regions and files, [`dump`] writes memory to a file with the page ranges of [`pagemap`] and
//! [`dirty`], and [`uffd`] hands page faults to another process. [`working_set`] prefetches the pages that a restored guest touches first.
//!
//! A region starts as an anonymous mapping; any of its pages may become a private mapping of an image or memory file. Only the
//! kernel holds the backing of a page, so no code here may assume that guest memory is anonymous. A mapped file must keep its
//! length while the VM exists: a page beyond the new end raises SIGBUS, see [`bus_error`], and the guest's private copies of such pages are
//! lost.

pub mod bus_error;
pub mod dirty;
pub mod dump;
mod file;
mod file_system;
mod map;
pub mod pagemap;
mod residency;
mod try_read;
pub mod uffd;
mod userfaultfd;
pub mod working_set;

pub use dirty::DirtyTracker;
pub use file::{ChangeError, FileStamp, MemoryFile};
pub use file_system::is_in_memory;
pub use map::{
    Bytes, Error, allocate, allocate_logged, map_file, map_snapshot, map_snapshot_logged, memfd, page_size,
    prefer_huge_pages, read_file_into, remap_snapshot,
};
pub use pagemap::Pagemap;
pub use residency::ResidencyCounter;
pub use try_read::try_read;
pub use uffd::{map_uffd, map_uffd_logged};
pub use working_set::{Prefetch, WorkingSet};
