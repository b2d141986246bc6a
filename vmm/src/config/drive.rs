//! Drives as people write them: `PATH[,ro][,cache=unsafe|writeback][,engine=sync|async][,id=NAME]`.

use std::str::FromStr;

use devices::virtio::block::{CacheType, Config, IoEngine};

use super::options::{Error, Options};

/// A drive that the user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveConfig(pub Config);

impl FromStr for DriveConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut options = Options::parse(text)?;
        let config = Config {
            path: options.first().into(),
            read_only: options.flag("ro"),
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
            bandwidth: None,
            operations: None,
        };
        options.finish("ro, cache, engine and id")?;
        Ok(Self(config))
    }
}

#[cfg(test)]
mod tests {
    use devices::virtio::block::{CacheType, IoEngine};

    use super::DriveConfig;

    #[test]
    fn options_follow_the_path() {
        let drive = |text: &str| {
            text.parse::<DriveConfig>()
                .map(|drive| drive.0)
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
            Err("there is no option \"rw\": there are ro, cache, engine and id".into())
        );
        assert_eq!(drive("x,ro,ro"), Err("\"ro\" is there twice".into()));
    }
}
