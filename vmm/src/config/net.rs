//! Network interfaces, written as `BACKEND[,id=NAME][,mac=ADDRESS][,mtu=BYTES]`, where BACKEND is `tap:NAME`, `fd:NUMBER`, `unix:PATH` or
//! `user`. `,rx-bandwidth=BYTES/MILLISECONDS[/BURST]` and `,rx-ops=PACKETS/MILLISECONDS[/BURST]` limit frames to the guest, the same
//! options with `tx-` frames from the guest.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::mac::{MAC, MacAddress};
use super::options::{Error, Options, RateLimits};
use super::settings::{Conflict, DeviceSettings};

/// Backend: host side of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetBackend {
    /// Existing tap with this name. With an empty name, which only an API sends, the kernel creates one and names it.
    Tap(String),
    /// Tap that this process has inherited as a file descriptor.
    Descriptor(RawFd),
    /// Unix socket of passt or of another VMM.
    Stream(PathBuf),
    /// passt process that this process starts.
    User,
}

impl fmt::Display for NetBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap(name) => write!(f, "tap:{name}"),
            Self::Descriptor(number) => write!(f, "fd:{number}"),
            Self::Stream(path) => write!(f, "unix:{}", path.display()),
            Self::User => f.write_str("user"),
        }
    }
}

impl NetBackend {
    /// Parses a backend without options, in which commas are not doubled.
    fn parse_name(text: &str) -> Result<Self, Error> {
        match text.split_once(':') {
            None if text == "user" => Ok(Self::User),
            Some(("tap", name)) if !name.is_empty() => Ok(Self::Tap(name.to_owned())),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Stream(path.into())),
            Some(("fd", number)) => {
                let number = number.parse().ok().filter(|number| *number > 2);
                number
                    .map(Self::Descriptor)
                    .ok_or_else(|| Error::first(text, "fd:NUMBER with a descriptor above 2"))
            }
            _ => Err(Error::first(text, "tap:NAME, fd:NUMBER, unix:PATH or user")),
        }
    }
}

impl FromStr for NetBackend {
    type Err = Error;

    /// Parses a backend without options: an override keeps the options of the saved interface.
    fn from_str(text: &str) -> Result<Self, Error> {
        let options = Options::parse(text)?;
        let backend = Self::parse_name(options.first())?;
        options.finish("no option: only the backend can be overridden")?;
        Ok(backend)
    }
}

/// Configuration of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// ID. An empty ID is replaced by one with the number of the interface.
    pub id: String,
    /// Backend.
    pub backend: NetBackend,
    /// MAC address of the guest; none selects a random one.
    pub mac: Option<MacAddress>,
    /// MTU that the device offers, 68 to 65,535.
    pub mtu: Option<u16>,
    /// Rate limits of frames to the guest.
    pub receive: RateLimits,
    /// Rate limits of frames from the guest.
    pub transmit: RateLimits,
}

/// Change of an attached network interface. Buckets that are `None` stay unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceUpdate {
    /// Token buckets for frames to the guest.
    pub receive: RateLimits,
    /// Token buckets for frames from the guest.
    pub transmit: RateLimits,
}

impl DeviceSettings for NetConfig {
    type Update = InterfaceUpdate;
    type Backend = NetBackend;

    fn id(&self) -> &str {
        &self.id
    }

    fn set_defaults(&mut self, index: usize) {
        self.mac.get_or_insert_with(MacAddress::random);
        if self.id.is_empty() {
            self.id = format!("net{index}");
        }
    }

    fn check_after(&self, earlier: &Self) -> Result<(), Conflict> {
        match (self.mac, &self.backend) {
            (Some(mac), _) if earlier.mac == Some(mac) => Err(Conflict::Mac(mac)),
            (_, NetBackend::Descriptor(descriptor)) if self.backend == earlier.backend => {
                Err(Conflict::Descriptor(*descriptor))
            }
            _ => Ok(()),
        }
    }

    fn has_backend_of(&self, other: &Self) -> bool {
        self.backend == other.backend
    }

    fn apply(&mut self, update: &InterfaceUpdate) {
        let InterfaceUpdate { receive, transmit } = *update;
        self.receive.merge(receive);
        self.transmit.merge(transmit);
    }

    fn set_backend(&mut self, backend: &NetBackend) {
        self.backend.clone_from(backend);
    }

