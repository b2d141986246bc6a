//! State of a vCPU of x86_64.

use std::path::Path;

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use serde::{Deserialize, Serialize};
use snapshot::{Schema, file};

use super::change_section;

/// State of a vCPU, with the fields of `vmm/src/arch/x86_64/vcpu_state/mod.rs`.
#[derive(Serialize, Deserialize)]
pub struct VcpuState {
    tsc_khz: u32,
    pub cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    registers: kvm_regs,
    sregs: (kvm_sregs, Option<[u64; 4]>),
    xsave: (Box<kvm_xsave>, Vec<u32>),
    xcrs: kvm_xcrs,
    debug_registers: kvm_debugregs,
    lapic: Box<kvm_lapic_state>,
    /// Index and value.
    pub msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
}

impl Schema for VcpuState {
    const NAME: &'static str = "x86_64-vcpu";
    const VERSION: u32 = 1;
}

/// Returns the state of vCPU `id` in the state file at `path`.
pub fn read_vcpu(path: &Path, id: u8) -> VcpuState {
    let state = file::read(path, None).unwrap();
    state.reader().unwrap().read(&format!("vcpu/{id}")).unwrap()
}

/// Changes the state of vCPU `id` in the state file at `path`.
pub fn change_vcpu(path: &Path, id: u8, change: impl FnOnce(&mut VcpuState)) {
    change_section(path, &format!("vcpu/{id}"), change);
}
