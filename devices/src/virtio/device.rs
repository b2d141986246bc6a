//! Interface between a virtio device and its transport.

use std::os::fd::RawFd;
use std::sync::Arc;

use snapshot::{Component, GuestMemory};
use virtio_queue::{Queue, QueueState};

use super::interrupt::VirtioInterrupt;

/// Resources that a device receives, and owns until its reset, when its driver sets DRIVER_OK.
pub struct Activation {
    /// Negotiated features, VERSION_1 included.
    pub features: u64,
    /// Ready queues, validated against guest memory, in the order of [`VirtioDevice::queue_sizes`].
    pub queues: Vec<Queue>,
    /// Guest memory.
    pub memory: GuestMemory,
    /// Interrupt of the device.
    pub interrupt: Arc<VirtioInterrupt>,
}

/// File descriptor that the event loop or the I/O thread watches for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedFd {
    /// Descriptor. It stays the same during the life of the device.
    pub descriptor: RawFd,
    /// Argument for [`VirtioDevice::process_event`].
    pub token: u32,
    /// Edge-triggered instead of level-triggered: for a descriptor that stays readable while the driver supplies no
    /// buffers, such as a tap.
    pub edge: bool,
}

/// A device behind a transport.
///
/// The transport negotiates and validates everything before `activate`. The device owns its queues from `activate` to
/// `reset`. The caller holds the lock of the transport during every call, on a vCPU thread, on the event loop, or on the I/O
/// thread of a VM with a fault handler.
///
/// No method waits for the guest, for a network peer or for a disk. A write of a block device may wait for page cache.
///
/// On a malformed chain, the device stops its queues and calls [`VirtioInterrupt::set_needs_reset`]. A malformed
/// chain is never an error of the VMM.
///
/// As a [`Component`], a device saves the effects of its driver's requests and the state of its backend. The
/// transport saves features, status and queues. No request is in flight while state is saved. If the saved device was
/// active, `activate` precedes the restore; otherwise the device is inactive.
pub trait VirtioDevice: Component + Send {
    /// Returns the device ID, virtio 1.2 §5.
    fn device_id(&self) -> u32;

    /// Returns the maximum size of each queue.
    fn queue_sizes(&self) -> &[u16];

    /// Returns the offered features without VERSION_1; the transport adds it.
    fn features(&self) -> u64;

    /// Fills `data` from the configuration space at `offset`. Bytes beyond its end read as zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Starts the device, after the driver has set DRIVER_OK.
    fn activate(&mut self, activation: Activation);

    /// Stops the device and drops its activation. Abandons requests in flight; nothing accesses guest memory afterwards.
    fn reset(&mut self);

    /// Handles an available buffer notification for `queue`.
    fn notify(&mut self, queue: usize);

    /// Returns the current state of each queue; empty if the device is inactive.
    fn queue_states(&self) -> Vec<QueueState>;

    /// Returns the descriptors that the event loop watches during the life of the device.
    fn watched_fds(&self) -> Vec<WatchedFd>;

    /// Handles readiness of the descriptor with `token`. The device may be inactive.
    fn process_event(&mut self, token: u32);
}
