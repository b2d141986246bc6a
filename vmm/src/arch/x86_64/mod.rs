//! x86_64: machine with local APICs, IOAPIC, PIC and PIT, entered in protected or long mode.
//!
//! | module | contents |
//! |---|---|
//! | [`boot_data`] | boot parameters, start info, ACPI and MP tables |
//! | `call` | call instructions |
//! | [`clock`] | kvmclock in a snapshot |
//! | [`cpuid`], [`msr`] | features and model-specific registers of the vCPUs |
//! | [`debug`] | registers, breakpoints and probe of a debugger |
//! | [`entry`] | registers, descriptors and page tables at the first instruction |
//! | `feature_groups` | features that a guest gets by request alone |
//! | [`irqchip`] | interrupt controllers other than the local APICs |
//! | [`layout`] | physical addresses and interrupt lines |
//! | `limits` | CPUID entries and MSRs in a snapshot that this host does not support |
//! | `native_limits` | limits by the processor, which need no query of KVM |
//! | `ports` | exits for accesses to I/O ports |
//! | [`paging`] | translation of addresses |
//! | [`platform`] | [`X86_64`], the platform |
//! | `settings` | settings of a snapshot that precede the vCPUs |
//! | [`vcpu_state`] | state of vCPUs in a snapshot |

pub mod boot_data;
mod call;
pub mod clock;
pub mod cpuid;
pub mod debug;
pub mod entry;
mod feature_groups;
pub mod irqchip;
pub mod layout;
mod limits;
pub mod msr;
mod native_limits;
pub mod paging;
pub mod platform;
mod ports;
#[cfg(test)]
mod saved_format;
mod settings;
pub mod vcpu_state;

pub use platform::X86_64;
