//! Return addresses on the stack of the guest, by frame pointers.

use std::iter;

use snapshot::GuestMemory;
use vm_memory::GuestAddress;

use crate::memory::try_read;

/// Maximum number of return addresses.
const MAX_FRAMES: usize = 32;

/// Returns the return addresses of the innermost functions. `pointer` is the frame pointer; `translate` returns the guest-physical
/// address of a virtual one. On all architectures a frame begins with the frame pointer of the caller and the return address. The list
/// ends where a pointer does not lead to an outer frame.
pub fn return_addresses(
    pointer: u64,
    memory: &GuestMemory,
    translate: impl Fn(u64) -> Option<u64>,
) -> Vec<u64> {
    let word = |address| {
        let mut bytes = [0; 8];
        let read = try_read(memory, GuestAddress(translate(address)?), &mut bytes);
        (read == bytes.len()).then(|| u64::from_le_bytes(bytes))
    };
    let mut next = Some(pointer);
    let frames = iter::from_fn(|| {
        let frame = next.filter(|frame| *frame != 0 && frame.is_multiple_of(8))?;
        let address = word(frame.checked_add(8)?)?;
        // The stack grows down.
        next = word(frame).filter(|outer| *outer > frame);
        (address != 0).then_some(address)
    });
    frames.take(MAX_FRAMES).collect()
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::{MAX_FRAMES, return_addresses};
    use crate::memory::allocate;

    #[test]
    fn list_ends_without_outer_frame() {
        let memory = allocate(&[(GuestAddress(0), 0x1000)]).unwrap();
        let put = |address, value: u64| memory.write_obj(value, GuestAddress(address)).unwrap();
        let list = |pointer| return_addresses(pointer, &memory, |address| address.checked_sub(0x1000));
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
        assert_eq!(list(0x1000), [5; MAX_FRAMES]);
    }
}
