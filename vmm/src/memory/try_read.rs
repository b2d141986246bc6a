//! Reads of guest memory whose image file may have been truncated.

use snapshot::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// Reads up to `bytes.len()` bytes at `address` within one region. Returns the number of bytes read.
///
/// A direct access to a page beyond the end of a truncated image file raises SIGBUS. process_vm_readv(2) stops before such a
/// page instead.
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
    // SAFETY: `into` is valid for writes of its length; the kernel checks the pages of `from`.
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
    fn try_read_truncated_page_returns_zero() {
        let page = usize::try_from(page_size()).unwrap();
        let mut file = memfd(c"try_read", &vec![7; page]).unwrap();
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
            "truncated page"
        );
        assert_eq!(
            try_read(&memory, GuestAddress(4 * page as u64 - 8), &mut bytes),
            8,
            "end of memory"
        );
        assert_eq!(
            try_read(&memory, GuestAddress(4 * page as u64), &mut bytes),
            0,
            "beyond memory"
        );
    }
}
