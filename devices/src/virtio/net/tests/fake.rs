//! A back end that is two lists.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use crate::sync::lock;
use crate::virtio::net::features::{CSUM, GUEST_CSUM, HOST_TSO4};
use crate::virtio::net::{Backend, HEADER, Link, Received, RxBuffers, Sent};
use crate::virtio::queue::chain::IoVecBuffer;

/// What the test sees and sets of the back end.
#[derive(Default)]
pub(super) struct Wire {
    /// Packets for the driver.
    pub(super) inbound: VecDeque<Vec<u8>>,
    /// Packets are handed over in the spare room, not in the buffers.
    pub(super) by_spare: bool,
    /// What the driver has sent.
    pub(super) sent: Vec<Vec<u8>>,
    /// What the next calls to send and receive answer.
    pub(super) failure: Option<io::ErrorKind>,
    /// So many receptions fail before the next packet.
    pub(super) faults: u32,
    /// What the device has told that the driver accepts.
    pub(super) features: u64,
    /// Whether it does not take features.
    pub(super) refuses: bool,
    /// The link is down, or lost.
    pub(super) link: Option<Link>,
}

/// Its descriptor is a socket that is always writable and never readable.
pub(super) struct FakeBackend {
    wire: Arc<Mutex<Wire>>,
    socket: UnixStream,
    _other: UnixStream,
}

impl FakeBackend {
    #[allow(clippy::new_ret_no_self, reason = "the test needs the other end")]
    pub(super) fn new() -> (Box<dyn Backend>, Arc<Mutex<Wire>>) {
        let wire = Arc::new(Mutex::new(Wire::default()));
        let (socket, other) = UnixStream::pair().unwrap();
        let backend = Box::new(Self {
            wire: wire.clone(),
            socket,
            _other: other,
        });
        (backend, wire)
    }
}

impl Backend for FakeBackend {
    fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn offloads(&self) -> u64 {
        CSUM | GUEST_CSUM | HOST_TSO4
    }

    fn use_features(&mut self, features: u64) -> io::Result<()> {
        let mut wire = lock(&self.wire);
        if wire.refuses {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        wire.features = features;
        Ok(())
    }

    fn send(&mut self, header: &[u8; HEADER], packet: &IoVecBuffer<'_>) -> io::Result<Sent> {
        let mut wire = lock(&self.wire);
        if let Some(failure) = wire.failure {
            return Err(failure.into());
        }
        let mut bytes = vec![0; usize::try_from(packet.len()).unwrap()];
        packet.read_exact(0, &mut bytes).unwrap();
        bytes[..HEADER].copy_from_slice(header);
        wire.sent.push(bytes);
        Ok(Sent::Whole)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, buffers: &RxBuffers<'_>, spare: &mut [u8]) -> io::Result<Received> {
        let mut wire = lock(&self.wire);
        if let Some(failure) = wire.failure {
            return Err(failure.into());
        }
        if wire.faults > 0 {
            wire.faults -= 1;
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let packet = wire.inbound.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        if wire.by_spare {
            spare[..packet.len()].copy_from_slice(&packet);
            return Ok(Received::Spare(packet.len()));
        }
        let fitting = packet.len().min(usize::try_from(buffers.len()).unwrap());
        // As the kernel leaves `num_buffers` alone, what it was before has to be overwritten by somebody else.
        let mut direct = packet.clone();
        direct[10..12].fill(0xee);
        buffers.copy_from(&direct[..fitting]).unwrap();
        spare[fitting..packet.len()].copy_from_slice(&packet[fitting..]);
        Ok(Received::Direct(packet.len()))
    }

    fn link(&self) -> Link {
        lock(&self.wire).link.unwrap_or(Link::Up)
    }

    fn describe(&self) -> String {
        "fake".to_owned()
    }
}
