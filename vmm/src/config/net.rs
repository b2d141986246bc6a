//! Network interfaces, written as `BACKEND[,id=NAME][,mac=ADDRESS][,mtu=BYTES]`, where BACKEND is `tap:NAME`, `fd:NUMBER`, `unix:PATH` or
//! `user`. `,rx-bandwidth=BYTES/MILLISECONDS[/BURST]` and `,rx-ops=PACKETS/MILLISECONDS[/BURST]` limit frames to the guest, the same
//! options with `tx-` frames from the guest. `,guest-ip=ADDRESS,ip=ADDRESS[,guest-mac=ADDRESS,mac=ADDRESS][,pass=ipv6]` rewrites the
//! addresses of the guest to others on the network. [`UserNetwork`] has the options of `user`.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::addresses::{AddressNames, AddressRequest, NetAddresses};
use super::mac::{MAC, MacAddress};
use super::options::{Error, Options, RateLimits};
use super::settings::{Conflict, DeviceSettings};
use super::user::UserNetwork;

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

/// Host side of an interface at a load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOverride {
    /// Backend.
    pub backend: NetBackend,
    /// Addresses that the network sees; none for those of the guest.
    pub addresses: Option<NetAddresses>,
    /// Network of a passt.
    pub user: UserNetwork,
}

impl From<NetBackend> for NetOverride {
    fn from(backend: NetBackend) -> Self {
        Self {
            backend,
            addresses: None,
            user: UserNetwork::default(),
        }
    }
}

/// Options of an interface that a load may change.
const OVERRIDE_OPTIONS: [&str; 9] = [
    "guest-ip",
    "ip",
    "guest-mac",
    "mac",
    "pass",
    "tcp",
    "udp",
    "address",
    "gateway",
];
/// Further options of an interface.
const OWN_OPTIONS: [&str; 6] = ["id", "mtu", "rx-bandwidth", "rx-ops", "tx-bandwidth", "tx-ops"];

impl FromStr for NetOverride {
    type Err = Error;

    /// Parses a backend and addresses. An override keeps the other options of the saved interface, also the MAC address of the
    /// guest: `mac` is the one that the network sees.
    fn from_str(text: &str) -> Result<Self, Error> {
        let mut options = Options::parse(text)?;
        let backend = NetBackend::parse_name(options.first())?;
        let user = UserNetwork::take(&mut options, backend == NetBackend::User)?;
        let mut request = take_addresses(&mut options)?;
        request.mac = take_mac(&mut options, "mac")?;
        options.finish(
            &[&OVERRIDE_OPTIONS],
            "guest-ip, ip, guest-mac, mac, pass, and tcp, udp, address and gateway of user: a load keeps the others",
        )?;
        Ok(Self {
            backend,
            user,
            addresses: request.check(&AddressNames::OPTIONS)?,
        })
    }
}

/// Takes the options for addresses, except `mac`.
fn take_addresses(options: &mut Options) -> Result<AddressRequest, Error> {
    let pass = options.take_value("pass");
    if let Some(text) = pass.as_ref().filter(|text| *text != "ipv6") {
        return Err(Error::value("pass", text, "ipv6"));
    }
    Ok(AddressRequest {
        guest_ip: options.take_value("guest-ip"),
        ip: options.take_value("ip"),
        guest_mac: take_mac(options, "guest-mac")?,
        mac: None,
        pass_ipv6: pass.is_some(),
    })
}

fn take_mac(options: &mut Options, name: &'static str) -> Result<Option<MacAddress>, Error> {
    let text = options.take_value(name);
    let mac = text.map(|text| text.parse().map_err(|_| Error::value(name, &text, MAC)));
    mac.transpose()
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
    /// Addresses that the network sees; none for those of the guest. Not saved: they belong to the host.
    #[serde(skip)]
    pub addresses: Option<NetAddresses>,
    /// Network of a passt. Not saved, as the addresses.
    #[serde(skip)]
    pub user: UserNetwork,
}

impl NetConfig {
    /// Returns the MAC address that the network sees.
    pub fn network_mac(&self) -> Option<MacAddress> {
        self.addresses.and_then(|addresses| addresses.mac).or(self.mac)
    }
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
    type Backend = NetOverride;

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
        if let (Some(NetAddresses { ip, .. }), Some(other)) = (self.addresses, earlier.addresses)
            && ip == other.ip
        {
            return Err(Conflict::Ip(ip));
        }
        if let Some(mac) = self
            .network_mac()
            .filter(|mac| earlier.network_mac() == Some(*mac))
        {
            return Err(Conflict::Mac(mac));
        }
        if let Some((first, second)) = self.user.overlap(&earlier.user) {
            return Err(Conflict::Forwards(first, second));
        }
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

