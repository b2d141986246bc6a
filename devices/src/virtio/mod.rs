//! Virtio devices, version 1.2 of the specification, on the memory-mapped transport.
//!
//! | module | holds |
//! |---|---|
//! | [`block`] | [`Block`]: a disk |
//! | [`chain`] | [`Chain`](chain::Chain): a descriptor chain as checked pieces of guest memory |
//! | [`device`] | [`VirtioDevice`]: what a device is to its transport; [`Activation`], what it gets from it |
//! | [`mmio`] | [`Transport`](mmio::Transport): the registers, and who may do what when |
//! | [`net`] | the network device |
//! | [`signal`] | [`VirtioInterrupt`]: how a device tells its driver that something has happened |
//! | [`split`] | [`Split`](split::Split): a queue at work |
//! | `testing` | with the feature `testing`: a driver without a guest |

pub mod block;
pub mod chain;
pub mod device;
pub mod mmio;
pub mod net;
pub mod signal;
pub mod split;
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::unwrap_used, reason = "for tests, which a failure fails")]
pub mod testing;

pub use block::Block;
pub use device::{Activation, VirtioDevice, WatchedFd};
pub use signal::VirtioInterrupt;
