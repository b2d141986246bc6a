//! Packets that are built from their parts, with every checksum computed over all bytes.

use super::super::super::features::HEADER;

/// Treatment of the checksum of the protocol above IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    Full,
    /// The field is zero: UDP without a checksum.
    Absent,
    /// The field holds the sum of the pseudo-header, and the receiver completes it.
    Partial,
}

/// Part of a datagram in a packet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Whole,
    /// First fragment with this many units of 8 bytes, at least the header of the protocol.
    First(usize),
    /// Fragment behind this many units of 8 bytes, without the checksum.
    Later(usize),
}

/// Datagram without addresses.
#[derive(Clone, Debug)]
pub(super) struct Datagram {
    pub(super) protocol: u8,
    /// Options of IPv4, a multiple of 4 bytes.
    pub(super) options: Vec<u8>,
    /// Header and data of the protocol. The checksum is replaced.
    pub(super) payload: Vec<u8>,
    pub(super) checksum: Checksum,
    pub(super) part: Part,
}

/// Returns the sum of the 16-bit words of `bytes` in ones' complement.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| match word {
        [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
        [high] => u64::from(*high) << 8,
        _ => 0,
    });
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).unwrap()
}

/// Returns the offset of the checksum that covers the addresses in the payload of `protocol`.
pub(super) fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        6 => Some(16),
        17 | 136 | 33 => Some(6),
        _ => None,
    }
}

impl Datagram {
    /// Returns the payload with its checksum.
    fn finished_payload(&self, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let mut payload = self.payload.clone();
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        let pseudo = [&source[..], &destination, &[0, self.protocol], &length].concat();
        let Some(at) = checksum_offset(self.protocol) else {
            return payload;
        };
        payload[at..at + 2].fill(0);
        let value = match self.checksum {
            Checksum::Absent => return payload,
            Checksum::Partial => sum(&pseudo),
            Checksum::Full => match !sum(&[pseudo, payload.clone()].concat()) {
                0 if matches!(self.protocol, 17 | 136) => 0xffff,
                value => value,
            },
        };
        payload[at..at + 2].copy_from_slice(&value.to_be_bytes());
        payload
    }

    /// Returns the IPv4 packet.
    pub(super) fn build(&self, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let payload = self.finished_payload(source, destination);
        let (payload, fragment) = match self.part {
            Part::Whole => (&payload[..], 0),
            Part::First(units) => (&payload[..payload.len().min(units * 8)], 0x2000),
            Part::Later(units) => (
                &payload[payload.len().min(units * 8)..],
                u16::try_from(units).unwrap(),
            ),
        };
        let length = 20 + self.options.len();
        let mut packet = vec![0x40 | u8::try_from(length / 4).unwrap(), 0];
        packet.extend(u16::try_from(length + payload.len()).unwrap().to_be_bytes());
        packet.extend([0x12, 0x34]);
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, self.protocol, 0, 0]);
        packet.extend(source);
        packet.extend(destination);
        packet.extend(&self.options);
        let checksum = !sum(&packet);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet.extend(payload);
        packet
    }
}

/// Returns an ICMP error of type `kind` that quotes the first `quoted` bytes of `packet`, at least a header and 8 bytes. The quote ends
/// not within a checksum, half of which cannot be updated.
pub(super) fn icmp_error(kind: u8, packet: &[u8], quoted: usize) -> Datagram {
    let header = usize::from(packet[0] & 0xf) * 4;
    let mut quoted = quoted.max(header + 8);
    if checksum_offset(packet[9]).is_some_and(|offset| quoted == header + offset + 1) {
        quoted += 1;
    }
    let quote = &packet[..quoted.min(packet.len())];
    let mut payload = [&[kind, 1, 0, 0, 1, 2, 3, 4], quote].concat();
    let checksum = !sum(&payload);
    payload[2..4].copy_from_slice(&checksum.to_be_bytes());
    Datagram {
        protocol: 1,
        options: Vec::new(),
        payload,
        checksum: Checksum::Full,
        part: Part::Whole,
    }
}

/// Returns a packet with an empty header and a frame.
pub(super) fn packet(destination: [u8; 6], source: [u8; 6], ethernet_type: u16, body: &[u8]) -> Vec<u8> {
    let ethernet_type = ethernet_type.to_be_bytes();
    [&[0; HEADER][..], &destination, &source, &ethernet_type, body].concat()
}

/// Sets the header of `packet` for a partial checksum of `protocol` behind an IPv4 header of `length` bytes.
pub(super) fn set_partial(packet: &mut [u8], length: usize, protocol: u8) {
    packet[0] = 1;
    let start = u16::try_from(14 + length).unwrap().to_le_bytes();
    packet[6..8].copy_from_slice(&start);
    let field = u16::try_from(checksum_offset(protocol).unwrap())
        .unwrap()
        .to_le_bytes();
    packet[8..10].copy_from_slice(&field);
}

/// Returns an ARP message about IPv4 on Ethernet.
pub(super) fn arp(operation: u8, sender: ([u8; 6], [u8; 4]), target: ([u8; 6], [u8; 4])) -> Vec<u8> {
    let start = [0, 1, 8, 0, 6, 4, 0, operation];
    [&start[..], &sender.0, &sender.1, &target.0, &target.1].concat()
}

/// Returns an IPv6 packet with an ICMP message, whose checksum is computed.
pub(super) fn icmp6(message: &[u8]) -> Vec<u8> {
    let addresses = [[0xfe; 16], [0xfd; 16]].concat();
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    let mut message = message.to_vec();
    message[2..4].fill(0);
    let pseudo = [&addresses[..], &[0, 0], &length, &[0, 0, 0, 58]].concat();
    let checksum = !sum(&[pseudo, message.clone()].concat());
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    [&[0x60, 0, 0, 0], &length[..], &[58, 255], &addresses, &message].concat()
}
