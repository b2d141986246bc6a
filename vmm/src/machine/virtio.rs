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
use devices::virtio::net::{Backend, Net, NetSetup, Passt, Stream, Tap, passt, stream, tap};
use devices::virtio::{VirtioDevice, WatchedFd};
use devices::{Interrupt, MonotonicClock, lock};
use snapshot::GuestMemory;

use crate::arch::{self, Buses, EventSource, MmioDeviceInfo, Native, Platform, SharedSource};
use crate::config::{DriveConfig, MacAddress, NetBackend, NetConfig, RateLimits, VmConfig, VmSpec};

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A drive.
    #[error(transparent)]
    Drive(block::Error),
    /// The tap behind an interface.
    #[error("cannot attach network interface {0:?}")]
    Tap(String, #[source] tap::Error),
    /// The socket behind an interface.
    #[error("cannot attach network interface {0:?}")]
    Stream(String, #[source] stream::Error),
    /// The passt behind an interface.
    #[error("cannot attach network interface {0:?}")]
    Passt(String, #[source] passt::Error),
    /// The kernel has no more descriptors.
    #[error("cannot attach network interface {0:?}")]
    Descriptors(String, #[source] io::Error),
}

/// A network interface whose host side is open.
pub struct OpenInterface {
    net: Net,
    /// The program that serves the network to it, if it is ours.
    passt: Option<Passt>,
}

/// The devices, open and not yet part of a machine.
#[derive(Default)]
pub struct Devices {
    /// In the order in which guests count them.
    pub drives: Vec<(String, Block)>,
    /// In the order in which guests count them.
    pub interfaces: Vec<(String, OpenInterface)>,
}

impl Devices {
    /// Opens what the devices of `spec` need.
    ///
    /// # Errors
    /// [`Error`], naming the device.
    pub fn open(spec: &VmSpec) -> Result<Self, Error> {
        let VmConfig { drives, nets, .. } = spec.config();
        let drives = drives
            .iter()
            .map(|config| Ok((config.disk.id.clone(), open_drive(config)?)));
        let interfaces = nets
            .iter()
            .map(|config| Ok((config.id.clone(), open_interface(config)?)));
        Ok(Self {
            drives: drives.collect::<Result<_, _>>()?,
            interfaces: interfaces.collect::<Result<_, _>>()?,
        })
    }

    /// Gives each device a window on the memory bus: the drives the first ones. What the event loop watches for them is
    /// added to `sources`.
    ///
    /// # Errors
    /// [`arch::Error::Bus`]
    pub(super) fn attach(
        self,
        platform: &Native,
        memory: &GuestMemory,
        buses: &mut Buses,
        sources: &mut Vec<SharedSource>,
    ) -> Result<Attached, arch::Error> {
        let mut slots = platform.mmio_devices();
        let mut attached = Attached::default();
        let mut place = Place {
            memory,
            buses,
            sources,
        };
        for (id, device) in self.drives {
            let Some(slot) = slots.next() else { break };
            attached.windows.push(slot.0);
            attached.drives.push(place.attach(id, device, slot)?);
        }
        for (id, interface) in self.interfaces {
            let Some(slot) = slots.next() else { break };
            attached.windows.push(slot.0);
            attached.interfaces.push(place.attach(id, interface.net, slot)?);
            attached.passts.extend(interface.passt);
        }
        Ok(attached)
    }
}

/// The devices of a machine.
#[derive(Default)]
pub(super) struct Attached {
    pub windows: Vec<MmioDeviceInfo>,
    pub drives: Vec<VirtioHandle<Block>>,
    pub interfaces: Vec<VirtioHandle<Net>>,
    pub passts: Vec<Passt>,
}

/// A device of a machine, for its owner.
pub struct VirtioHandle<D: VirtioDevice> {
    /// Name of the device.
    pub id: String,
    transport: Arc<Mutex<Transport<D>>>,
}

impl<D: VirtioDevice> VirtioHandle<D> {
    /// Lets `work` have the device, and the guest and the event loop wait meanwhile.
    pub fn with<T>(&self, work: impl FnOnce(&mut D) -> T) -> T {
        work(lock(&self.transport).device_mut())
    }

    /// As [`with`](Self::with), of the device with its transport.
    pub(super) fn with_transport<T>(&self, work: impl FnOnce(&mut Transport<D>) -> T) -> T {
        work(&mut lock(&self.transport))
    }
}

/// Where devices are attached.
struct Place<'a> {
    memory: &'a GuestMemory,
    buses: &'a mut Buses,
    sources: &'a mut Vec<SharedSource>,
}

impl Place<'_> {
    fn attach<D: VirtioDevice + 'static>(
        &mut self,
        id: String,
        device: D,
        (window, line): (MmioDeviceInfo, Arc<dyn Interrupt>),
    ) -> Result<VirtioHandle<D>, arch::Error> {
        let transport = Transport::new(Box::new(device), self.memory.clone(), line);
        let transport = Arc::new(Mutex::new(transport));
        let bus = &mut self.buses.memory;
        bus.claim("virtio device", window.base, window.size, transport.clone())
            .map_err(arch::Error::Bus)?;
        let watched = lock(&transport).sources();
        self.sources.extend(watched.into_iter().map(|source| {
            Arc::new(Mutex::new(Watched {
                transport: transport.clone(),
                source,
            })) as SharedSource
        }));
        Ok(VirtioHandle { id, transport })
    }
}

