//! Userfaultfd(2): descriptor, features and registered memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

// Requests of linux/userfaultfd.h.
const USERFAULTFD_IOC_NEW: libc::Ioctl = 0xaa00;
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;

const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;

/// `UFFD_FEATURE_EVENT_REMOVE` of linux/userfaultfd.h: the kernel reports removed pages.
pub(super) const EVENT_REMOVE: u64 = 1 << 3;
/// `UFFD_FEATURE_WP_ASYNC` of linux/userfaultfd.h: the kernel resolves faults of write-protected pages, without a message (Linux
/// 6.7).
pub(super) const WP_ASYNC: u64 = 1 << 15;

/// `UFFDIO_REGISTER_MODE_MISSING` of linux/userfaultfd.h.
pub(super) const REGISTER_MISSING: u64 = 1;
/// `UFFDIO_REGISTER_MODE_WP` of linux/userfaultfd.h.
pub(super) const REGISTER_WP: u64 = 2;

/// Accesses whose faults the kernel may report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// All, also those of the kernel, for example of KVM. Requires a permission.
    All,
    /// Those of user space. Requires no permission.
    UserSpace,
}

/// `struct uffdio_api`.
#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// A userfaultfd.
#[derive(Debug)]
pub(super) struct Userfaultfd(OwnedFd);

impl Userfaultfd {
    /// Opens /dev/userfaultfd, which a jail may contain, or falls back to the system call, which needs a capability for
    /// [`Access::All`].
    ///
    /// # Errors
    /// Fails if the system call fails.
    pub fn open(access: Access) -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        match access {
            Access::All => open_device(flags).or_else(|_| call_userfaultfd(flags)),
            Access::UserSpace => call_userfaultfd(flags | UFFD_USER_MODE_ONLY),
        }
        .map(Self)
    }

    /// Enables `features`.
    ///
    /// # Errors
    /// Fails if the kernel lacks one of them.
    pub fn negotiate(&self, features: u64) -> io::Result<()> {
        let mut api = UffdioApi {
            api: UFFD_API,
            features,
            ioctls: 0,
        };
        // SAFETY: `api` is the structure that this request reads and writes.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_API, &raw mut api) };
        to_result(result)
    }

    /// Registers the mappings at the host addresses `range`. With [`REGISTER_MISSING`], the kernel then reports accesses to absent
    /// pages.
    ///
    /// # Errors
    /// Fails if the kernel does not support the mode for this memory, or another userfaultfd has it.
    pub fn register(&self, range: Range<u64>, mode: u64) -> io::Result<()> {
        let mut register = UffdioRegister {
            start: range.start,
            len: range.end - range.start,
            mode,
            ioctls: 0,
        };
        // SAFETY: `register` is the structure that this request reads and writes; the content of the mapping does not change.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) };
        to_result(result)
    }
}

impl AsRawFd for Userfaultfd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn open_device(flags: libc::c_int) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/userfaultfd")?;
    // SAFETY: the request has no pointer arguments.
    let descriptor = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
    to_owned_fd(descriptor)
}

fn call_userfaultfd(flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: the call has no pointer arguments.
    let descriptor = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    to_owned_fd(RawFd::try_from(descriptor).unwrap_or(-1))
}

fn to_owned_fd(descriptor: RawFd) -> io::Result<OwnedFd> {
    to_result(descriptor)?;
    // SAFETY: the kernel has just created the descriptor, and no other object owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn to_result(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
