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
            for breakpoint in &placed.breakpoints {
                // The memory existed when the breakpoint was added.
                let _ = write(memory, NativeCpu::BREAKPOINT, breakpoint.address);
            }
        }
    }
}

impl MemoryBreakpoint {
    fn restore(&self, memory: &GuestMemory) {
        // The memory existed when the breakpoint was added.
        let _ = write(memory, &self.original, self.address);
    }
}

/// Writes an instruction. Returns false if the memory does not exist.
fn write(memory: &GuestMemory, instruction: &[u8], address: GuestAddress) -> bool {
    let written = memory.write_slice(instruction, address);
    NativeCpu::sync_instructions(memory, address, instruction.len());
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
}
