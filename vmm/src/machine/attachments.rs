//! The virtio devices of a machine: one list, from configuration to MMIO transport.
//!
//! # Available buffer notifications
//! The vCPU thread handles them, without an ioeventfd. Medians with a 4 KiB read from tmpfs for each notification; the guest has one
//! vCPU and runs a few instructions, the host has two processors and is itself a VM:
//!
//! | | vCPU thread | ioeventfd, event loop |
//! |---|---|---|
//! | guest continues after a notification | 8.4 us | 5.5 us |
//! | polling guest sees the used buffer | 10.2 us | 17.4 us |
//!
//! A unikernel with one vCPU mostly waits for the used buffer, which arrives 7 us sooner without waking a second thread. The exit
//! to this process costs 3 us more than one that ends in the kernel; a driver that batches packets pays it once. A batch is
//! bounded; the event loop processes the remaining buffers.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, TryLockError};

use devices::limiter::Limiter;
use devices::virtio::block::{Block, DiskHandle, DiskUpdate};
use devices::virtio::mmio::Transport;
use devices::virtio::net::{AddressMap, Backend, Net, NetSetup, Passt, Stream, Tap, passt, tap};
use devices::virtio::{DriverState, TransportMetrics, TransportRecorder, VirtioDevice, WatchedFd};
use devices::{BusBuilder, Interrupt, MonotonicClock, lock};
use snapshot::file::FileIdentity;
use snapshot::persist::Error as StateError;
use snapshot::{ArchiveReader, ArchiveWriter, Component, GuestMemory};

use super::attachable::{Attachable, Error, UpdateError};
use super::bounded;
use super::claim::Claim;
use super::io_thread::IoThread;
use super::passed_files::PassedFiles;
use super::recorder::{DeviceCounters, Recorder, Transfers};
use super::user_network;
use crate::arch::{self, EventSource, MmioDeviceInfo, Native, Platform, SharedSource};
use crate::config::{
    DeviceConfig, DeviceKind, DeviceUpdate, DriveConfig, MacAddress, NetAddresses, NetBackend, NetConfig,
    RateLimits, VmSpec,
};

/// Device whose host side is open, before it is attached to a machine.
pub struct OpenDevice {
    device: Box<dyn Attach>,
    recorder: Arc<dyn Recorder>,
    /// Process that serves the host side, if it is a child of this one.
    process: Option<Passt>,
}

/// Opens and locks the host side of the device of `config`, whose ID must not be empty.
///
/// # Errors
/// [`Error`], with the ID or the path of the device.
pub fn open(config: &DeviceConfig) -> Result<OpenDevice, Error> {
    let mut opened = open_unlocked(config, &mut PassedFiles::default())?;
    opened.device.lock_backend()?;
    Ok(opened)
}

fn open_unlocked(config: &DeviceConfig, passed: &mut PassedFiles) -> Result<OpenDevice, Error> {
    match config {
        DeviceConfig::Drive(config) => Ok(OpenDevice::new(open_drive(config, passed)?, None)),
        DeviceConfig::Interface(config) => {
            let (net, process) = open_interface(config, passed)?;
            Ok(OpenDevice::new(net, process))
        }
    }
}

/// Opens the host side of all devices of `spec`, in their order, for a [restore](super::Machine::restore), unless `passed` has it open.
/// None is locked.
///
/// # Errors
/// As [`open`].
pub fn open_all_unlocked(spec: &VmSpec, passed: &mut PassedFiles) -> Result<Vec<OpenDevice>, Error> {
    let devices = spec.config().devices.iter();
    devices.map(|config| open_unlocked(config, passed)).collect()
}

