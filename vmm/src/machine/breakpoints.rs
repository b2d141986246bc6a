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
    /// Breakpoints of the debugger here: linear addresses can share a place.
    count: usize,
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
    /// Adds a breakpoint, or another one at the same address. Returns false if the memory does not exist.
    pub fn add(&self, memory: &GuestMemory, address: GuestAddress) -> bool {
        let mut placed = lock(&self.0);
        let is_lifted = placed.is_lifted;
        let mut present = placed.breakpoints.iter_mut();
        if let Some(breakpoint) = present.find(|breakpoint| breakpoint.address == address) {
            breakpoint.count += 1;
            // The guest may have overwritten it.
            if !is_lifted && !breakpoint.is_inserted(memory) {
                breakpoint.insert(memory);
            }
            return true;
        }
        let mut original = vec![0; NativeCpu::BREAKPOINT.len()];
        if try_read(memory, address, &mut original) != original.len() {
            return false;
        }
        if !placed.is_lifted && !write(memory, NativeCpu::BREAKPOINT, address) {
            return false;
        }
        placed.breakpoints.push(MemoryBreakpoint {
            address,
            original,
            count: 1,
        });
        true
    }

    /// Removes a breakpoint. The last one at its address restores the memory.
    pub fn remove(&self, memory: &GuestMemory, address: GuestAddress) {
        let mut placed = lock(&self.0);
        let found = placed
            .breakpoints
            .iter()
            .position(|breakpoint| breakpoint.address == address);
        if let Some(index) = found {
            placed.breakpoints[index].count -= 1;
            if placed.breakpoints[index].count > 0 {
                return;
            }
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
            placed.restore(memory);
        }
        let is_written = write(memory, bytes, address);
        for breakpoint in &mut placed.breakpoints {
            if is_inserted {
                breakpoint.insert(memory);
            }
        }
        is_written
    }

    /// Replaces the breakpoints among `bytes` of the memory at `address` by the bytes of the guest.
    pub fn hide(&self, address: GuestAddress, bytes: &mut [u8]) {
        let placed = lock(&self.0);
        if placed.is_lifted {
            return;
        }
        for breakpoint in &placed.breakpoints {
            let part: Vec<_> = (breakpoint.address.0..)
                .zip(NativeCpu::BREAKPOINT.iter().zip(&breakpoint.original))
                .filter_map(|(place, values)| {
                    let index = usize::try_from(place.checked_sub(address.0)?).ok()?;
                    (index < bytes.len()).then_some((index, values))
                })
                .collect();
            // The guest may have overwritten it.
            if part.iter().all(|(index, (own, _))| bytes[*index] == **own) {
                part.iter()
                    .for_each(|(index, (_, original))| bytes[*index] = **original);
            }
        }
    }

    /// Restores the memory of the guest until [`insert`](Self::insert).
    pub fn lift(&self, memory: &GuestMemory) {
        let mut placed = lock(&self.0);
        if !std::mem::replace(&mut placed.is_lifted, true) {
            placed.restore(memory);
        }
    }

    /// Writes the breakpoints to memory again.
    pub fn insert(&self, memory: &GuestMemory) {
        let mut placed = lock(&self.0);
        if std::mem::replace(&mut placed.is_lifted, false) {
            placed
                .breakpoints
                .iter_mut()
                .for_each(|place| place.insert(memory));
        }
    }

    /// Returns true if there is a breakpoint at `address`.
    pub fn has(&self, address: GuestAddress) -> bool {
        lock(&self.0)
            .breakpoints
            .iter()
            .any(|breakpoint| breakpoint.address == address)
    }
}

impl Placed {
    /// Restores the memory of the guest. A breakpoint that the guest has overwritten is gone: its page may have another use.
    fn restore(&mut self, memory: &GuestMemory) {
        self.breakpoints.retain(|breakpoint| breakpoint.restore(memory));
    }
}

impl MemoryBreakpoint {
    /// Replaces the bytes of the guest, which may differ from those before.
    fn insert(&mut self, memory: &GuestMemory) {
        // The memory existed when the breakpoint was added.
        try_read(memory, self.address, &mut self.original);
        let _ = write(memory, NativeCpu::BREAKPOINT, self.address);
    }

    /// Returns true unless the guest has overwritten the breakpoint.
    fn is_inserted(&self, memory: &GuestMemory) -> bool {
        let mut present = vec![0; self.original.len()];
        try_read(memory, self.address, &mut present) == present.len() && present == NativeCpu::BREAKPOINT
    }

    /// Restores the bytes of the guest. Returns false, without effect, if the guest has overwritten the breakpoint.
    fn restore(&self, memory: &GuestMemory) -> bool {
        self.is_inserted(memory) && write(memory, &self.original, self.address)
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
    fn second_breakpoint_at_one_place_restores_memory_once() {
        let memory = allocate(&[(GuestAddress(0), 0x1000)]).unwrap();
        let (place, length) = (GuestAddress(0x10), NativeCpu::BREAKPOINT.len());
        let read = || {
            let mut bytes = vec![0; length];
            memory.read_slice(&mut bytes, place).unwrap();
            bytes
        };
        memory.write_slice(&[7; 4], place).unwrap();
        let breakpoints = MemoryBreakpoints::default();
        assert!(breakpoints.add(&memory, place) && breakpoints.add(&memory, place));
        breakpoints.remove(&memory, place);
        assert_eq!(read(), NativeCpu::BREAKPOINT);
        assert!(breakpoints.has(place));
        breakpoints.remove(&memory, place);
        assert_eq!(read(), vec![7; length]);
        assert!(!breakpoints.has(place));
    }

    #[test]
    fn bytes_that_the_guest_has_written_over_a_breakpoint_stay() {
        let memory = allocate(&[(GuestAddress(0), 0x1000)]).unwrap();
        let (first, second) = (GuestAddress(0x10), GuestAddress(0x20));
        let read = |place| {
            let mut bytes = vec![0; NativeCpu::BREAKPOINT.len()];
            memory.read_slice(&mut bytes, place).unwrap();
            bytes
        };
        let new = vec![9; NativeCpu::BREAKPOINT.len()];
        let breakpoints = MemoryBreakpoints::default();
        assert!(breakpoints.add(&memory, first) && breakpoints.add(&memory, second));
        memory.write_slice(&new, first).unwrap();
        let mut bytes = new.clone();
        breakpoints.hide(first, &mut bytes);
        assert_eq!(bytes, new);
        breakpoints.lift(&memory);
        assert_eq!(read(first), new);
        // While the VM is paused, its memory is that of the guest.
        memory.write_slice(&new, second).unwrap();
        let mut bytes = new.clone();
        breakpoints.hide(second, &mut bytes);
        assert_eq!(bytes, new);
        breakpoints.insert(&memory);
        assert_eq!(
            (read(first), read(second)),
            (new.clone(), NativeCpu::BREAKPOINT.to_vec())
        );
        breakpoints.remove(&memory, second);
        assert_eq!(read(second), new);
        // Added again after it was overwritten.
        assert!(breakpoints.add(&memory, first));
        memory.write_slice(&[8; 4], first).unwrap();
        assert!(breakpoints.add(&memory, first));
        assert_eq!(read(first), NativeCpu::BREAKPOINT);
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
        let mut bytes = [NativeCpu::BREAKPOINT[0]];
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
