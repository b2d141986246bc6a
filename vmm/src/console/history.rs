//! The last output of the guest.

use std::collections::TryReserveError;

/// Bytes of output that a new client receives.
pub(super) const CAPACITY: usize = 64 << 10;

/// The last [`CAPACITY`] bytes of a stream, by their offsets in it.
#[derive(Debug)]
pub(super) struct History {
    /// Byte `offset` is at `offset % CAPACITY`.
    bytes: Vec<u8>,
    /// Offset of the next byte of the stream.
    end: u64,
}

impl History {
    /// Creates an empty history.
    ///
    /// # Errors
    /// Fails without address space for all its bytes.
    pub(super) fn new() -> Result<Self, TryReserveError> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(CAPACITY)?;
        Ok(Self { bytes, end: 0 })
    }

    /// Returns the offset of the oldest byte.
    pub(super) fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// Returns the offset of the next byte.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Appends `bytes`, at most [`CAPACITY`].
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let place = place(self.end);
            let (chunk, rest) = bytes.split_at(bytes.len().min(CAPACITY - place));
            if self.bytes.len() < place + chunk.len() {
                self.bytes.resize(place + chunk.len(), 0);
            }
            self.bytes[place..place + chunk.len()].copy_from_slice(chunk);
            self.end += chunk.len() as u64;
            bytes = rest;
        }
    }

    /// Returns bytes from `offset` on, from [`start`](Self::start) to [`end`](Self::end): at least one unless `offset` is the end.
    pub(super) fn bytes_from(&self, offset: u64) -> &[u8] {
        let place = place(offset);
        let length = usize::try_from(self.end - offset).unwrap_or(CAPACITY);
        &self.bytes[place..place + length.min(CAPACITY - place)]
    }
}

/// Returns the index of the byte at `offset`.
fn place(offset: u64) -> usize {
    usize::try_from(offset % CAPACITY as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{CAPACITY, History};

    /// Returns all bytes from `offset` on.
    fn read(history: &History, mut offset: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while offset < history.end() {
            let chunk = history.bytes_from(offset);
            assert!(!chunk.is_empty());
            bytes.extend_from_slice(chunk);
            offset += chunk.len() as u64;
        }
        assert!(history.bytes_from(history.end()).is_empty());
        bytes
    }

    proptest! {
        #[test]
        fn last_bytes_are_kept(lengths in proptest::collection::vec(0..=CAPACITY, 0..6), seed in any::<u8>()) {
            let mut history = History::new().unwrap();
            let mut stream = Vec::new();
            for length in lengths {
                let bytes: Vec<u8> = (0..251_u8).map(|byte| seed.wrapping_add(byte)).cycle().take(length).collect();
                history.push(&bytes);
                stream.extend(bytes);
            }
            let start = stream.len().saturating_sub(CAPACITY);
            assert_eq!((history.start(), history.end()), (start as u64, stream.len() as u64));
            assert_eq!(read(&history, history.start()), &stream[start..]);
            let middle = start + (stream.len() - start) / 2;
            assert_eq!(read(&history, middle as u64), &stream[middle..]);
        }
    }
}