impl OpenDevice {
    fn new<D: Attachable + 'static>(device: D, process: Option<Passt>) -> Self {
        Self {
            recorder: device.recorder(),
            device: Box::new(device),
            process,
        }
    }

    /// Returns the open disk of a drive.
    pub fn disk(&self) -> Option<DiskHandle> {
        self.device.disk_handle()
    }

    /// Attaches the device of `config`.
    fn attach(
        self,
        config: &DeviceConfig,
        info: MmioDeviceInfo,
        line: Arc<dyn Interrupt>,
        target: &mut AttachTarget<'_>,
    ) -> Result<AttachedDevice, arch::Error> {
        let transport = self.device.attach(&info, line, target)?;
        let transport_recorder = lock(&transport).transport_recorder();
        Ok(AttachedDevice {
            kind: config.kind(),
            id: config.id().to_owned(),
            transport_recorder,
            transport,
            recorder: self.recorder,
            process: self.process,
            info,
        })
    }
}

/// [`Attachable`] with the type of the device erased, until the device has a transport.
trait Attach {
    fn lock_backend(&mut self) -> Result<(), Error>;

    fn disk_handle(&self) -> Option<DiskHandle>;

    fn attach(
        self: Box<Self>,
        info: &MmioDeviceInfo,
        line: Arc<dyn Interrupt>,
        target: &mut AttachTarget<'_>,
    ) -> Result<Arc<Mutex<dyn AttachedTransport>>, arch::Error>;
}

impl<D: Attachable + 'static> Attach for D {
    fn disk_handle(&self) -> Option<DiskHandle> {
        self.disk()
    }

    fn lock_backend(&mut self) -> Result<(), Error> {
        Attachable::lock_backend(self)
    }

    fn attach(
        self: Box<Self>,
        info: &MmioDeviceInfo,
        line: Arc<dyn Interrupt>,
        target: &mut AttachTarget<'_>,
    ) -> Result<Arc<Mutex<dyn AttachedTransport>>, arch::Error> {
        let transport = Transport::new(self, target.memory.clone(), line);
        let transport = Arc::new(Mutex::new(transport));
        let bus = &mut *target.bus;
        bus.claim("virtio device", info.base, info.size, transport.clone())
            .map_err(arch::Error::Bus)?;
        let watched = lock(&transport).watched_fds();
        target.event_sources.extend(watched.into_iter().map(|source| {
            Arc::new(Mutex::new(Watched {
                transport: transport.clone(),
                source,
            })) as SharedSource
        }));
        Ok(transport)
    }
}

/// Operations of the machine on a transport, with the type of its device erased.
pub(super) trait AttachedTransport: Component + Send {
    fn drain(&mut self);
    fn has_requests_in_flight(&mut self) -> bool;
    fn file(&mut self) -> Option<FileIdentity>;
    fn disk(&mut self) -> Option<DiskHandle>;
    fn settled_disk(&mut self) -> Option<DiskHandle>;
    fn wake_descriptor(&mut self) -> Option<RawFd>;
    fn has_waiting_frame(&mut self) -> bool;
    fn notify_restored(&mut self);
    fn lock_backend(&mut self) -> Result<(), Error>;
    fn unlock_backend(&mut self);
    fn prepare_update(&mut self, update: &DeviceUpdate);
    fn begin_update(&mut self, update: &DeviceUpdate) -> Result<Option<DiskHandle>, UpdateError>;
    fn update(&mut self, update: &DeviceUpdate, disk: &mut Option<DiskUpdate>) -> Result<(), UpdateError>;
    fn transport_recorder(&self) -> Arc<TransportRecorder>;
}

impl<D: Attachable> AttachedTransport for Transport<D> {
    fn transport_recorder(&self) -> Arc<TransportRecorder> {
        self.recorder()
    }

    fn drain(&mut self) {
        self.device_mut().drain();
    }

    fn has_requests_in_flight(&mut self) -> bool {
        self.device_mut().has_requests_in_flight()
    }

    fn file(&mut self) -> Option<FileIdentity> {
        self.device_mut().file()
    }

    fn disk(&mut self) -> Option<DiskHandle> {
        self.device_mut().disk()
    }

