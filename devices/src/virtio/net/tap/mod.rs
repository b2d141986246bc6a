//! A tap interface of the host, with a `struct virtio_net_hdr_v1` before each frame.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use log::{info, warn};

use super::backend::{Backend, Link, Received, Sent};
use super::buffers::RxBuffers;
use super::features::{
    CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_UFO, GUEST_USO4, GUEST_USO6, HOST_TSO4, HOST_TSO6,
    HOST_UFO, HOST_USO,
};
use super::{HEADER, MAX_PACKET};
use crate::virtio::queue::chain::IoVecBuffer;
use control::TapInterface;

mod control;
mod error;

pub use error::Error;

/// Offloads of every tap. UFO is offered, as the kernel fragments in software what a driver asks for.
const ALWAYS: u64 =
    CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_UFO | HOST_TSO4 | HOST_TSO6 | HOST_UFO;
/// Offloads from Linux 6.2 on.
const SEGMENTED_UDP: u64 = GUEST_USO4 | GUEST_USO6 | HOST_USO;

/// A tap interface, attached.
///
/// The link is down while the interface is, which a packet that is sent tells, and is lost when the interface is deleted.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    index: Option<u32>,
    offloads: u64,
    link: Link,
}

impl Tap {
    /// Attaches to the interface `name` of this network namespace. With an empty name, a new interface is made, to which
    /// the kernel gives a name, and which goes with this; that takes CAP_NET_ADMIN.
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
        let interface = control::attach(&file, name)?;
        Self::with(file, interface)
    }

    /// Takes the descriptor of a tap that somebody else has attached, with `IFF_NO_PI` and `IFF_VNET_HDR`.
    ///
    /// # Errors
    /// [`Error::Descriptor`], [`Error::Mode`] and [`Error::Configure`].
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self, Error> {
        let file = File::from(descriptor);
        let name = control::attached_name(&file)?;
        let interface = TapInterface { name, index: None };
        control::set_nonblocking(&file).map_err(|source| Error::Configure {
            name: interface.name.clone(),
            operation: "O_NONBLOCK",
            source,
        })?;
        Self::with(file, interface)
    }

    /// The name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The index of the interface in this network namespace; none for a tap that came as a descriptor, whose interface may
    /// be in another one.
    pub fn index(&self) -> Option<u32> {
        self.index
    }

    fn with(file: File, TapInterface { name, index }: TapInterface) -> Result<Self, Error> {
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
            index,
            offloads: ALWAYS | more,
            link: Link::Up,
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
        let set = control::set_offloads(&self.file, features);
        match self.checked(set) {
            // Without an interface there are no packets to take the features of.
            Err(_) if self.link == Link::Lost => Ok(()),
            result => result,
        }
    }

    fn send(&mut self, header: &[u8; HEADER], packet: &IoVecBuffer<'_>) -> io::Result<Sent> {
        let mut parts = Vec::with_capacity(packet.count() + 1);
        parts.push(libc::iovec {
            iov_base: header.as_ptr().cast_mut().cast(),
            iov_len: header.len(),
        });
        parts.extend(packet.iovec(HEADER as u64..packet.len()));
        let count = i32::try_from(parts.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `parts` describe `header` and guest memory, which lives as long as `packet`; the kernel only reads them.
        let sent = unsafe { libc::writev(self.file.as_raw_fd(), parts.as_ptr(), count) };
        let sent = match sent {
            0.. => Ok(Sent::Whole),
            _ => Err(io::Error::last_os_error()),
        };
        self.checked(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.link == Link::Down {
            self.look_at_link();
        }
        Ok(())
    }

    fn receive(&mut self, buffers: &RxBuffers<'_>, spare: &mut [u8]) -> io::Result<Received> {
        // The kernel cuts off what does not fit, and does not say so: the longest packet always fits.
        let room = usize::try_from(buffers.len()).unwrap_or(usize::MAX);
        let rest = spare
            .get_mut(room.min(MAX_PACKET)..)
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
        match usize::try_from(received) {
            Ok(length) => {
                // It may have waited here since before the interface went down.
                self.flush()?;
                Ok(Received::Direct(length))
            }
            Err(_) => self.checked(Err(io::Error::last_os_error())),
        }
    }

    fn link(&self) -> Link {
        self.link
    }

    fn describe(&self) -> String {
        format!("tap {}", self.name)
    }
}

impl Tap {
    /// Notes what `result` says about the interface.
    fn checked<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        match result.as_ref().err().and_then(io::Error::raw_os_error) {
            // What the kernel says of a write to an interface that is there and not up.
            Some(libc::EIO) => self.set_link(Link::Down),
            Some(libc::EBADFD | libc::ENODEV) => self.set_link(Link::Lost),
            _ => {}
        }
        result
    }

    /// Looks whether the interface is up: only then does the kernel call it writable.
    fn look_at_link(&mut self) {
        let mut poll = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: `poll` is one pollfd, valid and exclusively ours during the call, which does not wait.
        unsafe { libc::poll(&raw mut poll, 1, 0) };
        if poll.revents & libc::POLLERR != 0 {
            self.set_link(Link::Lost);
        } else if poll.revents & libc::POLLOUT != 0 {
            self.set_link(Link::Up);
        }
    }

    fn set_link(&mut self, link: Link) {
        if std::mem::replace(&mut self.link, link) == link {
            return;
        }
        let name = &self.name;
        match link {
            Link::Up => info!("net: the link is up, as the interface {name} is"),
            Link::Down => warn!(
                "net: the link is down, as the interface {name} is; bring it up with `ip link set {name} up`"
            ),
            Link::Lost => warn!("net: the link is down, as the interface {name} is deleted"),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
