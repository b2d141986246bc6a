//! Drives, written as `PATH[,ro][,shared][,cache=unsafe|writeback][,engine=sync|async][,id=NAME]`, with
//! `,bandwidth=BYTES/MILLISECONDS[/BURST]` and `,ops=NUMBER/MILLISECONDS[/BURST]`. A comma in PATH or NAME is doubled.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use devices::virtio::block::{CacheType, DiskConfig, IoEngine};
use serde::{Deserialize, Serialize};

use super::options::{Error, Options, RateLimits};
use super::settings::{Conflict, DeviceSettings};

/// Configuration of a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveConfig {
    /// Disk behind the drive. An empty ID is replaced by one with the number of the drive.
    pub disk: DiskConfig,
    /// Root file system on the drive, named on the command line of the guest.
    pub root: Option<Root>,
}

/// Location of the root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// The whole drive, which is the first.
    First,
    /// The partition with this UUID.
    Partition(String),
}

/// Host side of a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveBackend {
    /// File or block device.
    pub path: PathBuf,
    /// The file must not be opened for writing: the load of a snapshot whose drive is read-write fails.
    pub read_only: bool,
}

impl From<PathBuf> for DriveBackend {
    fn from(path: PathBuf) -> Self {
        let read_only = false;
        Self { path, read_only }
    }
}

/// Change of an attached drive. Without a path and without limits the drive reads the size of its file again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriveUpdate {
    /// File or block device that replaces the disk.
    pub path: Option<PathBuf>,
    /// New token buckets. Buckets that are `None` stay unchanged.
    pub limits: RateLimits,
}

impl DriveUpdate {
    /// Returns true if the update replaces the disk or reads its size: an update without any field does the latter.
    pub(crate) fn changes_disk(&self) -> bool {
        self.path.is_some() || self.limits == RateLimits::default()
    }
}

impl DriveConfig {
    /// Returns the command line arguments by which Linux mounts its root file system from this drive.
    pub fn root_argument(&self) -> Option<String> {
        let access = if self.disk.read_only { "ro" } else { "rw" };
        self.root.as_ref().map(|root| match root {
            Root::First => format!("root=/dev/vda {access}"),
            Root::Partition(uuid) => format!("root=PARTUUID={uuid} {access}"),
        })
    }
}

impl DeviceSettings for DriveConfig {
    type Update = DriveUpdate;
    type Backend = DriveBackend;

    fn id(&self) -> &str {
        &self.disk.id
    }

    fn set_defaults(&mut self, index: usize) {
        if self.disk.id.is_empty() {
            self.disk.id = format!("drive{index}");
        }
    }

    fn check_after(&self, _: &Self) -> Result<(), Conflict> {
        // Linux counts drives in the order of their interrupt lines: /dev/vda is the first.
        if self.root.is_some() {
            return Err(Conflict::Root);
        }
        Ok(())
    }

    fn has_backend_of(&self, other: &Self) -> bool {
        self.disk.path == other.disk.path
    }

    fn is_first(&self) -> bool {
        self.root.is_some()
    }

    fn apply(&mut self, update: &DriveUpdate) {
        // All fields, so that a new one does not compile until it is handled.
        let DriveUpdate { path, limits } = update;
        if let Some(path) = path {
            path.clone_into(&mut self.disk.path);
        }
        let mut merged = RateLimits {
            bandwidth: self.disk.bandwidth,
            operations: self.disk.operations,
        };
        merged.merge(*limits);
        (self.disk.bandwidth, self.disk.operations) = (merged.bandwidth, merged.operations);
    }

    fn set_backend(&mut self, backend: &DriveBackend) {
        self.disk.path.clone_from(&backend.path);
    }

    fn backend_length(&self) -> usize {
        self.disk.path.as_os_str().len()
    }

    fn format_backend(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.disk.read_only {
            "read-only"
        } else {
            "read-write"
        };
        write!(f, "{}, {access}", self.disk.path.display())
    }
}

