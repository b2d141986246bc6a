//! Dispatch of a guest's access to the device that claims the address.
//!
//! Devices are attached before the guest runs, and the bus is immutable afterwards: a lookup takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// A device that claims a range of addresses.
///
/// `offset` counts from the start of the claimed range, and the whole access lies within that range. Data is
/// little-endian, 1 to 8 bytes long on the memory bus and 1, 2 or 4 on the port bus.
pub trait BusDevice: Send {
    /// Reads `data.len()` bytes at `offset` into `data`.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device whose registers are all one byte wide.
///
/// An access of more bytes reaches as many adjacent registers, as with an 8-bit device on the ISA bus.
pub trait ByteRegisters: Send {
    /// Reads the register at `offset`.
    fn read_register(&mut self, offset: u64) -> u8;

    /// Writes the register at `offset`.
    fn write_register(&mut self, offset: u64, value: u8);
}

impl<T: ByteRegisters> BusDevice for T {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset..).zip(data) {
            *byte = self.read_register(register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (register, byte) in (offset..).zip(data) {
            self.write_register(register, *byte);
        }
    }
}

/// A device that buses and the machine share.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// View of a device that starts at one of its later registers.
///
/// A bus counts offsets from the start of each claimed range. A device with gaps between its registers claims its
/// first range directly and every further range through an `OffsetDevice`.
pub struct OffsetDevice {
    device: SharedDevice,
    start: u64,
}

impl OffsetDevice {
    /// Creates a view of the registers of `device` from offset `start`.
    pub fn new(device: SharedDevice, start: u64) -> Self {
        Self { device, start }
    }
}

impl BusDevice for OffsetDevice {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.device).read(self.start + offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        lock(&self.device).write(self.start + offset, data);
    }
}

/// Failure to attach a device to a bus.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The range is empty or ends beyond the last address.
    #[error(
        "cannot attach {device} at {base:#x}: a range of {length:#x} addresses is empty or exceeds the address space"
    )]
    Range {
        /// Name of the device.
        device: &'static str,
        /// First address.
        base: u64,
        /// Number of addresses.
        length: u64,
    },
    /// Another device claims part of the range.
    #[error("cannot attach {device} at {base:#x}: the range overlaps {other} at {other_base:#x}")]
    Overlap {
        /// Name of the device.
        device: &'static str,
        /// First address of its range.
        base: u64,
        /// Name of the device that is already attached.
        other: &'static str,
        /// First address of that device's range.
        other_base: u64,
    },
}

/// Address range of a device.
struct Claim {
    base: u64,
    last: u64,
    name: &'static str,
    device: SharedDevice,
}

/// A bus to which devices can be attached.
#[derive(Default)]
pub struct BusBuilder {
    claims: Vec<Claim>,
}

impl BusBuilder {
    /// Creates a bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Claims `length` addresses from `base` for `device`. A device may claim several ranges.
    ///
    /// # Errors
    /// [`Error::Range`] if the range is empty or ends beyond the last address; [`Error::Overlap`] if another device
    /// claims part of it.
    pub fn claim(
        &mut self,
        name: &'static str,
        base: u64,
        length: u64,
        device: SharedDevice,
    ) -> Result<(), Error> {
        let last = length
            .checked_sub(1)
            .and_then(|distance| base.checked_add(distance))
            .ok_or(Error::Range {
                device: name,
                base,
                length,
            })?;
        let index = self.claims.partition_point(|claim| claim.last < base);
        if let Some(other) = self.claims.get(index).filter(|claim| claim.base <= last) {
            return Err(Error::Overlap {
                device: name,
                base,
                other: other.name,
                other_base: other.base,
            });
        }
        self.claims.insert(
            index,
            Claim {
                base,
                last,
                name,
                device,
            },
        );
        Ok(())
    }

    /// Builds the bus.
    pub fn build(self) -> Bus {
        Bus {
            claims: self.claims.into_boxed_slice(),
            unclaimed: AtomicU64::new(0),
        }
    }
}

/// A bus with its final set of devices, used by vCPU threads.
///
/// An access that does not lie entirely within one device is unclaimed. The bus counts it; a read returns all ones, a
/// write has no effect.
#[derive(Default)]
pub struct Bus {
    claims: Box<[Claim]>,
    unclaimed: AtomicU64,
}

