//! Options of the passt of an interface: `address=ADDRESS/PREFIX,gateway=ADDRESS,tcp=PORTS,udp=PORTS`, where PORTS is
//! `[ADDRESS/]PORT[:GUEST PORT]`. `tcp` and `udp` may be repeated.

use std::net::Ipv4Addr;

use super::forward::{Forward, PORT, Transport};
use super::options::{Error, Options};

/// Network that passt offers the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserNetwork {
    /// Address of the guest and length of its prefix; none for those of the host.
    pub address: Option<(Ipv4Addr, u8)>,
    /// Address of the gateway; none for that of the host.
    pub gateway: Option<Ipv4Addr>,
    /// Forwarded ports.
    pub forwards: Vec<Forward>,
}

impl UserNetwork {
    /// Takes the options for passt. `is_user` is true if passt is the backend.
    ///
    /// # Errors
    /// Fails for an invalid value, and for an option with another backend.
    pub(super) fn take(options: &mut Options, is_user: bool) -> Result<Self, Error> {
        let check = |name, text: String| {
            if is_user {
                Ok(text)
            } else {
                Err(Error::RequiresUser(name))
            }
        };
        let mut network = Self::default();
        if let Some(text) = options.take_value("address") {
            let text = check("address", text)?;
            let parsed = parse_address(&text);
            network.address = Some(parsed.ok_or_else(|| {
                Error::value(
                    "address",
                    &text,
                    "a unicast IPv4 address other than loopback, and a prefix from 1 to 30, such as 10.0.0.2/24",
                )
            })?);
        }
        if let Some(text) = options.take_value("gateway") {
            let text = check("gateway", text)?;
            let expected = "a unicast IPv4 address other than loopback, such as 10.0.0.1";
            let parsed = parse_host(&text);
            network.gateway = Some(parsed.ok_or_else(|| Error::value("gateway", &text, expected))?);
        }
        for (name, transport) in [("tcp", Transport::Tcp), ("udp", Transport::Udp)] {
            while let Some(text) = options.take_value(name) {
                let text = check(name, text)?;
                let forward =
                    Forward::parse(transport, &text).ok_or_else(|| Error::value(name, &text, PORT))?;
                // passt forwards a port of one transport protocol once, also with two addresses.
                if let Some(earlier) = network
                    .forwards
                    .iter()
                    .find(|earlier| earlier.has_port_of(&forward))
                {
                    return Err(Error::Forwards(*earlier, forward));
                }
                network.forwards.push(forward);
            }
        }
        Ok(network)
    }

    /// Returns the first forwarded port of `earlier`, and of this network, at which both cannot listen.
    pub(super) fn overlap(&self, earlier: &Self) -> Option<(Forward, Forward)> {
        let mut pairs = earlier
            .forwards
            .iter()
            .flat_map(|earlier| self.forwards.iter().map(move |own| (*earlier, *own)));
        pairs.find(|(earlier, own)| own.overlaps(earlier))
    }

    /// Returns the arguments of passt.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        if let Some((address, prefix)) = self.address {
            add("--address", address.to_string());
            add("--netmask", prefix.to_string());
        }
        if let Some(gateway) = self.gateway {
            add("--gateway", gateway.to_string());
        }
        for forward in &self.forwards {
            let name = match forward.transport {
                Transport::Tcp => "--tcp-ports",
                Transport::Udp => "--udp-ports",
            };
            let (port, guest_port) = (forward.port, forward.guest_port);
            add(
                name,
                match forward.address {
                    Some(address) => format!("{address}/{port}:{guest_port}"),
                    None => format!("{port}:{guest_port}"),
                },
            );
        }
        arguments
    }
}

fn parse_address(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|prefix| (1..=30).contains(prefix))?;
    Some((parse_host(address)?, prefix))
}

