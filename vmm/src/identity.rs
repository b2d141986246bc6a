//! Identity of a VM: a record in guest memory that no two VMs have in common.
//!
//! All clones of a snapshot begin with the same memory, so that their random number generators have the same state. Each boot and each
//! load therefore writes a new record, before the guest runs. Its integers are little-endian:
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 8 | [`SIGNATURE`] |
//! | 8 | 8 | counter: loads in the history of the VM, 0 after a boot |
//! | 16 | 16 | generation ID |
//! | 32 | 64 | randomness |
//!
//! The architecture supplies three parts in its `Platform`: the address of the record, by the
//! [`AddressLayout`](crate::config::AddressLayout) and the size of memory; the description of the generation ID for drivers
//! (VMGenID in ACPI, `microsoft,vmgenid` in a device tree); and the interrupt of that device. The record must not share a page with
//! memory that the guest may use.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Once;

use serde::{Deserialize, Serialize};
use snapshot::{GuestMemory, Schema};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// Section of a snapshot with the [`IdentityState`]. A VM without a record has none.
pub const SECTION: &str = "identity";

/// First bytes of a record, by which a guest without a description of the record recognizes it.
pub const SIGNATURE: [u8; 8] = *b"MAYFLYID";

/// Offset of the generation ID in the record. Drivers require a multiple of 8: "Virtual Machine Generation ID", Microsoft.
pub const ID_OFFSET: u64 = 16;

/// Length of the generation ID in bytes.
pub const ID_LENGTH: u64 = 16;

/// Length of a record in bytes.
pub const LENGTH: usize = 96;

const COUNTER: Range<usize> = 8..16;
/// Generation ID and randomness.
const RANDOM: Range<usize> = 16..LENGTH;

/// State of the identity in a snapshot: the rest of the record is new after each load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityState {
    /// Loads in the history of the VM.
    pub counter: u64,
}

impl Schema for IdentityState {
    const NAME: &'static str = "identity";
    const VERSION: u32 = 1;
}

impl IdentityState {
    /// State after a boot.
    pub const BOOTED: Self = Self { counter: 0 };

    /// Returns the state after a load of this one. The counter of a forged state may wrap.
    #[must_use]
    pub fn loaded(self) -> Self {
        Self {
            counter: self.counter.wrapping_add(1),
        }
    }
}

/// Error of creating or writing a record.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel returns no randomness.
    #[error(
        "cannot get randomness for the identity of the VM: getrandom failed; a system call filter must allow it"
    )]
    Random(#[source] io::Error),
    /// The record was not written.
    #[error("cannot write the identity of the VM to guest memory at {address:#x}")]
    Write {
        /// Guest-physical address.
        address: u64,
        /// Error of the write.
        #[source]
        source: GuestMemoryError,
    },
}

/// A record and its address.
pub struct Record {
    address: GuestAddress,
    bytes: [u8; LENGTH],
}

impl Record {
    /// Creates the record of a VM with `state`, with a new generation ID and new randomness.
    ///
    /// # Errors
    /// [`Error::Random`]
    pub fn new(address: GuestAddress, state: IdentityState) -> Result<Self, Error> {
        let mut bytes = [0; LENGTH];
        bytes[..SIGNATURE.len()].copy_from_slice(&SIGNATURE);
        bytes[COUNTER].copy_from_slice(&state.counter.to_le_bytes());
        fill_random(&mut bytes[RANDOM]).map_err(Error::Random)?;
        Ok(Self { address, bytes })
    }

    /// Writes the record to `memory`. With a fault handler, the call may wait for a page.
    ///
    /// # Errors
    /// [`Error::Write`]
    pub fn write(&self, memory: &GuestMemory) -> Result<(), Error> {
        memory
            .write_slice(&self.bytes, self.address)
            .map_err(|source| Error::Write {
                address: self.address.0,
                source,
            })
    }
}

impl fmt::Debug for Record {
    /// Formats address, counter and generation ID. The randomness is a secret of the guest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counter = [0; 8];
        counter.copy_from_slice(&self.bytes[COUNTER]);
        let counter = u64::from_le_bytes(counter);
        write!(f, "counter {counter}, generation ID ")?;
        for byte in &self.bytes[RANDOM][..16] {
            write!(f, "{byte:02x}")?;
        }
        write!(f, ", address {:#x}", self.address.0)
    }
}

