//! Drives as people write them: `PATH[,ro][,cache=unsafe|writeback][,engine=sync|async][,id=NAME]`, and
//! `,bandwidth=BYTES/MILLISECONDS[/BURST]` and `,ops=NUMBER/MILLISECONDS[/BURST]`; a comma in PATH or NAME is written twice.

use std::str::FromStr;

use devices::virtio::block::{CacheType, DiskConfig, IoEngine};
use serde::{Deserialize, Serialize};

use super::options::{Error, Options};

/// A drive that the user asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveConfig {
    /// The disk; its name is one by its number when it is empty.
    pub disk: DiskConfig,
    /// Whether the guest is told on its command line to take its root file system from it, and how it finds it.
    pub root: Option<Root>,
}

/// How a guest finds its root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// On the first drive.
    First,
    /// On the partition with this UUID.
    Partition(String),
}

impl DriveConfig {
    /// What a guest that is to have its root here is told; Linux knows it.
    pub fn root_argument(&self) -> Option<String> {
        let access = if self.disk.read_only { "ro" } else { "rw" };
        self.root.as_ref().map(|root| match root {
            Root::First => format!("root=/dev/vda {access}"),
            Root::Partition(uuid) => format!("root=PARTUUID={uuid} {access}"),
        })
    }
}

impl FromStr for DriveConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut options = Options::parse(text)?;
        let limits = options.limits("bandwidth", "ops")?;
        let config = DiskConfig {
            path: options.first().into(),
            read_only: options.flag("ro"),
            allow_empty: false,
            cache: match options.take("cache").as_deref() {
                None | Some("unsafe") => CacheType::Unsafe,
                Some("writeback") => CacheType::Writeback,
                Some(other) => return Err(Error::value("cache", other, "unsafe or writeback")),
            },
            engine: match options.take("engine").as_deref() {
                None | Some("sync") => IoEngine::Sync,
                Some("async") => IoEngine::Async,
                Some(other) => return Err(Error::value("engine", other, "sync or async (io_uring)")),
            },
            id: options.take("id").unwrap_or_default(),
            bandwidth: limits.bandwidth,
            operations: limits.operations,
        };
        options.finish("ro, cache, engine, id, bandwidth and ops")?;
        Ok(Self {
            disk: config,
            root: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use devices::limiter::Bucket;
    use devices::virtio::block::{CacheType, IoEngine};

    use super::DriveConfig;

    #[test]
    fn a_path_may_have_commas() {
        let config = "/a,,b,ro,id=c,,d".parse::<DriveConfig>().unwrap().disk;
        assert_eq!(
            (config.path.to_str(), config.read_only, config.id.as_str()),
            (Some("/a,b"), true, "c,d")
        );
    }

    #[test]
    fn options_follow_the_path() {
        let drive = |text: &str| {
            text.parse::<DriveConfig>()
                .map(|drive| drive.disk)
                .map_err(|error| error.to_string())
        };
        let plain = drive("/a b").unwrap();
        assert_eq!(
            (plain.path.to_str(), plain.read_only, plain.cache),
            (Some("/a b"), false, CacheType::Unsafe)
        );
        let all = drive("x,ro,cache=writeback,engine=async,id=root").unwrap();
        assert!(
            all.read_only
                && all.cache == CacheType::Writeback
                && all.engine == IoEngine::Async
                && all.id == "root"
        );
        assert_eq!(
            drive(",ro"),
            Err("there is nothing before the first comma".into())
        );
        assert_eq!(
            drive("x,cache=none"),
            Err("cache=\"none\": it is unsafe or writeback".into())
        );
        assert_eq!(
            drive("x,rw"),
            Err("there is no option \"rw\": there are ro, cache, engine, id, bandwidth and ops".into())
        );
        assert_eq!(
            drive("x,ro=1"),
            Err("ro is a flag: write it without a value".into())
        );
        assert_eq!(drive("x,cache"), Err("cache needs a value: cache=VALUE".into()));
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
        assert_eq!(drive("x,ro,ro"), Err("\"ro\" is there twice".into()));
    }
}
