//! CPUID: leaves of the guest, derived from those of the host, and identity of the host processor.
//!
//! References: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst for the
//! leaves from 0x4000_0000.

use std::arch::x86_64::__cpuid;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::feature_groups;
use crate::config::{CpuTopology, CpuidGroups};
use crate::kvm::{Error, failed};

const HYPERVISOR_BASE: u32 = 0x4000_0000;
/// Frequencies of TSC (EAX) and APIC bus (EBX) in kHz, a leaf that VMware defined and guests read under KVM too.
const TIMING: u32 = 0x4000_0010;
/// Leaves of the extended topology enumeration.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];
/// EBX of leaf 0: first four bytes of the vendor name.
const AMD: u32 = u32::from_le_bytes(*b"Auth");
const HYGON: u32 = u32::from_le_bytes(*b"Hygo");
/// KVM counts the local APIC timer in nanoseconds.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Features of KVM itself.
const FEATURES: u32 = 0x4000_0001;

const FEATURES_EAX_PV_UNHALT: u32 = 1 << 7;
const LEAF1_ECX_MONITOR: u32 = 1 << 3;
const LEAF1_ECX_OSXSAVE: u32 = 1 << 27;
const LEAF1_EDX_APIC: u32 = 1 << 9;
const LEAF7_ECX_OSPKE: u32 = 1 << 4;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;

/// CPUID entries common to all vCPUs.
pub struct Profile {
    entries: Vec<kvm_cpuid_entry2>,
    is_amd: bool,
}

impl Profile {
    /// Reads the CPUID entries that KVM supports on this host, without the features that have not been `requested`.
    ///
    /// # Errors
    /// [`Error::Call`]
    pub fn from_kvm(kvm: &Kvm, requested: CpuidGroups) -> Result<Self, Error> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        // KVM API, KVM_GET_SUPPORTED_CPUID: the TSC-deadline bit is always clear, since it needs an in-kernel local APIC.
        // KVM reports the timer by a capability.
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self::from_supported(
            supported.as_slice(),
            tsc_deadline,
            requested,
        ))
    }

    fn from_supported(supported: &[kvm_cpuid_entry2], tsc_deadline: bool, requested: CpuidGroups) -> Self {
        let mut entries = supported.to_vec();
        feature_groups::mask(&mut entries, requested);
        for entry in &mut entries {
            match entry.function {
                1 => {
                    entry.ecx |= LEAF1_ECX_HYPERVISOR;
                    if tsc_deadline {
                        entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
                    }
                }
                HYPERVISOR_BASE => entry.eax = TIMING,
                _ => {}
            }
        }
        // Since Linux 6.2 KVM reports only the first level of the topology, with all fields zero.
        let has = |leaf: &u32| supported.iter().any(|entry| entry.function == *leaf);
        let levels = TOPOLOGY.into_iter().filter(has).flat_map(|function| {
            let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
            [0, 1].map(|index| kvm_cpuid_entry2 {
                function,
                index,
                flags,
                ..Default::default()
            })
        });
        entries.retain(|entry| entry.function != TIMING && !TOPOLOGY.contains(&entry.function));
        entries.extend(levels);
        entries.push(kvm_cpuid_entry2 {
            function: TIMING,
            ebx: APIC_BUS_KHZ,
            ..Default::default()
        });
        let is_amd = supported
            .iter()
            .any(|entry| entry.function == 0 && [AMD, HYGON].contains(&entry.ebx));
        Self { entries, is_amd }
    }

    /// Returns the entries without those values that depend on the vCPU.
    pub fn entries(&self) -> &[kvm_cpuid_entry2] {
        &self.entries
    }

    /// Returns the entries of vCPU `id` of `topology`, with a time stamp counter of `tsc_khz` kHz.
    pub fn for_vcpu(&self, id: u8, topology: CpuTopology, tsc_khz: u32) -> CpuId {
        let mut entries = self.entries.clone();
        let topology = Topology {
            id: id.into(),
            count: topology.vcpus.into(),
            threads: topology.threads.into(),
            is_amd: self.is_amd,
        };
        for entry in &mut entries {
            if entry.function == TIMING {
                entry.eax = tsc_khz;
            }
            topology.apply(entry);
        }
        // At most three entries more than KVM reported: within the limit of the structure.
        CpuId::from_entries(&entries)
            .unwrap_or_else(|_| unreachable!("{} CPUID entries exceed the limit", entries.len()))
    }
}

