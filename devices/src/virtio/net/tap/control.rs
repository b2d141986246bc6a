//! The calls that set a tap up.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::error::Error;
use crate::virtio::net::features::{GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_UFO, GUEST_USO4, GUEST_USO6};

/// What a tap is made from.
pub(super) const DEVICE: &str = "/dev/net/tun";

/// What a tap must be attached with, of `TUNSETIFF`'s flags: 16 bits, of which the highest is not used here.
const FLAGS: i16 = 0x0002 | 0x1000 | 0x4000;
/// With which interfaces for several queues are attached.
const MULTI_QUEUE: i16 = 0x0100;
const _: () = assert!(FLAGS as i32 == libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
const _: () = assert!(MULTI_QUEUE as i32 == libc::IFF_MULTI_QUEUE);

/// `struct ifreq` as `TUNSETIFF` and `TUNGETIFF` use it.
#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    rest: [u8; 22],
}
const _: () = assert!(size_of::<IfReq>() == size_of::<libc::ifreq>());

impl IfReq {
    fn new(name: &str, flags: i16) -> Self {
        let mut request = Self {
            name: [0; libc::IFNAMSIZ],
            flags,
            rest: [0; 22],
        };
        for (byte, value) in request.name.iter_mut().zip(name.bytes()) {
            *byte = value;
        }
        request
    }

    fn name(&self) -> String {
        let end = self.name.iter().position(|byte| *byte == 0);
        String::from_utf8_lossy(&self.name[..end.unwrap_or(libc::IFNAMSIZ)]).into_owned()
    }
}

/// Refuses what the kernel would take for something else than the name of one interface: `%` is a pattern to it.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let forbidden = |byte: u8| !byte.is_ascii_graphic() || matches!(byte, b'/' | b':' | b'%');
    if name.len() >= libc::IFNAMSIZ || name.bytes().any(forbidden) || matches!(name, "." | "..") {
        return Err(Error::Name(name.to_owned()));
    }
    Ok(())
}

/// An interface that is attached.
pub(super) struct TapInterface {
    pub(super) name: String,
    /// Index in this network namespace, if it is there.
    pub(super) index: Option<u32>,
}

/// Attaches `file` to the interface `name`, which must be there, or to a new one when `name` is empty.
pub(super) fn attach(file: &File, name: &str) -> Result<TapInterface, Error> {
    // The kernel would make what is not there, for those who may, and nobody would have set it up.
    let there = match name {
        "" => None,
        _ => Some(index_of(name).map_err(|source| Error::of_missing(name, source))?),
    };
    let mut request = IfReq::new(name, FLAGS);
    if let Err(source) = set_interface(file, &mut request) {
        let several = source.raw_os_error() == Some(libc::EINVAL) && has_several_queues(file, name);
        return Err(match several {
            true => Error::Queues {
                name: name.to_owned(),
                source,
            },
            false => Error::of_attaching(name, source),
        });
    }
    let name = request.name();
    let index = index_of(&name).ok();
    // Deleted at this very moment, it was made anew, and goes again with `file`.
    match there.is_some() && there != index {
        true => Err(Error::of_missing(&name, io::ErrorKind::NotFound.into())),
        false => Ok(TapInterface { name, index }),
    }
}

/// Whether the interface `name` was made for several queues, to which `file` may get attached if so.
fn has_several_queues(file: &File, name: &str) -> bool {
    let attached = set_interface(file, &mut IfReq::new(name, FLAGS | MULTI_QUEUE));
    !matches!(attached, Err(error) if error.raw_os_error() == Some(libc::EINVAL))
}

/// The name of the interface that `file` is attached to.
pub(super) fn attached_name(file: &File) -> Result<String, Error> {
    let mut request = IfReq::new("", 0);
    // SAFETY: the call writes one `struct ifreq`, which `request` is, and is exclusively ours.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    answer(result).map_err(|source| Error::Descriptor {
        descriptor: file.as_raw_fd(),
        source,
    })?;
    match request.flags & FLAGS == FLAGS {
        true => Ok(request.name()),
        false => Err(Error::Mode {
            name: request.name(),
            flags: request.flags,
        }),
    }
}

/// Sets how many bytes are before each frame.
pub(super) fn set_header_size(file: &File, bytes: usize) -> io::Result<()> {
    let bytes = i32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the call reads one int, which `bytes` is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) };
    answer(result)
}

/// Sets what packets the driver takes, which has accepted `features`.
pub(super) fn set_offloads(file: &File, features: u64) -> io::Result<()> {
    let mut offloads = 0;
    // The kernel refuses all others without the checksum, as section 5.1.3.1 has it for the features.
    if features & GUEST_CSUM != 0 {
        offloads = libc::TUN_F_CSUM;
        for (feature, flag) in [
            (GUEST_TSO4, libc::TUN_F_TSO4),
            (GUEST_TSO6, libc::TUN_F_TSO6),
            (GUEST_UFO, libc::TUN_F_UFO),
        ] {
            offloads |= if features & feature != 0 { flag } else { 0 };
        }
        // The kernel knows both or none.
        if features & GUEST_USO4 != 0 && features & GUEST_USO6 != 0 {
            offloads |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
        }
    }
    // SAFETY: the call takes a number and no pointer.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, u64::from(offloads)) };
    answer(result)
}

/// Makes reads and writes of `file` not block.
pub(super) fn set_nonblocking(file: &File) -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    answer(flags)?;
    // SAFETY: the call takes no pointer.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    answer(result)
}

fn set_interface(file: &File, request: &mut IfReq) -> io::Result<()> {
    // SAFETY: the call reads and writes one `struct ifreq`, which `request` is, and is exclusively ours.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut *request) };
    answer(result)
}

/// The index of the interface `name`, of any kind.
fn index_of(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: `name` is a string with its end, and outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

fn answer(result: i32) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
