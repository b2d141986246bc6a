//! State files with changed content and a valid checksum, as an attacker writes them.

/// The state of a vCPU differs by architecture, and the tests that change it are about CPUID and MSRs.
#[cfg(target_arch = "x86_64")]
mod vcpu;

use std::path::Path;

use snapshot::{ArchiveReader, ArchiveWriter, Schema, file};
use vmm::arch::{Native, Platform};
use vmm::config::VmConfig;

#[cfg(target_arch = "x86_64")]
pub use vcpu::{VcpuState, change_vcpu, read_vcpu};

/// Section of the configuration.
const MACHINE: &str = "machine";

/// Changes the configuration in the state file at `path`.
pub fn change_config(path: &Path, change: impl FnOnce(&mut VmConfig)) {
    change_section(path, MACHINE, change);
}

/// Changes section `key` of the state file at `path`.
fn change_section<S: Schema>(path: &Path, key: &str, change: impl FnOnce(&mut S)) {
    let old = file::read(path, None).unwrap();
    assert_eq!(old.header().host.architecture, Native::ARCHITECTURE);
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
