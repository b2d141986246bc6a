//! Guest memory that another process fills, page by page, when the guest touches it.
//!
//! The kernel reports each touch of a page that is not there by a userfaultfd. Its descriptor goes to a handler, a process
//! that listens on a unix socket, in one message with the text
//!
//! ```text
//! [{"base_host_virt_addr":A,"size":B,"offset":C,"page_size":4096,"page_size_kib":4096}]
//! ```
//!
//! with one entry a region: where it is in this process, how long it is, and where the handler finds it in the memory file,
//! all in bytes. (The last field is in bytes too, whatever its name; handlers written for Firecracker expect it.) The
//! handler answers nothing. An example of one is in resources/uffd-handler.
//!
//! A guest whose handler has died waits at its next touch, for ever, which is why both descriptors stay open here: if the
//! last one went, the kernel would give the guest zeros instead of its memory. A vCPU that waits so may not heed its kick: KVM
//! lets signals interrupt that since Linux 6.1, and not everywhere. At the end of the VM it is [released](FaultHandler::release).

#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use snapshot::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::map::{self, Bytes, allocate, page_size};

/// The handler of a guest's page faults. Lives as long as the guest's memory.
#[derive(Debug)]
pub struct FaultHandler {
    socket: UnixStream,
    faults: Userfaultfd,
    /// Address and size of each region in this process.
    regions: Vec<(u64, u64)>,
}

impl FaultHandler {
    /// Whether the handler has ended, or closed the connection.
    pub fn is_disconnected(&self) -> bool {
        let mut polled = libc::pollfd {
            fd: self.socket.as_raw_fd(),
            events: 0,
            revents: 0,
        };
        // SAFETY: there is one entry.
        let ready = unsafe { libc::poll(&raw mut polled, 1, 0) };
        ready > 0 && polled.revents != 0
    }

    /// Lets go on whoever waits for a page, with zeros: only for a guest that will not run any more.
    pub fn release(&self) {
        for (address, size) in &self.regions {
            self.faults.unregister(*address, *size);
        }
    }
}

impl AsFd for FaultHandler {
    /// The connection, which hangs up when the handler ends.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Reserves the regions, an address and a size in bytes each, and has the handler that listens at `path` fill them. Nothing is
/// read, and nothing of the regions' size is allocated.
///
/// # Errors
/// Any [`Error`].
pub fn map_uffd(
    regions: &[(GuestAddress, usize)],
    path: &Path,
) -> Result<(GuestMemory, FaultHandler), Error> {
    let memory = allocate(regions).map_err(Error::Memory)?;
    let faults = Userfaultfd::open()?;
    let hosts = memory
        .iter()
        .map(|region| (region.as_ptr().addr() as u64, region.len()));
    let regions: Vec<_> = hosts.collect();
    for (address, size) in &regions {
        faults.register(*address, *size)?;
    }
    let socket = UnixStream::connect(path).map_err(|source| Error::Connect {
        path: path.to_owned(),
        source,
    })?;
    let text = describe(&memory);
    let send = |source| Error::Send {
        path: path.to_owned(),
        source,
    };
    let sent = socket.send_with_fd(text.as_bytes(), faults.as_raw_fd());
    let sent = sent.map_err(|error| send(error.into()))?;
    if sent < text.len() {
        return Err(send(io::ErrorKind::WriteZero.into()));
    }
    let handler = FaultHandler {
        socket,
        faults,
        regions,
    };
    Ok((memory, handler))
}

/// The message to the handler.
fn describe(memory: &GuestMemory) -> String {
    let page = page_size();
    let mut text = String::from("[");
    let mut offset = 0;
    for region in memory.iter() {
        let comma = if offset == 0 { "" } else { "," };
        let (address, size) = (region.as_ptr().addr(), region.len());
        // To write to a string cannot fail.
        let _ = write!(
            text,
            "{comma}{{\"base_host_virt_addr\":{address},\"size\":{size},\"offset\":{offset},\
             \"page_size\":{page},\"page_size_kib\":{page}}}"
        );
        offset += size;
    }
    text.push(']');
    text
}

/// Why a handler cannot fill the guest's memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no address space.
    #[error("cannot reserve the memory that a page fault handler is to fill")]
    Memory(#[source] map::Error),
    /// This process may not have a userfaultfd.
    #[error(
        "a userfaultfd is not permitted; give access to /dev/userfaultfd, or the capability CAP_SYS_PTRACE, or set sysctl \
         vm.unprivileged_userfaultfd=1"
    )]
    NotPermitted(#[source] io::Error),
    /// The kernel gave no userfaultfd.
    #[error(
        "cannot make a userfaultfd; the kernel needs CONFIG_USERFAULTFD, and a system call filter must let it through"
    )]
    Create(#[source] io::Error),
    /// The kernel does not report what is needed.
    #[error("the kernel's userfaultfd does not report removed pages; Linux 4.11 or later is needed")]
    Features(#[source] io::Error),
    /// The kernel does not report touches of this memory.
    #[error("cannot register {size} of guest memory with a userfaultfd")]
    Register {
        /// Size of the region.
        size: Bytes,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Nobody listens.
    #[error(
        "cannot connect to the page fault handler at {path:?}; it must listen there before the snapshot is loaded"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The message did not go out, or not as a whole.
    #[error("cannot tell the page fault handler at {path:?} of the guest's memory")]
    Send {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

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
struct Userfaultfd(OwnedFd);

impl Userfaultfd {
    /// From /dev/userfaultfd, which a jail may hold, or by the system call, which takes a privilege.
    fn open() -> Result<Self, Error> {
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
    fn register(&self, address: u64, size: u64) -> Result<(), Error> {
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
    fn unregister(&self, address: u64, size: u64) {
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
