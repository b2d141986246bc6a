//! Drives.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::config::{self, DiskConfig, DriveConfig, RateLimits, Root};

use super::{Field, Off, RateLimiter, Schema, limiter};

/// What becomes of what the guest has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum CacheType {
    /// It cannot flush.
    #[default]
    Unsafe,
    /// It can flush.
    Writeback,
}

/// How requests are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum IoEngine {
    /// One after the other.
    #[default]
    Sync,
    /// By io_uring.
    Async,
}

/// A drive: `PUT`, and what `GET /vm/config` shows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Drive {
    /// Its name.
    pub drive_id: String,
    /// Whether the guest is told to take its root file system from it.
    pub is_root_device: bool,
    /// The file or block device behind it. A file of 0 bytes is a drive that is filled later.
    pub path_on_host: PathBuf,
    /// Whether the guest may only read it.
    pub is_read_only: Option<bool>,
    /// The partition with the root file system.
    pub partuuid: Option<String>,
    /// What becomes of what the guest has written.
    pub cache_type: Option<CacheType>,
    /// How requests are done.
    pub io_engine: Option<IoEngine>,
    /// What may be read and written.
    pub rate_limiter: Option<RateLimiter>,
}

/// Changes of a drive. With no change at all its file is asked for its size again.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DriveUpdate {
    /// Its name.
    pub drive_id: String,
    /// The file or block device that takes the place of the present one.
    pub path_on_host: Option<PathBuf>,
    /// Limits that take the place of the present ones.
    pub rate_limiter: Option<RateLimiter>,
}

impl Schema for Drive {
    const NAME: &'static str = "Drive";
    const FIELDS: &'static [Field] = &[
        Field::any("drive_id"),
        Field::any("is_root_device"),
        Field::any("path_on_host"),
        Field::any("is_read_only"),
        Field::any("partuuid"),
        Field::choice("cache_type", &["Unsafe", "Writeback"]),
        Field::choice("io_engine", &["Sync", "Async"]),
        Field::object("rate_limiter", limiter::FIELDS),
        Field::unsupported(
            "socket",
            Off::Text(&[""]),
            "vhost-user drives are not part of mayfly; name a file in path_on_host",
        ),
    ];
}

impl Schema for DriveUpdate {
    const NAME: &'static str = "DriveUpdate";
    const FIELDS: &'static [Field] = &[
        Field::any("drive_id"),
        Field::any("path_on_host"),
        Field::object("rate_limiter", limiter::FIELDS),
    ];
}

impl Drive {
    /// What the VMM is to make.
    pub fn config(self) -> DriveConfig {
        let limits = RateLimiter::limits(self.rate_limiter);
        let partition = self.partuuid.filter(|uuid| !uuid.is_empty());
        let root = partition.map_or(Root::First, Root::Partition);
        DriveConfig {
            root: self.is_root_device.then_some(root),
            disk: DiskConfig {
                id: self.drive_id,
                path: self.path_on_host,
                read_only: self.is_read_only.unwrap_or(false),
                allow_empty: true,
                cache: match self.cache_type.unwrap_or_default() {
                    CacheType::Unsafe => config::CacheType::Unsafe,
                    CacheType::Writeback => config::CacheType::Writeback,
                },
                engine: match self.io_engine.unwrap_or_default() {
                    IoEngine::Sync => config::IoEngine::Sync,
                    IoEngine::Async => config::IoEngine::Async,
                },
                bandwidth: limits.bandwidth,
                operations: limits.operations,
            },
        }
    }

    /// The drive of `config`.
    pub fn of(config: &DriveConfig) -> Self {
        let disk = &config.disk;
        Self {
            drive_id: disk.id.clone(),
            is_root_device: config.root.is_some(),
            path_on_host: disk.path.clone(),
            is_read_only: Some(disk.read_only),
            partuuid: match &config.root {
                Some(Root::Partition(uuid)) => Some(uuid.clone()),
                Some(Root::First) | None => None,
            },
            cache_type: Some(match disk.cache {
                config::CacheType::Unsafe => CacheType::Unsafe,
                config::CacheType::Writeback => CacheType::Writeback,
            }),
            io_engine: Some(match disk.engine {
                config::IoEngine::Sync => IoEngine::Sync,
                config::IoEngine::Async => IoEngine::Async,
            }),
            rate_limiter: RateLimiter::of(RateLimits {
                bandwidth: disk.bandwidth,
                operations: disk.operations,
            }),
        }
    }
}
