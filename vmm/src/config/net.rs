//! Network interfaces as people write them: `BACKEND[,id=NAME][,mac=ADDRESS][,mtu=BYTES]`, where the back end is `tap:NAME`,
//! `fd:NUMBER`, `unix:PATH` or `user`. `,rx-bandwidth=BYTES/MILLISECONDS[/BURST]`, `,rx-ops=PACKETS/MILLISECONDS[/BURST]` and the same
//! with `tx-` limit what the guest may be sent and send.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::device::DeviceSettings;
use super::error::Error as ConfigError;
use super::options::{Error, Options, RateLimits};

/// The address of a network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// An address of nobody's: locally administered, of one station, and else at random.
    pub fn random() -> Self {
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&RandomState::new().build_hasher().finish().to_le_bytes()[..6]);
        bytes[0] = bytes[0] & 0xfc | 0x02;
        Self(bytes)
    }
}

/// What an address is.
const MAC: &str = "six bytes such as 02:00:00:00:00:01, the first of which is even";

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|byte| {
                u8::from_str_radix(byte, 16)
                    .ok()
                    .filter(|_| byte.len() == 2 && !byte.starts_with('+'))
            })
            .collect();
        // The lowest bit of the first byte makes the address that of a group, which no interface has.
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .filter(|bytes: &[u8; 6]| bytes[0] & 1 == 0)
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no MAC address: it is {MAC}"))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The host's side of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetBackend {
    /// A tap device that is there, by name. With an empty name, which only an API can give, the kernel makes one and names
    /// it.
    Tap(String),
    /// A tap device that this process was started with, as a descriptor.
    Descriptor(RawFd),
    /// A unix socket on which somebody serves the network: passt, or another machine monitor.
    Stream(PathBuf),
    /// A passt of this machine's own.
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
    /// What `text`, in which a comma is one comma, stands for.
    fn named(text: &str) -> Result<Self, Error> {
        match text.split_once(':') {
            None if text == "user" => Ok(Self::User),
            Some(("tap", name)) if !name.is_empty() => Ok(Self::Tap(name.to_owned())),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Stream(path.into())),
            Some(("fd", number)) => {
                let number = number.parse().ok().filter(|number| *number > 2);
                number
                    .map(Self::Descriptor)
                    .ok_or_else(|| Error::value("fd", text, "a descriptor above 2"))
            }
            _ => Err(Error::value(
                "--net",
                text,
                "tap:NAME, fd:NUMBER, unix:PATH or user",
            )),
        }
    }
}

impl FromStr for NetBackend {
    type Err = Error;

    /// As people write it where an interface is there already and only the host's side of it is another.
    fn from_str(text: &str) -> Result<Self, Error> {
        let options = Options::parse(text)?;
        let backend = Self::named(options.first())?;
        options.finish("none here, since all but the host's side stays as it was")?;
        Ok(backend)
    }
}

/// A network interface that the user asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// Name of the interface, for its owner; one by its number when it is empty.
    pub id: String,
    /// The host's side.
    pub backend: NetBackend,
    /// Address of the guest's side; at random when there is none.
    pub mac: Option<MacAddress>,
    /// MTU that the guest is told, 68 to 65,535.
    pub mtu: Option<u16>,
    /// What the guest may be sent.
    pub receive: RateLimits,
    /// What the guest may send.
    pub transmit: RateLimits,
}

/// Change of an attached network interface. A bucket of none keeps the present one.
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

    fn check_after(&self, earlier: &Self) -> Result<(), ConfigError> {
        match (self.mac, &self.backend) {
            (Some(mac), _) if earlier.mac == Some(mac) => Err(ConfigError::Mac(mac)),
            (_, NetBackend::Descriptor(descriptor)) if self.backend == earlier.backend => {
                Err(ConfigError::Descriptor(*descriptor))
            }
            _ => Ok(()),
        }
    }

    fn has_backend_of(&self, other: &Self) -> bool {
        self.backend == other.backend
    }

    fn apply(&mut self, update: &InterfaceUpdate) {
        self.receive.merge(update.receive);
        self.transmit.merge(update.transmit);
    }

    fn set_backend(&mut self, backend: &NetBackend) {
        self.backend.clone_from(backend);
    }
}

impl FromStr for NetConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut options = Options::parse(text)?;
        let backend = NetBackend::named(options.first())?;
        let mac = options.take("mac").map(|text| {
            let mac = text.parse::<MacAddress>();
            mac.map_err(|_| Error::value("mac", &text, MAC))
        });
        let mtu = options.take("mtu").map(|text| {
            let mtu = text.parse().ok().filter(|mtu| *mtu >= 68);
            mtu.ok_or_else(|| Error::value("mtu", &text, "a number from 68 to 65535"))
        });
        let receive = options.limits("rx-bandwidth", "rx-ops")?;
        let transmit = options.limits("tx-bandwidth", "tx-ops")?;
        let id = options.take("id").unwrap_or_default();
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
    fn back_ends_are_named() {
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
                    .ends_with("it is tap:NAME, fd:NUMBER, unix:PATH or user"),
                "{text}"
            );
        }
        assert!(net("fd:1").unwrap_err().contains("a descriptor above 2"));
    }

    #[test]
    fn a_back_end_alone_has_no_options() {
        let backend = |text: &str| text.parse::<NetBackend>().map_err(|error| error.to_string());
        assert_eq!(backend("tap:tap0"), Ok(NetBackend::Tap("tap0".into())));
        assert_eq!(backend("unix:/a,,b"), Ok(NetBackend::Stream("/a,b".into())));
        assert!(backend("bridge:br0").unwrap_err().contains("tap:NAME"));
        for option in ["id=x", "mac=02:00:00:00:00:01", "mtu=1500", "rx-ops=1/1", "x"] {
            let name = option.split('=').next().unwrap();
            let refused = format!(
                "there is no option {name:?}: there are none here, since all but the host's side stays as it was"
            );
            assert_eq!(backend(&format!("tap:tap0,{option}")), Err(refused));
        }
    }

    #[test]
    fn addresses_are_those_of_one_station() {
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
            "03:00:00:00:00:01",
            "0g:00:00:00:00:01",
        ] {
            assert!(
                net(&format!("user,mac={mac}")).unwrap_err().contains("six bytes"),
                "{mac}"
            );
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
