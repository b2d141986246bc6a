//! Virtio devices, version 1.2 of the specification, on the memory-mapped transport.
//!
//! | module | holds |
//! |---|---|
//! | [`chain`] | [`Chain`](chain::Chain): a descriptor chain as checked pieces of guest memory |
//! | [`device`] | [`VirtioDevice`]: what a device is to its transport; [`Activation`], what it gets from it |
//! | [`net`] | the network device |
//! | [`signal`] | [`Signal`]: how a device tells its driver that something has happened |

pub mod chain;
pub mod device;
pub mod net;
pub mod signal;

pub use device::{Activation, Source, VirtioDevice};
pub use signal::Signal;
