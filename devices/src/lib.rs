//! Models of the devices that a guest sees. No KVM in here: a device knows its registers, its [`Interrupt`] and its
//! back end.
//!
//! | module | holds |
//! |---|---|
//! | [`bus`] | [`Bus`]: which device claims an address |
//! | [`clock`] | [`Clock`]: where a device has its time from |
//! | [`cmos`] | [`Cmos`]: date, time and memory size |
//! | [`histogram`] | [`Histogram`]: how long things took |
//! | [`i8042`] | [`I8042`]: keyboard controller, reset |
//! | [`interrupt`] | [`Interrupt`]: the wire from a device to the interrupt controller |
//! | [`ioapic`] | the IOAPIC |
//! | [`irqchip`] | [`SplitIrqchip`]: 8259As and IOAPIC with their wiring |
//! | [`limiter`] | [`Limiter`]: how much a device may do in a time |
//! | [`pic`] | the pair of 8259As |
//! | [`pit`] | [`Pit`]: interval timer |
//! | [`power`] | [`Power`]: how a guest says that it has ended |
//! | [`power_ports`] | [`PowerOffPort`], [`SleepPort`], [`ExitPort`] |
//! | [`virtio`] | virtio devices and their transport |
//! | [`window`] | [`OffsetDevice`]: further address ranges of one device |
//! | [`serial`] | [`Serial`]: the serial port, and the buffer behind it |
//!
//! Locks: every device is behind one mutex, taken by [`Bus`] for one access. A device may take the lock of the
//! interrupt controller while it holds its own, never the lock of another device. A [`OffsetDevice`] takes that of its device.
//!
//! Threat model: offsets, lengths and data of every access come from the guest and are untrusted. No access may panic,
//! block, or allocate by the guest's say-so.

pub mod bus;
pub mod clock;
pub mod cmos;
pub mod histogram;
pub mod i8042;
pub mod interrupt;
pub mod ioapic;
pub mod irqchip;
pub mod limiter;
pub mod pic;
pub mod pit;
pub mod power;
pub mod power_ports;
pub mod serial;
mod sync;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod virtio;
pub mod window;

pub use bus::{Bus, BusBuilder, BusDevice};
pub use clock::{Clock, MonotonicClock, WallClock};
pub use cmos::Cmos;
pub use histogram::Histogram;
pub use i8042::I8042;
pub use interrupt::Interrupt;
pub use irqchip::{ExternalInterrupt, SplitIrqchip};
pub use limiter::{Bucket, Limiter};
pub use pit::Pit;
pub use power::{Power, PowerEvent};
pub use power_ports::{ExitPort, PowerOffPort, SleepPort};
pub use serial::Serial;
pub use sync::lock;
pub use window::OffsetDevice;
