//! First frames: packets that the caller of a load has received for the guest, such as the one that wakes it.
//!
//! Their format, in a file and in a saved state, is a sequence of records: the length of the packet as a little-endian 32-bit number,
//! then the packet: a `struct virtio_net_hdr_v1` and the frame.

use super::features::{
    DATA_VALID, GSO_NONE, HEADER, MAX_PACKET, MIN_FRAME, NEEDS_CSUM, is_known_type, partial_checksum,
};

/// Maximum number of first frames.
pub const MAX_FIRST_FRAMES: usize = 1024;
/// Maximum length of all records of first frames in bytes.
pub const MAX_FIRST_BYTES: usize = 4 << 20;

/// Bytes of the length before a packet.
const PREFIX: usize = 4;

/// Reason why first frames are rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The records are too long.
    #[error("they have {0} bytes; at most {MAX_FIRST_BYTES} are possible")]
    TooLong(usize),
    /// There are too many frames.
    #[error("there are more than {MAX_FIRST_FRAMES}; pass fewer")]
    TooMany,
    /// The records end within one.
    #[error("frame {0} ends before its length")]
    Truncated(usize),
    /// A frame is too short or too long.
    #[error("frame {number} has {length} bytes with its header; {} to {MAX_PACKET} are possible", HEADER + MIN_FRAME)]
    Length {
        /// Number of the frame, from 1.
        number: usize,
        /// Length in bytes.
        length: usize,
    },
    /// The header of a frame is invalid.
    #[error(
        "frame {0} has an invalid header; it needs known flags, a known segmentation type, and a checksum within the frame"
    )]
    Header(usize),
}

/// Packets for the guest, in the order of their arrival.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirstFrames {
    records: Vec<u8>,
    /// Offset of the next record.
    next: usize,
    /// Number of records from `next` on.
    count: usize,
}

impl FirstFrames {
    /// Checks `records`.
    ///
    /// # Errors
    /// [`Error`]
    pub fn parse(records: Vec<u8>) -> Result<Self, Error> {
        if records.len() > MAX_FIRST_BYTES {
            return Err(Error::TooLong(records.len()));
        }
        let mut count = 0;
        let mut next = 0;
        while next < records.len() {
            let number = count + 1;
            if count == MAX_FIRST_FRAMES {
                return Err(Error::TooMany);
            }
            let length = length_at(&records, next).ok_or(Error::Truncated(number))?;
            if !(HEADER + MIN_FRAME..=MAX_PACKET).contains(&length) {
                return Err(Error::Length { number, length });
            }
            let end = next + PREFIX + length;
            let packet = records.get(next + PREFIX..end).ok_or(Error::Truncated(number))?;
            if !is_valid(packet) {
                return Err(Error::Header(number));
            }
            (next, count) = (end, number);
        }
        Ok(Self {
            records,
            next: 0,
            count,
        })
    }

    /// Returns true if there are no frames.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the number of frames.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns the records of the frames.
    pub(super) fn records(&self) -> &[u8] {
        &self.records[self.next..]
    }

    /// Returns the first packet.
    pub(super) fn first(&self) -> Option<&[u8]> {
        let length = length_at(&self.records, self.next)?;
        let start = self.next + PREFIX;
        self.records.get(start..start + length)
    }

    /// Removes the first packet.
    pub(super) fn remove_first(&mut self) {
        let Some(length) = length_at(&self.records, self.next) else {
            return;
        };
        self.next += PREFIX + length;
        self.count -= 1;
        if self.count == 0 {
            *self = Self::default();
        }
    }

    /// Passes each packet to `keep`, which may change it, and removes those for which it returns false.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&mut [u8]) -> bool) {
        let (mut from, mut to) = (self.next, self.next);
        while let Some(length) = length_at(&self.records, from) {
            let end = from + PREFIX + length;
            if keep(&mut self.records[from + PREFIX..end]) {
                self.records.copy_within(from..end, to);
                to += end - from;
            } else {
                self.count -= 1;
            }
            from = end;
        }
        self.records.truncate(to);
    }

    /// Appends `other`, as far as the limits permit. Returns the number of frames that exceed them.
    pub(super) fn append(&mut self, mut other: Self) -> usize {
        if self.is_empty() {
            *self = other;
            return 0;
        }
        self.records.drain(..self.next);
        self.next = 0;
        while let Some(packet) = other.first() {
            let record = PREFIX + packet.len();
            if self.count == MAX_FIRST_FRAMES || self.records.len() + record > MAX_FIRST_BYTES {
                break;
            }
            self.records
                .extend_from_slice(&other.records[other.next..other.next + record]);
            self.count += 1;
            other.remove_first();
        }
        other.count
    }
}

/// Returns the length at the offset `at`.
fn length_at(records: &[u8], at: usize) -> Option<usize> {
    let bytes = records.get(at..)?.first_chunk::<PREFIX>()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}

/// Returns true if the header of `packet` is valid.
fn is_valid(packet: &[u8]) -> bool {
    let [flags, kind, ..] = *packet else { return false };
    let checksum = partial_checksum(packet);
    let frame = packet.len() - HEADER;
    flags & !(NEEDS_CSUM | DATA_VALID) == 0
        && is_known_type(kind)
        && checksum.is_none_or(|(start, field)| start <= frame && field + 2 <= frame)
}

/// Computes the checksum of `packet` if the receiver must do so: the driver may not support it. Packets to segment stay unchanged: only
/// a driver that supports checksums receives them.
pub(super) fn complete_checksum(packet: &mut [u8]) {
    let Some((start, field)) = partial_checksum(packet) else {
        return;
    };
    if packet[1] != GSO_NONE {
        return;
    }
    let Some((header, frame)) = packet.split_at_mut_checked(HEADER) else {
        return;
    };
    let Some(summed) = frame.get(start..) else { return };
    let sum: u64 = summed
        .chunks(2)
        .map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let Ok(sum) = u16::try_from((sum & 0xffff) + (sum >> 16)) else {
        return;
    };
    let Some(field) = frame.get_mut(field..field + 2) else {
        return;
    };
    // RFC 768: zero stands for no checksum.
    let checksum = if sum == u16::MAX { u16::MAX } else { !sum };
    field.copy_from_slice(&checksum.to_be_bytes());
    header[0] &= !NEEDS_CSUM;
    header[6..10].fill(0);
}