/// Record of a loaded VM, which the first vCPU thread that enters the guest writes.
///
/// A vCPU thread may wait for a page of the memory file or of a fault handler, as it does when the guest touches the page; a load and
/// the event loop must not.
#[derive(Debug)]
pub struct PendingRecord {
    record: Record,
    written: Once,
}

impl PendingRecord {
    /// Returns a pending `record`.
    pub fn new(record: Record) -> Self {
        Self {
            record,
            written: Once::new(),
        }
    }

    /// Writes the record to `memory` at the first call. Other threads wait for that write.
    pub fn write(&self, memory: &GuestMemory) {
        self.written.call_once(|| {
            // Fails only if the address is outside guest memory, which the architecture excludes.
            if let Err(error) = self.record.write(memory) {
                log::error!("{}", crate::ErrorChain(&error));
            }
        });
    }
}

/// Fills `bytes`, at most 256, with randomness of the kernel. Waits if the kernel has none yet, early in the boot of the host.
pub(crate) fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    loop {
        // SAFETY: `bytes` is valid for writes of its length during the call.
        let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(filled) {
            // getrandom(2): a call for up to 256 bytes returns all of them.
            Ok(filled) if filled == bytes.len() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use snapshot::{ArchiveReader, ArchiveWriter};
    use vm_memory::{Bytes, GuestAddress};

    use super::{Error, IdentityState, LENGTH, PendingRecord, Record, SECTION};
    use crate::GuestMemory;

    const ADDRESS: GuestAddress = GuestAddress(0x1000);

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap()
    }

    /// Returns the page of the record.
    fn read(memory: &GuestMemory) -> Vec<u8> {
        let mut bytes = vec![0; 0x1000];
        memory.read_slice(&mut bytes, ADDRESS).unwrap();
        bytes
    }

    fn record(counter: u64) -> Record {
        Record::new(ADDRESS, IdentityState { counter }).unwrap()
    }

    #[test]
    fn record_has_documented_layout() {
        let memory = memory();
        record(0x0102_0304_0506_0708).write(&memory).unwrap();
        let bytes = read(&memory);
        assert_eq!(&bytes[..8], b"MAYFLYID");
        assert_eq!(bytes[8..16], [8, 7, 6, 5, 4, 3, 2, 1]);
        // Each part is filled: eight zeros in a row are as rare as a repeated ID.
        for part in bytes[16..LENGTH].chunks(8) {
            assert_ne!(part, [0; 8]);
        }
        assert!(bytes[LENGTH..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn records_never_repeat() {
        let records: Vec<_> = (0..100).map(|_| record(7).bytes).collect();
        for (index, bytes) in records.iter().enumerate() {
            for other in &records[..index] {
                assert_eq!(bytes[..16], other[..16]);
                assert_ne!(bytes[16..32], other[16..32], "generation ID");
                for part in 0..8 {
                    let part = 32 + part * 8..40 + part * 8;
                    assert_ne!(bytes[part.clone()], other[part], "randomness");
                }
            }
        }
    }

    #[test]
    fn pending_record_is_written_once() {
        let memory = memory();
        let pending = PendingRecord::new(record(1));
        pending.write(&memory);
        assert_eq!(read(&memory)[..LENGTH], pending.record.bytes);
        memory.write_obj(0_u64, ADDRESS).unwrap();
        pending.write(&memory);
        assert_eq!(read(&memory)[..8], [0; 8]);
    }

    #[test]
    fn record_outside_memory_is_rejected() {
        let record = Record::new(GuestAddress(0x2000), IdentityState::BOOTED).unwrap();
        let error = record.write(&memory()).unwrap_err();
        assert!(matches!(error, Error::Write { address: 0x2000, .. }), "{error}");
    }

    #[test]
    fn log_line_lacks_randomness() {
        let mut record = record(3);
        record.bytes[16..32].copy_from_slice(&[0x0a; 16]);
        record.bytes[32..].fill(0xbb);
        let expected = "counter 3, generation ID 0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a, address 0x1000";
        assert_eq!(format!("{record:?}"), expected);
    }

    #[test]
    fn counter_is_saved_and_counts_loads() {
        let mut archive = ArchiveWriter::new();
        archive
            .write(SECTION, &IdentityState::BOOTED.loaded().loaded())
            .unwrap();
        let bytes = archive.into_bytes();
        let read: IdentityState = ArchiveReader::parse(&bytes).unwrap().read(SECTION).unwrap();
        assert_eq!(read.counter, 2);
        let forged = IdentityState { counter: u64::MAX };
        assert_eq!(forged.loaded().counter, 0);
    }
}
