//! The virtio devices of a machine: from their configuration to a window on the bus.
//!
//! # How a kick is served
//! On the vCPU's thread, with no ioeventfd. Medians of a guest of a few instructions on one vCPU, on a host of two processors
//! that is itself a VM, with a 4 KiB read from tmpfs for each kick:
//!
//! | | on the vCPU's thread | ioeventfd, event loop |
//! |---|---|---|
//! | the guest goes on after a kick, the work done or not | 8.4 us | 5.5 us |
//! | the guest, which polls, sees what it asked for | 10.2 us | 17.4 us |
//!
//! A unikernel with one vCPU most often has nothing to do before the answer is there, which comes 7 us sooner without a second
//! thread to be woken; and the exit to this process costs 3 us more than one that ends in the kernel. Who sends many packets with
//! one kick pays that once. A turn is bounded, so that a vCPU that is kept by a long one has the event loop do the rest.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use devices::limiter::Limiter;
use devices::virtio::block::{Block, device as block};
use devices::virtio::mmio::Transport;
use devices::virtio::net::{Backend, Net, Passt, Setup, Stream, Tap, passt, stream, tap};
use devices::virtio::{Source, VirtioDevice};
use devices::{MonotonicClock, lock};
use snapshot::GuestMemory;

use crate::arch::{self, Buses, EventSource, Native, Platform, SharedSource, Window};
use crate::config::{DriveConfig, Limits, MacAddress, NetBackend, NetConfig, VmConfig, VmSpec};

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A drive.
    #[error("cannot attach drive {0}")]
    Drive(usize, #[source] block::Error),
    /// The tap behind an interface.
    #[error("cannot attach network interface {0}")]
    Tap(usize, #[source] tap::Error),
    /// The socket behind an interface.
    #[error("cannot attach network interface {0}")]
    Stream(usize, #[source] stream::Error),
    /// The passt behind an interface.
    #[error("cannot attach network interface {0}")]
    Passt(usize, #[source] passt::Error),
    /// The kernel has no more descriptors.
    #[error("cannot attach network interface {0}")]
    Descriptors(usize, #[source] io::Error),
}

/// The devices, and what must live as long as they do.
#[derive(Default)]
pub struct Devices {
    /// In the order of their windows: drives first, as guests count them, then interfaces.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// Programs that serve the network to them.
    pub passts: Vec<Passt>,
}

impl Devices {
    /// Opens what the devices need.
    ///
    /// # Errors
    /// [`Error`], numbering the devices of each kind from 0.
    pub fn open(spec: &VmSpec) -> Result<Self, Error> {
        let VmConfig { drives, nets, .. } = spec.config();
        let mut opened = Self::default();
        for (index, DriveConfig(config)) in drives.iter().enumerate() {
            let mut config = config.clone();
            if config.id.is_empty() {
                config.id = format!("drive{index}");
            }
            let block = Block::open(&config, Box::new(MonotonicClock::new()));
            opened
                .devices
                .push(Box::new(block.map_err(|source| Error::Drive(index, source))?));
        }
        for (index, config) in nets.iter().enumerate() {
            let net = opened.net(index, config)?;
            opened.devices.push(Box::new(net));
        }
        Ok(opened)
    }

    /// Gives each device a window on the memory bus and adds what the event loop watches for it to `sources`.
    ///
    /// # Errors
    /// [`arch::Error::Bus`]
    pub fn attach(
        &mut self,
        platform: &Native,
        memory: &GuestMemory,
        buses: &mut Buses,
        sources: &mut Vec<SharedSource>,
    ) -> Result<Vec<Window>, arch::Error> {
        let mut windows = Vec::with_capacity(self.devices.len());
        for (device, (window, line)) in self.devices.drain(..).zip(platform.windows()) {
            let transport = Arc::new(Mutex::new(Transport::new(device, memory.clone(), line)));
            let claimed = buses
                .memory
                .claim("virtio device", window.base, window.size, transport.clone());
            claimed.map_err(arch::Error::Bus)?;
            let watched = lock(&transport).sources();
            sources.extend(watched.into_iter().map(|source| {
                Arc::new(Mutex::new(Watched {
                    transport: transport.clone(),
                    source,
                })) as SharedSource
            }));
            windows.push(window);
        }
        Ok(windows)
    }

    fn net(&mut self, index: usize, config: &NetConfig) -> Result<Net, Error> {
        let system = |source| Error::Descriptors(index, source);
        let limiter = |limits: Limits| Limiter::new(limits.bandwidth, limits.operations).map_err(system);
        let setup = Setup {
            mac: config.mac.unwrap_or_else(MacAddress::random).0,
            mtu: config.mtu,
            backend: self.backend(index, &config.backend)?,
            receive_limiter: limiter(config.receive)?,
            transmit_limiter: limiter(config.transmit)?,
            clock: Box::new(MonotonicClock::new()),
        };
        Net::new(setup).map_err(system)
    }

    fn backend(&mut self, index: usize, backend: &NetBackend) -> Result<Box<dyn Backend>, Error> {
        let tap = |source| Error::Tap(index, source);
        Ok(match backend {
            NetBackend::Tap(name) => Box::new(Tap::open(name).map_err(tap)?),
            NetBackend::Descriptor(descriptor) => Box::new(descriptor_tap(*descriptor).map_err(tap)?),
            NetBackend::Stream(path) => {
                Box::new(Stream::connect(path).map_err(|source| Error::Stream(index, source))?)
            }
            NetBackend::User => {
                let (passt, stream) = Passt::start(&[]).map_err(|source| Error::Passt(index, source))?;
                self.passts.push(passt);
                Box::new(stream)
            }
        })
    }
}

/// The tap that `descriptor` is open on. It need not be open, and may even be one that this process has opened since:
/// only a duplicate is used and closed.
fn descriptor_tap(descriptor: RawFd) -> Result<Tap, tap::Error> {
    let named = |source| tap::Error::Descriptor { descriptor, source };
    // SAFETY: the call takes no pointer, and to the kernel any number will do.
    let own = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3) };
    if own < 0 {
        return Err(named(io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just made it for this call.
    let own = unsafe { OwnedFd::from_raw_fd(own) };
    Tap::from_descriptor(own).map_err(|error| match error {
        tap::Error::Descriptor { source, .. } => named(source),
        other => other,
    })
}

/// One source of one device.
struct Watched {
    transport: Arc<Mutex<Transport>>,
    source: Source,
}

impl EventSource for Watched {
    fn descriptor(&self) -> RawFd {
        self.source.descriptor
    }

    fn is_edge(&self) -> bool {
        self.source.edge
    }

    fn ready(&mut self) {
        lock(&self.transport).ready(self.source.token);
    }
}

/// How a guest is told of `window` on its command line.
pub fn argument(window: &Window) -> String {
    format!(
        "virtio_mmio.device={}K@{:#x}:{}",
        window.size >> 10,
        window.base,
        window.gsi
    )
}
