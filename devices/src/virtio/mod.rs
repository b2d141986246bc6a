//! Virtio devices, version 1.2 of the specification, on the MMIO transport.
//!
//! | module | contents |
//! |---|---|
//! | [`block`] | [`Block`]: block device |
//! | [`device`] | [`VirtioDevice`]: interface of a device to its transport; [`Activation`] |
//! | [`interrupt`] | [`VirtioInterrupt`]: interrupt of a device and its cause |
//! | [`mmio`] | [`Transport`](mmio::Transport): MMIO transport |
//! | [`net`] | network device |
//! | [`queue`] | [`Virtqueue`](queue::Virtqueue); [`Chain`](queue::chain::Chain): checked descriptor chain |
//! | [`status`] | [`DriverState`]: device status and negotiated features, by name |
//! | `testing` | driver without a guest, with the feature `testing` |

pub mod block;
pub mod device;
pub mod interrupt;
pub mod metrics;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod status;
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::unwrap_used, reason = "a failure is a fault of the test")]
pub mod testing;

#[cfg(test)]
mod tests;

pub use block::Block;
pub use device::{Activation, VirtioDevice, WatchedFd};
pub use interrupt::VirtioInterrupt;
pub use metrics::{TransportMetrics, TransportRecorder};
pub use status::{DriverState, StatusBit};