/// Parses the address of a host on a network. passt would end with others, after the start of the guest.
fn parse_host(text: &str) -> Option<Ipv4Addr> {
    let address: Ipv4Addr = text.parse().ok()?;
    let is_host = !address.is_unspecified()
        && !address.is_loopback()
        && !address.is_multicast()
        && !address.is_broadcast();
    is_host.then_some(address)
}

#[cfg(test)]
mod tests {
    use super::super::options::Options;
    use super::UserNetwork;

    fn arguments(text: &str) -> Result<String, String> {
        let network = Options::parse(text).and_then(|mut options| {
            let is_user = options.first() == "user";
            UserNetwork::take(&mut options, is_user)
        });
        let arguments = network.map(|network| network.arguments().join(" "));
        arguments.map_err(|error| error.to_string())
    }

    #[test]
    fn options_become_arguments_of_passt() {
        for (text, expected) in [
            ("user", ""),
            ("user,tcp=80", "--tcp-ports 80:80"),
            (
                "user,address=10.0.0.2/24,gateway=10.0.0.1",
                "--address 10.0.0.2 --netmask 24 --gateway 10.0.0.1",
            ),
            (
                "user,tcp=80,udp=80,tcp=81:80",
                "--tcp-ports 80:80 --tcp-ports 81:80 --udp-ports 80:80",
            ),
            (
                "user,udp=53:5353,tcp=127.0.0.1/8080:80,tcp=10.0.0.9/8443:443",
                "--tcp-ports 127.0.0.1/8080:80 --tcp-ports 10.0.0.9/8443:443 --udp-ports 53:5353",
            ),
        ] {
            assert_eq!(arguments(text).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn port_is_forwarded_once() {
        for (first, second) in [
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("127.0.0.1:80", "0.0.0.0:80"),
            ("127.0.0.1:80", "127.0.0.2:80"),
        ] {
            let option = |socket: &str| socket.replace("0.0.0.0:", "").replace(':', "/");
            let text = format!("user,udp={}:1,udp={}:2", option(first), option(second));
            let expected = format!(
                "cannot forward UDP {first} to guest port 1 and UDP {second} to guest port 2 for one interface: passt takes each port of this \
                 host once; change one port"
            );
            assert_eq!(arguments(&text), Err(expected));
        }
    }

    #[test]
    fn invalid_options_are_rejected() {
        for text in ["0", "80:", ":80", "65536", "x/80", "::1/80", "80:90:100", "80-90"] {
            let rejected = format!(
                "tcp={text:?} is invalid; use [ADDRESS/]PORT[:GUEST PORT] with ports from 1 to 65535"
            );
            assert_eq!(arguments(&format!("user,tcp={text}")), Err(rejected));
        }
        for text in [
            "10.0.0.2",
            "10.0.0.2/0",
            "10.0.0.2/31",
            "10.0.0.2/32",
            "fd00::2/64",
        ] {
            let rejected = format!(
                "address={text:?} is invalid; use a unicast IPv4 address other than loopback, and a prefix from 1 to 30, such as 10.0.0.2/24"
            );
            assert_eq!(arguments(&format!("user,address={text}")), Err(rejected));
        }
        for address in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
            let error = arguments(&format!("user,address={address}/24")).unwrap_err();
            assert!(error.contains("use a unicast IPv4 address"), "{error}");
            let rejected = format!(
                "gateway={address:?} is invalid; use a unicast IPv4 address other than loopback, such as 10.0.0.1"
            );
            assert_eq!(arguments(&format!("user,gateway={address}")), Err(rejected));
        }
        assert!(arguments("user,gateway=x").is_err());
        for option in ["tcp=80", "udp=80", "address=10.0.0.2/24", "gateway=10.0.0.1"] {
            let name = option.split('=').next().unwrap();
            let rejected = format!("option {name} requires the backend user");
            assert_eq!(arguments(&format!("tap:tap0,{option}")), Err(rejected));
        }
        assert!(arguments("user,mac=x,mac=y").unwrap_err().contains("given twice"));
    }
}
