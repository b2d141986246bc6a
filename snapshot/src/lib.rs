//! Saved state of a virtual machine: the contract for components, and the file format.
//!
//! This is the lowest crate and depends on no device and no KVM. Each component with state implements [`Persist`] and becomes
//! a section of an archive. Guest memory is not part of an archive.
//!
//! | module | contents |
//! |---|---|
//! | [`memory`] | [`GuestMemory`], and the log of this process's writes to it |
//! | [`persist`] | [`Persist`] and the object-safe [`Component`] |
//! | [`section`] | [`Schema`], [`ArchiveWriter`] and [`ArchiveReader`]: named, versioned sections, each read exactly once |
//! | [`mod@file`] | state file: a header with a checksum, and an archive |
//! | [`file::atomic`] | [`AtomicFile`]: a file that replaces another when it is complete |
//!
//! Threat model: the bytes for [`ArchiveReader::parse`] and the files for [`file::read`] are untrusted. Each length is
//! compared with the available data before use, and no allocation depends on an unchecked length. The checksum detects
//! accidental changes only.

pub mod file;
pub mod memory;
pub mod persist;
pub mod section;

pub use file::atomic::AtomicFile;
pub use memory::{GuestMemory, GuestRegion, GuestSlice, HostWrites};
pub use persist::{Component, Persist};
pub use section::{ArchiveReader, ArchiveWriter, Schema};

/// Returns `length` zeroes.
///
/// # Errors
/// [`io::ErrorKind::OutOfMemory`](std::io::ErrorKind::OutOfMemory). A failure of `vec!` would end the process.
pub fn zeroed(length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length)?;
    bytes.resize(length, 0);
    Ok(bytes)
}
