//! Models of the devices that a guest sees. No KVM in here: a device knows its registers, its [`Interrupt`] and its
//! back end.
//!
//! | module | holds |
//! |---|---|
//! | [`bus`] | [`Bus`]: which device claims an address |
//! | [`interrupt`] | [`Interrupt`]: the wire from a device to the interrupt controller |
//! | [`power`] | [`Power`]: how a guest says that it has ended |
//!
//! Locks: every device is behind one mutex, taken by [`Bus`] for one access. A device may take the lock of the
//! interrupt controller while it holds its own, never the lock of another device.
//!
//! Threat model: offsets, lengths and data of every access come from the guest and are untrusted. No access may panic,
//! block, or allocate by the guest's say-so.

pub mod bus;
pub mod clock;
pub mod interrupt;
pub mod ioapic;
pub mod irqchip;
pub mod pic;
pub mod pit;
pub mod power;
mod sync;
#[cfg(test)]
mod testing;
pub mod window;

pub use bus::{Bus, BusBuilder, BusDevice};
pub use clock::{Clock, MonotonicClock, WallClock};
pub use interrupt::Interrupt;
pub use irqchip::{ExternalInterrupt, SplitIrqchip};
pub use pit::Pit;
pub use power::{Power, PowerEvent};
pub use sync::lock;
pub use window::Window;
