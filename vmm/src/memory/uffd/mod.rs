//! Guest memory that a fault handler in another process fills page by page, by userfaultfd(2).
//!
//! The kernel reports each access to an absent page on a userfaultfd. The VM sends its descriptor to the fault handler, which
//! listens on a unix socket, in one message with the text
//!
//! ```text
//! [{"base_host_virt_addr":A,"size":B,"offset":C,"page_size":4096,"page_size_kib":4096}]
//! ```
//!
//! The array has one entry per region: host address, size, and offset in the memory file, all in bytes. `page_size_kib`
//! is in bytes too: fault handlers written for Firecracker expect that. The fault handler sends no response.
//! resources/uffd-handler is an example.
//!
//! If the fault handler dies, the next access to an absent page blocks without end. This process therefore keeps both
//! descriptors open: after the last close of the userfaultfd the kernel would fill absent pages with zeros. A kick may
//! not interrupt a blocked vCPU: KVM supports that since Linux 6.1 only, and not for every access. A blocked thread ends with the
//! process: the machine leaves it and keeps the descriptors.

#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use devices::virtio::net::stream::{CONNECT_TIMEOUT, connect};
use snapshot::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::map::{self, Bytes, allocate, allocate_logged, page_size};
use super::userfaultfd::{Access, EVENT_REMOVE, REGISTER_MISSING, Userfaultfd};

/// Error while guest memory is mapped for a fault handler.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Guest memory could not be reserved.
    #[error("cannot reserve guest memory for the fault handler")]
    Memory(#[source] map::Error),
    /// The process lacks the permission for a userfaultfd.
    #[error(
        "cannot create a userfaultfd: permission denied; grant access to /dev/userfaultfd or the capability CAP_SYS_PTRACE, or set \
         sysctl vm.unprivileged_userfaultfd=1"
    )]
    NotPermitted(#[source] io::Error),
    /// The kernel could not create a userfaultfd.
    #[error(
        "cannot create a userfaultfd; the kernel needs CONFIG_USERFAULTFD, and a system call filter must allow the call"
    )]
    Create(#[source] io::Error),
    /// The kernel lacks a required userfaultfd feature.
    #[error("cannot use userfaultfd: it does not report removed pages; use Linux 4.11 or later")]
    Features(#[source] io::Error),
    /// The kernel does not support userfaultfd for this memory.
    #[error("cannot register {size} of guest memory with a userfaultfd")]
    Register {
        /// Size of the region.
        size: Bytes,
        /// Error of the ioctl.
        #[source]
        source: io::Error,
    },
    /// No fault handler listens on the socket.
    #[error("cannot connect to the fault handler at {path:?}; start it before the snapshot is loaded")]
    Connect {
        /// Path of the socket.
        path: PathBuf,
        /// Error of `connect`.
        #[source]
        source: io::Error,
    },
    /// The backlog of the fault handler stays full.
    #[error(
        "cannot connect to the fault handler at {path:?} within {CONNECT_TIMEOUT:?}: the backlog of the socket is full; check that it \
         accepts connections"
    )]
    Backlog {
        /// Path of the socket.
        path: PathBuf,
    },
    /// The message could not be sent, or only in part.
    #[error("cannot send the memory regions to the fault handler at {path:?}")]
    Send {
        /// Path of the socket.
        path: PathBuf,
        /// Error of `sendmsg`.
        #[source]
        source: io::Error,
    },
}

/// Connection to the fault handler of one guest. Must live as long as guest memory.
#[derive(Debug)]
pub struct FaultHandler {
    socket: UnixStream,
    /// Kept open: the last close would fill absent pages with zeros.
    _faults: Userfaultfd,
}

impl FaultHandler {
    /// Returns true if the fault handler has exited or closed the connection.
    pub fn is_disconnected(&self) -> bool {
        let mut polled = libc::pollfd {
            fd: self.socket.as_raw_fd(),
            events: 0,
            revents: 0,
        };
        // SAFETY: `polled` is one valid entry.
        let ready = unsafe { libc::poll(&raw mut polled, 1, 0) };
        ready > 0 && polled.revents != 0
    }
}

impl AsFd for FaultHandler {
    /// Returns the connection, which hangs up when the fault handler exits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Reserves `regions`, each an address and a size in bytes, and sends them to the fault handler that listens at `path`.
/// The function reads no page and allocates no memory for pages.
///
/// # Errors
/// Any [`Error`].
pub fn map_uffd(
    regions: &[(GuestAddress, usize)],
    path: &Path,
) -> Result<(GuestMemory, FaultHandler), Error> {
    let memory = allocate(regions).map_err(Error::Memory)?;
    let handler = serve(&memory, path)?;
    Ok((memory, handler))
}

/// As [`map_uffd`], with a log of the writes of this process.
///
/// # Errors
/// Any [`Error`].
pub fn map_uffd_logged(
    regions: &[(GuestAddress, usize)],
    path: &Path,
) -> Result<(GuestMemory, FaultHandler), Error> {
    let memory = allocate_logged(regions).map_err(Error::Memory)?;
    let handler = serve(&memory, path)?;
    Ok((memory, handler))
}

fn serve(memory: &GuestMemory, path: &Path) -> Result<FaultHandler, Error> {
    let faults = open_userfaultfd()?;
    for region in memory.iter() {
        let start = region.as_ptr().addr() as u64;
        let registered = faults.register(start..start + region.len(), REGISTER_MISSING);
        registered.map_err(|source| Error::Register {
            size: Bytes(region.len()),
            source,
        })?;
    }
    let socket = connect(path).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::TimedOut => Error::Backlog { path },
            _ => Error::Connect { path, source },
        }
    })?;
    let text = describe_regions(memory);
    let failed = |source| Error::Send {
        path: path.to_owned(),
        source,
    };
    let sent = socket.send_with_fd(text.as_bytes(), faults.as_raw_fd());
    let sent = sent.map_err(|error| failed(error.into()))?;
    if sent < text.len() {
        return Err(failed(io::ErrorKind::WriteZero.into()));
    }
    Ok(FaultHandler {
        socket,
        _faults: faults,
    })
}

fn open_userfaultfd() -> Result<Userfaultfd, Error> {
    let opened = Userfaultfd::open(Access::All).map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM) => Error::NotPermitted(source),
        _ => Error::Create(source),
    })?;
    // The fault handler must fill removed pages with zeros, not with the memory file.
    opened.negotiate(EVENT_REMOVE).map_err(Error::Features)?;
    Ok(opened)
}

/// Formats the message to the fault handler.
fn describe_regions(memory: &GuestMemory) -> String {
    let page = page_size();
    let mut text = String::from("[");
    let mut offset = 0;
    for region in memory.iter() {
        let comma = if offset == 0 { "" } else { "," };
        let (address, size) = (region.as_ptr().addr(), region.len());
        // A write to a String does not fail.
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
