//! What a device is to its transport.

use std::os::fd::RawFd;
use std::sync::Arc;

use snapshot::{Component, GuestMemory};
use virtio_queue::{Queue, QueueState};

use super::interrupt::VirtioInterrupt;

/// What a device gets when its driver sets DRIVER_OK: all of it moves in, so that nothing is there before.
pub struct Activation {
    /// Features that were offered and accepted, VERSION_1 included.
    pub features: u64,
    /// The queues, ready, checked against the memory, in the order of [`VirtioDevice::queue_sizes`].
    pub queues: Vec<Queue>,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// How the driver is told.
    pub signal: Arc<VirtioInterrupt>,
}

/// Something that the event loop watches for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedFd {
    /// The descriptor; it stays the same as long as the device lives.
    pub descriptor: RawFd,
    /// What [`VirtioDevice::process_event`] is told.
    pub token: u32,
    /// Whether readiness is told once when it begins, as for a tap that nobody can read from while the driver has no
    /// buffers, and not as long as it lasts.
    pub edge: bool,
}

/// A device behind a transport.
///
/// The transport has negotiated and checked everything before `activate`; between `activate` and `reset` the device owns
/// its queues. All methods are called with the lock of the transport held, on a vCPU's thread or on that of the event
/// loop. None of them waits for the guest or for a peer on the network; a drive waits for its disk, when it serves requests
/// one after the other and when it is reset with requests in flight. A malformed chain makes the device stop its queues and call [`VirtioInterrupt::needs_reset`]; it
/// never is an error for the VMM.
///
/// A device is a [`Component`]: it keeps what its driver has brought about by its requests, and what its back end needs
/// to go on. Its transport keeps the rest: features, status and queues. State is saved with no request in flight; it is
/// restored after `activate` when the saved device was activated, into a device that is not activated otherwise.
pub trait VirtioDevice: Component + Send {
    /// Device ID, section 5 of the specification.
    fn device_id(&self) -> u32;

    /// The largest size of each queue.
    fn queue_sizes(&self) -> &[u16];

    /// Features that are offered, VERSION_1 excluded, which the transport adds.
    fn features(&self) -> u64;

    /// Fills `data` from the configuration space. What is beyond its end reads as zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver has set DRIVER_OK.
    fn activate(&mut self, activation: Activation);

    /// The driver has reset the device: what was activated is dropped, requests in flight are waited for or forgotten such
    /// that nothing touches guest memory any more.
    fn reset(&mut self);

    /// The driver has put something into `queue`.
    fn notify(&mut self, queue: usize);

    /// The queues as they are, in their order. Empty when the device is not activated.
    fn queue_states(&self) -> Vec<QueueState>;

    /// What the event loop is to watch from the beginning to the end of the device.
    fn watched_fds(&self) -> Vec<WatchedFd>;

    /// The source of `token` is ready. Also called when the device is not activated.
    fn process_event(&mut self, token: u32);
}
