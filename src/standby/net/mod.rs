//! Network of suspended instances: it holds their frames, answers for them, and finds the frame that wakes one.
//!
//! Two forms:
//!
//! - [`Sleeper`]: an instance has a tap of its own, which stays open while it sleeps. The frame that wakes it is read from the tap; all
//!   others wait there.
//! - [`Network`]: all instances of a network share a layer-3 TUN. It has no entry of the neighbor table for each address. An instance
//!   that wakes gets a tap from a pool, and a host route to it.
//!
//! | module | contents |
//! |---|---|
//! | [`frame`] | headers of frames and packets |
//! | [`rule`] | [`WakeRule`], decision about a frame |
//! | [`reply`] | frames in the place of a sleeper |
//! | [`first_frames`] | frames for an instance before it reads its tap |
//! | [`tap`] | [`Sleeper`] |
//! | [`table`] | addresses of a network |
//! | [`route`] | routes and neighbors by netlink |
//! | `stale` | routes that another process has left |
//! | [`tun`] | [`Network`] |
//! | `sys` | system calls |

pub mod first_frames;
pub mod frame;
pub mod reply;
pub mod route;
pub mod rule;
mod stale;
mod sys;
pub mod table;
pub mod tap;
#[cfg(test)]
mod tests;
pub mod tun;

pub use first_frames::FirstFrames;
pub use rule::{Addresses, WakeRule};
pub use tap::Sleeper;
pub use tun::{Assigned, Network, NetworkSetup, Wake};
