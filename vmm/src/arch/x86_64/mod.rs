//! x86_64: a machine with local APICs, IOAPIC, PIC and PIT, started in protected or long mode.
//!
//! | module | holds |
//! |---|---|
//! | [`cpuid`], [`msr`] | what the processor looks like |
//! | [`clock`] | kvmclock in a snapshot |
//! | [`entry`] | the registers, descriptors and page tables that a guest starts with |
//! | [`handoff`] | what a guest finds in memory when it starts |
//! | [`irqchip`] | the interrupt controllers other than the local APICs |
//! | [`kernel_irqchip`] | the same in a snapshot, when they are in the kernel |
//! | [`layout`] | physical addresses and interrupt lines |
//! | [`platform`] | [`X86_64`], the machine put together |
//! | [`vcpu_state`] | vCPUs in a snapshot |

pub mod clock;
pub mod cpuid;
pub mod entry;
pub mod handoff;
pub mod irqchip;
pub mod kernel_irqchip;
pub mod layout;
pub mod msr;
pub mod platform;
mod processor;
pub mod vcpu_state;

pub use platform::X86_64;
