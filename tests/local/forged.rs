//! State files with changed content and a valid checksum, as an attacker writes them.

use std::path::Path;

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use serde::{Deserialize, Serialize};
use snapshot::file::{self, Architecture};
use snapshot::{ArchiveReader, ArchiveWriter, Schema};
use vmm::config::VmConfig;

/// Section of the configuration.
const MACHINE: &str = "machine";

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

/// Changes the configuration in the state file at `path`.
pub fn change_config(path: &Path, change: impl FnOnce(&mut VmConfig)) {
    change_section(path, MACHINE, change);
}

/// Changes section `key` of the state file at `path`.
fn change_section<S: Schema>(path: &Path, key: &str, change: impl FnOnce(&mut S)) {
    let old = file::read(path, None).unwrap();
    assert_eq!(old.header().host.architecture, Architecture::X86_64);
    let (mut sections, mut change) = (Vec::new(), Some(change));
    for section in split_sections(old.sections()) {
        let mut reader = ArchiveReader::parse(section).unwrap();
        match reader.read::<S>(key) {
            Ok(mut state) => {
                // A key exists once.
                change.take().unwrap()(&mut state);
                let mut writer = ArchiveWriter::new();
                writer.write(key, &state).unwrap();
                sections.extend(writer.into_bytes());
            }
            Err(_) => sections.extend_from_slice(section),
        }
    }
    assert!(
        sections != old.sections(),
        "section {key} is missing or unchanged"
    );
    file::write_bytes(path, old.header(), &sections).unwrap();
}

/// Splits an archive into its sections. Each has a key, the name of a schema, 4 bytes, and a payload, with their lengths before them.
fn split_sections(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut sections = Vec::new();
    while !bytes.is_empty() {
        let short = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let name = 2 + short(0);
        let length = name + 2 + short(name) + 4;
        let payload = u32::from_le_bytes(bytes[length..length + 4].try_into().unwrap());
        let (section, rest) = bytes.split_at(length + 4 + usize::try_from(payload).unwrap());
        sections.push(section);
        bytes = rest;
    }
    sections
}
