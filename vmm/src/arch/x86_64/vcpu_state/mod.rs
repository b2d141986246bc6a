//! All that a vCPU has of its own, in and out of KVM.
//!
//! | module | holds |
//! |---|---|
//! | `extended` | FPU and vector registers |
//! | `msrs` | model-specific registers |
//! | `special` | control, segment and page-directory-pointer registers |
//! | `timer` | the local APIC's timer |
//!
//! What comes out of a snapshot is untrusted. KVM checks the values; what it does not check are lengths, which are bounded
//! here before anything is made by their say-so.
//!
//! Nested virtualisation has no place in it: a guest that runs guests of its own must not be saved while one of them runs.

mod extended;
mod msrs;
mod special;
#[cfg(test)]
mod tests;
mod timer;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs,
    kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use snapshot::Schema;
use snapshot::persist::Error;

use crate::kvm::cause;
use extended::ExtendedState;
use special::SpecialRegisters;

/// How far two time stamp counters may be apart and still count as of the same frequency, in parts of a million: KVM's own
/// tolerance.
const TSC_TOLERANCE_PPM: u64 = 250;

/// How often a vCPU is read whose timer expires meanwhile. One that expires all the time loses one expiration.
const ATTEMPTS: usize = 8;

/// State of one vCPU. What is large is on the heap: the stacks of vCPUs' threads are small.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// Frequency of the time stamp counter as the guest knows it.
    tsc_khz: u32,
    /// CPUID as the guest sees it, its own APIC id included.
    cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    registers: kvm_regs,
    special: SpecialRegisters,
    extended: ExtendedState,
    xcrs: kvm_xcrs,
    debug_registers: kvm_debugregs,
    lapic: Box<kvm_lapic_state>,
    /// Index and value, in the order in which they are to be set.
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
}

impl Schema for VcpuState {
    const NAME: &'static str = "x86_64-vcpu";
    const VERSION: u32 = 1;
}

fn invalid(reason: String) -> Error {
    Error::Invalid {
        component: VcpuState::NAME,
        reason,
    }
}

fn refused(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |error| Error::Kernel {
        component: VcpuState::NAME,
        operation,
        source: cause(error),
    }
}

impl VcpuState {
    /// Reads the state of `vcpu`, which is not in the guest and has completed its last exit.
    ///
    /// A local APIC's timer that counts down, once or periodically, and has expired is known to KVM alone until `settle` makes
    /// an interrupt of it. If it expires between that and the reading, all is done again. One that has expired for good is not
    /// to begin again with the state.
    ///
    /// # Errors
    /// [`Error::Kernel`]
    pub fn save(vcpu: &mut VcpuFd, kvm: &Kvm, mut settle: impl FnMut(&mut VcpuFd)) -> Result<Self, Error> {
        let mut attempt = 0;
        loop {
            let before = vcpu.get_lapic().map_err(refused("KVM_GET_LAPIC"))?;
            timer::wait_for_expiry(&before);
            settle(vcpu);
            let mut state = Self::read(vcpu, kvm)?;
            attempt += 1;
            if !timer::has_expired(&before, &state.lapic) || attempt == ATTEMPTS {
                timer::disarm_expired(&mut state.lapic);
                return Ok(state);
            }
        }
    }

