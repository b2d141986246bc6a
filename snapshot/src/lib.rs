//! What leaves a virtual machine and comes back: the contract for state and the format it is kept in.
//!
//! This is the lowest crate. It knows no device and no KVM; everything with state to keep implements [`Persist`]
//! and becomes a section of an archive. Page contents are bulk data and do not pass through sections.
//!
//! | module | holds |
//! |---|---|
//! | [`persist`] | [`Persist`], [`Schema`] and the object-safe [`Component`] |
//! | [`section`] | [`ArchiveWriter`] and [`ArchiveReader`]: named, versioned sections, each taken exactly once |
//! | [`mod@file`] | the state file: a checked header in front of the sections |
//! | [`file::atomic`] | [`AtomicFile`]: a file that gets its name when it is whole |
//!
//! Threat model: the bytes given to [`ArchiveReader::parse`] and the files given to [`file::read`] are untrusted. No length in them
//! is believed before it has been compared with what is there, and nothing is allocated by their say-so. The checksum is
//! against accidents: who can write the file can also refit it.

pub mod file;
pub mod persist;
pub mod section;

pub use file::atomic::AtomicFile;
pub use persist::{Component, Persist};
pub use section::{ArchiveReader, ArchiveWriter, Schema};

/// The memory of a guest: one private mapping a region.
///
/// There is no dirty bitmap: a page that differs from its file is found by asking the kernel, at the time of a snapshot.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
