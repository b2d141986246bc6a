//! x86_64: a machine with local APICs, IOAPIC, PIC and PIT, started in protected or long mode.
//!
//! | module | holds |
//! |---|---|
//! | [`cpuid`], [`msr`] | what the processor looks like |
//! | [`entry`] | the registers, descriptors and page tables that a guest starts with |
//! | [`handoff`] | what a guest finds in memory when it starts |
//! | [`irqchip`] | the interrupt controllers other than the local APICs |
//! | [`layout`] | physical addresses and interrupt lines |
//! | [`platform`] | [`X86_64`], the machine put together |

pub mod cpuid;
pub mod entry;
pub mod handoff;
pub mod irqchip;
pub mod layout;
pub mod msr;
pub mod platform;

pub use platform::X86_64;