    fn settled_disk(&mut self) -> Option<DiskHandle> {
        self.device_mut().settled_disk()
    }

    fn wake_descriptor(&mut self) -> Option<RawFd> {
        self.device_mut().wake_descriptor()
    }

    fn has_waiting_frame(&mut self) -> bool {
        self.device_mut().has_waiting_frame()
    }

    fn notify_restored(&mut self) {
        Self::notify_restored(self);
    }

    fn lock_backend(&mut self) -> Result<(), Error> {
        self.device_mut().lock_backend()
    }

    fn unlock_backend(&mut self) {
        self.device_mut().unlock_backend();
    }

    fn prepare_update(&mut self, update: &DeviceUpdate) {
        self.device_mut().prepare_update(update);
    }

    fn begin_update(&mut self, update: &DeviceUpdate) -> Result<Option<DiskHandle>, UpdateError> {
        self.device_mut().begin_update(update)
    }

    fn update(&mut self, update: &DeviceUpdate, disk: &mut Option<DiskUpdate>) -> Result<(), UpdateError> {
        self.device_mut().update(update, disk)
    }
}

/// Device of a machine.
pub(crate) struct AttachedDevice {
    kind: DeviceKind,
    id: String,
    info: MmioDeviceInfo,
    transport: SharedTransport,
    recorder: Arc<dyn Recorder>,
    transport_recorder: Arc<TransportRecorder>,
    process: Option<Passt>,
}

/// Result of an update, and the file that the device no longer uses.
type Updated = (Result<(), UpdateError>, Option<DiskUpdate>);

fn update_transport(
    transport: &mut dyn AttachedTransport,
    update: &DeviceUpdate,
    mut disk: Option<DiskUpdate>,
) -> Updated {
    (transport.update(update, &mut disk), disk)
}

/// Transport that the buses, the event sources and the machine share.
type SharedTransport = Arc<Mutex<dyn AttachedTransport>>;

impl AttachedDevice {
    /// Returns the kind.
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// Returns the ID, unique among the devices of the kind.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns address, length and GSI.
    pub fn info(&self) -> &MmioDeviceInfo {
        &self.info
    }

    /// Checks that the child process that serves the host side has not ended.
    ///
    /// # Errors
    /// [`passt::Error`] if it has ended.
    pub fn check_process(&mut self) -> Result<(), passt::Error> {
        self.process.as_mut().map_or(Ok(()), Passt::check)
    }

    /// Returns the transport, for work on the I/O thread.
    pub(super) fn transport(&self) -> SharedTransport {
        self.transport.clone()
    }

    /// Waits until no request is in flight.
    pub fn drain(&self) {
        lock(&self.transport).drain();
    }

    /// Returns true if [`drain`](Self::drain) would wait.
    pub fn has_requests_in_flight(&self) -> bool {
        lock(&self.transport).has_requests_in_flight()
    }

    /// Returns the regular file that the device has open.
    pub fn file(&self) -> Option<FileIdentity> {
        lock(&self.transport).file()
    }

    /// Returns the open disk of a drive.
    pub fn disk(&self) -> Option<DiskHandle> {
        lock(&self.transport).disk()
    }

    /// As [`disk`](Self::disk), unless a popped request may still change the disk.
    pub fn settled_disk(&self) -> Option<DiskHandle> {
        lock(&self.transport).settled_disk()
    }

    /// Returns the descriptor that becomes readable with the next frame to the guest. `None` for a drive, while the network is not
    /// reachable, and while another thread holds the lock of the device.
    pub fn wake_descriptor(&self) -> Option<RawFd> {
        self.transport.try_lock().ok()?.wake_descriptor()
    }

