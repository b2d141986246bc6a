//! ACPI tables: hardware-reduced, so that there are no event registers, no SCI and no timer to model.
//!
//! | module | holds |
//! |---|---|
//! | [`dsdt`] | serial port, virtio-mmio devices, and the sleep state to power off by |
//! | [`fadt`] | how the machine is powered off and reset |
//! | [`madt`] | local APICs and IOAPIC |
//! | [`tables`] | all of them one after the other, found through RSDP and XSDT |

pub mod dsdt;
pub mod fadt;
pub mod madt;
pub mod tables;

pub use tables::{CAPACITY, build};
