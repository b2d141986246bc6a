//! Network device (virtio 1.2 §5.1) with one pair of queues and no control queue.
//!
//! | module | contents |
//! |---|---|
//! | `activity` | frames that keep the VM awake |
//! | [`backend`] | [`Backend`]: host side; [`Received`], [`Sent`], [`Link`] |
//! | [`features`] | feature bits, check of packet headers, sizes |
//! | [`first_frames`] | [`FirstFrames`]: packets before those of the backend |
//! | [`metrics`] | [`NetMetrics`]: counters of both directions; [`NetRecorder`] |
//! | [`passt`] | [`Passt`]: user-mode network without privileges |
//! | `rewriter` | [`AddressMap`]: an address on the network other than the guest's |
//! | [`stream`] | [`Stream`]: length-prefixed frames on a unix socket, the protocol of passt and QEMU |
//! | [`tap`] | [`Tap`]: tap interface of the host |
//!
//! Packets move between the tap and the guest's buffers without a copy. A packet is copied only while it
//! cannot enter the guest's buffers: they are too few, or the rate limiter throttles the queue. At most one
//! such packet is held; all others wait in the backend, and its queue drops the excess.
//!
//! A call from the transport or the event loop processes a bounded batch; the event loop calls again for the
//! rest. Thus neither a flood of packets nor a driver on another vCPU can occupy the event loop.
//!
//! A full socket, or a full tap with a small `TUNSETSNDBUF`, stops the transmit queue until it is writable.
//! The packets stay in the guest, and the guest's queue discipline handles them.

mod activity;
mod addresses;
pub mod backend;
mod buffers;
pub mod features;
pub mod first_frames;
pub mod metrics;
pub mod passt;
mod rewriter;
mod rx;
pub mod stream;
pub mod tap;
#[cfg(test)]
mod tests;
mod tx;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use log::warn;
use serde::{Deserialize, Serialize};
use snapshot::persist;
use snapshot::section;
use snapshot::{ArchiveReader, ArchiveWriter, Component, GuestMemory, Persist, Schema};
use virtio_bindings::bindings::virtio_net::VIRTIO_NET_S_LINK_UP;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::addresses::Unchanged;
use self::backend::Writable;
use self::buffers::Error;
use self::features::{BASE, ETHERNET, MTU, OFFLOADS, STATUS};
use self::rewriter::AddressRewriter;
use self::rx::Receiver;
use self::tx::{Batch, BatchEnd, Transmitter};
use crate::clock::Clock;
use crate::limiter::{Limiter, LimiterState};
use crate::virtio::queue::Virtqueue;
use crate::virtio::{Activation, VirtioDevice, VirtioInterrupt, WatchedFd};

pub use self::backend::{Backend, Link, Received, Sent};
pub use self::buffers::RxBuffers;
pub use self::features::{HEADER, MAX_FRAME, MAX_PACKET};
pub use self::first_frames::FirstFrames;
pub use self::metrics::{AddressDrops, Counters, NetMetrics, NetRecorder};
pub use self::passt::Passt;
pub use self::rewriter::AddressMap;
pub use self::stream::Stream;
pub use self::tap::Tap;

/// Index of the receive queue.
const RECEIVE: usize = 0;
/// Index of the transmit queue.
const TRANSMIT: usize = 1;

const QUEUE_SIZES: [u16; 2] = [256; 2];

/// Token: the backend may have packets.
const READABLE: u32 = 0;
/// Token: the backend accepts packets again.
const WRITABLE: u32 = 1;
/// Token: the rate limiter of the receive queue has tokens again.
const RECEIVE_TIMER: u32 = 2;
/// Token: the rate limiter of the transmit queue has tokens again.
const TRANSMIT_TIMER: u32 = 3;
/// Token: packets remain after a batch.
const BACKLOG: u32 = 4;

/// Parameters of a network device.
pub struct NetSetup {
    /// MAC address of the driver's interface.
    pub mac: [u8; 6],
    /// MTU in the configuration space, 68 to 65,535; none for the driver's default.
    pub mtu: Option<u16>,
    /// Host side of the device.
    pub backend: Box<dyn Backend>,
    /// Addresses of the guest and of the network; none if they are equal.
    pub addresses: Option<AddressMap>,
    /// Limits packets to the guest.
    pub receive_limiter: Limiter,
    /// Limits packets from the guest.
    pub transmit_limiter: Limiter,
    /// Clock of the rate limiters.
    pub clock: Box<dyn Clock>,
}

