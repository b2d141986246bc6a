//! Frames that keep a VM awake, for a host that suspends idle VMs.
//!
//! Neighbours resolve and confirm addresses all the time, and TCP confirms idle connections by segments without payload (RFC 9293
//! §3.8.4). Such frames transfer nothing: they do not count.

use std::sync::atomic::{AtomicBool, Ordering};

use super::features::HEADER;
use crate::counter::Counter;

/// Bytes at the start of a packet that the classification reads: header, Ethernet with two VLAN tags, IPv4 with options, TCP up to its
/// flags.
pub(super) const MAX_HEAD: usize = HEADER + ETHERNET + 2 * VLAN_TAG + 60 + TCP_FLAGS + 1;

const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
/// Types of VLAN tags: IEEE 802.1Q, 802.1ad, and the type before that standard.
const VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// Length of an IPv6 header.
const IPV6_HEADER: usize = 40;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;
/// Types of the messages of neighbour discovery (RFC 4861 §4): solicitations, advertisements and redirects.
const NEIGHBOR_DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;

/// Offset of the length of a TCP header, in the upper half of a byte, in units of 4 bytes.
const TCP_LENGTH: usize = 12;
/// Offset of the flags of a TCP header.
const TCP_FLAGS: usize = 13;
/// FIN, SYN and RST.
const TCP_CHANGES: u8 = 0x07;

/// Counter of the frames of one direction that keep the VM awake.
#[derive(Debug, Default)]
pub(super) struct Activity {
    // Relaxed: the flag passes no data.
    is_enabled: AtomicBool,
    frames: Counter,
}

impl Activity {
    /// Starts or ends the count. While it does not count, a packet costs one branch.
    pub fn enable(&self, enabled: bool) {
        self.is_enabled.store(enabled, Ordering::Relaxed);
    }

    /// Returns the number of counted frames.
    pub fn frames(&self) -> u64 {
        self.frames.get()
    }

    /// Counts a transferred packet of `length` bytes if it keeps the VM awake. `read` fills a buffer with its start, and returns false if
    /// it cannot be read.
    #[inline]
    pub fn count(&self, length: usize, read: impl FnOnce(&mut [u8]) -> bool) {
        if self.is_enabled.load(Ordering::Relaxed) {
            self.classify(length, read);
        }
    }

    #[cold]
    fn classify(&self, length: usize, read: impl FnOnce(&mut [u8]) -> bool) {
        let mut head = [0; MAX_HEAD];
        let head = &mut head[..length.min(MAX_HEAD)];
        // A packet that is not understood may be work.
        if !read(head) || head.get(HEADER..).and_then(is_maintenance) != Some(true) {
            self.frames.add(1);
        }
    }
}

/// Returns true if the frame that starts with `frame` only maintains neighbours or a connection. `None` if it is too short to decide.
fn is_maintenance(frame: &[u8]) -> Option<bool> {
    let mut at = ETHERNET - 2;
    let mut kind = word(frame, at)?;
    for _ in 0..2 {
        if VLAN.contains(&kind) {
            at += VLAN_TAG;
            kind = word(frame, at)?;
        }
    }
    let packet = frame.get(at + 2..)?;
    match kind {
        ARP => Some(true),
        IPV4 => is_ipv4_maintenance(packet),
        IPV6 => is_ipv6_maintenance(packet),
        _ => Some(false),
    }
}

fn is_ipv4_maintenance(packet: &[u8]) -> Option<bool> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    // The first fragment of several has payload, and the others no TCP header.
    let is_fragment = word(packet, 6)? & 0x3fff != 0;
    if *packet.get(9)? != TCP || is_fragment || header < 20 {
        return Some(false);
    }
    let length = usize::from(word(packet, 2)?).checked_sub(header)?;
    is_empty_segment(packet.get(header..)?, length)
}

fn is_ipv6_maintenance(packet: &[u8]) -> Option<bool> {
    let length = usize::from(word(packet, 4)?);
    let payload = packet.get(IPV6_HEADER..)?;
    match *packet.get(6)? {
        ICMPV6 => Some(NEIGHBOR_DISCOVERY.contains(payload.first()?)),
        TCP => is_empty_segment(payload, length),
        _ => Some(false),
    }
}

/// Returns true if a TCP segment of `length` bytes has no payload and changes no connection.
fn is_empty_segment(segment: &[u8], length: usize) -> Option<bool> {
    let header = usize::from(segment.get(TCP_LENGTH)? >> 4) * 4;
    Some(length == header && segment.get(TCP_FLAGS)? & TCP_CHANGES == 0)
}

