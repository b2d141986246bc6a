//! Breakpoint instructions of a debugger in guest memory.

use std::sync::Mutex;

use devices::lock;
use snapshot::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::arch::{DebugCpu, Native, Platform};
use crate::memory::try_read;

type NativeCpu = <Native as Platform>::Cpu;

/// Breakpoint instruction in guest memory.
struct MemoryBreakpoint {
    address: GuestAddress,
    /// Bytes of the guest at the address.
    original: Vec<u8>,
}

/// Breakpoint instructions of a debugger. Those of a paused machine are not in its memory.
#[derive(Default)]
pub struct MemoryBreakpoints(Mutex<Placed>);

#[derive(Default)]
struct Placed {
    breakpoints: Vec<MemoryBreakpoint>,
    /// The machine is paused.
    is_lifted: bool,
}

impl MemoryBreakpoints {
    /// Adds a breakpoint. Returns false if the memory does not exist.
    pub fn add(&self, memory: &GuestMemory, address: GuestAddress) -> bool {
        let mut original = vec![0; NativeCpu::BREAKPOINT.len()];
        if try_read(memory, address, &mut original) != original.len() {
            return false;
        }
        let mut placed = lock(&self.0);
        if !placed.is_lifted && !write(memory, NativeCpu::BREAKPOINT, address) {
            return false;
        }
        placed.breakpoints.push(MemoryBreakpoint { address, original });
        true
    }

    /// Removes a breakpoint.
    pub fn remove(&self, memory: &GuestMemory, address: GuestAddress) {
        let mut placed = lock(&self.0);
        let found = placed
            .breakpoints
            .iter()
            .position(|breakpoint| breakpoint.address == address);
        if let Some(index) = found {
            let breakpoint = placed.breakpoints.swap_remove(index);
            if !placed.is_lifted {
                breakpoint.restore(memory);
            }
        }
    }

    /// Writes `bytes` to `address`, below the breakpoints. Returns false if the memory does not exist.
    pub fn write_below(&self, memory: &GuestMemory, address: GuestAddress, bytes: &[u8]) -> bool {
        let mut placed = lock(&self.0);
        let is_inserted = !placed.is_lifted;
        if is_inserted {
            placed.breakpoints.iter().for_each(|place| place.restore(memory));
        }
        let is_written = write(memory, bytes, address);
        for breakpoint in &mut placed.breakpoints {
            try_read(memory, breakpoint.address, &mut breakpoint.original);
            if is_inserted {
                breakpoint.insert(memory);
            }
        }
        is_written
    }

    /// Replaces the breakpoints among `bytes` of the memory at `address` by the bytes of the guest.
    pub fn hide(&self, address: GuestAddress, bytes: &mut [u8]) {
        let placed = lock(&self.0);
        for breakpoint in &placed.breakpoints {
            for (place, original) in (breakpoint.address.0..).zip(&breakpoint.original) {
                let index = place.checked_sub(address.0).map(usize::try_from);
                if let Some(Ok(index)) = index
                    && let Some(byte) = bytes.get_mut(index)
                {
                    *byte = *original;
                }
            }
        }
    }

    /// Restores the memory of the guest until [`insert`](Self::insert).
    pub fn lift(&self, memory: &GuestMemory) {
        let mut placed = lock(&self.0);
        if !std::mem::replace(&mut placed.is_lifted, true) {
            placed
                .breakpoints
                .iter()
                .for_each(|breakpoint| breakpoint.restore(memory));
        }
    }

    /// Writes the breakpoints to memory again.
    pub fn insert(&self, memory: &GuestMemory) {
        let mut placed = lock(&self.0);
        if std::mem::replace(&mut placed.is_lifted, false) {
            placed.breakpoints.iter().for_each(|place| place.insert(memory));
        }
    }
}

impl MemoryBreakpoint {
    fn insert(&self, memory: &GuestMemory) {
        // The memory existed when the breakpoint was added.
        let _ = write(memory, NativeCpu::BREAKPOINT, self.address);
    }

    fn restore(&self, memory: &GuestMemory) {
        // The memory existed when the breakpoint was added.
        let _ = write(memory, &self.original, self.address);
    }
}

/// Writes instructions. Returns false if the memory does not exist.
fn write(memory: &GuestMemory, bytes: &[u8], address: GuestAddress) -> bool {
    let written = memory.write_slice(bytes, address);
    NativeCpu::sync_instructions(memory, address, bytes.len());
    written.is_ok()
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::{MemoryBreakpoints, NativeCpu};
    use crate::arch::DebugCpu;
    use crate::memory::allocate;

    #[test]
    fn paused_machine_has_no_breakpoint_in_memory() {
        let memory = allocate(&[(GuestAddress(0), 0x1000)]).unwrap();
        let (first, second) = (GuestAddress(0x10), GuestAddress(0xff0));
        let original = vec![7; NativeCpu::BREAKPOINT.len()];
        let read = |address| {
            let mut bytes = original.clone();
            memory.read_slice(&mut bytes, address).unwrap();
            bytes
        };
        for address in [first, second] {
            memory.write_slice(&original, address).unwrap();
        }
        let breakpoints = MemoryBreakpoints::default();
        assert!(breakpoints.add(&memory, first));
        assert!(!breakpoints.add(&memory, GuestAddress(0x1000)));
        assert_eq!(read(first), NativeCpu::BREAKPOINT);
        breakpoints.lift(&memory);
        breakpoints.lift(&memory);
        assert!(breakpoints.add(&memory, second));
        assert_eq!((read(first), read(second)), (original.clone(), original.clone()));
        breakpoints.insert(&memory);
        assert_eq!(read(first), NativeCpu::BREAKPOINT);
        assert_eq!(read(second), NativeCpu::BREAKPOINT);
        breakpoints.remove(&memory, first);
        assert_eq!(read(first), original);
        breakpoints.lift(&memory);
        breakpoints.remove(&memory, second);
        breakpoints.insert(&memory);
        assert_eq!(read(second), original);
    }
    #[test]
    fn reads_and_writes_are_below_breakpoints() {
        let memory = allocate(&[(GuestAddress(0), 0x1000)]).unwrap();
        let (place, length) = (GuestAddress(0x10), NativeCpu::BREAKPOINT.len());
        let breakpoints = MemoryBreakpoints::default();
        assert!(breakpoints.add(&memory, place));
        assert!(breakpoints.write_below(&memory, GuestAddress(0xc), &[7; 8]));
        let read = || {
            let mut bytes = [0; 8];
            memory.read_slice(&mut bytes, GuestAddress(0xc)).unwrap();
            bytes
        };
        assert_eq!(&read()[4..4 + length], NativeCpu::BREAKPOINT);
        let mut bytes = read();
        breakpoints.hide(GuestAddress(0xc), &mut bytes);
        assert_eq!(bytes, [7; 8]);
        // A part of the bytes.
        let mut bytes = [1];
        breakpoints.hide(place, &mut bytes);
        assert_eq!(bytes, [7]);
        breakpoints.lift(&memory);
        assert!(breakpoints.write_below(&memory, place, &[8; 4]));
        assert_eq!(read(), [7, 7, 7, 7, 8, 8, 8, 8]);
        breakpoints.insert(&memory);
        breakpoints.remove(&memory, place);
        assert_eq!(read(), [7, 7, 7, 7, 8, 8, 8, 8]);
        assert!(!breakpoints.write_below(&memory, GuestAddress(0x1000), &[1]));
    }
}