/// State between activation and reset.
struct Active {
    features: u64,
    /// Maximum length in bytes of an unsegmented frame to the driver.
    max_frame: usize,
    queues: [Virtqueue; 2],
    memory: GuestMemory,
    interrupt: Arc<VirtioInterrupt>,
}

/// Network device.
pub struct Net {
    setup: NetSetup,
    receiver: Receiver,
    transmitter: Transmitter,
    writable: Writable,
    backlog: EventFd,
    /// The transmit queue waits until the backend is writable.
    stalled: bool,
    /// Link status in the configuration space.
    link: bool,
    /// True once a fault of the driver, or of the backend at a reset, is logged. The driver could repeat a
    /// fault without end, so only the first is logged.
    fault_logged: bool,
    rewriter: Option<AddressRewriter>,
    /// True once another host with the address of this guest is logged.
    conflict_logged: bool,
    recorder: Arc<NetRecorder>,
    active: Option<Active>,
}

impl Net {
    /// Creates a device that is not activated.
    ///
    /// # Errors
    /// Fails if the process has no more file descriptors.
    pub fn new(setup: NetSetup) -> io::Result<Self> {
        Ok(Self {
            stalled: false,
            link: setup.backend.link() == Link::Up,
            fault_logged: false,
            rewriter: setup.addresses.as_ref().map(AddressRewriter::new),
            conflict_logged: false,
            setup,
            receiver: Receiver::new(),
            transmitter: Transmitter::default(),
            writable: Writable::new()?,
            backlog: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            recorder: Arc::default(),
            active: None,
        })
    }

    /// Returns the metrics.
    pub fn metrics(&self) -> NetMetrics {
        self.recorder.metrics()
    }

    /// Returns the recorder of the metrics, for threads that read them without the lock of the device.
    pub fn recorder(&self) -> Arc<NetRecorder> {
        Arc::clone(&self.recorder)
    }

    /// Returns the link status; true while the network is reachable.
    pub fn link(&self) -> bool {
        self.link
    }

    /// Returns the descriptor that becomes readable with the next frame to the guest. `None` while the network is not reachable: the
    /// descriptor of a lost connection stays readable.
    pub fn wake_descriptor(&self) -> Option<RawFd> {
        (self.setup.backend.link() == Link::Up).then(|| self.setup.backend.descriptor())
    }

    /// Returns true while a received frame waits for buffers of the guest, or for the rate limiter.
    pub fn has_waiting_frame(&self) -> bool {
        !self.receiver.held().is_empty()
    }

    /// Returns a short description of the backend: `tap tap0`, `stream /run/net.socket`, `passt`.
    pub fn describe(&self) -> String {
        self.setup.backend.describe()
    }

    /// Returns the rate limiter of the receive queue.
    pub fn receive_limiter(&self) -> &Limiter {
        &self.setup.receive_limiter
    }

    /// Returns the rate limiter of the receive queue for changes, also while the device runs.
    pub fn receive_limiter_mut(&mut self) -> &mut Limiter {
        &mut self.setup.receive_limiter
    }

    /// Returns the rate limiter of the transmit queue.
    pub fn transmit_limiter(&self) -> &Limiter {
        &self.setup.transmit_limiter
    }

    /// Returns the rate limiter of the transmit queue for changes, also while the device runs.
    pub fn transmit_limiter_mut(&mut self) -> &mut Limiter {
        &mut self.setup.transmit_limiter
    }

    /// Sets packets that the driver receives before those of the backend. Their addresses are those of the network. They wait for
    /// buffers and tokens, also over a reset.
    pub fn set_first_frames(&mut self, frames: FirstFrames) {
        let counters = &self.recorder.receive;
        match &self.rewriter {
            None => self.receiver.set_first_frames(frames, &Unchanged, counters),
            Some(rewriter) => self.receiver.set_first_frames(frames, rewriter, counters),
        }
    }

    /// Schedules both queues in the event loop.
    fn wake(&self) {
        // Fails only if the counter would overflow; then the event is pending anyway.
        let _ = self.backlog.write(1);
    }

    fn process_receive(&mut self) {
        let idle = !self.receiver.has_work() || self.setup.receive_limiter.is_throttled();
        if !idle {
            self.process_queue(RECEIVE);
        }
    }

