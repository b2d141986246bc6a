//! Tables of little-endian fields.

/// A table that is written field by field.
#[derive(Debug, Default)]
pub(super) struct TableBuilder(Vec<u8>);

impl TableBuilder {
    /// An empty table with room for `capacity` bytes.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Appends a byte.
    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    /// Appends two bytes.
    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends four bytes.
    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends eight bytes.
    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends bytes as they are.
    pub(super) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(value);
        self
    }

    /// Appends zeros up to `length` bytes.
    pub(super) fn pad_to(&mut self, length: usize) -> &mut Self {
        self.0.resize(length.max(self.0.len()), 0);
        self
    }

    /// Sets the byte at `offset` so that all bytes from `start` on add up to zero.
    pub(super) fn seal(&mut self, start: usize, offset: usize) -> &mut Self {
        self.0[offset] = 0;
        let sum = self.0[start..]
            .iter()
            .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        self.0[offset] = sum.wrapping_neg();
        self
    }

    /// The finished table.
    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// The lower half of an address, for fields that are half as wide. The caller knows that the upper half is zero, or
/// stores it elsewhere.
pub(super) const fn low(address: u64) -> u32 {
    (address & 0xffff_ffff) as u32
}