    /// Returns true while work waits in the device: a drive request in flight, or a received frame. Does not wait for the lock of the
    /// device: a holder works too.
    pub fn has_work(&self) -> bool {
        match self.transport.try_lock() {
            Ok(mut transport) => transport.has_requests_in_flight() || transport.has_waiting_frame(),
            Err(TryLockError::Poisoned(_) | TryLockError::WouldBlock) => true,
        }
    }

    /// Returns the transfers that keep the VM awake, without the lock of the device.
    pub fn transfers(&self) -> Transfers {
        self.recorder.transfers()
    }

    /// Starts or ends the count of frames that keep the VM awake.
    pub fn count_frames(&self, enabled: bool) {
        self.recorder.count_frames(enabled);
    }

    /// Saves transport and device as section `key` and sections below it.
    ///
    /// # Errors
    /// As [`Component::save_section`].
    pub fn save(&self, key: &str, archive: &mut ArchiveWriter) -> Result<(), StateError> {
        lock(&self.transport).save_section(key, archive)
    }

    /// Restores transport and device from section `key` and sections below it.
    ///
    /// # Errors
    /// As [`Component::restore_section`].
    pub fn restore(&self, key: &str, archive: &mut ArchiveReader<'_>) -> Result<(), StateError> {
        lock(&self.transport).restore_section(key, archive)
    }

    /// Processes the buffers that were available when the state was saved.
    pub fn notify_restored(&self) {
        lock(&self.transport).notify_restored();
    }

    /// Locks the host side, before the device uses it.
    ///
    /// # Errors
    /// [`Error::Drive`] if another VM has a conflicting lock.
    pub fn lock_backend(&self) -> Result<(), Error> {
        lock(&self.transport).lock_backend()
    }

    /// Unlocks the host side. The device does nothing before it is locked again.
    pub fn unlock_backend(&self) {
        lock(&self.transport).unlock_backend();
    }

    /// Changes the device while the guest runs. Work with the device runs on the I/O thread `thread`, if there is one. Without the
    /// lock of the device, this thread opens the new file of a drive, and closes the old one: both calls wait for the file system.
    ///
    /// # Errors
    /// [`UpdateError`]; the device is unchanged then.
    pub(super) fn update(&self, update: &DeviceUpdate, thread: Option<&IoThread>) -> Result<(), UpdateError> {
        let disk = self.open_disk(update, thread)?;
        let (updated, replaced) = match thread {
            None => update_transport(&mut *lock(&self.transport), update, disk),
            Some(thread) => thread
                .run(self.update_job(update, disk))
                .map_err(UpdateError::Thread)?,
        };
        drop(replaced);
        updated
    }

    /// Opens the file of `update`, if it calls the file system.
    fn open_disk(
        &self,
        update: &DeviceUpdate,
        thread: Option<&IoThread>,
    ) -> Result<Option<DiskUpdate>, UpdateError> {
        let DeviceUpdate::Drive(drive) = update else {
            return Ok(None);
        };
        if !update.calls_file_system() {
            return Ok(None);
        }
        let disk = match thread {
            None => lock(&self.transport).begin_update(update)?,
            Some(thread) => {
                let (transport, update) = (self.transport(), update.clone());
                let job = move |claim: &Claim| {
                    let mut transport = lock(&transport);
                    transport.prepare_update(&update);
                    claim.take().then(|| transport.begin_update(&update))
                };
                thread.run(job).map_err(UpdateError::Thread)??
            }
        };
        let Some(disk) = disk else { return Ok(None) };
        let path = drive.path.clone();
        let named = path.as_deref().unwrap_or(disk.path()).to_owned();
        let opened = bounded::run(move || disk.update(path.as_deref()));
        let opened = opened.map_err(|source| UpdateError::Open { path: named, source })?;
        opened.map(Some).map_err(UpdateError::Drive)
    }

