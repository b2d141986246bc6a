//! From a configuration to a machine, and from a machine to a running guest.
//!
//! | module | holds |
//! |---|---|
//! | [`arch`] | all that differs between x86_64 and aarch64, behind one trait |
//! | [`boot`] | image formats and boot protocols: what is loaded where, and where the guest starts |
//! | [`memory`] | the memory of the guest, and files in it |

pub mod arch;
pub mod boot;
pub mod memory;

pub use snapshot::GuestMemory;
