//! System calls without a safe interface in the standard library: queries of the host, and files in memory.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

/// `LANDLOCK_CREATE_RULESET_VERSION` of linux/landlock.h.
const LANDLOCK_CREATE_RULESET_VERSION: libc::c_long = 1;
/// `SECCOMP_GET_ACTION_AVAIL` of linux/seccomp.h.
const SECCOMP_GET_ACTION_AVAIL: libc::c_long = 2;
/// `UFFD_USER_MODE_ONLY` of linux/userfaultfd.h.
const UFFD_USER_MODE_ONLY: libc::c_long = 1;

/// Returns the effective user.
pub fn user() -> u32 {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// Returns true if this process may execute the file at `path`.
pub fn is_executable(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: `path` is a C string for the length of the call.
    unsafe { libc::access(path.as_ptr(), libc::X_OK) == 0 }
}

/// Returns the maximum size of the address space of a process in bytes, if it is limited.
pub fn address_space_limit() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: `limit` is valid for writes. The call fails only for a bad pointer.
    unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Returns the version of Landlock's interface.
///
/// # Errors
/// Fails if the kernel has no Landlock, or it is not enabled.
pub fn landlock_version() -> io::Result<i64> {
    let (attributes, size) = (ptr::null::<u8>(), 0_usize);
    let flags = LANDLOCK_CREATE_RULESET_VERSION;
    // SAFETY: with this flag the kernel reads no attributes.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, attributes, size, flags) };
    check(version)
}

/// Checks that the kernel has seccomp filters that reject system calls by a signal.
///
/// # Errors
/// Fails if the kernel lacks them.
pub fn probe_seccomp() -> io::Result<()> {
    let action: u32 = libc::SECCOMP_RET_TRAP;
    let operation = SECCOMP_GET_ACTION_AVAIL;
    // SAFETY: `action` is valid for reads, and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, &raw const action) };
    check(result).map(drop)
}

/// Checks that this process may create an io_uring.
///
/// # Errors
/// Fails if the kernel denies it.
pub fn probe_uring() -> io::Result<()> {
    // SAFETY: the kernel fails to read its parameters from address 0, and creates nothing.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, ptr::null::<u8>()) };
    match check(result) {
        // The check of the permission precedes the read.
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(()),
        other => other.map(drop),
    }
}

/// Creates a userfaultfd for the faults of the kernel too, or only for those of user space.
///
/// # Errors
/// Fails if the kernel has no userfaultfd, or this process lacks the right.
pub fn userfaultfd(has_kernel_faults: bool) -> io::Result<OwnedFd> {
    let mode = if has_kernel_faults { 0 } else { UFFD_USER_MODE_ONLY };
    let flags = mode | libc::c_long::from(libc::O_CLOEXEC);
    // SAFETY: the call takes no pointer.
    let descriptor = check(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })?;
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Returns the result of a system call.
fn check(result: libc::c_long) -> io::Result<i64> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Creates an empty memfd, which can be sealed. It is closed at an exec.
///
/// # Errors
/// Fails if the kernel lacks memory or descriptors.
pub fn memfd(name: &CStr) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let create = |flags| {
        // SAFETY: `name` is a C string during the call.
        unsafe { libc::memfd_create(name.as_ptr(), flags) }
    };
    let mut descriptor = create(flags | libc::MFD_NOEXEC_SEAL);
    // Linux before 6.3 has no such flag.
    if descriptor < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
        descriptor = create(flags);
    }
    check(descriptor.into())?;
    // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// Seals a file of [`memfd`]: neither its content nor its seals can change any more.
///
/// # Errors
/// Fails if it is mapped for writes.
pub fn seal(file: &File) -> io::Result<()> {
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }.into()).map(drop)
}

/// Keeps the descriptor of `file` open in the program that this process becomes.
///
/// # Errors
/// Fails only without the descriptor.
pub fn keep_across_exec(file: &File) -> io::Result<()> {
    // SAFETY: the call takes no pointer. FD_CLOEXEC is the only flag.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) }.into()).map(drop)
}