/// Returns the big-endian number of 16 bits at `offset`.
fn word(bytes: &[u8], offset: usize) -> Option<u16> {
    let field = bytes.get(offset..offset + 2)?;
    field.try_into().ok().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{Activity, HEADER, MAX_HEAD, is_maintenance};

    const ACK: u8 = 0x10;
    const PSH: u8 = 0x08;

    fn ethernet(tags: &[u16], kind: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        for tag in tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 7]);
        }
        frame.extend(kind.to_be_bytes());
        frame.extend(packet);
        frame
    }

    /// A TCP segment with `options` words of options.
    fn segment(options: u8, flags: u8, payload: usize) -> Vec<u8> {
        let header = 20 + usize::from(options) * 4;
        let mut segment = vec![0; header + payload];
        segment[12] = (5 + options) << 4;
        segment[13] = flags;
        segment
    }

    fn ipv4(options: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let header = 20 + usize::from(options) * 4;
        let mut packet = vec![0; header];
        packet[0] = 0x45 + options;
        let length = u16::try_from(header + payload.len()).unwrap();
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[9] = protocol;
        packet.extend(payload);
        packet
    }

    fn ipv6(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        let length = u16::try_from(payload.len()).unwrap();
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        packet[6] = protocol;
        packet.extend(payload);
        packet
    }

    #[test]
    fn frames_without_transfer_are_maintenance() {
        let keepalive = segment(3, ACK, 0);
        for (name, frame) in [
            ("ARP", ethernet(&[], 0x0806, &[0; 28])),
            ("ARP with a tag", ethernet(&[0x8100], 0x0806, &[0; 28])),
            ("ACK", ethernet(&[], 0x0800, &ipv4(0, 6, &keepalive))),
            (
                "ACK behind options",
                ethernet(&[], 0x0800, &ipv4(10, 6, &keepalive)),
            ),
            (
                "ACK with two tags",
                ethernet(&[0x88a8, 0x8100], 0x0800, &ipv4(10, 6, &keepalive)),
            ),
            ("ACK of IPv6", ethernet(&[], 0x86dd, &ipv6(6, &keepalive))),
            ("solicitation", ethernet(&[], 0x86dd, &ipv6(58, &[135; 24]))),
            ("redirect", ethernet(&[], 0x86dd, &ipv6(58, &[137; 40]))),
        ] {
            let head = &frame[..frame.len().min(MAX_HEAD - HEADER)];
            assert_eq!(is_maintenance(head), Some(true), "{name}");
            // Padding to the minimum of Ethernet is no payload.
            let mut padded = frame.clone();
            padded.resize(frame.len() + 6, 0);
            padded.truncate(MAX_HEAD - HEADER);
            assert_eq!(is_maintenance(&padded), Some(true), "{name}, padded");
        }
    }

    #[test]
    fn transfers_and_changes_are_no_maintenance() {
        let mut first_fragment = ipv4(0, 6, &segment(0, ACK, 0));
        first_fragment[6] = 0x20;
        let mut later_fragment = ipv4(0, 6, &segment(0, ACK, 0));
        later_fragment[7] = 1;
        for (name, frame) in [
            (
                "payload",
                ethernet(&[], 0x0800, &ipv4(0, 6, &segment(0, ACK | PSH, 1))),
            ),
            (
                "payload of IPv6",
                ethernet(&[], 0x86dd, &ipv6(6, &segment(0, ACK, 1))),
            ),
            ("SYN", ethernet(&[], 0x0800, &ipv4(0, 6, &segment(2, 2, 0)))),
            ("FIN", ethernet(&[], 0x0800, &ipv4(0, 6, &segment(0, ACK | 1, 0)))),
            ("RST", ethernet(&[], 0x86dd, &ipv6(6, &segment(0, 4, 0)))),
            ("UDP", ethernet(&[], 0x0800, &ipv4(0, 17, &[0; 8]))),
            ("ping", ethernet(&[], 0x86dd, &ipv6(58, &[128; 8]))),
            ("first fragment", ethernet(&[], 0x0800, &first_fragment)),
            ("later fragment", ethernet(&[], 0x0800, &later_fragment)),
            ("another type", ethernet(&[], 0x88cc, &[0; 40])),
        ] {
            assert_eq!(is_maintenance(&frame), Some(false), "{name}");
        }
    }

    #[test]
    fn only_enabled_counter_counts_frames_of_transfers() {
        let activity = Activity::default();
        let (arp, udp) = (
            ethernet(&[], 0x0806, &[0; 28]),
            ethernet(&[], 0x0800, &ipv4(0, 17, &[0; 8])),
        );
        let count = |frame: &[u8]| {
            activity.count(HEADER + frame.len(), |head| {
                let length = head.len() - HEADER;
                head[HEADER..].copy_from_slice(&frame[..length]);
                true
            });
            activity.frames()
        };
        assert_eq!((count(&udp), count(&arp)), (0, 0));
        activity.enable(true);
        assert_eq!((count(&udp), count(&arp)), (1, 1));
        // Too short to decide, and unreadable.
        assert_eq!(count(&udp[..20]), 2);
        activity.count(HEADER + arp.len(), |_| false);
        assert_eq!(activity.frames(), 3);
        activity.enable(false);
        assert_eq!(count(&udp), 3);
    }

    proptest! {
        #[test]
        fn any_frame_is_classified(bytes in any::<Vec<u8>>()) {
            let _ = is_maintenance(&bytes);
        }
    }
}