    fn process_transmit(&mut self) {
        if !self.setup.transmit_limiter.is_throttled() && !self.stalled {
            self.process_queue(TRANSMIT);
        }
    }

    /// Processes one batch of `queue`, and sends at most one used buffer notification.
    fn process_queue(&mut self, queue: usize) {
        let Some(active) = self
            .active
            .as_mut()
            .filter(|active| !active.interrupt.is_reset_needed())
        else {
            return;
        };
        let Some(virtqueue) = active.queues.get_mut(queue) else {
            return;
        };
        let (limiter, counters) = match queue {
            RECEIVE => (&mut self.setup.receive_limiter, &self.recorder.receive),
            _ => (&mut self.setup.transmit_limiter, &self.recorder.transmit),
        };
        let mut batch = Batch {
            features: active.features,
            max_frame: active.max_frame,
            memory: &active.memory,
            queue: virtqueue,
            backend: self.setup.backend.as_mut(),
            limiter,
            clock: self.setup.clock.as_ref(),
            counters,
        };
        let end = match (queue, &self.rewriter) {
            (RECEIVE, None) => self.receiver.process(&mut batch, &Unchanged),
            (RECEIVE, Some(rewriter)) => self.receiver.process(&mut batch, rewriter),
            (_, None) => self.transmitter.process(&mut batch, &Unchanged),
            (_, Some(rewriter)) => self.transmitter.process(&mut batch, rewriter),
        };
        if let Ok(BatchEnd::Throttled | BatchEnd::Full | BatchEnd::Exhausted) = end {
            let left = batch.queue.available(batch.memory);
            counters.left_buffers.add(left.into());
        }
        // Buffers used before an error still belong to the driver, so it is notified of them first.
        match batch.queue.needs_notification(batch.memory) {
            Ok(true) => active.interrupt.notify_used(),
            Ok(false) => {}
            Err(error) => return self.stop_device(&Error::Queue(error)),
        }
        match end {
            Ok(end) => self.finish_batch(end),
            Err(error) => self.stop_device(&error),
        }
    }

    fn finish_batch(&mut self, end: BatchEnd) {
        match end {
            BatchEnd::Idle | BatchEnd::Throttled => {}
            BatchEnd::Exhausted => self.wake(),
            BatchEnd::Full => self.stall(),
        }
        if let Some(claimant) = self.receiver.take_claimant() {
            self.log_conflict(claimant);
        }
        self.update_link();
    }

    /// Logs the first conflict: the other host could repeat it without end.
    fn log_conflict(&mut self, claimant: [u8; 6]) {
        if std::mem::replace(&mut self.conflict_logged, true) {
            return;
        }
        let Some(AddressMap { ip, .. }) = self.setup.addresses else {
            return;
        };
        let [a, b, c, d, e, f] = claimant;
        warn!(
            "net: host {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} on the network of {} has the address {ip} too: \
             give each VM an address of its own",
            self.setup.backend.describe()
        );
    }

    fn stall(&mut self) {
        self.stalled = true;
        self.watch_writable();
    }

    fn watch_writable(&mut self) {
        if let Err(error) = self.writable.watch(self.setup.backend.descriptor()) {
            let name = self.setup.backend.describe();
            warn!("net: cannot wait for {name} to become writable, transmission stops: {error}");
        }
    }

    fn update_link(&mut self) {
        let link = self.setup.backend.link();
        if link == Link::Down && !self.writable.is_watching() {
            self.watch_writable();
        }
        let link = link == Link::Up;
        if std::mem::replace(&mut self.link, link) == link {
            return;
        }
        if let Some(active) = self
            .active
            .as_ref()
            .filter(|active| active.features & STATUS != 0)
        {
            active.interrupt.notify_config();
        }
    }

    /// Stops the device after a violation by the driver, until its reset.
    fn stop_device(&mut self, error: &Error) {
        let Some(active) = &self.active else { return };
        self.recorder.faults.add(1);
        if std::mem::replace(&mut self.fault_logged, true) {
            return active.interrupt.set_needs_reset();
        }
        let cause = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
        warn!("net: device stopped until the guest resets it: {error}{cause}");
        active.interrupt.set_needs_reset();
    }

