//! Abilities of KVM on this host.

use crate::arch::{DebugAbilities, DebugCpu, Native, Platform};
use crate::kvm;

/// Probes the means of debugging of this host by a VM of its own. Takes some milliseconds.
///
/// # Errors
/// [`kvm::Error`]
pub fn probe() -> Result<DebugAbilities, kvm::Error> {
    let kvm = kvm::open(Native::CAPABILITIES)?;
    <Native as Platform>::Cpu::probe(&kvm)
}
