//! Drives.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::config::{self, DiskConfig, DriveConfig, RateLimits, Root};

use super::field::{Off, Rule};
use super::limiter::RateLimiter;
use super::macros::{choice, schema};

choice! {
    /// Cache mode of a drive.
    #[derive(Default)]
    CacheType mirrors config::CacheType {
        /// No flush requests.
        #[default]
        Unsafe,
        /// Flush requests write to the medium.
        Writeback,
    }
}

choice! {
    /// I/O engine of a drive.
    #[derive(Default)]
    IoEngine mirrors config::IoEngine {
        /// System calls, one request after the other.
        #[default]
        Sync,
        /// io_uring.
        Async,
    }
}

schema! {
    /// Drive.
    #[derive(Deserialize, Serialize)]
    body Drive {
        /// Identifier, the same as in the path.
        #[schema(Id)]
        drive_id: String, update String;
        /// Adds arguments for the root file system to the command line. At most one drive can be the root device.
        is_root_device: bool;
        /// File or block device. A file of 0 bytes is a placeholder for a later change.
        path_on_host: PathBuf, update Option<PathBuf>;
        /// Rejects writes of the guest.
        is_read_only: Option<bool> = false;
        /// UUID of the partition with the root file system.
        partuuid: Option<String>;
        /// Cache mode; Writeback offers flush requests to the guest.
        cache_type: Option<CacheType> = CacheType::default();
        /// I/O engine; Async is io_uring.
        io_engine: Option<IoEngine> = IoEngine::default();
        /// Limits of reads and writes.
        rate_limiter: Option<RateLimiter>, update Option<RateLimiter>;
        /// Unsupported: vhost-user.
        socket: Option<String> => Rule::Unsupported(
            Off::Text(&[""]),
            "vhost-user drives are not part of mayfly; name a file in path_on_host",
        );
        /// Other VMs may write the file too, if their drives are shared. GET returns it only if it is true.
        #[serde(skip_serializing_if = "Option::is_none")]
        shared: Option<bool> = false;
    }
    example "{drive_id: rootfs, is_root_device: true, path_on_host: /images/disk, is_read_only: false, partuuid: null, cache_type: 'Unsafe', io_engine: 'Sync', rate_limiter: {bandwidth: {size: 1048576, refill_time: 100, one_time_burst: 4194304}, ops: {size: 100, refill_time: 1000}}}";
    /// Change of a drive. Without a change, the size of the present file is read again.
    update DriveUpdate;
    example "{drive_id: rootfs, path_on_host: /images/other}";
}

impl Drive {
    /// Converts to the configuration of the VMM.
    pub fn into_config(self) -> DriveConfig {
        let Self {
            drive_id,
            is_root_device,
            path_on_host,
            is_read_only,
            partuuid,
            cache_type,
            io_engine,
            rate_limiter,
            socket: _,
            shared,
        } = self;
        let RateLimits {
            bandwidth,
            operations,
        } = RateLimiter::limits(rate_limiter);
        let partition = partuuid.filter(|uuid| !uuid.is_empty());
        let root = partition.map_or(Root::First, Root::Partition);
        DriveConfig {
            root: is_root_device.then_some(root),
            disk: DiskConfig {
                id: drive_id,
                path: path_on_host,
                read_only: is_read_only.unwrap_or_default(),
                shared: shared.unwrap_or_default(),
                allow_empty: true,
                cache: cache_type.unwrap_or_default().into(),
                engine: io_engine.unwrap_or_default().into(),
                bandwidth,
                operations,
            },
        }
    }

    /// Converts from the configuration of the VMM.
    pub fn from_config(config: &DriveConfig) -> Self {
        let DriveConfig { root, disk } = config;
        let DiskConfig {
            id,
            path,
            read_only,
            shared,
            // All drives of the API allow it.
            allow_empty: _,
            cache,
            engine,
            bandwidth,
            operations,
        } = disk;
        Self {
            drive_id: id.clone(),
            is_root_device: root.is_some(),
            path_on_host: path.clone(),
            is_read_only: Some(*read_only),
            partuuid: match root {
                Some(Root::Partition(uuid)) => Some(uuid.clone()),
                Some(Root::First) | None => None,
            },
            cache_type: Some((*cache).into()),
            io_engine: Some((*engine).into()),
            rate_limiter: RateLimiter::from_limits(RateLimits {
                bandwidth: *bandwidth,
                operations: *operations,
            }),
            socket: None,
            shared: shared.then_some(true),
        }
    }
}
