//! Guest memory that may not be there any more.

use snapshot::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// Reads up to `bytes.len()` bytes at `address`, within one region, and returns how many could be read.
///
/// A page whose image file has been cut short cannot be read, and touching it would raise SIGBUS. The kernel looks instead.
pub fn try_read(memory: &GuestMemory, address: GuestAddress, bytes: &mut [u8]) -> usize {
    let Ok(host) = memory.get_host_address(address) else {
        return 0;
    };
    let region_end = memory.to_region_addr(address).map_or(0, |(region, offset)| {
        use vm_memory::GuestMemoryRegion;
        usize::try_from(region.len() - offset.0).unwrap_or(usize::MAX)
    });
    let length = bytes.len().min(region_end);
    let into = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: length,
    };
    let from = libc::iovec {
        iov_base: host.cast(),
        iov_len: length,
    };
    // SAFETY: getpid has no preconditions.
    let this = unsafe { libc::getpid() };
    // SAFETY: `into` is valid for writes of its length; the kernel checks `from`, whatever has become of it.
    let read = unsafe { libc::process_vm_readv(this, &raw const into, 1, &raw const from, 1, 0) };
    usize::try_from(read).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::GuestAddress;

    use super::try_read;
    use crate::memory::{allocate, map_file, memfd, page_size};

    #[test]
    fn what_is_gone_is_not_read() {
        let page = usize::try_from(page_size()).unwrap();
        let mut file = memfd(c"peek", &vec![7; page]).unwrap();
        file.write_all(&vec![8; page]).unwrap();
        let memory = allocate(&[(GuestAddress(0), 4 * page)]).unwrap();
        map_file(&memory, GuestAddress(0), &file, 0, 2 * page).unwrap();
        file.set_len(page as u64).unwrap();
        let mut bytes = [0; 16];
        assert_eq!(try_read(&memory, GuestAddress(16), &mut bytes), 16);
        assert_eq!(bytes, [7; 16]);
        assert_eq!(
            try_read(&memory, GuestAddress(page as u64), &mut bytes),
            0,
            "cut off"
        );
        assert_eq!(
            try_read(&memory, GuestAddress(4 * page as u64 - 8), &mut bytes),
            8,
            "the end of memory"
        );
        assert_eq!(
            try_read(&memory, GuestAddress(4 * page as u64), &mut bytes),
            0,
            "beyond memory"
        );
    }
}
