use std::io;
use std::ptr;

use snapshot::GuestMemory;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap};

/// Bytes of the canary on each side.
const CANARY: usize = 0x1_0000;
/// Content of the canaries.
const PATTERN: u8 = 0xc5;

/// Guest memory from address 0 with a canary before and after it in the host's address space.
///
/// The mapping lives as long as the process: devices may keep a copy of the memory.
pub struct GuardedMemory {
    memory: GuestMemory,
    /// The whole mapping.
    start: *const u8,
    size: usize,
}

impl GuardedMemory {
    /// Maps `size` bytes of guest memory, a multiple of the page size.
    ///
    /// # Panics
    /// Panics if `mmap` fails.
    pub fn new(size: usize) -> Self {
        let length = size + 2 * CANARY;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let mapping = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, -1, 0) };
        assert_ne!(mapping, libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        let start: *mut u8 = mapping.cast();
        for canary in [0, CANARY + size] {
            // SAFETY: both canaries are inside the mapping.
            let canary = unsafe { start.add(canary) };
            // SAFETY: nothing else refers to the new mapping.
            unsafe { ptr::write_bytes(canary, PATTERN, CANARY) };
        }
        let builder = MmapRegionBuilder::new(size)
            .with_mmap_prot(protection)
            .with_mmap_flags(flags);
        // SAFETY: guest memory begins behind the first canary, inside the mapping.
        let guest = unsafe { start.add(CANARY) };
        // SAFETY: the mapping of `size` bytes from here lives as long as the process.
        let builder = unsafe { builder.with_raw_mmap_pointer(guest) };
        let region = GuestRegionMmap::new(builder.build().unwrap(), GuestAddress(0)).unwrap();
        Self {
            memory: GuestMemory::from_regions(vec![region]).unwrap(),
            start,
            size,
        }
    }

    /// Returns guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Checks both canaries.
    ///
    /// # Panics
    /// Panics if a byte outside guest memory has changed.
    pub fn check(&self) {
        for offset in [0, CANARY + self.size] {
            for at in offset..offset + CANARY {
                // SAFETY: the address is inside the mapping.
                let byte = unsafe { self.start.add(at) };
                // SAFETY: only a fault of a device writes to the canary.
                let value = unsafe { ptr::read_volatile(byte) };
                assert_eq!(
                    value,
                    PATTERN,
                    "byte {} relative to guest memory has changed",
                    at.cast_signed() - CANARY.cast_signed()
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryBackend};

    use super::{CANARY, GuardedMemory};

    /// Writes one byte at `offset` relative to guest memory.
    fn overwrite(memory: &GuardedMemory, offset: isize) {
        let guest = memory.memory().get_host_address(GuestAddress(0)).unwrap();
        // SAFETY: the offset is inside the mapping.
        let byte = unsafe { guest.offset(offset) };
        // SAFETY: nothing else refers to the mapping.
        unsafe { byte.write(0) };
    }

    #[test]
    fn check_finds_writes_outside_memory() {
        let last = CANARY.cast_signed();
        for offset in [-last, -1, 0x1000, 0x1000 + last - 1] {
            let memory = GuardedMemory::new(0x1000);
            memory.check();
            overwrite(&memory, 0);
            overwrite(&memory, 0xfff);
            memory.check();
            overwrite(&memory, offset);
            let check = std::panic::AssertUnwindSafe(|| memory.check());
            assert!(std::panic::catch_unwind(check).is_err(), "{offset}");
        }
    }
}
