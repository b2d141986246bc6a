//! Stack of the guest: return addresses by frame pointers.

use std::iter;

use snapshot::GuestMemory;
use vm_memory::GuestAddress;

use crate::memory::try_read;

/// Bytes of the stack that are read at once: the smallest page of all architectures, which one translation covers.
const PAGE: usize = 4096;
/// Bytes before a return address that hold the call: the longest call instruction.
pub const CALL: usize = 8;

/// Innermost functions of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuStack {
    /// Instruction pointer.
    pub ip: u64,
    /// Return address of a function that has no frame: the address where the architecture passes one, if a call precedes it. Means
    /// nothing if the function has a frame.
    pub link: Option<u64>,
    /// Return addresses by frame pointers, the innermost first.
    pub callers: Vec<u64>,
}

/// Reader of the guest's memory by virtual addresses. Keeps the page of the stack that was read last.
pub struct StackReader<'a, T> {
    memory: &'a GuestMemory,
    /// Returns the guest-physical address of a virtual one.
    translate: T,
    /// Virtual address of the page; `None` before the first read.
    page: Option<u64>,
    bytes: [u8; PAGE],
    /// Number of bytes that could be read.
    length: usize,
}

impl<'a, T: Fn(u64) -> Option<u64>> StackReader<'a, T> {
    /// Returns a reader that has read nothing.
    pub fn new(memory: &'a GuestMemory, translate: T) -> Self {
        Self {
            memory,
            translate,
            page: None,
            bytes: [0; PAGE],
            length: 0,
        }
    }

    /// Returns the word at `address`, a multiple of 8.
    pub fn word(&mut self, address: u64) -> Option<u64> {
        let within = address % PAGE as u64;
        let start = address - within;
        if self.page != Some(start) {
            let place = GuestAddress((self.translate)(start)?);
            self.length = try_read(self.memory, place, &mut self.bytes);
            self.page = Some(start);
        }
        let within = usize::try_from(within).ok()?;
        let bytes = self.bytes[..self.length].get(within..within + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    /// Returns the bytes before `address`, which are in one page with those before a usual return address.
    pub fn code_before(&self, address: u64) -> Option<[u8; CALL]> {
        let mut bytes = [0; CALL];
        let place = GuestAddress((self.translate)(address.checked_sub(CALL as u64)?)?);
        (try_read(self.memory, place, &mut bytes) == CALL).then_some(bytes)
    }

    /// Returns at most `limit` return addresses of the innermost functions. `pointer` is the frame pointer. On all architectures a frame
    /// begins with the frame pointer of the caller and the return address. The list ends where a pointer does not lead to an outer frame.
    pub fn return_addresses(mut self, pointer: u64, limit: usize) -> impl Iterator<Item = u64> {
        let mut next = Some(pointer);
        let frames = iter::from_fn(move || {
            let frame = next.filter(|frame| *frame != 0 && frame.is_multiple_of(8))?;
            let outer = self.word(frame)?;
            let address = self.word(frame.checked_add(8)?)?;
            // The stack grows down.
            next = Some(outer).filter(|outer| *outer > frame);
            (address != 0).then_some(address)
        });
        frames.take(limit)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::{PAGE, StackReader};
    use crate::memory::allocate;

    #[test]
    fn list_ends_without_outer_frame() {
        let memory = allocate(&[(GuestAddress(0), 0x1000)]).unwrap();
        let put = |address, value: u64| memory.write_obj(value, GuestAddress(address)).unwrap();
        let list = |pointer| -> Vec<u64> {
            let reader = StackReader::new(&memory, |address: u64| address.checked_sub(0x1000));
            reader.return_addresses(pointer, 32).collect()
        };
        for (frame, outer, address) in [(0x100, 0x1200, 0x11), (0x200, 0x1180, 0x22)] {
            put(frame, outer);
            put(frame + 8, address);
        }
        assert_eq!(list(0x1100), [0x11, 0x22]);
        assert_eq!(list(0x1200), [0x22]);
        for pointer in [0, 0x1104, 0x100, 0x1300, 0x2000, 0x1ff8, u64::MAX - 7] {
            assert_eq!(list(pointer), [0; 0], "{pointer:#x}");
        }
        for frame in 0..100 {
            put(frame * 16, 0x1000 + (frame + 1) * 16);
            put(frame * 16 + 8, 5);
        }
        assert_eq!(list(0x1000), [5; 32]);
    }

    #[test]
    fn frames_in_several_pages_are_found() {
        let memory = allocate(&[(GuestAddress(0), 4 * PAGE)]).unwrap();
        let put = |address, value: u64| memory.write_obj(value, GuestAddress(address)).unwrap();
        // The pages lie in memory in the opposite order, the second and third of five are not mapped.
        let translate = |address: u64| match address {
            0x1000 => Some(0x3000),
            0x2000 => Some(0x2000),
            0x5000 => Some(0x1000),
            _ => None,
        };
        // The return address of the first frame is in the next page.
        put(0x3ff8, 0x2010);
        put(0x2000, 0x11);
        put(0x2010, 0x5000);
        put(0x2018, 0x22);
        put(0x1000, 0x5ff8);
        put(0x1008, 0x33);
        let reader = StackReader::new(&memory, translate);
        let found: Vec<u64> = reader.return_addresses(0x1ff8, 32).collect();
        assert_eq!(found, [0x11, 0x22, 0x33]);
    }

    #[test]
    fn code_before_address_is_read() {
        let memory = allocate(&[(GuestAddress(0), PAGE)]).unwrap();
        memory
            .write_obj(0x0807_0605_0403_0201_u64, GuestAddress(0x10))
            .unwrap();
        let reader = StackReader::new(&memory, |address: u64| address.checked_sub(0x1000));
        assert_eq!(reader.code_before(0x1018), Some([1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!((reader.code_before(7), reader.code_before(0x2001)), (None, None));
    }
}
