//! The guest's memory: one private mapping a region, and files put into it.
//!
//! A region starts out anonymous, but whole pages of it may be private mappings of an image file. What is a page's
//! backing is the kernel's knowledge alone: nothing in this process may rely on guest memory being anonymous. A file that
//! is mapped must not be cut short while the guest lives, since a page beyond its new end raises SIGBUS when touched, and
//! the guest's own copies of those pages go with it.
//!
//! A snapshot's memory is written by [`dump`], which asks [`pagemap`] what there is to write, and comes back by
//! [`map_snapshot`] from its file or by [`map_uffd`] from another process. [`working_set`] has it there in time.

mod allocate;
mod bytes;
pub mod dump;
mod error;
mod file;
mod memfd;
mod page;
pub mod pagemap;
mod peek;
mod restore;
mod touched;
pub mod uffd;
pub mod working_set;

pub use allocate::{allocate, prefer_huge_pages};
pub use bytes::Bytes;
pub use error::Error;
pub use file::{map_file, read_file_into};
pub use memfd::memfd;
pub use page::page_size;
pub use pagemap::Pagemap;
pub use peek::try_read;
pub use restore::{map_snapshot, remap_snapshot};
pub use touched::ResidencyCounter;
pub use uffd::map_uffd;
pub use working_set::{Prefetch, WorkingSet};

#[cfg(test)]
mod tests;