    fn set_backend(&mut self, backend: &NetOverride) {
        self.backend.clone_from(&backend.backend);
        self.addresses = backend.addresses;
        self.user.clone_from(&backend.user);
    }

    fn backend_length(&self) -> usize {
        match &self.backend {
            NetBackend::Tap(name) => name.len(),
            NetBackend::Stream(path) => path.as_os_str().len(),
            NetBackend::Descriptor(_) | NetBackend::User => 0,
        }
    }

    fn format_backend(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, read-write", self.backend)?;
        self.addresses
            .map_or(Ok(()), |addresses| write!(f, ", {addresses}"))
    }
}

impl FromStr for NetConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut options = Options::parse(text)?;
        let backend = NetBackend::parse_name(options.first())?;
        let user = UserNetwork::take(&mut options, backend == NetBackend::User)?;
        let mut request = take_addresses(&mut options)?;
        let mut mac = take_mac(&mut options, "mac")?;
        if let Some(guest_mac) = request.guest_mac {
            // `mac` is the address of the guest only while no other one is given for it.
            request.mac = mac.replace(guest_mac);
        }
        let mtu = options.take_value("mtu").map(|text| {
            let mtu = text.parse().ok().filter(|mtu| *mtu >= 68);
            mtu.ok_or_else(|| Error::value("mtu", &text, "a number from 68 to 65535"))
        });
        let receive = options.take_limits("rx-bandwidth", "rx-ops")?;
        let transmit = options.take_limits("tx-bandwidth", "tx-ops")?;
        let id = options.take_value("id").unwrap_or_default();
        options.finish(
            &[&OVERRIDE_OPTIONS, &OWN_OPTIONS],
            "id, mac, mtu, rx-bandwidth, rx-ops, tx-bandwidth, tx-ops, guest-ip, ip, guest-mac, pass, and tcp, udp, address and gateway of user",
        )?;
        let addresses = request.check(&AddressNames::OPTIONS)?;
        Ok(Self {
            id,
            backend,
            mac,
            mtu: mtu.transpose()?,
            receive,
            transmit,
            addresses,
            user,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::{Conflict, DeviceSettings};
    use super::{MacAddress, NetAddresses, NetBackend, NetConfig, NetOverride};

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
    fn only_names_of_options_are_options() {
        for text in ["and", "of", "user", "of=1", "=1", "and,tcp=80"] {
            let error = net(&format!("user,{text}")).unwrap_err();
            let name = text.split(['=', ',']).next().unwrap();
            assert!(
                error.starts_with(&format!("option {name:?} does not exist; use id, mac")),
                "{text}: {error}"
            );
        }
        let empty = "the option after a comma is missing; remove the comma, or double a comma of a path";
        for text in ["user,", "user,mtu=1500,", "tap:x,,,mtu=1500,"] {
            assert_eq!(net(text), Err(empty.to_owned()), "{text}");
        }
        for name in super::OVERRIDE_OPTIONS.iter().chain(&super::OWN_OPTIONS) {
            let expected = format!("option {name} requires a value; write {name}=VALUE");
            assert_eq!(net(&format!("user,{name}")), Err(expected));
        }
    }

    #[test]
    fn override_has_backend_and_addresses() {
        let parse = |text: &str| text.parse::<NetOverride>().map_err(|error| error.to_string());
        assert_eq!(parse("tap:tap0"), Ok(NetBackend::Tap("tap0".into()).into()));
        assert_eq!(parse("unix:/a,,b"), Ok(NetBackend::Stream("/a,b".into()).into()));
        assert!(parse("bridge:br0").unwrap_err().contains("tap:NAME"));
        let user = parse("user,tcp=8080:80,tcp=443").unwrap().user;
        assert_eq!(
            user.arguments(),
            ["--tcp-ports", "8080:80", "--tcp-ports", "443:443"]
        );
        assert!(
            parse("user,tcp")
                .unwrap_err()
                .contains("option tcp requires a value")
        );
        for option in ["id=x", "mtu=1500", "rx-ops=1/1", "x"] {
            let name = option.split('=').next().unwrap();
            let rejected = format!(
                "option {name:?} does not exist; use guest-ip, ip, guest-mac, mac, pass, and tcp, udp, address and gateway of user: a load keeps the \
                 others"
            );
            assert_eq!(parse(&format!("tap:tap0,{option}")), Err(rejected));
        }
        let addresses = |text: &str| parse(text).map(|backend| backend.addresses);
        assert_eq!(
            addresses("user,guest-ip=10.0.0.2,ip=10.0.7.1"),
            Ok(Some(ADDRESSES))
        );
        let text = "user,guest-ip=10.0.0.2,ip=10.0.7.1,mac=02:00:00:00:07:01,pass=ipv6";
        let expected = NetAddresses {
            mac: Some(MacAddress([2, 0, 0, 0, 7, 1])),
            pass_ipv6: true,
            ..ADDRESSES
        };
        assert_eq!(addresses(text), Ok(Some(expected)));
        let text = format!("{text},guest-mac=02:00:00:00:00:01");
        let guest_mac = Some(MacAddress([2, 0, 0, 0, 0, 1]));
        assert_eq!(
            addresses(&text),
            Ok(Some(NetAddresses {
                guest_mac,
                ..expected
            }))
        );
        for (text, rejected) in [
            ("user,mac=02:00:00:00:00:01", "mac requires guest-ip"),
            ("user,ip=10.0.0.2", "ip requires guest-ip"),
            ("user,guest-ip=10.0.0.2", "guest-ip requires ip"),
            (
                "user,guest-ip=10.0.0.2,ip=10.0.7.1,pass=ipv4",
                "pass=\"ipv4\" is invalid; use ipv6",
            ),
        ] {
            assert_eq!(addresses(text), Err(rejected.to_owned()));
        }
    }

    const ADDRESSES: NetAddresses = NetAddresses {
        guest_ip: std::net::Ipv4Addr::new(10, 0, 0, 2),
        ip: std::net::Ipv4Addr::new(10, 0, 7, 1),
        guest_mac: None,
        mac: None,
        pass_ipv6: false,
    };

    #[test]
    fn guest_mac_makes_mac_that_of_network() {
        let (guest, network) = (MacAddress([2, 0, 0, 0, 0, 1]), MacAddress([2, 0, 0, 0, 7, 1]));
        let ip = "user,guest-ip=10.0.0.2,ip=10.0.7.1";
        let config = net(&format!("{ip},mac={guest}")).unwrap();
        assert_eq!((config.mac, config.addresses), (Some(guest), Some(ADDRESSES)));
        assert_eq!(config.network_mac(), Some(guest));
        let config = net(&format!("{ip},guest-mac={guest},mac={network}")).unwrap();
        assert_eq!((config.mac, config.network_mac()), (Some(guest), Some(network)));
        assert_eq!(
            net(&format!("{ip},guest-mac={guest}")),
            Err("guest-mac requires mac".into())
        );
        assert_eq!(
            net(&format!("user,guest-mac={guest},mac={network}")),
            Err("guest-mac requires guest-ip".into())
        );
    }

    #[test]
    fn interfaces_with_equal_addresses_conflict() {
        let conflict = |first: &str, second: &str| net(second).unwrap().check_after(&net(first).unwrap());
        let with = |ip: &str, mac: &str| {
            format!(
                "user,guest-ip=10.0.0.2,ip={ip},guest-mac=02:00:00:00:00:0{},mac=02:00:00:00:07:0{mac}",
                9
            )
        };
        let other = "user,mac=02:00:00:00:00:08,guest-ip=10.0.0.2,ip=10.0.7.1";
        assert_eq!(
            conflict(&with("10.0.7.1", "1"), other),
            Err(Conflict::Ip([10, 0, 7, 1].into()))
        );
        let mac = Err(Conflict::Mac(MacAddress([2, 0, 0, 0, 7, 1])));
        assert_eq!(
            conflict(&with("10.0.7.2", "1"), "user,mac=02:00:00:00:07:01"),
            mac
        );
        assert_eq!(conflict(&with("10.0.7.2", "1"), other), Ok(()));
    }

    #[test]
    fn interfaces_with_equal_ports_conflict() {
        let conflict = |first: &str, second: &str| {
            let earlier = net(&format!("user,{first}")).unwrap();
            let result = net(&format!("user,{second}")).unwrap().check_after(&earlier);
            result.map_err(|error| error.to_string())
        };
        let rejected = |first: &str, second: &str| {
            Err(format!(
                "cannot forward {first} and {second} for two network interfaces: both listen at this port; change one port"
            ))
        };
        assert_eq!(
            conflict("tcp=81:80,tcp=82:80", "tcp=83,tcp=82"),
            rejected(
                "TCP 0.0.0.0:82 to guest port 80",
                "TCP 0.0.0.0:82 to guest port 82"
            )
        );
        assert_eq!(
            conflict("udp=127.0.0.1/53", "udp=0.0.0.0/53"),
            rejected(
                "UDP 127.0.0.1:53 to guest port 53",
                "UDP 0.0.0.0:53 to guest port 53"
            )
        );
        for (first, second) in [
            ("tcp=80", "udp=80"),
            ("tcp=80:1", "tcp=81:1"),
            ("tcp=127.0.0.1/80", "tcp=127.0.0.2/80"),
        ] {
            assert_eq!(conflict(first, second), Ok(()), "{first} {second}");
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
