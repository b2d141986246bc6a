//! Instruction of the guest at an exit, and the functions that led to it.

use std::fmt;

/// Instruction of the guest at an exit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// Number of the vCPU.
    pub vcpu: u8,
    /// Instruction pointer.
    pub ip: u64,
    /// Bytes of the instruction, as many as could be read.
    pub bytes: Vec<u8>,
    /// Return addresses by frame pointers, the innermost first.
    pub callers: Vec<u64>,
    /// Symbol of the instruction pointer and the offset from it, if the user of this crate has added it.
    pub symbol: Option<String>,
    /// Text of the backtrace, if the user of this crate has added it.
    pub backtrace: Option<String>,
}

impl Location {
    /// Returns the instruction pointer, with its symbol if that is known.
    pub fn place(&self) -> String {
        match &self.symbol {
            Some(symbol) => format!("{:#x} ({symbol})", self.ip),
            None => format!("{:#x}", self.ip),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {} of vCPU {}", self.place(), self.vcpu)?;
        if !self.bytes.is_empty() {
            f.write_str(", instruction bytes")?;
        }
        self.bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::Location;

    #[test]
    fn location_has_symbol_and_bytes() {
        let mut location = Location {
            vcpu: 1,
            ip: 0x1008,
            ..Location::default()
        };
        assert_eq!(location.to_string(), "address 0x1008 of vCPU 1");
        location.bytes = vec![0x0f, 0x0b];
        location.symbol = Some("third+0x8".into());
        assert_eq!(
            location.to_string(),
            "address 0x1008 (third+0x8) of vCPU 1, instruction bytes 0f 0b"
        );
    }
}
