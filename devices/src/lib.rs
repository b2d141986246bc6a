//! Models of the devices that a guest sees. No KVM in here: a device knows its registers, its [`Interrupt`] and its
//! back end.
//!
//! | module | holds |
//! |---|---|
//! | [`bus`] | [`Bus`]: which device claims an address |
//! | [`interrupt`] | [`Interrupt`]: the wire from a device to the interrupt controller |
//! | [`power`] | [`Power`]: how a guest says that it has ended |
//! | [`serial`] | [`Serial`]: the serial port, and the buffer behind it |
//!
//! Locks: every device is behind one mutex, taken by [`Bus`] for one access. A device may take the lock of the
//! interrupt controller while it holds its own, never the lock of another device.
//!
//! Threat model: offsets, lengths and data of every access come from the guest and are untrusted. No access may panic,
//! block, or allocate by the guest's say-so.

pub mod bus;
pub mod interrupt;
pub mod power;
pub mod serial;
mod sync;

pub use bus::{Bus, BusBuilder, BusDevice};
pub use interrupt::Interrupt;
pub use power::{Power, PowerEvent};
pub use serial::Serial;
pub use sync::lock;
