//! Description of the tables in boot data, their errors, and a builder of tables.

use vm_memory::GuestMemoryError;

use crate::arch::MmioDeviceInfo;
use crate::arch::x86_64::layout;
use crate::config::MAX_VCPUS;

/// Error of building or writing boot data.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line exceeds the reserved memory or the limit of the kernel.
    #[error("cannot write the command line of {length} bytes: the limit is {limit}; shorten it")]
    CommandLine {
        /// Length in bytes, without the NUL.
        length: u64,
        /// Maximum length.
        limit: u64,
    },
    /// The setup header of a bzImage is truncated, or its protocol version has no 64-bit entry.
    #[error("cannot copy the setup header of {length} bytes: at least {min} are required")]
    SetupHeader {
        /// Length in bytes.
        length: usize,
        /// Minimum length.
        min: usize,
    },
    /// An address exceeds the fields of a 32-bit protocol.
    #[error("cannot describe the {object} at {address:#x}: a 32-bit boot protocol is limited to 4 GiB")]
    Above4GiB {
        /// Object at the address.
        object: &'static str,
        /// Guest-physical address.
        address: u64,
    },
    /// The number of vCPUs is 0 or exceeds the tables.
    #[error("cannot describe {0} vCPUs: 1 to {MAX_VCPUS} are supported")]
    Vcpus(u8),
    /// An MMIO device lies outside the hole below 4 GiB, or its interrupt is no input of the IOAPIC.
    #[error(
        "cannot describe the MMIO device at {base:#x} of {size:#x} bytes with interrupt {gsi}: the address is outside the hole \
         below 4 GiB, or the interrupt is no input of the IOAPIC"
    )]
    MmioDevice {
        /// First address.
        base: u64,
        /// Length in bytes.
        size: u64,
        /// Interrupt line.
        gsi: u32,
    },
    /// A table exceeds the memory reserved for it.
    #[error("cannot write the {table} of {length} bytes: {capacity} are reserved; attach fewer devices")]
    TooLarge {
        /// Name of the table.
        table: &'static str,
        /// Length in bytes.
        length: u64,
        /// Reserved bytes.
        capacity: u64,
    },
    /// Guest memory ends before the end of a table.
    #[error("cannot write the {table} to guest memory at {address:#x}")]
    Write {
        /// Name of the table.
        table: &'static str,
        /// Guest-physical address.
        address: u64,
        /// Error of the write.
        #[source]
        source: GuestMemoryError,
    },
}

/// Tables to write, and the machine that they describe.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a> {
    /// Presence of ACPI tables.
    pub acpi: bool,
    /// Presence of an MP table.
    pub mptable: bool,
    /// Number of vCPUs, 1 to [`MAX_VCPUS`]. Their local APIC IDs count from 0.
    pub vcpus: u8,
    /// MMIO devices, in the order of their numbers in the guest.
    pub mmio_devices: &'a [MmioDeviceInfo],
    /// Guest-physical address of the identity record, if the guest has one.
    pub identity: Option<u64>,
}

impl Tables<'_> {
    /// Returns the ID of the IOAPIC, the first after those of the local APICs.
    pub fn ioapic_id(&self) -> u8 {
        self.vcpus
    }

    /// Checks that the tables can describe the machine.
    ///
    /// # Errors
    /// [`Error::Vcpus`] and [`Error::MmioDevice`].
    pub(super) fn check(&self) -> Result<(), Error> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(Error::Vcpus(self.vcpus));
        }
        for MmioDeviceInfo { base, size, gsi } in self.mmio_devices.iter().copied() {
            let end = base.checked_add(size).filter(|_| size > 0);
            let is_in_hole = base >= layout::HOLE.start && end.is_some_and(|end| end <= layout::IOAPIC);
            if !is_in_hole || gsi >= u32::from(layout::IOAPIC_PINS) {
                return Err(Error::MmioDevice { base, size, gsi });
            }
        }
        Ok(())
    }
}

/// Builder of a table with little-endian fields.
#[derive(Debug, Default)]
pub(super) struct TableBuilder(Vec<u8>);

impl TableBuilder {
    /// Creates an empty table with space for `capacity` bytes.
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

    /// Appends bytes.
    pub(super) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(value);
        self
    }

    /// Appends zeros up to `length` bytes.
    pub(super) fn pad_to(&mut self, length: usize) -> &mut Self {
        self.0.resize(length.max(self.0.len()), 0);
        self
    }

    /// Sets the checksum at `offset`: the sum of all bytes from `start` is zero modulo 256.
    pub(super) fn set_checksum(&mut self, start: usize, offset: usize) -> &mut Self {
        self.0[offset] = 0;
        let sum = self.0[start..]
            .iter()
            .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        self.0[offset] = sum.wrapping_neg();
        self
    }

    /// Returns the table.
    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Returns the lower half of an address, for 32-bit fields. The caller ensures that the upper half is zero or stored
/// elsewhere.
pub(super) const fn low(address: u64) -> u32 {
    (address & 0xffff_ffff) as u32
}
