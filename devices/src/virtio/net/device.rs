//! The device: its configuration space, its life, and who is served when.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use log::warn;
use snapshot::GuestMemory;
use virtio_bindings::bindings::virtio_net::VIRTIO_NET_S_LINK_UP;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::{Backend, Link};
use super::error::Error;
use super::features::{BASE, MTU, OFFLOADS, STATUS};
use super::metrics::NetMetrics;
use super::rx::Receiver;
use super::turn::{Batch, BatchEnd};
use super::tx::Transmitter;
use super::writable::Writable;
use super::{ETHERNET, MAX_FRAME};
use crate::clock::Clock;
use crate::limiter::Limiter;
use crate::virtio::queue::Virtqueue;
use crate::virtio::{Activation, VirtioDevice, VirtioInterrupt, WatchedFd};

/// Index of the receive queue.
pub(super) const RECEIVE: usize = 0;
/// Index of the transmit queue.
pub(super) const TRANSMIT: usize = 1;

const QUEUE_SIZES: [u16; 2] = [256; 2];

/// The back end may have packets.
const READABLE: u32 = 0;
/// The back end takes packets again.
const WRITABLE: u32 = 1;
/// The rate limiter of the receive queue lets packets pass again.
const RECEIVE_TIMER: u32 = 2;
/// The rate limiter of the transmit queue lets packets pass again.
const TRANSMIT_TIMER: u32 = 3;
/// A turn has left work.
const AGAIN: u32 = 4;

/// What a network device is made from.
pub struct NetSetup {
    /// Address of the driver's interface.
    pub mac: [u8; 6],
    /// MTU that the driver is told, 68 to 65,535; none for the driver's own choice.
    pub mtu: Option<u16>,
    /// The host's side.
    pub backend: Box<dyn Backend>,
    /// Limits what goes to the guest.
    pub receive_limiter: Limiter,
    /// Limits what comes from the guest.
    pub transmit_limiter: Limiter,
    /// The limiters' clock.
    pub clock: Box<dyn Clock>,
}

/// What the device has between activation and reset.
struct Active {
    features: u64,
    /// Bytes of the longest frame for the driver that is not to be cut up.
    longest: usize,
    rings: [Virtqueue; 2],
    memory: GuestMemory,
    signal: Arc<VirtioInterrupt>,
}

/// The network device.
pub struct Net {
    pub(super) setup: NetSetup,
    receiver: Receiver,
    transmitter: Transmitter,
    writable: Writable,
    again: EventFd,
    /// The transmit queue waits for the back end to be writable.
    stalled: bool,
    /// Link status as the driver knows it.
    link: bool,
    /// The log has been told of the driver's faults, or of the back end's at a reset; once is enough, as the driver may
    /// do it again without end.
    complained: bool,
    metrics: NetMetrics,
    active: Option<Active>,
}

impl Net {
    /// A device that is not activated.
    ///
    /// # Errors
    /// The kernel's answer when it has no more descriptors.
    pub fn new(setup: NetSetup) -> io::Result<Self> {
        Ok(Self {
            stalled: false,
            link: setup.backend.link() == Link::Up,
            complained: false,
            setup,
            receiver: Receiver::new(),
            transmitter: Transmitter::default(),
            writable: Writable::new()?,
            again: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            metrics: NetMetrics::default(),
            active: None,
        })
    }

    /// What has passed and what was dropped.
    pub fn metrics(&self) -> NetMetrics {
        self.metrics
    }

    /// Link status: whether there is a network behind it.
    pub fn link(&self) -> bool {
        self.link
    }

    /// What its back end is, in a few words for a person: `tap tap0`, `stream /run/net.socket`, `passt`.
    pub fn describe(&self) -> String {
        self.setup.backend.describe()
    }

    /// Limits what goes to the guest.
    pub fn receive_limiter(&self) -> &Limiter {
        &self.setup.receive_limiter
    }

    /// As [`receive_limiter`](Self::receive_limiter), to be changed while the device runs.
    pub fn receive_limiter_mut(&mut self) -> &mut Limiter {
        &mut self.setup.receive_limiter
    }

    /// Limits what comes from the guest.
    pub fn transmit_limiter(&self) -> &Limiter {
        &self.setup.transmit_limiter
    }

    /// As [`transmit_limiter`](Self::transmit_limiter), to be changed while the device runs.
    pub fn transmit_limiter_mut(&mut self) -> &mut Limiter {
        &mut self.setup.transmit_limiter
    }

    pub(super) fn receiver(&self) -> &Receiver {
        &self.receiver
    }

    pub(super) fn receiver_mut(&mut self) -> &mut Receiver {
        &mut self.receiver
    }

    /// Has the event loop serve both queues.
    fn wake(&self) {
        // Fails only when the counter is about to overflow, and then the loop is awake.
        let _ = self.again.write(1);
    }

    fn serve_receive(&mut self) {
        let idle = !self.receiver.has_work() || self.setup.receive_limiter.is_throttled();
        if !idle {
            self.serve(RECEIVE);
        }
    }

    fn serve_transmit(&mut self) {
        if !self.setup.transmit_limiter.is_throttled() && !self.stalled {
            self.serve(TRANSMIT);
        }
    }

