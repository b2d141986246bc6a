//! Ports of the host that are forwarded to the guest.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Valid form of a forwarded port.
pub(super) const PORT: &str = "[ADDRESS/]PORT[:GUEST PORT] with ports from 1 to 65535";

/// Transport protocol of a forwarded port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Port of the host, and the port of the guest that gets its connections or datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Transport protocol.
    pub transport: Transport,
    /// IPv4 address of the host; none for all addresses.
    pub address: Option<Ipv4Addr>,
    /// Port of the host.
    pub port: u16,
    /// Port of the guest.
    pub guest_port: u16,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} to guest port {}",
            self.transport,
            self.socket(),
            self.guest_port
        )
    }
}

impl Forward {
    /// Parses [`PORT`].
    pub(super) fn parse(transport: Transport, text: &str) -> Option<Self> {
        let (address, ports) = match text.rsplit_once('/') {
            Some((address, ports)) => (Some(address.parse().ok()?), ports),
            None => (None, text),
        };
        let number = |text: &str| text.parse().ok().filter(|port| *port != 0);
        let (port, guest_port) = match ports.split_once(':') {
            Some((port, guest_port)) => (number(port)?, number(guest_port)?),
            None => (number(ports)?, number(ports)?),
        };
        Some(Self {
            transport,
            address,
            port,
            guest_port,
        })
    }

    /// Returns the address and port of the host.
    pub fn socket(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.address.unwrap_or(Ipv4Addr::UNSPECIFIED), self.port)
    }

    /// Returns true if both have the same port of the host, possibly at other addresses.
    pub(super) fn has_port_of(&self, other: &Self) -> bool {
        (self.transport, self.port) == (other.transport, other.port)
    }

    /// Returns true if two processes cannot listen at both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (own, others) = (*self.socket().ip(), *other.socket().ip());
        self.has_port_of(other) && (own == others || own.is_unspecified() || others.is_unspecified())
    }
}