    /// Returns the job that changes the device on the I/O thread. It has no effect if its caller no longer waits when the requests
    /// in flight are complete.
    fn update_job(
        &self,
        update: &DeviceUpdate,
        disk: Option<DiskUpdate>,
    ) -> impl FnOnce(&Claim) -> Option<Updated> + Send + 'static {
        let (transport, update) = (self.transport(), update.clone());
        move |claim| {
            let mut transport = lock(&transport);
            transport.prepare_update(&update);
            claim
                .take()
                .then(|| update_transport(&mut *transport, &update, disk))
        }
    }

    /// Returns the counters, without the lock of the device.
    pub fn counters(&self) -> DeviceCounters {
        self.recorder.counters()
    }

    /// Returns the metrics of the transport, without the lock of the device.
    pub fn transport_metrics(&self) -> TransportMetrics {
        self.transport_recorder.metrics()
    }

    /// Returns the state from the view of the driver, without the lock of the device.
    pub fn driver_state(&self) -> DriverState {
        self.transport_recorder.driver_state()
    }
}

/// Parts of the machine to which devices are attached.
pub(super) struct AttachTarget<'a> {
    pub memory: &'a GuestMemory,
    pub bus: &'a mut BusBuilder,
    pub event_sources: &'a mut Vec<SharedSource>,
}

/// Attaches `devices` to the memory bus, in the order of the guest, and adds their watched descriptors to the event sources.
/// Device N belongs to configuration N of `spec`.
///
/// # Errors
/// [`arch::Error::Bus`]
pub(super) fn attach(
    devices: Vec<OpenDevice>,
    spec: &VmSpec,
    platform: &Native,
    mut target: AttachTarget<'_>,
) -> Result<Vec<AttachedDevice>, arch::Error> {
    let configs = spec.config().devices.iter();
    configs
        .zip(devices)
        .zip(platform.mmio_devices())
        .map(|((config, device), (info, line))| device.attach(config, info, line, &mut target))
        .collect()
}

fn open_drive(config: &DriveConfig, passed: &mut PassedFiles) -> Result<Block, Error> {
    let file = passed.take(&config.disk.path);
    Block::open_unlocked(&config.disk, file, Box::new(MonotonicClock::new())).map_err(Error::Drive)
}

fn open_interface(config: &NetConfig, passed: &mut PassedFiles) -> Result<(Net, Option<Passt>), Error> {
    let failed = |source| Error::Descriptors(config.id.clone(), source);
    let limiter = |limits: RateLimits| Limiter::new(limits.bandwidth, limits.operations).map_err(failed);
    let (backend, process) = open_backend(config, passed)?;
    if let Some(mac) = config.network_mac().filter(|mac| mac.is_group()) {
        log::warn!(
            "network interface {:?} has the group address {mac}: bridges and switches drop its frames; choose an address whose first \
             byte is even",
            config.id
        );
    }
    let mac = config.mac.unwrap_or_else(MacAddress::random);
    let setup = NetSetup {
        mac: mac.0,
        mtu: config.mtu,
        backend,
        addresses: config.addresses.map(|addresses| address_map(&addresses, mac)),
        receive_limiter: limiter(config.receive)?,
        transmit_limiter: limiter(config.transmit)?,
        clock: Box::new(MonotonicClock::new()),
    };
    let mut net = Net::new(setup).map_err(failed)?;
    if let Some(frames) = passed.take_first_frames(&config.id) {
        net.set_first_frames(frames);
    }
    Ok((net, process))
}

/// Returns the addresses for a device with the address `mac`.
fn address_map(addresses: &NetAddresses, mac: MacAddress) -> AddressMap {
    let guest_mac = addresses.guest_mac.unwrap_or(mac);
    AddressMap {
        guest_ip: addresses.guest_ip,
        ip: addresses.ip,
        guest_mac: guest_mac.0,
        mac: addresses.mac.unwrap_or(guest_mac).0,
        pass_ipv6: addresses.pass_ipv6,
    }
}