/// Returns true if `one` and `other` differ only in values that KVM derives from registers of the vCPU, and updates when they change
/// (`kvm_update_cpuid_runtime` in arch/x86/kvm/cpuid.c).
pub fn has_same_features(one: &[kvm_cpuid_entry2], other: &[kvm_cpuid_entry2]) -> bool {
    let is_same = |(one, other): (&kvm_cpuid_entry2, &kvm_cpuid_entry2)| {
        without_runtime_values(*one) == without_runtime_values(*other)
    };
    one.len() == other.len() && one.iter().zip(other).all(is_same)
}

fn without_runtime_values(mut entry: kvm_cpuid_entry2) -> kvm_cpuid_entry2 {
    match (entry.function, entry.index) {
        (1, _) => {
            entry.ecx &= !(LEAF1_ECX_MONITOR | LEAF1_ECX_OSXSAVE);
            entry.edx &= !LEAF1_EDX_APIC;
        }
        (7, 0) => entry.ecx &= !LEAF7_ECX_OSPKE,
        // Size of the save area for the enabled components.
        (0xd, 0 | 1) => entry.ebx = 0,
        (FEATURES, _) => entry.eax &= !FEATURES_EAX_PV_UNHALT,
        _ => {}
    }
    entry
}

/// Topology of the guest: one package, and one or two vCPUs per core.
struct Topology {
    id: u32,
    count: u32,
    threads: u32,
    is_amd: bool,
}

impl Topology {
    /// Returns the number of APIC ID bits that distinguish vCPUs.
    fn id_bits(&self) -> u32 {
        u32::BITS - (self.count - 1).leading_zeros()
    }

    /// Returns the number of APIC ID bits that distinguish the threads of a core.
    fn thread_bits(&self) -> u32 {
        self.threads.ilog2()
    }

    fn apply(&self, entry: &mut kvm_cpuid_entry2) {
        match entry.function {
            1 => {
                entry.ebx = (entry.ebx & 0x0000_ffff) | (self.id << 24) | ((1 << self.id_bits()) << 16);
                entry.edx &= !LEAF1_EDX_HTT;
                if self.count > 1 {
                    entry.edx |= LEAF1_EDX_HTT;
                }
            }
            4 => self.apply_cache(entry, true),
            0x8000_001d => self.apply_cache(entry, false),
            0xb | 0x1f => self.apply_level(entry),
            // AMD: ApicIdSize and the number of threads minus one. Reserved on Intel.
            0x8000_0008 if self.is_amd => entry.ecx = (self.id_bits() << 12) | (self.count - 1),
            // Number of the core, and of its threads minus one.
            0x8000_001e => {
                let core = self.id >> self.thread_bits();
                (entry.eax, entry.ebx, entry.ecx) = (self.id, (self.threads - 1) << 8 | core, 0);
            }
            _ => {}
        }
    }

    /// Sets the sharing of a cache: cores share caches from level 3 on.
    fn apply_cache(&self, entry: &mut kvm_cpuid_entry2, intel: bool) {
        let level = (entry.eax >> 5) & 7;
        if entry.eax & 0x1f == 0 {
            return;
        }
        let last = (1 << self.id_bits()) - 1;
        let sharing = if level >= 3 { last } else { self.threads - 1 };
        entry.eax = (entry.eax & 0x0000_3fff) | (sharing << 14);
        if intel {
            entry.eax |= (last >> self.thread_bits()) << 26;
        }
    }

    fn apply_level(&self, entry: &mut kvm_cpuid_entry2) {
        const THREADS: u32 = 1 << 8;
        const CORES: u32 = 2 << 8;
        (entry.eax, entry.ebx, entry.ecx) = match entry.index {
            0 => (self.thread_bits(), self.threads, THREADS),
            _ => (self.id_bits(), self.count, CORES | entry.index),
        };
        entry.edx = self.id;
    }
}

/// Returns vendor, family and model of the host processor. A snapshot can move between two hosts only if the texts are equal.
/// Executes CPUID twice, which costs an exit each where this host is a virtual machine.
pub fn cpu_identity() -> String {
    let vendor = __cpuid(0);
    let name: Vec<u8> = [vendor.ebx, vendor.edx, vendor.ecx]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    let (family, model) = family_and_model(__cpuid(1).eax);
    let name = String::from_utf8_lossy(&name);
    format!("{name} family {family:#x} model {model:#x}")
}

