//! Models of the devices that a machine has besides virtio.
//!
//! The crate root re-exports the modules.
//!
//! | module | contents |
//! |---|---|
//! | [`cmos`] | [`Cmos`](cmos::Cmos): date, time and memory size |
//! | [`i8042`] | [`I8042`](i8042::I8042): keyboard controller with keyboard, reset |
//! | [`ioapic`] | [`Ioapic`](ioapic::Ioapic): the IOAPIC |
//! | [`irqchip`] | [`SplitIrqchip`](irqchip::SplitIrqchip): 8259As and IOAPIC with their interrupt lines |
//! | [`pic`] | [`Pic`](pic::Pic): the pair of 8259As |
//! | [`pit`] | [`Pit`](pit::Pit): interval timer |
//! | [`power`] | [`Power`](power::Power) and the ports that request power-off, reset or exit |
//! | [`rtc`] | [`Rtc`](rtc::Rtc): real-time clock PL031 |
//! | [`serial`] | [`Serial`](serial::Serial): serial port and its output |

pub mod cmos;
pub mod i8042;
pub mod ioapic;
pub mod irqchip;
pub mod pic;
pub mod pit;
pub mod power;
pub mod rtc;
pub mod serial;
