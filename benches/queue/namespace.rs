//! Network namespace without other senders.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, c_ulong};

/// Moves this thread, which must be the only one, into a new network namespace; without privileges also into
/// a new user namespace.
pub fn enter() -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    let mut result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if result != 0 {
        // SAFETY: as above.
        result = unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) };
    }
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // With IPv6, the kernel sends neighbour solicitations on each new interface. Without IPv6 the file does
    // not exist.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    Ok(())
}

/// Sender of frames through an interface, as from the kernel's network stack.
pub struct Sender(OwnedFd);

impl Sender {
    /// Brings the interface `name` up. Each frame has a `struct virtio_net_hdr` before it.
    pub fn to(name: &str) -> Self {
        // SAFETY: the call takes no pointer.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(socket >= 0, "socket: {}", io::Error::last_os_error());
        // SAFETY: the kernel has just created this descriptor, and no other code owns it.
        let sender = Self(unsafe { OwnedFd::from_raw_fd(socket) });
        // SAFETY: all zeros is a valid value of this plain structure.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let name = CString::new(name).unwrap();
        for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
            *to = libc::c_char::from_ne_bytes([*from]);
        }
        let up = libc::IFF_UP | libc::IFF_RUNNING | libc::IFF_NOARP;
        request.ifr_ifru.ifru_flags = i16::try_from(up).unwrap();
        sender.ifreq_ioctl(libc::SIOCSIFFLAGS, &mut request);
        sender.ifreq_ioctl(libc::SIOCGIFINDEX, &mut request);
        // SAFETY: the kernel has just filled in this member.
        sender.bind(unsafe { request.ifr_ifru.ifru_ifindex });
        sender.enable_header();
        sender
    }

    /// Sends `packet`, which starts with the header.
    pub fn send(&self, packet: &[u8]) {
        // SAFETY: the kernel reads within `packet`.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0) };
        assert!(
            usize::try_from(sent) == Ok(packet.len()),
            "send: {sent} {}",
            io::Error::last_os_error()
        );
    }

    fn ifreq_ioctl(&self, operation: c_ulong, request: &mut libc::ifreq) {
        // SAFETY: both operations read and write one `ifreq`.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), operation, &raw mut *request) };
        assert!(result == 0, "ioctl: {}", io::Error::last_os_error());
    }

    fn bind(&self, interface: c_int) {
        // SAFETY: all zeros is a valid value of this plain structure.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_ifindex = interface;
        let size = u32::try_from(size_of_val(&address)).unwrap();
        // SAFETY: the kernel reads `size` bytes of the address.
        let result = unsafe { libc::bind(self.0.as_raw_fd(), (&raw const address).cast(), size) };
        assert!(result == 0, "bind: {}", io::Error::last_os_error());
    }

    fn enable_header(&self) {
        const PACKET_VNET_HDR: c_int = 15;
        let on: c_int = 1;
        let size = u32::try_from(size_of_val(&on)).unwrap();
        // SAFETY: the kernel reads an integer.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_VNET_HDR,
                (&raw const on).cast(),
                size,
            )
        };
        assert!(result == 0, "setsockopt: {}", io::Error::last_os_error());
    }
}
