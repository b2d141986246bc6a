//! The guest's memory: one private mapping a region, and files put into it.
//!
//! A region starts out anonymous, but whole pages of it may be private mappings of an image file. What is a page's
//! backing is the kernel's knowledge alone: nothing in this process may rely on guest memory being anonymous. A file that
//! is mapped must not be cut short while the guest lives, since a page beyond its new end raises SIGBUS when touched, and
//! the guest's own copies of those pages go with it.
//!
//! A snapshot's memory is written by [`dump`], which asks [`pagemap`] what there is to write, and comes back by
//! [`map_snapshot`] from its file or by [`map_uffd`] from another process. [`working_set`] has it there in time.

pub mod dump;
mod map;
pub mod pagemap;
mod residency;
mod try_read;
pub mod uffd;
pub mod working_set;

pub use map::{
    Bytes, Error, allocate, map_file, map_snapshot, memfd, page_size, prefer_huge_pages, read_file_into,
    remap_snapshot,
};
pub use pagemap::Pagemap;
pub use residency::ResidencyCounter;
pub use try_read::try_read;
pub use uffd::map_uffd;
pub use working_set::{Prefetch, WorkingSet};
