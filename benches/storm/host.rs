//! Limits and memory of the host.

use std::fs;
use std::io;

use crate::supervisor::host_memory;

/// Limit of process IDs.
const PID_MAX: &str = "/proc/sys/kernel/pid_max";
/// Largest value that the kernel accepts.
const MAX_PIDS: u32 = 4_194_304;

/// Limit of process IDs, which the drop puts back.
pub struct PidMax(String);

impl PidMax {
    /// Raises the limit to its maximum.
    ///
    /// # Errors
    /// Fails without root.
    pub fn raise() -> io::Result<Self> {
        let before = fs::read_to_string(PID_MAX)?;
        fs::write(PID_MAX, MAX_PIDS.to_string()).map_err(|error| {
            io::Error::other(format!(
                "cannot raise {PID_MAX} to {MAX_PIDS}: {error}; run as root"
            ))
        })?;
        Ok(Self(before.trim().to_owned()))
    }

    /// Returns the limit before.
    pub fn before(&self) -> &str {
        &self.0
    }
}

impl Drop for PidMax {
    fn drop(&mut self) {
        if let Err(error) = fs::write(PID_MAX, &self.0) {
            eprintln!("cannot put {PID_MAX} back to {}: {error}; write it", self.0);
        }
    }
}

/// Raises the limit of descriptors of this process and its children to `count`, or as far as its rights permit. Returns the limit.
///
/// # Errors
/// Fails if the limit cannot be read.
pub fn raise_descriptors(count: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: count,
        rlim_max: count,
    };
    if set_descriptors(&limit).is_ok() {
        return Ok(count);
    }
    // SAFETY: the kernel writes one `rlimit`.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Without CAP_SYS_RESOURCE.
    limit.rlim_cur = limit.rlim_max;
    set_descriptors(&limit)?;
    Ok(limit.rlim_cur)
}

fn set_descriptors(limit: &libc::rlimit) -> io::Result<()> {
    // SAFETY: the kernel reads one `rlimit`.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const *limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the memory in bytes that is not available: beside that of processes also that of the kernel, without files on tmpfs.
///
/// # Errors
/// Fails without /proc.
pub fn used_memory() -> io::Result<i64> {
    Ok(host_memory("MemTotal")? - host_memory("MemAvailable")? - host_memory("Shmem")?)
}

/// Returns the number of threads on this host, with those of the kernel.
///
/// # Errors
/// Fails without /proc.
pub fn threads() -> io::Result<i64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let count = text.split(['/', ' ']).nth(4).and_then(|count| count.parse().ok());
    count.ok_or_else(|| io::Error::other("/proc/loadavg has no number of threads"))
}