/// Returns true if the processor has VMX or SVM. Without them, as in a virtual machine without nesting, KVM works by page tables (PVM).
/// Executes CPUID up to two times.
pub fn has_hardware_virtualization() -> bool {
    /// Leaf 1, ECX: Intel SDM volume 2A, CPUID.
    const VMX: u32 = 1 << 5;
    /// Leaf 0x8000_0001, ECX: AMD APM volume 3, appendix E.4.2.
    const SVM: u32 = 1 << 2;
    __cpuid(1).ecx & VMX != 0 || __cpuid(0x8000_0001).ecx & SVM != 0
}

/// Decodes EAX of leaf 1. The extended family applies to family 15, the extended model to families 6 and 15: Intel SDM
/// volume 2A, CPUID.
fn family_and_model(signature: u32) -> (u32, u32) {
    let field = |low: u32, bits: u32| signature >> low & ((1 << bits) - 1);
    let family = match field(8, 4) {
        15 => 15 + field(20, 8),
        family => family,
    };
    let model = match field(8, 4) {
        6 | 15 => field(16, 4) << 4 | field(4, 4),
        _ => field(4, 4),
    };
    (family, model)
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::{
        AMD, CpuTopology, CpuidGroups, HYPERVISOR_BASE, LEAF1_ECX_OSXSAVE, Profile, TIMING, cpu_identity,
        family_and_model, feature_groups, has_same_features,
    };
    use crate::arch::x86_64::feature_groups::tests::all_features;
    use crate::config::CpuidGroup;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn registers(profile: &Profile, id: u8, vcpus: u8, function: u32, index: u32) -> [u32; 4] {
        registers_of(profile, id, CpuTopology { vcpus, threads: 1 }, function, index)
    }

    fn registers_of(profile: &Profile, id: u8, topology: CpuTopology, function: u32, index: u32) -> [u32; 4] {
        let cpuid = profile.for_vcpu(id, topology, 2_500_000);
        let mut found = cpuid
            .as_slice()
            .iter()
            .filter(|e| (e.function, e.index) == (function, index));
        let entry = *found.next().unwrap();
        assert!(found.next().is_none(), "leaf {function:#x} is duplicated");
        [entry.eax, entry.ebx, entry.ecx, entry.edx]
    }

    fn profile() -> Profile {
        Profile::from_supported(
            &[
                entry(0, 0, [0xd, AMD, 0, 0]),
                entry(1, 0, [0x806f8, 0x0a10_0800, 0, 0]),
                entry(4, 0, [0xfc00_4121, 1, 2, 3]),
                entry(4, 3, [0xfc1f_c163, 1, 2, 3]),
                entry(4, 4, [0; 4]),
                entry(0xb, 0, [0; 4]),
                entry(
                    HYPERVISOR_BASE,
                    0,
                    [HYPERVISOR_BASE + 1, 0x4b4d_564b, 0x564b_4d56, 0x4d],
                ),
                entry(0x8000_0008, 0, [0x3030, 0, 0, 0]),
                entry(0x8000_001e, 0, [9, 9, 9, 0]),
            ],
            true,
            CpuidGroups::default(),
        )
    }

    #[test]
    fn guest_has_no_feature_unless_requested() {
        let supported = all_features();
        for requested in CpuidGroup::ALL.map(|group| [group].into_iter().collect()) {
            let profile = Profile::from_supported(&supported, false, requested);
            assert_eq!(feature_groups::present(profile.entries()), requested);
        }
        let profile = Profile::from_supported(&supported, false, CpuidGroups::default());
        let cpuid = profile.for_vcpu(0, CpuTopology { vcpus: 2, threads: 1 }, 1);
        assert!(feature_groups::present(cpuid.as_slice()).is_empty());
    }

    #[test]
    fn hardware_virtualization_is_that_of_cpuinfo() {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = text.lines().find(|line| line.starts_with("flags")).unwrap();
        let expected = flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"));
        assert_eq!(super::has_hardware_virtualization(), expected);
    }

    #[test]
    fn guest_leaves_report_hypervisor_and_timing() {
        let [_, ebx, ecx, edx] = registers(&profile(), 0, 1, 1, 0);
        assert_eq!((ebx, ecx, edx), (0x0001_0800, 1 << 31 | 1 << 24, 0));
        assert_eq!(registers(&profile(), 0, 1, HYPERVISOR_BASE, 0)[0], TIMING);
        assert_eq!(
            registers(&profile(), 0, 1, TIMING, 0),
            [2_500_000, 1_000_000, 0, 0]
        );
    }

    #[test]
    fn vcpus_are_cores_of_one_package() {
        let [_, ebx, _, edx] = registers(&profile(), 2, 3, 1, 0);
        assert_eq!((ebx, edx), (0x0204_0800, 1 << 28));
        assert_eq!(registers(&profile(), 2, 3, 0xb, 0), [0, 1, 0x100, 2]);
        assert_eq!(registers(&profile(), 2, 3, 0xb, 1), [2, 3, 0x201, 2]);
        assert_eq!(registers(&profile(), 2, 3, 0x8000_0008, 0)[2], 2 << 12 | 2);
        assert_eq!(registers(&profile(), 2, 3, 0x8000_001e, 0), [2, 2, 0, 0]);
    }

    #[test]
    fn threads_are_pairs_of_one_core() {
        let leaf = |id, vcpus, function, index| {
            registers_of(&profile(), id, CpuTopology { vcpus, threads: 2 }, function, index)
        };
        for (id, core) in [(0, 0), (1, 0), (2, 1), (5, 2)] {
            let [_, ebx, _, edx] = leaf(id, 6, 1, 0);
            let id = u32::from(id);
            assert_eq!((ebx, edx), (id << 24 | 0x0008_0800, 1 << 28));
            let id = u8::try_from(id).unwrap();
            assert_eq!(leaf(id, 6, 0xb, 0), [1, 2, 0x100, id.into()]);
            assert_eq!(leaf(id, 6, 0xb, 1), [3, 6, 0x201, id.into()]);
            assert_eq!(leaf(id, 6, 0x8000_001e, 0), [id.into(), 0x100 | core, 0, 0]);
        }
        assert_eq!(leaf(0, 6, 0x8000_0008, 0)[2], 3 << 12 | 5);
        // Two threads share a cache of level 1; 4 core IDs are addressable.
        assert_eq!(leaf(0, 6, 4, 0)[0], 0x0c00_4121);
        assert_eq!(leaf(0, 6, 4, 3)[0], 0x0c01_c163);
        assert_eq!(leaf(0, 2, 4, 3)[0], 0x0000_4163);
    }

    #[test]
    fn level_3_cache_is_shared() {
        assert_eq!(registers(&profile(), 0, 4, 4, 0)[0], 0x0c00_0121);
        assert_eq!(registers(&profile(), 0, 4, 4, 3)[0], 0x0c00_c163);
        assert_eq!(registers(&profile(), 0, 4, 4, 4)[0], 0);
        assert_eq!(registers(&profile(), 0, 1, 4, 3)[0], 0x0000_0163);
    }

    #[test]
    fn runtime_values_are_no_features() {
        let two = CpuTopology { vcpus: 2, threads: 1 };
        let set = profile().for_vcpu(0, two, 2_500_000).as_slice().to_vec();
        let mut saved = set.clone();
        for entry in &mut saved {
            match entry.function {
                1 => entry.ecx ^= LEAF1_ECX_OSXSAVE,
                0xd if entry.index == 0 => entry.ebx += 256,
                _ => {}
            }
        }
        assert!(has_same_features(&set, &saved));
        let other = profile().for_vcpu(1, two, 2_500_000);
        assert!(!has_same_features(&set, other.as_slice()));
        assert!(!has_same_features(&set, &set[1..]));
        saved[0].eax ^= 1;
        assert!(!has_same_features(&set, &saved));
    }

    #[test]
    fn signature_decodes_to_family_and_model() {
        assert_eq!(family_and_model(0x000c_06f2), (6, 0xcf));
        assert_eq!(family_and_model(0x00a2_0f12), (0x19, 0x21));
        assert_eq!(family_and_model(0x0000_0543), (5, 4));
    }

    #[test]
    fn host_identity_names_family() {
        let name = cpu_identity();
        assert!(name.contains(" family 0x"), "{name}");
    }
}
