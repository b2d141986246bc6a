//! Tap interface of the host, with a `struct virtio_net_hdr_v1` before each frame.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use log::{info, warn};
use smallvec::SmallVec;

use super::backend::{Backend, Link, Received, Sent};
use super::buffers::RxBuffers;
use super::features::{
    CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_UFO, GUEST_USO4, GUEST_USO6, HEADER, HOST_TSO4,
    HOST_TSO6, HOST_UFO, HOST_USO, MAX_PACKET,
};
use crate::virtio::queue::chain::IoVecBuffer;

/// Device node of tap interfaces.
const DEVICE: &str = "/dev/net/tun";

/// Required flags of `TUNSETIFF`: 16 bits, of which the highest is unused here.
const FLAGS: i16 = 0x0002 | 0x1000 | 0x4000;
/// Flag of interfaces with several queues.
const MULTI_QUEUE: i16 = 0x0100;
const _: () = assert!(FLAGS as i32 == libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
const _: () = assert!(MULTI_QUEUE as i32 == libc::IFF_MULTI_QUEUE);

/// Offloads of every tap. They include UFO, because the kernel fragments datagrams in software.
const BASE_OFFLOADS: u64 =
    CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_UFO | HOST_TSO4 | HOST_TSO6 | HOST_UFO;
/// Offloads since Linux 6.2.
const USO_OFFLOADS: u64 = GUEST_USO4 | GUEST_USO6 | HOST_USO;

/// Error of a tap interface.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is invalid.
    #[error("{0:?} is not an interface name: 1 to 15 bytes without '/', ':', '%' and spaces")]
    Name(String),
    /// The kernel has no tap support, or the device node does not exist.
    #[error(
        "cannot open {DEVICE}: it does not exist; load its module with `modprobe tun`, \
         or provide the device node"
    )]
    NoDevice(#[source] io::Error),
    /// The process may not open the device node.
    #[error("cannot open {DEVICE}: permission denied; allow access with `chmod 666 {DEVICE}`")]
    DeviceDenied(#[source] io::Error),
    /// The device node cannot be opened for another reason.
    #[error("cannot open {DEVICE}")]
    Device(#[source] io::Error),
    /// The interface does not exist.
    #[error(
        "cannot open tap interface {name}: it does not exist; create it with \
         `ip tuntap add {name} mode tap user $USER`"
    )]
    Missing {
        /// Name of the interface.
        name: String,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The interface belongs to another user.
    #[error(
        "cannot open tap interface {name}: it belongs to another user; recreate it with \
         `ip tuntap del {name} mode tap; ip tuntap add {name} mode tap user $USER`"
    )]
    Denied {
        /// Name of the interface.
        name: String,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// Another process is attached to the interface.
    #[error(
        "cannot open tap interface {name}: another process uses it; stop that process, \
         or create another interface with `ip tuntap add NAME mode tap user $USER`"
    )]
    Busy {
        /// Name of the interface.
        name: String,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The interface is not a tap.
    #[error(
        "cannot open tap interface {name}: it is not a tap; create one with \
         `ip tuntap add NAME mode tap user $USER`"
    )]
    NotTap {
        /// Name of the interface.
        name: String,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The interface has several queues: another process could take the other queues, and some of the packets
    /// with them.
    #[error(
        "cannot open tap interface {name}: it has several queues, and the device supports one; \
         recreate it with `ip tuntap del {name} mode tap multi_queue; ip tuntap add {name} mode tap user $USER`"
    )]
    Queues {
        /// Name of the interface.
        name: String,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The descriptor is not that of a tap.
    #[error("cannot use descriptor {descriptor}: it is not a tap attached to an interface")]
    Descriptor {
        /// The descriptor.
        descriptor: i32,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The tap of the descriptor lacks required flags.
    #[error(
        "cannot use tap interface {name}: its flags are {flags:#x}; \
         attach it with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR"
    )]
    Mode {
        /// Name of the interface.
        name: String,
        /// Flags of the interface.
        flags: i16,
    },
    /// The interface cannot be configured.
    #[error("cannot configure tap interface {name:?}: {operation} failed")]
    Configure {
        /// Name of the interface.
        name: String,
        /// Operation that failed.
        operation: &'static str,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Returns the error for a device node that cannot be opened.
    pub(super) fn from_open(source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Self::NoDevice(source),
            Some(libc::EACCES | libc::EPERM) => Self::DeviceDenied(source),
            _ => Self::Device(source),
        }
    }

    /// Returns the error for an interface without an index.
    fn missing(name: &str, source: io::Error) -> Self {
        Self::Missing {
            name: name.to_owned(),
            source,
        }
    }

    /// Returns the error for an interface `name` that cannot be attached or created.
    fn from_attach(name: &str, source: io::Error) -> Self {
        let cause = source.raw_os_error();
        let owned = name.to_owned();
        match cause {
            Some(libc::EPERM) if name.is_empty() => Self::Configure {
                name: owned,
                operation: "creation, which requires CAP_NET_ADMIN,",
                source,
            },
            Some(libc::EPERM) => Self::Denied { name: owned, source },
            Some(libc::EBUSY) => Self::Busy { name: owned, source },
            Some(libc::EINVAL) => Self::NotTap { name: owned, source },
            _ => Self::Configure {
                name: owned,
                operation: "TUNSETIFF",
                source,
            },
        }
    }
}

