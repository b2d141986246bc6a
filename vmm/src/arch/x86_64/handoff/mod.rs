//! What a guest finds in memory when it starts.
//!
//! | module | holds |
//! |---|---|
//! | [`acpi`] | ACPI tables: hardware-reduced, no PCI |
//! | [`boot_params`] | the 64-bit Linux protocol |
//! | [`e820`] | the memory map, one for all protocols |
//! | [`mptable`] | the MP table and the BIOS data that leads to it |
//! | [`multiboot`] | multiboot 1 |
//! | [`pvh`] | PVH |
//! | [`write`](mod@write) | [`write()`], which puts all of it into the guest's memory |
//!
//! Every table is built in the monitor's memory and written at once: a guest page costs over a microsecond when it is
//! first touched, so that few of them are.

pub mod acpi;
pub mod boot_params;
pub mod e820;
mod fields;
pub mod mptable;
pub mod multiboot;
pub mod pvh;
pub mod write;

pub use write::{Error, Tables, write};

pub use crate::arch::MmioDeviceInfo;

#[cfg(test)]
mod tests;
