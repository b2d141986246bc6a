//! MAC addresses.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// MAC address of a network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Returns a random address: locally administered, unicast.
    pub fn random() -> Self {
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&RandomState::new().build_hasher().finish().to_le_bytes()[..6]);
        bytes[0] = bytes[0] & 0xfc | 0x02;
        Self(bytes)
    }

    /// Returns true for a group address, which no interface should have: bridges drop frames from it.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

/// Valid form of an address, for messages.
pub(super) const MAC: &str = "six bytes such as 02:00:00:00:00:01";

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|byte| {
                u8::from_str_radix(byte, 16)
                    .ok()
                    .filter(|_| byte.len() == 2 && !byte.starts_with('+'))
            })
            .collect();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not a MAC address: use {MAC}"))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
