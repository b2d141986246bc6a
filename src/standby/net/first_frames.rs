//! Frames that an instance receives before those of its tap, in the format of `mayfly restore --first-frames`.

use std::io;
use std::os::fd::OwnedFd;

use devices::virtio::net::first_frames::{MAX_FIRST_BYTES, MAX_FIRST_FRAMES};

use super::frame::{ETHERNET, Mac, VNET_HEADER};
use super::sys;

/// Bytes of the length before a packet.
const PREFIX: usize = 4;

/// Frames in the order of their arrival.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirstFrames {
    records: Vec<u8>,
    count: usize,
}

impl FirstFrames {
    /// Returns the number of frames.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns true if there are no frames.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the length of the records in bytes.
    pub fn bytes(&self) -> usize {
        self.records.len()
    }

    /// Appends a frame with its virtio header, as a tap returns it. Returns false if the limits exclude it.
    pub fn push(&mut self, packet: &[u8]) -> bool {
        self.push_parts(&[packet])
    }

    /// Appends an IP packet for the interface `to` on the link of the interface `from`.
    pub fn push_packet(&mut self, packet: &[u8], to: Mac, from: Mac) -> bool {
        self.push_parts(&[&[0; VNET_HEADER], &ethernet_header(packet, to, from), packet])
    }

    fn push_parts(&mut self, parts: &[&[u8]]) -> bool {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let fits = self.count < MAX_FIRST_FRAMES && self.records.len() + PREFIX + length <= MAX_FIRST_BYTES;
        let Some(prefix) = u32::try_from(length).ok().filter(|_| fits) else {
            return false;
        };
        self.records.extend(prefix.to_le_bytes());
        for part in parts {
            self.records.extend_from_slice(part);
        }
        self.count += 1;
        true
    }

    /// Appends `later`, the frames that have arrived after these. Returns the number of frames that the limits exclude.
    pub fn append(&mut self, later: &Self) -> usize {
        if self.is_empty() {
            self.clone_from(later);
            return 0;
        }
        let mut rest = later.records.as_slice();
        let mut appended = 0;
        while let Some((prefix, packets)) = rest.split_first_chunk::<PREFIX>() {
            let length = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
            let Some((packet, next)) = packets.split_at_checked(length) else {
                break;
            };
            // Not those behind it either: they would arrive without it.
            if !self.push(packet) {
                break;
            }
            appended += 1;
            rest = next;
        }
        later.count - appended
    }

    /// Returns the records.
    pub fn records(&self) -> &[u8] {
        &self.records
    }

    /// Returns a sealed memfd with the records.
    ///
    /// # Errors
    /// Fails without memory or descriptors.
    pub fn to_memfd(&self) -> io::Result<OwnedFd> {
        sys::sealed_memfd(c"first-frames", &self.records)
    }
}

/// Returns the Ethernet header of an IP packet.
pub fn ethernet_header(packet: &[u8], to: Mac, from: Mac) -> [u8; ETHERNET] {
    let ethernet_type = match packet.first().map(|byte| byte >> 4) {
        Some(6) => super::frame::IPV6,
        _ => super::frame::IPV4,
    };
    let mut header = [0; ETHERNET];
    header[..6].copy_from_slice(&to);
    header[6..12].copy_from_slice(&from);
    header[12..].copy_from_slice(&ethernet_type.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{ErrorKind, Read, Seek, Write};

    use devices::virtio::net::FirstFrames as Reader;
    use devices::virtio::net::first_frames::MAX_FIRST_FRAMES;

    use super::FirstFrames;

    #[test]
    fn device_reads_records_of_memfd() {
        let mut frames = FirstFrames::default();
        assert!(frames.push(&[0; 60]));
        assert!(frames.push_packet(&[0x60; 50], [2; 6], [4; 6]));
        let mut file = File::from(frames.to_memfd().unwrap());
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, frames.records());
        assert_eq!(bytes[64..68], [76, 0, 0, 0]);
        assert_eq!(bytes[80..94], [2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 0x86, 0xdd]);
        assert_eq!(Reader::parse(bytes).unwrap().len(), 2);
        for error in [file.write(&[1]).unwrap_err(), file.set_len(1).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn limits_of_device_are_kept() {
        let mut frames = FirstFrames::default();
        while frames.push(&[0; 60_000]) {}
        assert!(Reader::parse(frames.records().to_vec()).is_ok());
        let mut frames = FirstFrames::default();
        while frames.push(&[0; 60]) {}
        assert_eq!(frames.len(), MAX_FIRST_FRAMES);
        assert!(Reader::parse(frames.records().to_vec()).is_ok());
    }

    #[test]
    fn later_frames_follow_within_the_limits() {
        let filled = |lengths: &[usize]| {
            let mut frames = FirstFrames::default();
            assert!(lengths.iter().all(|length| frames.push(&vec![0; *length])));
            frames
        };
        let mut frames = FirstFrames::default();
        assert_eq!(frames.append(&filled(&[60, 61])), 0);
        assert_eq!(frames.append(&filled(&[62])), 0);
        assert_eq!(frames, filled(&[60, 61, 62]));
        while frames.push(&[0; 60_000]) {}
        let len = frames.len();
        // The short frame behind the long one would fit.
        assert_eq!(frames.append(&filled(&[60, 65_000, 61])), 2);
        assert_eq!(frames.len(), len + 1);
        assert!(Reader::parse(frames.records().to_vec()).is_ok());
    }
}