/// List of iovecs, without an allocation for the usual few: an allocation costs a twentieth of the work for a packet.
type IoVecs = SmallVec<[libc::iovec; 4]>;

/// Attached tap interface.
///
/// The link is down while the interface is down, and lost once the interface is deleted. A failed system call
/// reveals either.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    index: Option<u32>,
    offloads: u64,
    link: Link,
}

impl Tap {
    /// Attaches to the interface `name` of this network namespace. For an empty name, creates an interface
    /// with a name of the kernel's choice; it lives as long as this value and requires CAP_NET_ADMIN.
    ///
    /// # Errors
    /// Fails with any variant except [`Error::Descriptor`] and [`Error::Mode`].
    pub fn open(name: &str) -> Result<Self, Error> {
        check_name(name)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(Error::from_open)?;
        let interface = attach(&file, name)?;
        Self::configure(file, interface)
    }

    /// Uses the descriptor of a tap that is already attached, with `IFF_NO_PI` and `IFF_VNET_HDR`.
    ///
    /// # Errors
    /// [`Error::Descriptor`] if the descriptor is not an attached tap, [`Error::Mode`] if the tap lacks a required
    /// flag, [`Error::Configure`] if the tap cannot be configured.
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self, Error> {
        let file = File::from(descriptor);
        let name = attached_name(&file)?;
        let interface = TapInterface { name, index: None };
        set_nonblocking(&file).map_err(|source| Error::Configure {
            name: interface.name.clone(),
            operation: "O_NONBLOCK",
            source,
        })?;
        Self::configure(file, interface)
    }

    /// Returns the name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the index of the interface in this network namespace; `None` for a tap from a descriptor, because
    /// its interface may be in another namespace.
    pub fn index(&self) -> Option<u32> {
        self.index
    }

