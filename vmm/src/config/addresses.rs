//! Addresses of a network interface that the network sees in place of those of the guest.

use std::fmt;
use std::net::Ipv4Addr;

use super::mac::MacAddress;

/// Addresses that the network sees, and the addresses of the guest that the device rewrites to them.
///
/// They belong to the host, as a tap does, and are no part of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetAddresses {
    /// IPv4 address that the guest uses, of one host.
    pub guest_ip: Ipv4Addr,
    /// IPv4 address that the network sees, of one host.
    pub ip: Ipv4Addr,
    /// MAC address that the guest uses; none for that of the device.
    pub guest_mac: Option<MacAddress>,
    /// MAC address that the network sees; none for that of the guest.
    pub mac: Option<MacAddress>,
    /// IPv6 passes. Otherwise it is dropped.
    pub pass_ipv6: bool,
}

impl fmt::Display for NetAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in place of {}", self.ip, self.guest_ip)?;
        self.mac.map_or(Ok(()), |mac| write!(f, ", {mac}"))
    }
}

/// Names of the parts of [`NetAddresses`] in messages.
#[derive(Debug)]
pub struct AddressNames {
    /// Address of the guest.
    pub guest_ip: &'static str,
    /// Address that the network sees.
    pub ip: &'static str,
    /// MAC address of the guest.
    pub guest_mac: &'static str,
    /// MAC address that the network sees.
    pub mac: &'static str,
    /// Passed protocols.
    pub pass: &'static str,
}

impl AddressNames {
    /// Names of the options of an interface.
    pub const OPTIONS: Self = Self {
        guest_ip: "guest-ip",
        ip: "ip",
        guest_mac: "guest-mac",
        mac: "mac",
        pass: "pass",
    };
}

/// Reason why addresses are invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// An address is given without another one.
    #[error("{given} requires {missing}")]
    Missing {
        /// Name of the given value.
        given: &'static str,
        /// Name of the missing value.
        missing: &'static str,
    },
    /// The text is not the IPv4 address of one host.
    #[error("{name}={value:?} is invalid; use the IPv4 address of one host such as 10.0.0.2")]
    Ip {
        /// Name of the value.
        name: &'static str,
        /// Text of the value, truncated.
        value: String,
    },
}

/// Parts of [`NetAddresses`] as the user gives them.
#[derive(Clone, Debug, Default)]
pub struct AddressRequest {
    /// Address of the guest.
    pub guest_ip: Option<String>,
    /// Address that the network sees.
    pub ip: Option<String>,
    /// MAC address of the guest.
    pub guest_mac: Option<MacAddress>,
    /// MAC address that the network sees.
    pub mac: Option<MacAddress>,
    /// IPv6 passes.
    pub pass_ipv6: bool,
}

impl AddressRequest {
    /// Checks the parts; `names` are those in messages. Returns `None` if nothing is requested.
    ///
    /// # Errors
    /// [`AddressError`]
    pub fn check(&self, names: &AddressNames) -> Result<Option<NetAddresses>, AddressError> {
        let missing = |given, missing| Err(AddressError::Missing { given, missing });
        let (guest_ip, ip) = match (&self.guest_ip, &self.ip) {
            (Some(guest_ip), Some(ip)) => (parse(names.guest_ip, guest_ip)?, parse(names.ip, ip)?),
            (Some(_), None) => return missing(names.guest_ip, names.ip),
            (None, Some(_)) => return missing(names.ip, names.guest_ip),
            (None, None) => {
                let given = [
                    (self.guest_mac.is_some(), names.guest_mac),
                    (self.mac.is_some(), names.mac),
                    (self.pass_ipv6, names.pass),
                ];
                let given = given.into_iter().find(|(is_given, _)| *is_given);
                return given.map_or(Ok(None), |(_, given)| missing(given, names.guest_ip));
            }
        };
        if self.guest_mac.is_some() && self.mac.is_none() {
            return missing(names.guest_mac, names.mac);
        }
        Ok(Some(NetAddresses {
            guest_ip,
            ip,
            guest_mac: self.guest_mac,
            mac: self.mac,
            pass_ipv6: self.pass_ipv6,
        }))
    }
}

