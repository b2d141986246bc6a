//! Incremental change of the checksum of the internet protocols (RFC 1624).

/// Change of a sum of 16-bit words in ones' complement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delta(u16);

impl Delta {
    /// Returns the change if `new` replaces `old`. Both have the same even number of bytes, at an even offset of the summed bytes.
    pub(super) fn between<const N: usize>(old: [u8; N], new: [u8; N]) -> Self {
        let words = old.chunks_exact(2).zip(new.chunks_exact(2));
        words.fold(Self::default(), |delta, words| match words {
            ([a, b], [c, d]) => {
                let removed = !u16::from_be_bytes([*a, *b]);
                delta.plus(Self(removed)).plus(Self(u16::from_be_bytes([*c, *d])))
            }
            _ => delta,
        })
    }

    /// Returns the change by both.
    pub(super) fn plus(self, other: Self) -> Self {
        Self(add(self.0, other.0))
    }

    /// Returns the checksum that replaces `checksum`: equation 3 of RFC 1624.
    pub(super) fn update(self, checksum: [u8; 2]) -> [u8; 2] {
        (!add(!u16::from_be_bytes(checksum), self.0)).to_be_bytes()
    }

    /// Returns the sum that replaces `sum`. The field of a partial checksum holds the sum of the pseudo-header without the final
    /// complement.
    pub(super) fn update_sum(self, sum: [u8; 2]) -> [u8; 2] {
        add(u16::from_be_bytes(sum), self.0).to_be_bytes()
    }
}

/// Returns the sum in ones' complement.
fn add(a: u16, b: u16) -> u16 {
    let (sum, has_carry) = a.overflowing_add(b);
    // Never overflows: with a carry, the sum is at most 0xfffe.
    sum.wrapping_add(u16::from(has_carry))
}

#[cfg(test)]
mod tests {
    use super::Delta;

    #[test]
    fn update_yields_example_of_rfc_1624() {
        // Section 4: with the checksum 0xdd2f, the word 0x5555 becomes 0x3285.
        let delta = Delta::between([0x55, 0x55], [0x32, 0x85]);
        assert_eq!(delta.update([0xdd, 0x2f]), [0x00, 0x00]);
        assert_eq!(delta.update_sum([0x22, 0xd0]), [0xff, 0xff]);
    }

    #[test]
    fn delta_of_equal_bytes_changes_no_sum() {
        let none = Delta::between([10, 0, 0, 2], [10, 0, 0, 2]);
        for word in [[0, 1], [0x12, 0x34], [0xff, 0xfe]] {
            assert_eq!((none.update(word), none.update_sum(word)), (word, word));
        }
    }
}
