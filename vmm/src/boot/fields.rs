//! Little-endian fields of headers.

/// Bytes of a header, read field by field. A field beyond the end reads as zero: headers that grew over time are read like
/// that, and all others are known to be whole before they are read.
#[derive(Clone, Copy, Debug)]
pub struct HeaderFields<'a>(pub &'a [u8]);

impl HeaderFields<'_> {
    fn array<const N: usize>(self, at: usize) -> [u8; N] {
        at.checked_add(N)
            .and_then(|end| self.0.get(at..end))
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or([0; N])
    }

    /// The byte at offset `at`.
    pub fn u8(self, at: usize) -> u8 {
        u8::from_le_bytes(self.array(at))
    }

    /// The 2 bytes at offset `at`.
    pub fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    /// The 4 bytes at offset `at`.
    pub fn u32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    /// The 8 bytes at offset `at`.
    pub fn u64(self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}
