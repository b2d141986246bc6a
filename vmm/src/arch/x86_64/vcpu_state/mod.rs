//! State of one vCPU: save from KVM and restore to KVM.
//!
//! | module | contents |
//! |---|---|
//! | `core_state` | state for an ELF core |
//! | `error` | errors of the vCPU state |
//! | `lapic_timer` | timer of the local APIC |
//! | `msrs` | model-specific registers |
//! | `sregs` | control, segment and page-directory-pointer registers |
//! | `tsc` | offset of the time stamp counter |
//! | `xsave` | FPU and vector registers |
//!
//! A state from a snapshot is untrusted. KVM checks values; this module checks lengths before it allocates memory for them.
//!
//! The state of nested virtualisation is not saved: a guest must not be saved while it runs guests of its own.

mod core_state;
mod error;
mod lapic_timer;
pub(super) mod msrs;
mod sregs;
#[cfg(test)]
mod tests;
mod tsc;
mod xsave;

use std::time::Duration;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs,
    kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use snapshot::Schema;
use snapshot::persist::Error;

use super::cpuid::{self, Profile};
use super::feature_groups;
use super::limits::{self, Excess};
use super::native_limits::{is_recent, native_limits, read_cpuid};
use crate::arch::{CpuCheck, CpuRestore};
use crate::config::CpuidGroups;
use error::{COMPONENT, invalid, kernel_error, unsupported};
use sregs::SregsState;
use xsave::XsaveState;

/// Maximum relative difference of two time stamp counter frequencies that count as equal, in parts per million: the default
/// of KVM's parameter `tsc_tolerance_ppm`.
const TSC_TOLERANCE_PPM: u64 = 250;

/// Reads of a vCPU whose timer expires during the read. A timer that expires in each of them loses one expiration.
const MAX_READS: usize = 8;

/// State of one vCPU. Large parts are on the heap, because the stacks of vCPU threads are small.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// Frequency of the time stamp counter in the guest.
    tsc_khz: u32,
    /// CPUID of the guest, including the APIC ID of the vCPU.
    cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    registers: kvm_regs,
    sregs: SregsState,
    xsave: XsaveState,
    xcrs: kvm_xcrs,
    debug_registers: kvm_debugregs,
    lapic: Box<kvm_lapic_state>,
    /// Index and value, in the order of the restore.
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
}

impl Schema for VcpuState {
    const NAME: &'static str = COMPONENT;
    const VERSION: u32 = 1;
}

impl VcpuState {
    /// Reads the state of `vcpu`, which is outside the guest and has completed its last exit.
    ///
    /// An expired count-down timer of the local APIC is pending work in KVM until `flush_pending` turns it into an interrupt.
    /// If the timer expires between that call and the read, the read is repeated. An expired one-shot timer is saved disarmed.
    ///
    /// # Errors
    /// [`Error::Kernel`]
    pub fn save(
        vcpu: &mut VcpuFd,
        kvm: &Kvm,
        mut flush_pending: impl FnMut(&mut VcpuFd),
    ) -> Result<Self, Error> {
        let mut attempt = 0;
        loop {
            let before = vcpu.get_lapic().map_err(kernel_error("KVM_GET_LAPIC"))?;
            lapic_timer::wait_for_expiry(&before);
            flush_pending(vcpu);
            let mut state = Self::read(vcpu, kvm)?;
            attempt += 1;
            if !lapic_timer::has_expired(&before, &state.lapic) || attempt == MAX_READS {
                lapic_timer::disarm_expired(&mut state.lapic);
                return Ok(state);
            }
        }
    }

