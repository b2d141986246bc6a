//! A tap interface of the host, with a `struct virtio_net_hdr_v1` before each frame.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use log::warn;

use super::backend::{Backend, Received, Sent};
use super::buffers::Buffers;
use super::features::{
    CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_UFO, GUEST_USO4, GUEST_USO6, HOST_TSO4, HOST_TSO6,
    HOST_UFO, HOST_USO,
};
use super::{HEADER, LONGEST_PACKET};
use crate::virtio::chain::Pieces;

mod control;
mod error;

pub use error::Error;

/// Offloads of every tap. UFO is offered, as the kernel fragments in software what a driver asks for.
const ALWAYS: u64 =
    CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_UFO | HOST_TSO4 | HOST_TSO6 | HOST_UFO;
/// Offloads from Linux 6.2 on.
const SEGMENTED_UDP: u64 = GUEST_USO4 | GUEST_USO6 | HOST_USO;

/// A tap interface, attached.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    offloads: u64,
    connected: bool,
}

impl Tap {
    /// Attaches to the interface `name`, or makes it if there is none and the process may. The kernel finds a name when
    /// `name` is empty.
    ///
    /// # Errors
    /// All variants but [`Error::Descriptor`] and [`Error::Mode`].
    pub fn open(name: &str) -> Result<Self, Error> {
        control::check_name(name)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(control::DEVICE)
            .map_err(Error::of_device)?;
        let name = control::attach(&file, name)?;
        Self::with(file, name)
    }

    /// Takes the descriptor of a tap that somebody else has attached, with `IFF_NO_PI` and `IFF_VNET_HDR`.
    ///
    /// # Errors
    /// [`Error::Descriptor`], [`Error::Mode`] and [`Error::Configure`].
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self, Error> {
        let file = File::from(descriptor);
        let name = control::attached_name(&file)?;
        control::set_nonblocking(&file).map_err(|source| Error::Configure {
            name: name.clone(),
            operation: "O_NONBLOCK",
            source,
        })?;
        Self::with(file, name)
    }

    /// The name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn with(file: File, name: String) -> Result<Self, Error> {
        let failed = |operation| {
            let name = name.clone();
            move |source| Error::Configure {
                name,
                operation,
                source,
            }
        };
        control::set_header_size(&file, HEADER).map_err(failed("TUNSETVNETHDRSZ"))?;
        // The kernel says what it knows by what it takes.
        let segments_udp = control::set_offloads(&file, GUEST_CSUM | GUEST_USO4 | GUEST_USO6).is_ok();
        control::set_offloads(&file, 0).map_err(failed("TUNSETOFFLOAD"))?;
        let more = match segments_udp {
            true => SEGMENTED_UDP,
            false => 0,
        };
        Ok(Self {
            file,
            name,
            offloads: ALWAYS | more,
            connected: true,
        })
    }
}

impl Backend for Tap {
    fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn offloads(&self) -> u64 {
        self.offloads
    }

    fn use_features(&mut self, features: u64) -> io::Result<()> {
        control::set_offloads(&self.file, features)
    }

    fn send(&mut self, packet: &Pieces<'_>) -> io::Result<Sent> {
        let mut parts = Vec::with_capacity(packet.count());
        parts.extend(packet.iovec(0..packet.len()));
        let count = i32::try_from(parts.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `parts` describe guest memory, which lives as long as `packet`; the kernel only reads it.
        let sent = unsafe { libc::writev(self.file.as_raw_fd(), parts.as_ptr(), count) };
        match sent {
            0.. => Ok(Sent::Whole),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, buffers: &Buffers<'_>, spare: &mut [u8]) -> io::Result<Received> {
        // The kernel cuts off what does not fit, and does not say so: the longest packet always fits.
        let room = usize::try_from(buffers.len()).unwrap_or(usize::MAX);
        let rest = spare
            .get_mut(room.min(LONGEST_PACKET)..)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut parts = Vec::with_capacity(usize::from(buffers.count()) + 1);
        parts.extend(buffers.iovec());
        parts.push(libc::iovec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        });
        let count = i32::try_from(parts.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `parts` describe guest memory that the driver has given for this, which lives as long as `buffers`, and
        // `rest`, which is exclusively ours during the call.
        let received = unsafe { libc::readv(self.file.as_raw_fd(), parts.as_ptr(), count) };
        usize::try_from(received)
            .map(Received::Direct)
            .map_err(|_| self.checked(io::Error::last_os_error()))
    }

    fn is_connected(&self) -> bool {
        self.connected
    }
}

impl Tap {
    /// Notes what the failure to receive says about the interface: it has been deleted, if it is not just empty.
    fn checked(&mut self, error: io::Error) -> io::Error {
        let passing = matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
        );
        if !passing && self.connected {
            warn!(
                "net: the link is down, as the interface {} is lost: {error}",
                self.name
            );
            self.connected = false;
        }
        error
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
