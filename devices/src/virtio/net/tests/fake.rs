//! Backend on two lists of packets.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use crate::sync::lock;
use crate::virtio::net::features::{CSUM, GUEST_CSUM, HOST_TSO4};
use crate::virtio::net::{Backend, Link, Received, RxBuffers, Sent};
use crate::virtio::queue::chain::IoVecBuffer;

/// State of the fake backend, shared with the test.
#[derive(Default)]
pub(super) struct FakeNetwork {
    /// Packets to the driver.
    pub(super) inbound: VecDeque<Vec<u8>>,
    /// The backend returns packets in the spare buffer, not in the receive buffers.
    pub(super) uses_spare: bool,
    /// Bytes of the receive buffers of the last call of `receive`.
    pub(super) offered: u64,
    /// Packets from the driver.
    pub(super) sent: Vec<Vec<u8>>,
    /// Error of all calls of `send` and `receive`.
    pub(super) error: Option<io::ErrorKind>,
    /// Number of calls of `receive` that fail before the next packet.
    pub(super) failures: u32,
    /// Features of the last call of `use_features`.
    pub(super) features: u64,
    /// Makes `use_features` fail.
    pub(super) rejects_features: bool,
    /// State of the link; none for up.
    pub(super) link: Option<Link>,
}

/// Backend whose descriptor is a socket that is always writable and never readable.
pub(super) struct FakeBackend {
    network: Arc<Mutex<FakeNetwork>>,
    socket: UnixStream,
    _other: UnixStream,
}

impl FakeBackend {
    #[allow(clippy::new_ret_no_self, reason = "the test needs the shared state")]
    pub(super) fn new() -> (Box<dyn Backend>, Arc<Mutex<FakeNetwork>>) {
        let network = Arc::new(Mutex::new(FakeNetwork::default()));
        let (socket, other) = UnixStream::pair().unwrap();
        let backend = Box::new(Self {
            network: network.clone(),
            socket,
            _other: other,
        });
        (backend, network)
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
        let mut network = lock(&self.network);
        if network.rejects_features {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        network.features = features;
        Ok(())
    }

    fn send(&mut self, start: &[u8], packet: &IoVecBuffer<'_>) -> io::Result<Sent> {
        let mut network = lock(&self.network);
        if let Some(error) = network.error {
            return Err(error.into());
        }
        let mut bytes = vec![0; usize::try_from(packet.len()).unwrap()];
        packet.read_exact(0, &mut bytes).unwrap();
        bytes[..start.len()].copy_from_slice(start);
        network.sent.push(bytes);
        Ok(Sent::Complete)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn receive(
        &mut self,
        start: &mut [u8],
        buffers: &RxBuffers<'_>,
        spare: &mut [u8],
    ) -> io::Result<Received> {
        let mut network = lock(&self.network);
        network.offered = buffers.len();
        if let Some(error) = network.error {
            return Err(error.into());
        }
        if network.failures > 0 {
            network.failures -= 1;
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let packet = network.inbound.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        if network.uses_spare {
            spare[..packet.len()].copy_from_slice(&packet);
            return Ok(Received::Spare(packet.len()));
        }
        // The kernel does not set `num_buffers`; the pattern shows if the device does not either.
        let mut direct = packet.clone();
        direct[10..12].fill(0xee);
        let start_length = packet.len().min(start.len());
        start[..start_length].copy_from_slice(&direct[..start_length]);
        // The driver must never see bytes that belong to `start`.
        direct[..start_length].fill(0xdd);
        let direct_length = packet.len().min(usize::try_from(buffers.len()).unwrap());
        buffers.copy_from(&direct[..direct_length]).unwrap();
        let spare_start = direct_length.max(start_length);
        spare[spare_start..packet.len()].copy_from_slice(&packet[spare_start..]);
        Ok(Received::Direct(packet.len()))
    }

    fn link(&self) -> Link {
        lock(&self.network).link.unwrap_or(Link::Up)
    }

    fn describe(&self) -> String {
        "fake".to_owned()
    }
}