    fn read(vcpu: &VcpuFd, kvm: &Kvm) -> Result<Self, Error> {
        // First: KVM_GET_MP_STATE processes a pending INIT or start-up IPI, which changes all other state.
        let mp_state = vcpu.get_mp_state().map_err(kernel_error("KVM_GET_MP_STATE"))?;
        let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.map_err(kernel_error("KVM_GET_CPUID2"))?.as_slice().to_vec();
        let registers = vcpu.get_regs().map_err(kernel_error("KVM_GET_REGS"))?;
        let sregs = SregsState::save(vcpu, kvm)?;
        let xsave = XsaveState::save(vcpu, kvm)?;
        let xcrs = vcpu.get_xcrs().map_err(kernel_error("KVM_GET_XCRS"))?;
        let debug_registers = vcpu.get_debug_regs().map_err(kernel_error("KVM_GET_DEBUGREGS"))?;
        // Before the local APIC: where the host posts timer interrupts to the APIC directly, an expiration between the two
        // calls is then saved as deadline and as pending interrupt. In the other order it is lost.
        let msrs = msrs::save(vcpu, kvm, feature_groups::present(&cpuid))?;
        let lapic = vcpu.get_lapic().map_err(kernel_error("KVM_GET_LAPIC"))?;
        Ok(Self {
            tsc_khz: vcpu.get_tsc_khz().map_err(kernel_error("KVM_GET_TSC_KHZ"))?,
            cpuid,
            mp_state,
            registers,
            sregs,
            xsave,
            xcrs,
            debug_registers,
            lapic: Box::new(lapic),
            msrs,
            // Last: the calls before must not leave an exception or a non-maskable interrupt pending.
            events: vcpu
                .get_vcpu_events()
                .map_err(kernel_error("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Restores this state to `vcpu`, whose CPUID is `features` if it was configured; its other state does not matter. `profile` returns the
    /// features that KVM supports.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Unsupported`] and [`Error::Kernel`]; the vCPU must not run afterwards.
    pub fn restore<'p>(
        &mut self,
        vcpu: &VcpuFd,
        kvm: &Kvm,
        features: Option<&CpuId>,
        profile: impl FnOnce() -> Result<&'p Profile, Error>,
        CpuRestore { check, advance }: CpuRestore,
    ) -> Result<(), Error> {
        let mask = check == CpuCheck::Mask;
        self.check()?;
        // First: CPUID defines the valid bits of CR4, XCR0, MSRs and local APIC.
        let (mut names, groups) = match features {
            // Within the limits of this host. The vCPU has not run yet; afterwards KVM accepts no other CPUID.
            Some(cpuid) if cpuid::has_same_features(cpuid.as_slice(), &self.cpuid) => {
                (Vec::new(), feature_groups::present(&self.cpuid))
            }
            _ => self.restore_cpuid(vcpu, kvm, profile, check)?,
        };
        msrs::drop_unused(&mut self.msrs, groups);
        let known = msrs::list(kvm, groups).map_err(kernel_error("KVM_GET_MSR_INDEX_LIST"))?;
        names.extend(limits::limit_msrs(&known, &mut self.msrs, mask));
        handle_excess(&names, mask)?;
        // Before the TSC and the deadline, which KVM converts with the frequency.
        self.restore_frequency(vcpu, kvm)?;
        // Before the local APIC, because sregs contain the APIC base; before the events, because KVM_SET_SREGS clears
        // pending exceptions.
        self.sregs.restore(vcpu, kvm)?;
        vcpu.set_regs(&self.registers)
            .map_err(kernel_error("KVM_SET_REGS"))?;
        // A processor without XSAVE has no XCRs, and KVM rejects the call there.
        if self.xcrs.nr_xcrs > 0 {
            vcpu.set_xcrs(&self.xcrs).map_err(kernel_error("KVM_SET_XCRS"))?;
        }
        self.xsave.restore(vcpu, kvm)?;
        vcpu.set_debug_regs(&self.debug_registers)
            .map_err(kernel_error("KVM_SET_DEBUGREGS"))?;
        // Before the MSRs: KVM ignores IA32_TSC_DEADLINE unless the timer is in TSC-deadline mode.
        vcpu.set_lapic(&self.lapic)
            .map_err(kernel_error("KVM_SET_LAPIC"))?;
        self.restore_msrs(vcpu, mask, advance)?;
        // After the special registers, which can change the state to runnable.
        vcpu.set_mp_state(self.mp_state)
            .map_err(kernel_error("KVM_SET_MP_STATE"))?;
        // Last: setting registers and local APIC discards events to be injected.
        vcpu.set_vcpu_events(&self.events)
            .map_err(kernel_error("KVM_SET_VCPU_EVENTS"))
    }

    /// Sets the model-specific registers, and advances the time stamp counter.
    fn restore_msrs(&self, vcpu: &VcpuFd, mask: bool, advance: Duration) -> Result<(), Error> {
        if advance.is_zero() {
            return msrs::restore(vcpu, &self.msrs, mask);
        }
        // KVM compares the deadline with the counter when it is set: a deadline that has passed meanwhile expires once.
        let (others, deadline) = self.msrs.split_at(msrs::deadline_position(&self.msrs));
        msrs::restore(vcpu, others, mask)?;
        tsc::advance(vcpu, self.tsc_khz, advance)?;
        msrs::restore(vcpu, deadline, mask)
    }

    /// Checks lengths and the frequency.
    fn check(&self) -> Result<(), Error> {
        if self.cpuid.is_empty() || self.cpuid.len() > KVM_MAX_CPUID_ENTRIES {
            return Err(invalid(format!(
                "{} CPUID entries are outside the range 1 to {KVM_MAX_CPUID_ENTRIES}",
                self.cpuid.len()
            )));
        }
        if self.tsc_khz == 0 {
            return Err(invalid("time stamp counter frequency is 0".into()));
        }
        msrs::check(&self.msrs)
    }

    /// Sets the CPUID of `vcpu`, without features beyond the limits of this host. Returns their names, and the groups of the vCPU.
    fn restore_cpuid<'p>(
        &self,
        vcpu: &VcpuFd,
        kvm: &Kvm,
        profile: impl FnOnce() -> Result<&'p Profile, Error>,
        check: CpuCheck,
    ) -> Result<(Vec<String>, CpuidGroups), Error> {
        if check == CpuCheck::Quick {
            let limits = native_limits(&self.cpuid, read_cpuid, &|| is_recent(kvm));
            let (names, groups) = self.set_cpuid(vcpu, &limits)?;
            if names.is_empty() {
                return Ok((names, groups));
            }
        }
        self.set_cpuid(vcpu, profile()?.entries())
    }

    /// Sets the CPUID of `vcpu`, without features beyond those of `host`. Returns their names, except for features that KVM sets
    /// itself, and the groups of the vCPU.
    fn set_cpuid(
        &self,
        vcpu: &VcpuFd,
        host: &[kvm_cpuid_entry2],
    ) -> Result<(Vec<String>, CpuidGroups), Error> {
        let mut found = limits::find_excess(host, &self.cpuid);
        let mut cpuid = CpuId::from_entries(&self.cpuid).map_err(|_| {
            invalid(format!(
                "{} CPUID entries exceed {KVM_MAX_CPUID_ENTRIES}",
                self.cpuid.len()
            ))
        })?;
        found
            .iter()
            .for_each(|excess| excess.remove_from(cpuid.as_mut_slice()));
        vcpu.set_cpuid2(&cpuid).map_err(kernel_error("KVM_SET_CPUID2"))?;
        if !found.is_empty() {
            let set = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES);
            let set = set.map_err(kernel_error("KVM_GET_CPUID2"))?;
            found.retain_mut(|excess| excess.drop_imposed(set.as_slice()));
            cpuid = set;
        }
        let names = found.iter().flat_map(Excess::names).collect();
        Ok((names, feature_groups::present(cpuid.as_slice())))
    }

    /// Sets the frequency of the time stamp counter, unless the host has the same.
    fn restore_frequency(&self, vcpu: &VcpuFd, kvm: &Kvm) -> Result<(), Error> {
        let host_khz = vcpu.get_tsc_khz().map_err(kernel_error("KVM_GET_TSC_KHZ"))?;
        if host_khz == self.tsc_khz {
            return Ok(());
        }
        // Without hardware scaling KVM accepts a higher frequency too, but corrects the counter at exits only: it runs slow
        // and jumps.
        if !is_within_tolerance(self.tsc_khz, host_khz) && !kvm.check_extension(Cap::TscControl) {
            return Err(invalid(format!(
                "time stamp counter frequency {} kHz differs from {host_khz} kHz of this host, whose processor cannot scale it; load \
                 the snapshot on a host with the same frequency",
                self.tsc_khz
            )));
        }
        vcpu.set_tsc_khz(self.tsc_khz)
            .map_err(kernel_error("KVM_SET_TSC_KHZ"))
    }
}

/// Handles values with `names` that this host does not support, which were removed.
///
/// # Errors
/// [`Error::Unsupported`], unless there are none or `mask` is set.
fn handle_excess(names: &[String], mask: bool) -> Result<(), Error> {
    if names.is_empty() {
        return Ok(());
    }
    let names = limits::join(names);
    if mask {
        log::warn!("the guest loses features of its processor: {names}");
        return Ok(());
    }
    Err(unsupported(format!(
        "KVM does not support {names}; load the snapshot on a host that does, or remove them"
    )))
}

/// Returns true if the frequencies differ by at most [`TSC_TOLERANCE_PPM`].
fn is_within_tolerance(saved_khz: u32, host_khz: u32) -> bool {
    u64::from(saved_khz.abs_diff(host_khz)) * 1_000_000 <= u64::from(host_khz) * TSC_TOLERANCE_PPM
}
