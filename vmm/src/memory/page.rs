//! The host's page size.

/// Size of a page of the host in bytes: 4,096 on x86_64, 4,096 to 65,536 on aarch64.
pub fn page_size() -> u64 {
    // SAFETY: sysconf reads a value that the kernel handed over at exec and touches no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // The page size is always known; 4,096 is the smallest of any host.
    u64::try_from(size).unwrap_or(4096)
}