impl Bus {
    /// Reads `data.len()` bytes at `address`. Returns false if the access is unclaimed.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let claim = self.find(address, data.len());
        match claim {
            Some(claim) => lock(&claim.device).read(address - claim.base, data),
            None => data.fill(0xff),
        }
        claim.is_some()
    }

    /// Writes `data` at `address`. Returns false if the access is unclaimed.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let claim = self.find(address, data.len());
        if let Some(claim) = claim {
            lock(&claim.device).write(address - claim.base, data);
        }
        claim.is_some()
    }

    /// Returns the number of unclaimed accesses.
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    /// Returns the claim that contains the access. Counts an unclaimed access.
    fn find(&self, address: u64, length: usize) -> Option<&Claim> {
        let last = (length as u64)
            .checked_sub(1)
            .and_then(|distance| address.checked_add(distance));
        let claim = self
            .claims
            .get(self.claims.partition_point(|claim| claim.last < address))
            .filter(|claim| claim.base <= address && last.is_some_and(|last| last <= claim.last));
        if claim.is_none() {
            self.unclaimed.fetch_add(1, Ordering::Relaxed);
        }
        claim
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::{Bus, BusBuilder, ByteRegisters, Error};

    struct Registers([u8; 8]);

    impl ByteRegisters for Registers {
        fn read_register(&mut self, offset: u64) -> u8 {
            self.0[usize::try_from(offset).unwrap()]
        }

        fn write_register(&mut self, offset: u64, value: u8) {
            self.0[usize::try_from(offset).unwrap()] = value;
        }
    }

    fn registers() -> Arc<Mutex<Registers>> {
        Arc::new(Mutex::new(Registers([1, 2, 3, 4, 5, 6, 7, 8])))
    }

    fn bus() -> Bus {
        let mut builder = BusBuilder::new();
        builder.claim("second", 0x20, 8, registers()).unwrap();
        builder.claim("first", 0x10, 8, registers()).unwrap();
        builder.claim("last", u64::MAX - 7, 8, registers()).unwrap();
        builder.build()
    }

    fn read<const N: usize>(bus: &Bus, address: u64) -> [u8; N] {
        let mut data = [0; N];
        let is_claimed = bus.read(address, &mut data);
        assert_eq!(is_claimed, data != [0xff; N]);
        data
    }

    #[test]
    fn access_reaches_claiming_device() {
        let bus = bus();
        assert!(bus.write(0x22, &[9, 10]));
        assert_eq!(read(&bus, 0x21), [2, 9, 10, 5]);
        assert_eq!(read(&bus, 0x12), [3]);
        assert_eq!(read(&bus, u64::MAX), [8]);
        assert_eq!(bus.unclaimed(), 0);
    }

    #[test]
    fn unclaimed_access_reads_ones_and_is_counted() {
        let bus = bus();
        assert_eq!(read(&bus, 0x18), [0xff; 4]);
        assert_eq!(read(&bus, 0x16), [0xff; 4], "access ends beyond the device");
        assert_eq!(read(&bus, 0xe), [0xff; 4], "access starts before the device");
        assert_eq!(read(&bus, u64::MAX), [0xff; 2], "access wraps around");
        assert!(!bus.write(0, &[1]));
        assert!(!bus.write(0, &[]));
        assert_eq!(bus.unclaimed(), 6);
    }

    #[test]
    fn overlapping_claim_is_rejected() {
        let mut builder = BusBuilder::new();
        builder.claim("a", 0x10, 8, registers()).unwrap();
        for (base, length) in [(0x10, 8), (0x17, 1), (0xf, 2), (0, 0x100), (0x12, 2)] {
            let error = builder.claim("b", base, length, registers()).unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::Overlap {
                        other: "a",
                        other_base: 0x10,
                        ..
                    }
                ),
                "{base:#x}"
            );
        }
        builder.claim("b", 0x18, 1, registers()).unwrap();
        builder.claim("b", 0xf, 1, registers()).unwrap();
    }

    #[test]
    fn invalid_range_is_rejected() {
        let mut builder = BusBuilder::new();
        for (base, length) in [(0, 0), (u64::MAX, 2), (1, u64::MAX)] {
            let claimed = builder.claim("a", base, length, registers());
            assert_eq!(
                matches!(claimed, Err(Error::Range { .. })),
                (base, length) != (1, u64::MAX)
            );
        }
    }
}