    fn flush(&mut self) {
        self.writable.clear();
        self.stalled = false;
        match self.setup.backend.flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stall(),
            // No data waits after another error, or it precedes the next packet: the queue continues.
            Ok(()) | Err(_) => self.process_transmit(),
        }
        self.update_link();
    }
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let mtu = self.setup.mtu.map_or(0, |_| MTU);
        BASE | mtu | (self.setup.backend.offloads() & OFFLOADS)
    }

    /// Reads `struct virtio_net_config` (virtio 1.2 §5.1.4) up to the MTU. The number of queue pairs is 1
    /// even for a driver that reads it without the feature MQ.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let status = match self.link {
            true => u16::try_from(VIRTIO_NET_S_LINK_UP).unwrap_or_default(),
            false => 0,
        };
        let mut space = [0; 12];
        space[..6].copy_from_slice(&self.setup.mac);
        space[6..8].copy_from_slice(&status.to_le_bytes());
        space[8..10].copy_from_slice(&1_u16.to_le_bytes());
        space[10..].copy_from_slice(&self.setup.mtu.unwrap_or_default().to_le_bytes());
        let rest = usize::try_from(offset).ok().and_then(|at| space.get(at..));
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *byte = *value;
        }
    }

    fn activate(&mut self, activation: Activation) {
        let mut queues = activation.queues.into_iter();
        let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) else {
            warn!("net: cannot activate the device: a queue is missing");
            return activation.interrupt.set_needs_reset();
        };
        let features = activation.features;
        let max_frame = match self.setup.mtu {
            Some(mtu) if features & MTU != 0 => ETHERNET + usize::from(mtu),
            _ => MAX_FRAME,
        };
        // Set even if the backend rejects the features: the transport reads the queue positions.
        let active = self.active.insert(Active {
            features,
            max_frame,
            queues: [Virtqueue::new(receive), Virtqueue::new(transmit)],
            memory: activation.memory,
            interrupt: activation.interrupt,
        });
        if let Err(error) = self.setup.backend.use_features(features) {
            if !std::mem::replace(&mut self.fault_logged, true) {
                let name = self.setup.backend.describe();
                warn!("net: cannot apply features {features:#x} to {name}: {error}");
            }
            return active.interrupt.set_needs_reset();
        }
        // The descriptor is edge-triggered, so packets from before the activation raise no event. The driver
        // need not send a notification either.
        self.receiver.set_readable();
        self.wake();
    }

    fn reset(&mut self) {
        self.active = None;
        self.receiver.hold(&[]);
        self.transmitter = Transmitter::default();
        // The packets that waited are gone; the next ones may need fewer tokens.
        self.setup.receive_limiter.clear_timer();
        self.setup.transmit_limiter.clear_timer();
        let cleared = self.setup.backend.use_features(0);
        if let Some(error) = cleared.err().filter(|_| !self.fault_logged) {
            self.fault_logged = true;
            let name = self.setup.backend.describe();
            warn!("net: cannot clear the features of {name}: {error}");
        }
    }

    fn notify(&mut self, queue: usize) {
        match queue {
            RECEIVE => {
                self.recorder.receive.notifications.add(1);
                self.process_receive();
            }
            TRANSMIT => {
                self.recorder.transmit.notifications.add(1);
                self.process_transmit();
            }
            _ => {}
        }
    }

    fn queue_states(&self) -> Vec<QueueState> {
        let queues = self.active.iter().flat_map(|active| &active.queues);
        queues.map(Virtqueue::state).collect()
    }

    fn watched_fds(&self) -> Vec<WatchedFd> {
        let watched = |descriptor, token, edge| WatchedFd {
            descriptor,
            token,
            edge,
        };
        vec![
            watched(self.setup.backend.descriptor(), READABLE, true),
            watched(self.writable.as_raw_fd(), WRITABLE, false),
            watched(self.setup.receive_limiter.as_raw_fd(), RECEIVE_TIMER, false),
            watched(self.setup.transmit_limiter.as_raw_fd(), TRANSMIT_TIMER, false),
            watched(self.backlog.as_raw_fd(), BACKLOG, false),
        ]
    }

    fn process_event(&mut self, token: u32) {
        match token {
            READABLE => {
                self.recorder.backend_events.add(1);
                self.receiver.set_readable();
                self.process_receive();
            }
            WRITABLE => self.flush(),
            RECEIVE_TIMER => {
                self.recorder.receive.limiter_events.add(1);
                self.setup.receive_limiter.clear_timer();
                self.process_receive();
            }
            TRANSMIT_TIMER => {
                self.recorder.transmit.limiter_events.add(1);
                self.setup.transmit_limiter.clear_timer();
                self.process_transmit();
            }
            BACKLOG => {
                // Fails if an earlier event has already cleared the counter.
                let _ = self.backlog.read();
                self.process_receive();
                self.process_transmit();
            }
            _ => {}
        }
    }
}

