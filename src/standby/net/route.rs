//! Host routes, neighbors, addresses and links, by rtnetlink (rtnetlink(7)). All changes require CAP_NET_ADMIN.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::frame::Mac;
use super::sys;

/// Maximum wait for the acknowledgment of the kernel, which it sends before the request returns.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Offset of the flags in it, and of the sequence number.
const SEQUENCE: usize = 8;

const NLMSG_ERROR: u16 = 2;

/// Attributes of a route: destination, interface, gateway.
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
/// Flag of a route whose gateway is on the link, whatever other routes say.
const RTNH_F_ONLINK: u32 = 4;
/// Gateway that stands for the reader of a TUN.
const TUN_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Attributes of a neighbor: IP address, Ethernet address.
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// Attributes of an address: prefix, the address itself.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// Protocol number of routes by an administrator.
const RTPROT_STATIC: u8 = 4;
/// Main table.
const RT_TABLE_MAIN: u8 = 254;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
/// State of a neighbor that never expires, and needs no ARP.
const NUD_PERMANENT: u16 = 0x80;
/// Flag of an IPv6 address that is used at once.
const IFA_F_NODAD: u8 = 2;

/// Change of the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Routes the address to the interface.
    AddRoute(IpAddr, u32),
    /// Removes that route.
    DeleteRoute(IpAddr, u32),
    /// Sets the Ethernet address of the IP address on the interface.
    AddNeighbor(IpAddr, Mac, u32),
    /// Removes that neighbor.
    DeleteNeighbor(IpAddr, u32),
    /// Routes the IPv6 addresses with this prefix to the TUN, by a gateway: the kernel has a neighbor for each next hop, also on an
    /// interface without neighbors.
    AddRange(Ipv6Addr, u8, u32),
    /// Gives the interface an address, with the length of its prefix.
    AddAddress(IpAddr, u8, u32),
    /// Brings the interface up.
    SetUp(u32),
}

impl Change {
    /// Returns the operation, for messages.
    fn name(self) -> &'static str {
        match self {
            Self::AddRoute(..) | Self::AddRange(..) => "add a route",
            Self::DeleteRoute(..) => "remove a route",
            Self::AddNeighbor(..) => "add a neighbor",
            Self::DeleteNeighbor(..) => "remove a neighbor",
            Self::AddAddress(..) => "add an address",
            Self::SetUp(_) => "bring up the interface",
        }
    }

    /// Returns true if `error` states that the change has been made before.
    fn is_done(self, error: &io::Error) -> bool {
        let code = error.raw_os_error();
        match self {
            Self::AddAddress(..) => code == Some(libc::EEXIST),
            Self::DeleteRoute(..) | Self::DeleteNeighbor(..) => {
                matches!(code, Some(libc::ESRCH | libc::ENOENT | libc::ENODEV))
            }
            _ => false,
        }
    }

    /// Appends the message to `bytes`.
    fn write(self, bytes: &mut Vec<u8>, sequence: u32) {
        let create = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let (kind, flags) = match self {
            Self::AddRoute(..) | Self::AddRange(..) => (libc::RTM_NEWROUTE, create),
            Self::DeleteRoute(..) => (libc::RTM_DELROUTE, 0),
            Self::AddNeighbor(..) => (libc::RTM_NEWNEIGH, create),
            Self::DeleteNeighbor(..) => (libc::RTM_DELNEIGH, 0),
            Self::AddAddress(..) => (libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL),
            Self::SetUp(_) => (libc::RTM_NEWLINK, 0),
        };
        let start = bytes.len();
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or_default();
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        self.write_body(bytes);
        let length = u32::try_from(bytes.len() - start).unwrap_or_default();
        bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn write_body(self, bytes: &mut Vec<u8>) {
        match self {
            Self::AddRoute(address, index) | Self::DeleteRoute(address, index) => {
                let (octets, scope) = match address {
                    IpAddr::V4(_) => (4, RT_SCOPE_LINK),
                    IpAddr::V6(_) => (16, RT_SCOPE_UNIVERSE),
                };
                bytes.extend([family(address), octets * 8, 0, 0]);
                bytes.extend([RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0, 0, 0, 0]);
                write_address(bytes, RTA_DST, address);
                write_attribute(bytes, RTA_OIF, &index.to_ne_bytes());
            }
            Self::AddRange(address, prefix, index) => {
                bytes.extend([family(address.into()), prefix, 0, 0]);
                bytes.extend([RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST]);
                bytes.extend(RTNH_F_ONLINK.to_ne_bytes());
                write_address(bytes, RTA_DST, address.into());
                write_address(bytes, RTA_GATEWAY, TUN_GATEWAY.into());
                write_attribute(bytes, RTA_OIF, &index.to_ne_bytes());
            }
            Self::AddNeighbor(address, _, index) | Self::DeleteNeighbor(address, index) => {
                bytes.extend([family(address), 0, 0, 0]);
                bytes.extend(index.to_ne_bytes());
                bytes.extend(NUD_PERMANENT.to_ne_bytes());
                bytes.extend([0, 0]);
                write_address(bytes, NDA_DST, address);
                if let Self::AddNeighbor(_, mac, _) = self {
                    write_attribute(bytes, NDA_LLADDR, &mac);
                }
            }
            Self::AddAddress(address, prefix, index) => {
                bytes.extend([family(address), prefix, IFA_F_NODAD, RT_SCOPE_UNIVERSE]);
                bytes.extend(index.to_ne_bytes());
                write_address(bytes, IFA_LOCAL, address);
                write_address(bytes, IFA_ADDRESS, address);
            }
            Self::SetUp(index) => {
                bytes.extend([0; 4]);
                bytes.extend(index.to_ne_bytes());
                let up = u32::try_from(libc::IFF_UP).unwrap_or_default().to_ne_bytes();
                bytes.extend(up);
                bytes.extend(up);
            }
        }
    }
}

