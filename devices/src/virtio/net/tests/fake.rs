//! A back end that is two lists.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use crate::sync::lock;
use crate::virtio::chain::Pieces;
use crate::virtio::net::features::{CSUM, GUEST_CSUM, HOST_TSO4};
use crate::virtio::net::{Backend, Buffers, Received, Sent};

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
    /// Bytes of room for packets that cannot be received.
    pub(super) features: u64,
    pub(super) disconnected: bool,
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
        lock(&self.wire).features = features;
        Ok(())
    }

    fn send(&mut self, packet: &Pieces<'_>) -> io::Result<Sent> {
        let mut wire = lock(&self.wire);
        if let Some(failure) = wire.failure {
            return Err(failure.into());
        }
        let mut bytes = vec![0; usize::try_from(packet.len()).unwrap()];
        packet.read_exact(0, &mut bytes).unwrap();
        wire.sent.push(bytes);
        Ok(Sent::Whole)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, buffers: &Buffers<'_>, spare: &mut [u8]) -> io::Result<Received> {
        let mut wire = lock(&self.wire);
        if let Some(failure) = wire.failure {
            return Err(failure.into());
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

    fn is_connected(&self) -> bool {
        !lock(&self.wire).disconnected
    }
}