/// State of the network device in a snapshot. Address and MTU belong to its configuration, negotiated
/// features and queues to its transport, and the backend to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Received packet that waits for buffers or for the rate limiter, at most 65,566 bytes; empty for none.
    pub held: Vec<u8>,
    /// Rate limiter of the receive queue.
    pub receive_limiter: LimiterState,
    /// Rate limiter of the transmit queue.
    pub transmit_limiter: LimiterState,
}

impl Schema for NetState {
    const NAME: &'static str = "net";
    const VERSION: u32 = 1;
}

/// First frames of a [`Net`] that the driver has not received, in the [format](first_frames) of a file and with the addresses of the
/// guest: a section of its own, which a device without such frames does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstFramesState(pub Vec<u8>);

impl Schema for FirstFramesState {
    const NAME: &'static str = "net-first-frames";
    const VERSION: u32 = 1;
}

impl Component for Net {
    fn save_section(&self, key: &str, archive: &mut ArchiveWriter) -> Result<(), persist::Error> {
        let failed = |source| section_error(key, source);
        archive.write(key, &self.save()).map_err(failed)?;
        let frames = self.receiver.first_frames();
        if frames.is_empty() {
            return Ok(());
        }
        let state = FirstFramesState(frames.records().to_vec());
        archive.write(&first_frames_key(key), &state).map_err(failed)
    }

    fn restore_section(&mut self, key: &str, archive: &mut ArchiveReader<'_>) -> Result<(), persist::Error> {
        let failed = |source| section_error(key, source);
        let state = archive.read(key).map_err(failed)?;
        let frames = archive.read_optional(&first_frames_key(key)).map_err(failed)?;
        self.restore(state)?;
        frames.map_or(Ok(()), |frames| self.restore_first_frames(frames))
    }
}

fn first_frames_key(key: &str) -> String {
    format!("{key}/first-frames")
}

fn section_error(key: &str, source: section::Error) -> persist::Error {
    persist::Error::Section {
        key: key.to_owned(),
        source,
    }
}

impl Net {
    fn save(&self) -> NetState {
        // The refill up to now belongs to the guest; the time until the resume does not.
        let now = self.setup.clock.now();
        NetState {
            held: self.receiver.held().to_vec(),
            receive_limiter: self.receive_limiter().state_at(now),
            transmit_limiter: self.transmit_limiter().state_at(now),
        }
    }

    fn restore(&mut self, state: NetState) -> Result<(), persist::Error> {
        if state.held.len() > MAX_PACKET {
            return Err(persist::Error::Invalid {
                component: NetState::NAME,
                reason: format!(
                    "held packet of {} bytes exceeds {MAX_PACKET} bytes",
                    state.held.len()
                ),
            });
        }
        let now = self.setup.clock.now();
        for (limiter, state) in [
            (&mut self.setup.receive_limiter, state.receive_limiter),
            (&mut self.setup.transmit_limiter, state.transmit_limiter),
        ] {
            limiter.restore(state)?;
            limiter.fill(now);
        }
        self.receiver.hold(&state.held);
        Ok(())
    }

    fn restore_first_frames(&mut self, state: FirstFramesState) -> Result<(), persist::Error> {
        let frames = FirstFrames::parse(state.0).map_err(|error| persist::Error::Invalid {
            component: FirstFramesState::NAME,
            reason: format!("cannot use the frames: {error}"),
        })?;
        let excess = self.receiver.restore_first_frames(frames);
        if excess > 0 {
            self.recorder.receive.drops.add(excess as u64);
            warn!(
                "net: {excess} first frames are dropped: with those of the snapshot, they exceed {} frames or {} bytes",
                first_frames::MAX_FIRST_FRAMES,
                first_frames::MAX_FIRST_BYTES
            );
        }
        Ok(())
    }
}
