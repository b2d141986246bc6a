//! Memory of the host.

/// Memory of the host.
#[derive(Clone, Copy, Debug)]
pub struct HostMemory {
    /// Memory and swap, in bytes.
    pub memory: u64,
}

impl HostMemory {
    /// Returns the memory of this host. sysinfo(2) needs no /proc.
    pub fn this() -> Self {
        // SAFETY: all-zero bytes are a valid `sysinfo`, which is a structure of integers.
        let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is valid for writes for the length of the call.
        let result = unsafe { libc::sysinfo(&raw mut info) };
        let unit = u64::from(info.mem_unit);
        let memory = info.totalram.saturating_add(info.totalswap).saturating_mul(unit);
        // The call fails only for a bad pointer. If it fails, mmap sets the limit.
        Self {
            memory: if result == 0 { memory } else { u64::MAX },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::HostMemory;

    #[test]
    fn host_memory_is_positive() {
        assert!(HostMemory::this().memory > 1 << 24);
    }
}
