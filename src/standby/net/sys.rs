//! System calls of the network: tap and TUN interfaces, netlink and packet sockets, files in memory.

use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use super::frame::Mac;

/// Device node of tap and TUN interfaces.
pub const DEVICE: &str = "/dev/net/tun";

/// Type of a TUN interface without a header before packets.
pub const TUN: libc::c_int = libc::IFF_TUN | libc::IFF_NO_PI;
/// Type of a tap interface with a virtio header before frames.
pub const TAP: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

fn owned(result: libc::c_int) -> io::Result<OwnedFd> {
    let descriptor = check(result)?;
    // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Returns a file in memory with `bytes`, which nobody can change.
pub fn sealed_memfd(name: &CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let mut file = File::from(owned(unsafe { libc::memfd_create(name.as_ptr(), flags) })?);
    file.write_all(bytes)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    Ok(file.into())
}

fn ifreq(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` consists of integers, for which zero bytes are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Creates the interface `name`, or attaches to it if it exists, with `flags`: [`TUN`] or [`TAP`].
pub fn open_interface(name: &str, flags: libc::c_int) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)?;
    let mut request = ifreq(name)?;
    request.ifr_ifru.ifru_flags = flags.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: TUNSETIFF takes an `ifreq`, which is valid for the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(file)
}

/// Returns the index of the interface `name`.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Sets the number of packets that wait in the interface `name`.
pub fn set_queue_length(name: &str, length: i32) -> io::Result<()> {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut request = ifreq(name)?;
    // The length has no member of its own; this one has its type and place.
    request.ifr_ifru.ifru_metric = length;
    // SAFETY: SIOCSIFTXQLEN takes an `ifreq`, which is valid for the call.
    check(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFTXQLEN as libc::Ioctl,
            &raw mut request,
        )
    })
    .map(drop)
}

/// Creates a socket that child processes do not inherit.
pub fn socket(domain: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointer.
    owned(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })
}

/// Limits the wait for a message.
pub fn set_receive_timeout(socket: &OwnedFd, timeout: Duration) -> io::Result<()> {
    let value = libc::timeval {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_usec: timeout.subsec_micros().into(),
    };
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
    // SAFETY: `value` has `length` bytes and outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const value).cast(),
            length,
        )
    })
    .map(drop)
}

/// Sends `bytes` to the kernel.
pub fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer is to `bytes.len()` bytes, which outlive the call.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Receives a message, and returns its length.
pub fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer is to `bytes.len()` bytes, exclusively borrowed during the call.
    let received = unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// Sends the Ethernet frame `header` and `payload` out of the interface `index`, by a packet socket.
pub fn send_frame(socket: &OwnedFd, index: u32, header: &[u8], payload: &[u8]) -> io::Result<()> {
    // SAFETY: `sockaddr_ll` consists of integers, for which zero bytes are valid.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    address.sll_ifindex = index.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut parts = [header, payload].map(|part| libc::iovec {
        iov_base: part.as_ptr().cast_mut().cast(),
        iov_len: part.len(),
    });
    // SAFETY: `msghdr` consists of integers and pointers, for which zero bytes are valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or_default();
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = 2;
    // SAFETY: `message` points to `address` and `parts`, and these to `header` and `payload`; all outlive the call, which only reads.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Reads one packet.
pub fn read(file: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer is to `bytes.len()` bytes, exclusively borrowed during the call.
    let read = unsafe { libc::read(file.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes one packet.
pub fn write(file: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer is to `bytes.len()` bytes, which outlive the call.
    let written = unsafe { libc::write(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    if written < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets the Ethernet address of the tap `file`.
pub fn set_tap_mac(file: &impl AsRawFd, mac: Mac) -> io::Result<()> {
    let mut request = ifreq("")?;
    // SAFETY: `sockaddr` consists of integers, for which zero bytes are valid.
    let mut address: libc::sockaddr = unsafe { mem::zeroed() };
    address.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in address.sa_data.iter_mut().zip(mac) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: SIOCSIFHWADDR of a tap takes an `ifreq`, which is valid for the call.
    check(unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::SIOCSIFHWADDR as libc::Ioctl,
            &raw const request,
        )
    })
    .map(drop)
}

/// Keeps the interface of `file` when the file is closed.
pub fn set_persistent(file: &impl AsRawFd) -> io::Result<()> {
    let persistent: libc::c_ulong = 1;
    // SAFETY: TUNSETPERSIST takes a number.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, persistent) }).map(drop)
}