fn family(address: IpAddr) -> u8 {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    u8::try_from(family).unwrap_or_default()
}

fn write_address(bytes: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => write_attribute(bytes, kind, &address.octets()),
        IpAddr::V6(address) => write_attribute(bytes, kind, &address.octets()),
    }
}

/// Appends an attribute, padded to 4 bytes.
fn write_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or_default();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Failed change.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}")]
pub struct Error {
    /// Operation.
    pub operation: &'static str,
    /// Cause.
    #[source]
    pub source: io::Error,
}

/// Connection to the routing tables of the network namespace of its creation.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    message: Vec<u8>,
}

impl Netlink {
    /// Opens a connection.
    ///
    /// # Errors
    /// Fails without descriptors.
    pub fn new() -> io::Result<Self> {
        let socket = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
        sys::set_receive_timeout(&socket, TIMEOUT)?;
        Ok(Self {
            socket,
            sequence: 0,
            message: Vec::new(),
        })
    }

    /// Makes `changes` in their order, by one system call. The removal of a missing entry is no failure.
    ///
    /// # Errors
    /// The first change that fails. Those after it have been tried too.
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), Error> {
        let failed = |source| Error {
            operation: "use netlink",
            source,
        };
        let first = self.sequence.wrapping_add(1);
        self.message.clear();
        for change in changes {
            self.sequence = self.sequence.wrapping_add(1);
            change.write(&mut self.message, self.sequence);
        }
        sys::send(&self.socket, &self.message).map_err(failed)?;
        let mut result = Ok(());
        let mut open = changes.len();
        let mut reply = [0; 4096];
        while open > 0 {
            let length = match sys::receive(&self.socket, &mut reply) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            for (sequence, code) in Acknowledgments(&reply[..length]) {
                let Ok(index) = usize::try_from(sequence.wrapping_sub(first)) else {
                    continue;
                };
                // A late reply to an earlier request.
                let Some(change) = changes.get(index) else {
                    continue;
                };
                open = open.saturating_sub(1);
                let source = io::Error::from_raw_os_error(-code);
                if code != 0 && !change.is_done(&source) && result.is_ok() {
                    result = Err(Error {
                        operation: change.name(),
                        source,
                    });
                }
            }
        }
        result
    }
}

/// Acknowledgments in a message of the kernel: sequence number, and negative error number or 0.
struct Acknowledgments<'a>(&'a [u8]);

impl Iterator for Acknowledgments<'_> {
    type Item = (u32, i32);

    fn next(&mut self) -> Option<(u32, i32)> {
        loop {
            let length = usize::try_from(u32::from_ne_bytes(*self.0.first_chunk()?)).ok()?;
            let message = self.0.get(..length).filter(|message| message.len() >= HEADER)?;
            self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
            if u16::from_ne_bytes(*message.get(4..)?.first_chunk()?) == NLMSG_ERROR {
                let sequence = u32::from_ne_bytes(*message.get(SEQUENCE..)?.first_chunk()?);
                let code = i32::from_ne_bytes(*message.get(HEADER..)?.first_chunk()?);
                return Some((sequence, code));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Acknowledgments, Change};

    #[test]
    fn route_is_message_of_rtnetlink() {
        let mut bytes = Vec::new();
        Change::AddRoute("10.0.0.2".parse().unwrap(), 7).write(&mut bytes, 3);
        let expected = [
            &44_u32.to_ne_bytes()[..],
            &24_u16.to_ne_bytes(),
            &0x505_u16.to_ne_bytes(),
            &3_u32.to_ne_bytes(),
            &[0; 4],
            &[2, 32, 0, 0, 254, 4, 253, 1, 0, 0, 0, 0],
            &8_u16.to_ne_bytes(),
            &1_u16.to_ne_bytes(),
            &[10, 0, 0, 2],
            &8_u16.to_ne_bytes(),
            &4_u16.to_ne_bytes(),
            &7_u32.to_ne_bytes(),
        ];
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn attributes_are_padded() {
        let mut bytes = Vec::new();
        Change::AddNeighbor("fd00::2".parse().unwrap(), [2; 6], 7).write(&mut bytes, 3);
        assert_eq!(bytes.len(), 16 + 12 + 20 + 12);
        assert_eq!(bytes[48..50], 10_u16.to_ne_bytes());
        assert_eq!(bytes[52..], [2, 2, 2, 2, 2, 2, 0, 0]);
    }

    proptest! {
        #[test]
        fn any_reply_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(Acknowledgments(&bytes).count() <= bytes.len());
        }
    }
}