impl FromStr for DriveConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut options = Options::parse(text)?;
        let limits = options.take_limits("bandwidth", "ops")?;
        let config = DiskConfig {
            path: options.first().into(),
            read_only: options.take_flag("ro"),
            shared: options.take_flag("shared"),
            allow_empty: false,
            cache: match options.take_value("cache").as_deref() {
                None | Some("unsafe") => CacheType::Unsafe,
                Some("writeback") => CacheType::Writeback,
                Some(other) => return Err(Error::value("cache", other, "unsafe or writeback")),
            },
            engine: match options.take_value("engine").as_deref() {
                None | Some("sync") => IoEngine::Sync,
                Some("async") => IoEngine::Async,
                Some(other) => return Err(Error::value("engine", other, "sync or async (io_uring)")),
            },
            id: options.take_value("id").unwrap_or_default(),
            bandwidth: limits.bandwidth,
            operations: limits.operations,
        };
        options.finish(
            &[&["ro", "shared", "cache", "engine", "id", "bandwidth", "ops"]],
            "ro, shared, cache, engine, id, bandwidth and ops",
        )?;
        Ok(Self {
            disk: config,
            root: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use devices::limiter::Bucket;
    use devices::virtio::block::{CacheType, DiskConfig, IoEngine};

    use super::DriveConfig;

    #[test]
    fn double_comma_is_part_of_path() {
        let config = "/a,,b,ro,id=c,,d".parse::<DriveConfig>().unwrap().disk;
        assert_eq!(
            (config.path.to_str(), config.read_only, config.id.as_str()),
            (Some("/a,b"), true, "c,d")
        );
    }

    fn drive(text: &str) -> Result<DiskConfig, String> {
        let drive = text.parse::<DriveConfig>();
        drive.map(|drive| drive.disk).map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_parsed_after_path() {
        let plain = drive("/a b").unwrap();
        assert_eq!(
            (plain.path.to_str(), plain.read_only, plain.shared, plain.cache),
            (Some("/a b"), false, false, CacheType::Unsafe)
        );
        let all = drive("x,ro,shared,cache=writeback,engine=async,id=root").unwrap();
        assert!(
            all.read_only
                && all.shared
                && all.cache == CacheType::Writeback
                && all.engine == IoEngine::Async
                && all.id == "root"
        );
        assert_eq!(
            drive(",ro"),
            Err("the value before the first comma is missing".into())
        );
        assert_eq!(
            drive("x,cache=none"),
            Err("cache=\"none\" is invalid; use unsafe or writeback".into())
        );
        assert_eq!(
            drive("x,rw"),
            Err("option \"rw\" does not exist; use ro, shared, cache, engine, id, bandwidth and ops".into())
        );
        assert_eq!(drive("x,ro=1"), Err("ro is a flag; remove its value".into()));
        assert_eq!(
            drive("x,cache"),
            Err("option cache requires a value; write cache=VALUE".into())
        );
        assert_eq!(
            drive("x,ro,ro"),
            Err("option \"ro\" is given twice; remove one".into())
        );
    }

    #[test]
    fn rate_limits_are_parsed() {
        let limited = drive("x,bandwidth=1000000/100/5,ops=100/1000").unwrap();
        assert_eq!(
            limited.bandwidth,
            Some(Bucket {
                size: 1_000_000,
                refill_time_ms: 100,
                one_time_burst: 5
            })
        );
        assert_eq!(
            limited.operations,
            Some(Bucket {
                size: 100,
                refill_time_ms: 1000,
                one_time_burst: 0
            })
        );
        for wrong in ["1", "1/2/3/4", "a/b", "-1/2", "/"] {
            assert!(
                drive(&format!("x,ops={wrong}"))
                    .unwrap_err()
                    .contains("AMOUNT/MILLISECONDS"),
                "{wrong}"
            );
        }
    }
}
