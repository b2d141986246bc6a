//! Device models of a virtual machine.
//!
//! No model depends on KVM: it depends on its registers, an [`Interrupt`] and a backend.
//!
//! | module | contents |
//! |---|---|
//! | [`bus`] | [`Bus`]: dispatch of an access to the device that claims the address |
//! | [`civil_time`] | [`CivilTime`](civil_time::CivilTime): date and time of day in UTC |
//! | [`clock`] | [`Clock`]: time source of a device |
//! | [`cmos`] | [`Cmos`]: date, time and memory size |
//! | [`counter`] | [`Counter`]: number that any thread reads without a lock |
//! | [`histogram`] | [`Histogram`]: distribution of durations |
//! | [`i8042`] | [`I8042`]: keyboard controller, reset |
//! | [`interrupt`] | [`Interrupt`]: interrupt line of a device |
//! | [`ioapic`] | the IOAPIC |
//! | [`irqchip`] | [`SplitIrqchip`]: 8259As and IOAPIC with their interrupt lines |
//! | [`latency`] | [`Latency`]: sampled durations |
//! | [`limiter`] | [`Limiter`]: rate limiter of a device |
//! | [`medium`] | [`Medium`]: storage behind the page cache |
//! | [`pic`] | the pair of 8259As |
//! | [`pit`] | [`Pit`]: interval timer |
//! | [`power`] | [`Power`]: request of the guest for power-off, reset or exit; the ports for it |
//! | [`rtc`] | [`Rtc`]: real-time clock PL031 |
//! | [`serial`] | [`Serial`]: serial port and its output buffer |
//! | [`sync`] | types that threads share, of std or loom |
//! | [`thread_role`] | [`ThreadRole`]: role of a thread, which restricts its rights |
//! | [`virtio`] | virtio devices and their transport |
//!
//! Locks: one mutex guards each device. [`Bus`] holds it for one access. A device may take the lock of the interrupt
//! controller while it holds its own, never the lock of another device. An [`OffsetDevice`] takes the lock of its
//! device. Metrics are [counters](Counter): the device writes them under its lock, other threads read them without.
//!
//! Threat model: the guest controls offset, length and data of every access. No access may panic, block, or allocate
//! an amount of memory that the guest chooses.

pub mod bus;
pub mod civil_time;
pub mod clock;
pub mod counter;
pub mod histogram;
pub mod interrupt;
pub mod latency;
mod legacy;
pub mod limiter;
pub mod medium;
pub mod sync;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod thread_role;
pub mod virtio;

pub use legacy::{cmos, i8042, ioapic, irqchip, pic, pit, power, rtc, serial};

pub use bus::{Bus, BusBuilder, BusDevice, OffsetDevice};
pub use clock::{Clock, MonotonicClock, WallClock};
pub use cmos::Cmos;
pub use counter::Counter;
pub use histogram::Histogram;
pub use i8042::I8042;
pub use interrupt::Interrupt;
pub use irqchip::{ExternalInterrupt, SplitIrqchip};
pub use latency::{Latency, LatencyRecorder};
pub use limiter::{Bucket, Limiter};
pub use medium::Medium;
pub use pit::Pit;
pub use power::{ExitPort, Power, PowerEvent, PowerOffPort, SleepPort};
pub use rtc::Rtc;
pub use serial::Serial;
pub use sync::lock;
pub use thread_role::ThreadRole;