    fn read(vcpu: &VcpuFd, kvm: &Kvm) -> Result<Self, Error> {
        // First: KVM takes an INIT or a start-up IPI that waits when it is asked, which changes everything else.
        let mp_state = vcpu.get_mp_state().map_err(refused("KVM_GET_MP_STATE"))?;
        let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.map_err(refused("KVM_GET_CPUID2"))?.as_slice().to_vec();
        let registers = vcpu.get_regs().map_err(refused("KVM_GET_REGS"))?;
        let special = SpecialRegisters::save(vcpu, kvm)?;
        let extended = ExtendedState::save(vcpu, kvm)?;
        let xcrs = vcpu.get_xcrs().map_err(refused("KVM_GET_XCRS"))?;
        let debug_registers = vcpu.get_debug_regs().map_err(refused("KVM_GET_DEBUGREGS"))?;
        // Before the local APIC: on hosts where an expiring timer reaches the APIC without the vCPU's help, one that expires
        // between the two calls shows as a deadline and as a pending interrupt, where the other way round it would be lost.
        let msrs = msrs::save(vcpu, kvm)?;
        let lapic = vcpu.get_lapic().map_err(refused("KVM_GET_LAPIC"))?;
        Ok(Self {
            tsc_khz: vcpu.get_tsc_khz().map_err(refused("KVM_GET_TSC_KHZ"))?,
            cpuid,
            mp_state,
            registers,
            special,
            extended,
            xcrs,
            debug_registers,
            lapic: Box::new(lapic),
            msrs,
            // Last, as none of the calls before may leave an exception or a non-maskable interrupt behind.
            events: vcpu.get_vcpu_events().map_err(refused("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Gives `vcpu` this state, whatever it was before.
    ///
    /// # Errors
    /// [`Error::Invalid`] and [`Error::Kernel`]; the vCPU must not be run then.
    pub fn restore(&self, vcpu: &VcpuFd, kvm: &Kvm) -> Result<(), Error> {
        self.check()?;
        let cpuid = CpuId::from_entries(&self.cpuid)
            .map_err(|_| invalid(format!("{} CPUID entries", self.cpuid.len())))?;
        // First: which bits of CR4, XCR0, the MSRs and the local APIC exist follows from it.
        vcpu.set_cpuid2(&cpuid).map_err(refused("KVM_SET_CPUID2"))?;
        // Before the counter itself and the deadline, which are counted in it.
        self.restore_frequency(vcpu, kvm)?;
        // Before the local APIC, since the APIC base is among them; and it cancels exceptions, which come with the events.
        self.special.restore(vcpu, kvm)?;
        vcpu.set_regs(&self.registers).map_err(refused("KVM_SET_REGS"))?;
        // A processor without XSAVE has none, and does not take them either.
        if self.xcrs.nr_xcrs > 0 {
            vcpu.set_xcrs(&self.xcrs).map_err(refused("KVM_SET_XCRS"))?;
        }
        self.extended.restore(vcpu, kvm)?;
        vcpu.set_debug_regs(&self.debug_registers)
            .map_err(refused("KVM_SET_DEBUGREGS"))?;
        // Before the MSRs: the deadline is taken only by a local APIC whose timer is in the mode for it.
        vcpu.set_lapic(&self.lapic).map_err(refused("KVM_SET_LAPIC"))?;
        msrs::restore(vcpu, &self.msrs)?;
        // After the special registers, which can make a vCPU runnable that is not.
        vcpu.set_mp_state(self.mp_state)
            .map_err(refused("KVM_SET_MP_STATE"))?;
        // Last, since registers and local APIC forget what is about to be injected.
        vcpu.set_vcpu_events(&self.events)
            .map_err(refused("KVM_SET_VCPU_EVENTS"))
    }

    /// Bounds what would otherwise be copied or looped over without end.
    fn check(&self) -> Result<(), Error> {
        if self.cpuid.is_empty() || self.cpuid.len() > KVM_MAX_CPUID_ENTRIES {
            return Err(invalid(format!(
                "{} CPUID entries, where 1 to {KVM_MAX_CPUID_ENTRIES} can be",
                self.cpuid.len()
            )));
        }
        if self.tsc_khz == 0 {
            return Err(invalid("a time stamp counter that stands still".into()));
        }
        msrs::check(&self.msrs)
    }

    /// Has the counter run as the guest knows it.
    fn restore_frequency(&self, vcpu: &VcpuFd, kvm: &Kvm) -> Result<(), Error> {
        let own = vcpu.get_tsc_khz().map_err(refused("KVM_GET_TSC_KHZ"))?;
        if own == self.tsc_khz {
            return Ok(());
        }
        // Without scaling KVM takes a higher frequency too, and then sets the counter right at each exit: it would run
        // slow and jump.
        if !is_near(self.tsc_khz, own) && !kvm.check_extension(Cap::TscControl) {
            return Err(invalid(format!(
                "its time stamp counter runs at {} kHz, this host's runs at {own} kHz, and the processor cannot scale it: \
                 restore it on a host with the same frequency",
                self.tsc_khz
            )));
        }
        vcpu.set_tsc_khz(self.tsc_khz).map_err(refused("KVM_SET_TSC_KHZ"))
    }
}

/// Whether no guest can tell `saved` and `own` apart by their clocks' drift.
fn is_near(saved: u32, own: u32) -> bool {
    u64::from(saved.abs_diff(own)) * 1_000_000 <= u64::from(own) * TSC_TOLERANCE_PPM
}
