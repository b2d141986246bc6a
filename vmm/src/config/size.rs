//! Sizes of memory.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Size of guest memory in whole pages, written `128M`, `2G`, `65536K`, `1T`, or in MiB without a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MemorySize(u64);

const PAGE: u64 = 4096;
const UNITS: [(char, u64); 4] = [('T', 1 << 40), ('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)];

impl MemorySize {
    /// Default size.
    pub const DEFAULT: Self = Self(128 << 20);
    /// Minimum size: the first MiB holds the tables of the machine.
    pub const MIN: Self = Self(1 << 20);

    /// Returns a size of `bytes`, which must be whole pages.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS
            .iter()
            .find(|(_, unit)| self.0 != 0 && self.0.is_multiple_of(*unit));
        match unit {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// Reason why a text is not a size of memory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text is not digits and a unit.
    #[error("{0:?} is not a size: write digits and K, M, G or T, for example 128M (the default unit is M)")]
    NotANumber(String),
    /// The size exceeds 64 bits.
    #[error("{0:?} is out of range: write a size such as 128M")]
    TooLarge(String),
    /// The size ends within a page.
    #[error("{0:?} is not a multiple of 4K: round it up")]
    NotPages(String),
}

impl FromStr for MemorySize {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        // `MiB`, `MB` and `m` mean `M`.
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let suffix = text[number.len()..].to_ascii_uppercase();
        let unit = match suffix.trim_end_matches("IB").trim_end_matches('B') {
            "" if suffix.is_empty() => 1 << 20,
            "" if suffix == "B" => 1,
            name => UNITS
                .iter()
                .find(|(unit, _)| name.chars().eq([*unit]))
                .map(|(_, bytes)| *bytes)
                .ok_or_else(|| ParseError::NotANumber(text.to_owned()))?,
        };
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ParseError::NotANumber(text.to_owned()));
        }
        let too_large = || ParseError::TooLarge(text.to_owned());
        let count: u64 = number.parse().map_err(|_| too_large())?;
        let bytes = count.checked_mul(unit).ok_or_else(too_large)?;
        if !bytes.is_multiple_of(PAGE) {
            return Err(ParseError::NotPages(text.to_owned()));
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{MemorySize, ParseError};

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [
            ("128M", 128 << 20),
            ("128", 128 << 20),
            ("2G", 2 << 30),
            ("8k", 8 << 10),
            ("1MiB", 1 << 20),
            ("1mb", 1 << 20),
            ("1T", 1 << 40),
            ("4096B", 4096),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(MemorySize(bytes)), "{text}");
        }
    }

    #[test]
    fn invalid_sizes_are_rejected() {
        for text in [
            "", "M", "x", "-1", "+1M", "1.5G", "12Q", "1MM", "1 M", "0x10", "１M", "1Mé",
        ] {
            assert_eq!(
                text.parse::<MemorySize>(),
                Err(ParseError::NotANumber(text.into())),
                "{text}"
            );
        }
        for text in ["99999999999999999999", "18446744073709551615K"] {
            assert_eq!(
                text.parse::<MemorySize>(),
                Err(ParseError::TooLarge(text.into())),
                "{text}"
            );
        }
        assert_eq!("5K".parse::<MemorySize>(), Err(ParseError::NotPages("5K".into())));
    }

    proptest! {
        #[test]
        fn display_roundtrips(pages in 0_u64..1 << 50) {
            let size = MemorySize(pages * 4096);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = text.parse::<MemorySize>();
        }
    }
}
