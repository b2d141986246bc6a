//! A device that echoes device-readable buffers into device-writable ones.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{QueueState, QueueT};

use crate::sync::lock;
use crate::virtio::device::{Activation, VirtioDevice, WatchedFd};
use crate::virtio::interrupt::VirtioInterrupt;
use crate::virtio::queue::Virtqueue;
use crate::virtio::queue::chain::{Chain, ChainLimits};
use snapshot::GuestMemory;

pub const ID: u32 = 0x7f;
pub const SIZES: [u16; 2] = [16, 4];
/// Feature of the device type, not of the transport.
pub const FEATURE: u64 = 1 << 5;
pub const OFFERED: u64 = FEATURE | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Maximum number of chains for one notification. A queue whose rings overlap its buffers may never become empty.
const MAX_CHAINS: usize = 256;

/// Observations of the device for the test.
#[derive(Default)]
pub struct Seen {
    pub activations: AtomicU32,
    pub resets: AtomicU32,
    pub notifications: AtomicU32,
    pub features: AtomicU64,
    pub tokens: Mutex<Vec<u32>>,
    pub config_space: Mutex<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EchoState {
    pub echoed: u32,
}

impl Schema for EchoState {
    const NAME: &'static str = "echo";
    const VERSION: u32 = 1;
}

pub struct Echo {
    pub seen: Arc<Seen>,
    active: Option<Active>,
    echoed: u32,
}

struct Active {
    queues: Vec<Virtqueue>,
    memory: GuestMemory,
    interrupt: Arc<VirtioInterrupt>,
}

impl Echo {
    pub fn new(seen: Arc<Seen>) -> Self {
        Self {
            seen,
            active: None,
            echoed: 0,
        }
    }

    /// Processes available chains. Returns `None` if one is malformed.
    fn process(&mut self, queue: usize) -> Option<()> {
        let Active {
            queues,
            memory,
            interrupt,
        } = self.active.as_mut()?;
        let queue = &mut queues[queue];
        let memory: &GuestMemory = memory;
        let before = self.echoed;
        let mut chain = Chain::default();
        for _ in 0..MAX_CHAINS {
            let Some(descriptors) = queue.pop_chain(memory).ok()? else {
                break;
            };
            chain.refill(descriptors, memory, ChainLimits::WIDEST).ok()?;
            let length = chain.readable.len().min(chain.writable.len()).min(0x1_0000);
            let mut data = vec![0; usize::try_from(length).unwrap()];
            chain.readable.read_exact(0, &mut data).ok()?;
            chain.writable.write_all(0, &data).ok()?;
            let used = (chain.head, u32::try_from(length).unwrap());
            queue.add_used(memory, &[used]).ok()?;
            self.echoed += 1;
        }
        queue.enable_notification(memory).ok()?;
        if self.echoed != before && queue.needs_notification(memory).ok()? {
            interrupt.notify_used();
        }
        Some(())
    }
}

impl VirtioDevice for Echo {
    fn device_id(&self) -> u32 {
        ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn features(&self) -> u64 {
        OFFERED
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config_space = lock(&self.seen.config_space);
        for (offset, byte) in (offset..).zip(data) {
            let offset = usize::try_from(offset).unwrap();
            *byte = config_space.get(offset).copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) {
        assert!(self.active.is_none(), "activated twice");
        assert!(
            activation
                .queues
                .iter()
                .all(|queue| queue.is_valid(&activation.memory))
        );
        self.seen.activations.fetch_add(1, Ordering::SeqCst);
        self.seen.features.store(activation.features, Ordering::SeqCst);
        self.active = Some(Active {
            queues: activation.queues.into_iter().map(Virtqueue::new).collect(),
            memory: activation.memory,
            interrupt: activation.interrupt,
        });
    }

    fn reset(&mut self) {
        assert!(self.active.take().is_some(), "reset without activation");
        self.echoed = 0;
        self.seen.resets.fetch_add(1, Ordering::SeqCst);
    }

    fn notify(&mut self, queue: usize) {
        self.seen.notifications.fetch_add(1, Ordering::SeqCst);
        if self.process(queue).is_none() {
            self.active.as_ref().unwrap().interrupt.set_needs_reset();
        }
    }

    fn queue_states(&self) -> Vec<QueueState> {
        let queues = self.active.iter().flat_map(|active| &active.queues);
        queues.map(Virtqueue::state).collect()
    }

    fn watched_fds(&self) -> Vec<WatchedFd> {
        vec![WatchedFd {
            descriptor: 0,
            token: 3,
            edge: true,
        }]
    }

    fn process_event(&mut self, token: u32) {
        lock(&self.seen.tokens).push(token);
    }
}

impl Persist for Echo {
    type State = EchoState;

    fn save(&self) -> Result<EchoState, Error> {
        Ok(EchoState { echoed: self.echoed })
    }

    fn restore(&mut self, state: EchoState) -> Result<(), Error> {
        self.echoed = state.echoed;
        Ok(())
    }
}