/// Maximum number of characters of a value in a message: a client may send a long one.
const MAX_SHOWN: usize = 64;

/// Parses the address of one host: not of this network, of the local host, of a group or reserved (RFC 6890).
fn parse(name: &'static str, text: &str) -> Result<Ipv4Addr, AddressError> {
    let address = text.parse().ok();
    let address = address.filter(|address: &Ipv4Addr| matches!(address.octets()[0], 1..=126 | 128..=223));
    address.ok_or_else(|| AddressError::Ip {
        name,
        value: text.chars().take(MAX_SHOWN).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::{AddressNames, AddressRequest, MacAddress, NetAddresses};

    fn check(guest_ip: &str, ip: &str, macs: [bool; 2], pass_ipv6: bool) -> Result<bool, String> {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let mac = |given: bool| given.then_some(MacAddress([2, 0, 0, 0, 0, 1]));
        let request = AddressRequest {
            guest_ip: text(guest_ip),
            ip: text(ip),
            guest_mac: mac(macs[0]),
            mac: mac(macs[1]),
            pass_ipv6,
        };
        let checked = request.check(&AddressNames::OPTIONS);
        checked
            .map(|addresses| addresses.is_some())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn incomplete_addresses_are_rejected() {
        let missing = |given: &str, missing: &str| Err(format!("{given} requires {missing}"));
        assert_eq!(check("", "", [false; 2], false), Ok(false));
        assert_eq!(check("10.0.0.2", "10.0.7.1", [false; 2], true), Ok(true));
        assert_eq!(check("10.0.0.2", "10.0.0.2", [true; 2], false), Ok(true));
        assert_eq!(check("10.0.0.2", "10.0.7.1", [false, true], false), Ok(true));
        assert_eq!(
            check("10.0.0.2", "", [false; 2], false),
            missing("guest-ip", "ip")
        );
        assert_eq!(
            check("", "10.0.7.1", [false; 2], false),
            missing("ip", "guest-ip")
        );
        assert_eq!(
            check("10.0.0.2", "10.0.7.1", [true, false], false),
            missing("guest-mac", "mac")
        );
        assert_eq!(check("", "", [true; 2], false), missing("guest-mac", "guest-ip"));
        assert_eq!(check("", "", [false, true], false), missing("mac", "guest-ip"));
        assert_eq!(check("", "", [false; 2], true), missing("pass", "guest-ip"));
    }

    #[test]
    fn address_of_no_host_is_rejected() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "fe80::1",
            "10.0.0",
            "10.0.0.2/24",
            "x",
        ] {
            let rejected = |name: &str| {
                Err(format!(
                    "{name}={text:?} is invalid; use the IPv4 address of one host such as 10.0.0.2"
                ))
            };
            assert_eq!(check(text, "10.0.7.1", [false; 2], false), rejected("guest-ip"));
            assert_eq!(check("10.0.0.2", text, [false; 2], false), rejected("ip"));
        }
    }

    #[test]
    fn addresses_have_text() {
        let addresses = NetAddresses {
            guest_ip: [10, 0, 0, 2].into(),
            ip: [10, 0, 7, 1].into(),
            guest_mac: None,
            mac: None,
            pass_ipv6: false,
        };
        assert_eq!(addresses.to_string(), "10.0.7.1 in place of 10.0.0.2");
        let mac = Some(MacAddress([2, 0, 0, 0, 0, 7]));
        let text = NetAddresses { mac, ..addresses }.to_string();
        assert_eq!(text, "10.0.7.1 in place of 10.0.0.2, 02:00:00:00:00:07");
    }
}