    /// One turn of `queue`, and at most one interrupt for it.
    fn serve(&mut self, queue: usize) {
        let Some(active) = self
            .active
            .as_mut()
            .filter(|active| !active.signal.is_reset_needed())
        else {
            return;
        };
        let Some(ring) = active.rings.get_mut(queue) else {
            return;
        };
        let (limiter, counters) = match queue {
            RECEIVE => (&mut self.setup.receive_limiter, &mut self.metrics.receive),
            _ => (&mut self.setup.transmit_limiter, &mut self.metrics.transmit),
        };
        let mut turn = Batch {
            features: active.features,
            longest: active.longest,
            memory: &active.memory,
            ring,
            backend: self.setup.backend.as_mut(),
            limiter,
            clock: self.setup.clock.as_ref(),
            counters,
        };
        let ended = match queue {
            RECEIVE => self.receiver.process(&mut turn),
            _ => self.transmitter.process(&mut turn),
        };
        // What was used before something went wrong is the driver's all the same.
        match turn.ring.needs_notification(turn.memory) {
            Ok(true) => active.signal.notify_used(),
            Ok(false) => {}
            Err(error) => return self.stop(&Error::Queue(error)),
        }
        match ended {
            Ok(ended) => self.go_on(ended),
            Err(error) => self.stop(&error),
        }
    }

    fn go_on(&mut self, ended: BatchEnd) {
        match ended {
            BatchEnd::Idle | BatchEnd::Throttled => {}
            BatchEnd::Exhausted => self.wake(),
            BatchEnd::Full => self.stall(),
        }
        self.look_at_link();
    }

    fn stall(&mut self) {
        self.stalled = true;
        self.watch_writable();
    }

    fn watch_writable(&mut self) {
        if let Err(error) = self.writable.watch(self.setup.backend.descriptor()) {
            let name = self.setup.backend.describe();
            warn!("net: cannot wait for {name}, so that the guest sends no more: {error}");
        }
    }

    fn look_at_link(&mut self) {
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
            active.signal.notify_config();
        }
    }

    /// The driver has broken a rule.
    fn stop(&mut self, error: &Error) {
        let Some(active) = &self.active else { return };
        if std::mem::replace(&mut self.complained, true) {
            return active.signal.set_needs_reset();
        }
        let cause = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
        warn!("net: stopped until the guest resets it: {error}{cause}");
        active.signal.set_needs_reset();
    }

    fn flush(&mut self) {
        self.writable.take();
        self.stalled = false;
        match self.setup.backend.flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stall(),
            Ok(()) | Err(_) => self.serve_transmit(),
        }
        self.look_at_link();
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

    /// `struct virtio_net_config` of section 5.1.4 up to the MTU. One pair of queues is what it says even to a driver
    /// that reads this without having negotiated more.
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
            warn!("net: activated without both queues");
            return activation.signal.set_needs_reset();
        };
        let features = activation.features;
        let longest = match self.setup.mtu {
            Some(mtu) if features & MTU != 0 => ETHERNET + usize::from(mtu),
            _ => MAX_FRAME,
        };
        // Also when it cannot be served: the transport asks where its queues are.
        let active = self.active.insert(Active {
            features,
            longest,
            rings: [Virtqueue::new(receive), Virtqueue::new(transmit)],
            memory: activation.memory,
            signal: activation.signal,
        });
        if let Err(error) = self.setup.backend.use_features(features) {
            if !std::mem::replace(&mut self.complained, true) {
                let name = self.setup.backend.describe();
                warn!("net: {name} does not take the features {features:#x}: {error}");
            }
            return active.signal.set_needs_reset();
        }
        // What has come while nobody took it makes no source ready again, and a driver need not kick.
        self.receiver.set_readable();
        self.wake();
    }

    fn reset(&mut self) {
        self.active = None;
        self.receiver.hold(&[]);
        self.transmitter = Transmitter::default();
        let cleared = self.setup.backend.use_features(0);
        if let Some(error) = cleared.err().filter(|_| !self.complained) {
            self.complained = true;
            let name = self.setup.backend.describe();
            warn!("net: {name} does not go back to no features: {error}");
        }
    }

    fn notify(&mut self, queue: usize) {
        match queue {
            RECEIVE => self.serve_receive(),
            TRANSMIT => self.serve_transmit(),
            _ => {}
        }
    }

    fn queue_states(&self) -> Vec<QueueState> {
        let rings = self.active.iter().flat_map(|active| &active.rings);
        rings.map(Virtqueue::state).collect()
    }

    fn watched_fds(&self) -> Vec<WatchedFd> {
        let source = |descriptor, token, edge| WatchedFd {
            descriptor,
            token,
            edge,
        };
        vec![
            source(self.setup.backend.descriptor(), READABLE, true),
            source(self.writable.as_raw_fd(), WRITABLE, false),
            source(self.setup.receive_limiter.as_raw_fd(), RECEIVE_TIMER, false),
            source(self.setup.transmit_limiter.as_raw_fd(), TRANSMIT_TIMER, false),
            source(self.again.as_raw_fd(), AGAIN, false),
        ]
    }

    fn process_event(&mut self, token: u32) {
        match token {
            READABLE => {
                self.receiver.set_readable();
                self.serve_receive();
            }
            WRITABLE => self.flush(),
            RECEIVE_TIMER => {
                self.setup.receive_limiter.clear_timer();
                self.serve_receive();
            }
            TRANSMIT_TIMER => {
                self.setup.transmit_limiter.clear_timer();
                self.serve_transmit();
            }
            AGAIN => {
                // Fails when another turn has taken the news already.
                let _ = self.again.read();
                self.serve_receive();
                self.serve_transmit();
            }
            _ => {}
        }
    }
}