    fn configure(file: File, TapInterface { name, index }: TapInterface) -> Result<Self, Error> {
        let configure_error = |operation| {
            let name = name.clone();
            move |source| Error::Configure {
                name,
                operation,
                source,
            }
        };
        set_header_size(&file, HEADER).map_err(configure_error("TUNSETVNETHDRSZ"))?;
        // The kernel reports supported offloads only by accepting them.
        let has_uso = set_offloads(&file, GUEST_CSUM | GUEST_USO4 | GUEST_USO6).is_ok();
        set_offloads(&file, 0).map_err(configure_error("TUNSETOFFLOAD"))?;
        let uso = match has_uso {
            true => USO_OFFLOADS,
            false => 0,
        };
        Ok(Self {
            file,
            name,
            index,
            offloads: BASE_OFFLOADS | uso,
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
        let set = set_offloads(&self.file, features);
        match self.update_link(set) {
            // A deleted interface has no packets to apply the features to.
            Err(_) if self.link == Link::Lost => Ok(()),
            result => result,
        }
    }

    fn send(&mut self, start: &[u8], packet: &IoVecBuffer<'_>) -> io::Result<Sent> {
        let mut iovecs = IoVecs::with_capacity(packet.count() + 1);
        iovecs.push(libc::iovec {
            iov_base: start.as_ptr().cast_mut().cast(),
            iov_len: start.len(),
        });
        iovecs.extend(packet.iovec(start.len() as u64..packet.len()));
        let count = i32::try_from(iovecs.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `iovecs` describe `start` and guest memory, which lives as long as `packet`; the kernel
        // only reads them.
        let sent = unsafe { libc::writev(self.file.as_raw_fd(), iovecs.as_ptr(), count) };
        let sent = match sent {
            0.. => Ok(Sent::Complete),
            _ => Err(io::Error::last_os_error()),
        };
        self.update_link(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.link == Link::Down {
            self.poll_link();
        }
        Ok(())
    }

    fn receive(
        &mut self,
        start: &mut [u8],
        buffers: &RxBuffers<'_>,
        spare: &mut [u8],
    ) -> io::Result<Received> {
        // The kernel truncates a packet without an error, so the iovecs must hold the maximum length.
        let room = usize::try_from(buffers.len())
            .unwrap_or(usize::MAX)
            .max(start.len());
        let rest = spare
            .get_mut(room.min(MAX_PACKET)..)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut iovecs = IoVecs::with_capacity(usize::from(buffers.count()) + 2);
        if !start.is_empty() {
            iovecs.push(libc::iovec {
                iov_base: start.as_mut_ptr().cast(),
                iov_len: start.len(),
            });
        }
        iovecs.extend(buffers.iovec(start.len()));
        iovecs.push(libc::iovec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        });
        let count = i32::try_from(iovecs.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `iovecs` describe device-writable guest memory, which lives as long as `buffers`, and `start`
        // and `rest`, which are exclusively borrowed during the call.
        let received = unsafe { libc::readv(self.file.as_raw_fd(), iovecs.as_ptr(), count) };
        match usize::try_from(received) {
            Ok(length) => {
                buffers.log_write(length as u64);
                // The packet can be older than a link failure, so the link may still be down.
                self.flush()?;
                Ok(Received::Direct(length))
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::WouldBlock {
                    // The kernel may have written any part.
                    buffers.log_write(buffers.len());
                }
                self.update_link(Err(error))
            }
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
    /// Updates the link from `result`.
    fn update_link<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        match result.as_ref().err().and_then(io::Error::raw_os_error) {
            // The kernel's error for a write to an existing interface that is down.
            Some(libc::EIO) => self.set_link(Link::Down),
            Some(libc::EBADFD | libc::ENODEV) => self.set_link(Link::Lost),
            _ => {}
        }
        result
    }

    /// Polls the state of the interface: the kernel reports it as writable only while it is up.
    fn poll_link(&mut self) {
        let mut poll = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: `poll` is one pollfd, valid and exclusively borrowed during the call, which does not wait.
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
            Link::Up => info!("net: link is up: interface {name} is up"),
            Link::Down => {
                warn!("net: link is down: interface {name} is down; bring it up with `ip link set {name} up`")
            }
            Link::Lost => warn!("net: link is down: interface {name} is deleted"),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// `struct ifreq` of `TUNSETIFF` and `TUNGETIFF`.
#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    rest: [u8; 22],
}
const _: () = assert!(size_of::<IfReq>() == size_of::<libc::ifreq>());

impl IfReq {
    fn new(name: &str, flags: i16) -> Self {
        let mut ifreq = Self {
            name: [0; libc::IFNAMSIZ],
            flags,
            rest: [0; 22],
        };
        for (byte, value) in ifreq.name.iter_mut().zip(name.bytes()) {
            *byte = value;
        }
        ifreq
    }

    fn name(&self) -> String {
        let end = self.name.iter().position(|byte| *byte == 0);
        String::from_utf8_lossy(&self.name[..end.unwrap_or(libc::IFNAMSIZ)]).into_owned()
    }
}

/// Rejects names that the kernel would not use as they are: `%` is a pattern to it.
fn check_name(name: &str) -> Result<(), Error> {
    let forbidden = |byte: u8| !byte.is_ascii_graphic() || matches!(byte, b'/' | b':' | b'%');
    if name.len() >= libc::IFNAMSIZ || name.bytes().any(forbidden) || matches!(name, "." | "..") {
        return Err(Error::Name(name.to_owned()));
    }
    Ok(())
}

/// Attached interface.
struct TapInterface {
    name: String,
    /// Index in this network namespace, if known.
    index: Option<u32>,
}

/// Attaches `file` to the existing interface `name`, or to a new one if `name` is empty.
fn attach(file: &File, name: &str) -> Result<TapInterface, Error> {
    // Checked first: for a privileged process, the kernel would create a missing interface, which would have no
    // configuration.
    let known_index = match name {
        "" => None,
        _ => Some(index_of(name).map_err(|source| Error::missing(name, source))?),
    };
    let mut ifreq = IfReq::new(name, FLAGS);
    if let Err(source) = set_interface(file, &mut ifreq) {
        let multi_queue = source.raw_os_error() == Some(libc::EINVAL) && is_multi_queue(file, name);
        return Err(match multi_queue {
            true => Error::Queues {
                name: name.to_owned(),
                source,
            },
            false => Error::from_attach(name, source),
        });
    }
    let name = ifreq.name();
    let index = index_of(&name).ok();
    // The interface was deleted meanwhile, and the kernel has created another one, which `file` removes when
    // it is dropped.
    match known_index.is_some() && known_index != index {
        true => Err(Error::missing(&name, io::ErrorKind::NotFound.into())),
        false => Ok(TapInterface { name, index }),
    }
}

/// Returns true if the interface `name` has several queues; `file` may then be attached to it.
fn is_multi_queue(file: &File, name: &str) -> bool {
    let attached = set_interface(file, &mut IfReq::new(name, FLAGS | MULTI_QUEUE));
    !matches!(attached, Err(error) if error.raw_os_error() == Some(libc::EINVAL))
}

/// Returns the name of the interface that `file` is attached to.
fn attached_name(file: &File) -> Result<String, Error> {
    let mut ifreq = IfReq::new("", 0);
    // SAFETY: the call writes one `struct ifreq`; `ifreq` has its size and is exclusively borrowed.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut ifreq) };
    check(result).map_err(|source| Error::Descriptor {
        descriptor: file.as_raw_fd(),
        source,
    })?;
    match ifreq.flags & FLAGS == FLAGS {
        true => Ok(ifreq.name()),
        false => Err(Error::Mode {
            name: ifreq.name(),
            flags: ifreq.flags,
        }),
    }
}

/// Sets the length in bytes of the header before each frame.
fn set_header_size(file: &File, bytes: usize) -> io::Result<()> {
    let bytes = i32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the call reads one `int`, and `bytes` is an `i32` that outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) };
    check(result)
}

/// Sets the offloads of packets to the driver from the negotiated `features`.
fn set_offloads(file: &File, features: u64) -> io::Result<()> {
    let mut offloads = 0;
    // The kernel rejects all others without the checksum, as do the feature rules of virtio 1.2 §5.1.3.1.
    if features & GUEST_CSUM != 0 {
        offloads = libc::TUN_F_CSUM;
        for (feature, flag) in [
            (GUEST_TSO4, libc::TUN_F_TSO4),
            (GUEST_TSO6, libc::TUN_F_TSO6),
            (GUEST_UFO, libc::TUN_F_UFO),
        ] {
            offloads |= if features & feature != 0 { flag } else { 0 };
        }
        // The kernel supports both or none.
        if features & GUEST_USO4 != 0 && features & GUEST_USO6 != 0 {
            offloads |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
        }
    }
    // SAFETY: the call takes a number, not a pointer.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, u64::from(offloads)) };
    check(result)
}

/// Makes `file` non-blocking.
fn set_nonblocking(file: &File) -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    check(flags)?;
    // SAFETY: the call takes no pointer.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    check(result)
}

fn set_interface(file: &File, ifreq: &mut IfReq) -> io::Result<()> {
    // SAFETY: the call reads and writes one `struct ifreq`; `ifreq` has its size and is exclusively borrowed.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut *ifreq) };
    check(result)
}

/// Returns the index of the interface `name` of any type.
fn index_of(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

fn check(result: i32) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