fn open_backend(
    config: &NetConfig,
    passed: &mut PassedFiles,
) -> Result<(Box<dyn Backend>, Option<Passt>), Error> {
    let tap = |source| Error::Tap(config.id.clone(), source);
    let backend: Box<dyn Backend> = match &config.backend {
        NetBackend::Tap(name) => Box::new(Tap::open(name).map_err(tap)?),
        NetBackend::Descriptor(descriptor) => Box::new(descriptor_tap(*descriptor, passed).map_err(tap)?),
        NetBackend::Stream(path) => {
            let stream = Stream::connect(path);
            Box::new(stream.map_err(|source| Error::Stream(config.id.clone(), source))?)
        }
        NetBackend::User => {
            let started = user_network::start(&config.user);
            let (passt, stream) = started.map_err(|source| Error::User(config.id.clone(), source))?;
            return Ok((Box::new(stream), Some(passt)));
        }
    };
    Ok((backend, None))
}

/// Opens the tap of `descriptor`.
fn descriptor_tap(descriptor: RawFd, passed: &mut PassedFiles) -> Result<Tap, tap::Error> {
    let failed = |source| tap::Error::Descriptor { descriptor, source };
    let opened = passed.open_descriptor(descriptor).map_err(failed)?;
    Tap::from_descriptor(opened).map_err(|error| match error {
        tap::Error::Descriptor { source, .. } => failed(source),
        other => other,
    })
}

/// Watched descriptor of a device, as an event source.
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
        lock(&self.transport).process_event(self.source.token);
    }
}

/// Returns the command line argument by which Linux and Unikraft find the device at `info`.
pub(super) fn argument(info: &MmioDeviceInfo) -> String {
    format!(
        "virtio_mmio.device={}K@{:#x}:{}",
        info.size >> 10,
        info.base,
        info.gsi
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::{Arc, mpsc};
    use std::thread;

    use devices::{Interrupt, lock};
    use scratch::Temporary;
    use vm_memory::GuestAddress;

    use super::{
        AttachTarget, AttachedDevice, BusBuilder, DeviceConfig, DeviceCounters, MmioDeviceInfo, open,
    };
    use crate::memory::allocate;

    struct NoLine;

    impl Interrupt for NoLine {
        fn set_level(&self, _asserted: bool) {}
    }

    fn attach(config: &DeviceConfig) -> AttachedDevice {
        let info = MmioDeviceInfo {
            base: 0,
            size: 4096,
            gsi: 5,
        };
        let mut target = AttachTarget {
            memory: &allocate(&[(GuestAddress(0), 1 << 20)]).unwrap(),
            bus: &mut BusBuilder::new(),
            event_sources: &mut Vec::new(),
        };
        let device = open(config).unwrap();
        device
            .attach(config, info, Arc::new(NoLine), &mut target)
            .unwrap()
    }

    /// Reads the counters of `device` on another thread, while this one holds the lock of the device.
    fn read_locked(device: AttachedDevice) -> DeviceCounters {
        let transport = device.transport();
        let _guard = lock(&transport);
        let (sender, receiver) = mpsc::channel();
        // Not a scoped thread: the scope would wait for it without a limit.
        thread::spawn(move || sender.send(device.counters()));
        scratch::receive(&receiver)
    }

    #[test]
    fn counters_need_no_lock() {
        let (disk, socket) = (Temporary::with(&[0; 512]), Temporary::missing());
        let _listener = UnixListener::bind(socket.path()).unwrap();
        let drive = format!("{},id=d", disk.path().display()).parse().unwrap();
        let net = format!("unix:{},id=n", socket.path().display()).parse().unwrap();
        let drive = read_locked(attach(&DeviceConfig::Drive(drive)));
        assert!(matches!(drive, DeviceCounters::Drive(_)), "{drive:?}");
        let net = read_locked(attach(&DeviceConfig::Interface(net)));
        assert!(matches!(net, DeviceCounters::Interface(_)), "{net:?}");
    }
}
