//! What a drive is made from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::file::DiskOptions;
use crate::limiter::Bucket;

/// What becomes of what the guest has written, when it wants to be sure of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// The driver is not told that it can flush, so that it does not.
    #[default]
    Unsafe,
    /// The driver can flush. When it does not want to, every write goes through to the medium.
    Writeback,
}

/// How requests are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// One after the other, by whoever notifies.
    #[default]
    Sync,
    /// By io_uring.
    Async,
}

/// What a [`Block`](super::Block) is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Name of the drive. The guest can read the first 20 bytes of it.
    pub id: String,
    /// The file or block device behind it.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether a file of 0 bytes will do, to be replaced by [`Block::update`](super::Block::update) when there is
    /// something to put there. Until then the disk has no sectors, and every read and write is answered with an error.
    pub allow_empty: bool,
    /// Whether the driver can flush.
    pub cache: CacheType,
    /// How requests are done.
    pub engine: IoEngine,
    /// Bytes that may be read and written.
    pub bandwidth: Option<Bucket>,
    /// Requests that may be done.
    pub operations: Option<Bucket>,
}

impl DiskConfig {
    /// On what terms the file becomes a disk.
    pub(super) fn terms(&self) -> DiskOptions {
        DiskOptions {
            read_only: self.read_only,
            allow_empty: self.allow_empty,
        }
    }
}