/// Opens the disk of `config`.
///
/// # Errors
/// [`Error::Drive`]
pub fn open_drive(config: &DriveConfig) -> Result<Block, Error> {
    Block::open(&config.disk, Box::new(MonotonicClock::new())).map_err(Error::Drive)
}

/// Opens the host's side of `config`.
///
/// # Errors
/// All of [`Error`] but [`Error::Drive`].
pub fn open_interface(config: &NetConfig) -> Result<OpenInterface, Error> {
    let system = |source| Error::Descriptors(config.id.clone(), source);
    let limiter = |limits: RateLimits| Limiter::new(limits.bandwidth, limits.operations).map_err(system);
    let (backend, passt) = open_backend(config)?;
    let setup = NetSetup {
        mac: config.mac.unwrap_or_else(MacAddress::random).0,
        mtu: config.mtu,
        backend,
        receive_limiter: limiter(config.receive)?,
        transmit_limiter: limiter(config.transmit)?,
        clock: Box::new(MonotonicClock::new()),
    };
    let net = Net::new(setup).map_err(system)?;
    Ok(OpenInterface { net, passt })
}

fn open_backend(config: &NetConfig) -> Result<(Box<dyn Backend>, Option<Passt>), Error> {
    let tap = |source| Error::Tap(config.id.clone(), source);
    let backend: Box<dyn Backend> = match &config.backend {
        NetBackend::Tap(name) => Box::new(Tap::open(name).map_err(tap)?),
        NetBackend::Descriptor(descriptor) => Box::new(descriptor_tap(*descriptor).map_err(tap)?),
        NetBackend::Stream(path) => {
            let stream = Stream::connect(path);
            Box::new(stream.map_err(|source| Error::Stream(config.id.clone(), source))?)
        }
        NetBackend::User => {
            let started = Passt::start(&[]);
            let (passt, stream) = started.map_err(|source| Error::Passt(config.id.clone(), source))?;
            return Ok((Box::new(stream), Some(passt)));
        }
    };
    Ok((backend, None))
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
struct Watched<D: VirtioDevice> {
    transport: Arc<Mutex<Transport<D>>>,
    source: WatchedFd,
}

impl<D: VirtioDevice> EventSource for Watched<D> {
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
pub fn argument(window: &MmioDeviceInfo) -> String {
    format!(
        "virtio_mmio.device={}K@{:#x}:{}",
        window.size >> 10,
        window.base,
        window.gsi
    )
}