    fn backend_length(&self) -> usize {
        match &self.backend {
            NetBackend::Tap(name) => name.len(),
            NetBackend::Stream(path) => path.as_os_str().len(),
            NetBackend::Descriptor(_) | NetBackend::User => 0,
        }
    }

    fn format_backend(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, read-write", self.backend)
    }
}

impl FromStr for NetConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut options = Options::parse(text)?;
        let backend = NetBackend::parse_name(options.first())?;
        let mac = options.take_value("mac").map(|text| {
            let mac = text.parse::<MacAddress>();
            mac.map_err(|_| Error::value("mac", &text, MAC))
        });
        let mtu = options.take_value("mtu").map(|text| {
            let mtu = text.parse().ok().filter(|mtu| *mtu >= 68);
            mtu.ok_or_else(|| Error::value("mtu", &text, "a number from 68 to 65535"))
        });
        let receive = options.take_limits("rx-bandwidth", "rx-ops")?;
        let transmit = options.take_limits("tx-bandwidth", "tx-ops")?;
        let id = options.take_value("id").unwrap_or_default();
        options.finish("id, mac, mtu, rx-bandwidth, rx-ops, tx-bandwidth and tx-ops")?;
        Ok(Self {
            id,
            backend,
            mac: mac.transpose()?,
            mtu: mtu.transpose()?,
            receive,
            transmit,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{MacAddress, NetBackend, NetConfig};

    fn net(text: &str) -> Result<NetConfig, String> {
        text.parse().map_err(|error: super::Error| error.to_string())
    }

    #[test]
    fn backends_are_parsed() {
        for (text, backend) in [
            ("tap:tap0", NetBackend::Tap("tap0".into())),
            ("fd:5", NetBackend::Descriptor(5)),
            ("unix:/run/net:1", NetBackend::Stream("/run/net:1".into())),
            ("user", NetBackend::User),
        ] {
            assert_eq!(net(text).unwrap().backend, backend);
        }
        for text in ["tap", "tap:", "bridge:br0", "user:x"] {
            assert!(
                net(text)
                    .unwrap_err()
                    .ends_with("; use tap:NAME, fd:NUMBER, unix:PATH or user"),
                "{text}"
            );
        }
        assert!(net("fd:1").unwrap_err().contains("a descriptor above 2"));
    }

    #[test]
    fn override_rejects_options() {
        let backend = |text: &str| text.parse::<NetBackend>().map_err(|error| error.to_string());
        assert_eq!(backend("tap:tap0"), Ok(NetBackend::Tap("tap0".into())));
        assert_eq!(backend("unix:/a,,b"), Ok(NetBackend::Stream("/a,b".into())));
        assert!(backend("bridge:br0").unwrap_err().contains("tap:NAME"));
        for option in ["id=x", "mac=02:00:00:00:00:01", "mtu=1500", "rx-ops=1/1", "x"] {
            let name = option.split('=').next().unwrap();
            let rejected =
                format!("option {name:?} does not exist; use no option: only the backend can be overridden");
            assert_eq!(backend(&format!("tap:tap0,{option}")), Err(rejected));
        }
    }

    #[test]
    fn mac_address_has_six_bytes() {
        let config = net("user,mac=02:00:00:00:00:fe,mtu=9000").unwrap();
        assert_eq!(
            (config.mac, config.mtu),
            (Some(MacAddress([2, 0, 0, 0, 0, 0xfe])), Some(9000))
        );
        assert_eq!(config.mac.unwrap().to_string(), "02:00:00:00:00:fe");
        for mac in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "1:2:3:4:5:6",
            "0g:00:00:00:00:01",
        ] {
            assert!(
                net(&format!("user,mac={mac}")).unwrap_err().contains("six bytes"),
                "{mac}"
            );
        }
        for (mac, is_group) in [("02:00:00:00:00:01", false), ("03:00:00:00:00:01", true)] {
            let config = net(&format!("user,mac={mac}")).unwrap();
            assert_eq!(config.mac.unwrap().is_group(), is_group);
        }
        for mtu in ["67", "65536", "x"] {
            assert!(
                net(&format!("user,mtu={mtu}"))
                    .unwrap_err()
                    .contains("68 to 65535"),
                "{mtu}"
            );
        }
        let limited = net("user,rx-ops=10/1000").unwrap();
        assert!(limited.receive.operations.is_some() && limited.transmit == super::RateLimits::default());
        let random = MacAddress::random().0;
        assert_eq!((random[0] & 3, random == MacAddress::random().0), (2, false));
    }
}
