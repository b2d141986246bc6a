//! The descriptor that reports touches of pages which are not there.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::Error;
use crate::memory::Bytes;

// Requests and flags of linux/userfaultfd.h.
const USERFAULTFD_IOC_NEW: libc::Ioctl = 0xaa00;
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_aa01_u32 as libc::Ioctl;
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;

/// Without UFFD_USER_MODE_ONLY: most touches are KVM's.
const FLAGS: libc::c_int = libc::O_CLOEXEC | libc::O_NONBLOCK;

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

/// `struct uffdio_range`.
#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

/// A userfaultfd, ready to register memory with.
#[derive(Debug)]
pub(super) struct Userfaultfd(OwnedFd);

impl Userfaultfd {
    /// From /dev/userfaultfd, which a jail may hold, or by the system call, which takes a privilege.
    pub fn open() -> Result<Self, Error> {
        let descriptor =
            from_device()
                .or_else(|_| from_call())
                .map_err(|source| match source.raw_os_error() {
                    Some(libc::EPERM) => Error::NotPermitted(source),
                    _ => Error::Create(source),
                })?;
        let mut api = UffdioApi {
            api: UFFD_API,
            // The handler must learn of pages that were given back, or it would fill them with what they were.
            features: UFFD_FEATURE_EVENT_REMOVE,
            ioctls: 0,
        };
        // SAFETY: `api` is the structure that this request reads and writes.
        let done = unsafe { libc::ioctl(descriptor.as_raw_fd(), UFFDIO_API, &raw mut api) };
        if done < 0 {
            return Err(Error::Features(io::Error::last_os_error()));
        }
        Ok(Self(descriptor))
    }

    /// Has touches of pages that are not there reported, for the whole mapping of `size` bytes at `address`.
    pub fn register(&self, address: u64, size: u64) -> Result<(), Error> {
        let mut register = UffdioRegister {
            start: address,
            len: size,
            mode: UFFDIO_REGISTER_MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: `register` is the structure that this request reads and writes; no byte of the range changes.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) };
        if done < 0 {
            return Err(Error::Register {
                size: Bytes(size),
                source: io::Error::last_os_error(),
            });
        }
        Ok(())
    }

    /// Has the kernel fill pages of the mapping with zeros from now on, those that are waited for as well.
    pub fn unregister(&self, address: u64, size: u64) {
        let mut range = UffdioRange {
            start: address,
            len: size,
        };
        // It fails only for what was never registered.
        // SAFETY: `range` is the structure that this request reads; no byte of the range that is there changes.
        let _ = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_UNREGISTER, &raw mut range) };
    }
}

impl AsRawFd for Userfaultfd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn from_device() -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/userfaultfd")?;
    // SAFETY: the request takes flags and touches no memory of ours.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, FLAGS) };
    owned(made)
}

fn from_call() -> io::Result<OwnedFd> {
    // SAFETY: the call takes flags and touches no memory of ours.
    let made = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) };
    owned(RawFd::try_from(made).unwrap_or(-1))
}

fn owned(made: RawFd) -> io::Result<OwnedFd> {
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}
