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

mod descriptor;
mod error;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use snapshot::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{allocate, page_size};
use descriptor::Userfaultfd;
pub use error::Error;

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
        return Err(send(std::io::ErrorKind::WriteZero.into()));
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
