//! What the guest learns from the CPUID instruction: the host's answers, with what a VM must see changed.
//!
//! References: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst for the
//! leaves from 0x4000_0000.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::kvm::{Error, failed};

const HYPERVISOR_BASE: u32 = 0x4000_0000;
const TIMING: u32 = 0x4000_0010;
/// Leaves with the levels of the processor's topology.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];
/// EBX of leaf 0: the beginning of the vendor's name.
const AMD: u32 = u32::from_le_bytes(*b"Auth");
const HYGON: u32 = u32::from_le_bytes(*b"Hygo");
const APIC_BUS_KHZ: u32 = 1_000_000;

const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;

/// CPUID entries without what differs between vCPUs.
pub struct Profile {
    entries: Vec<kvm_cpuid_entry2>,
    is_amd: bool,
}

impl Profile {
    /// Asks KVM what this host can offer.
    ///
    /// # Errors
    /// [`Error::Call`]
    pub fn of_host(kvm: &Kvm) -> Result<Self, Error> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        // KVM never reports the TSC-deadline timer there, because an old monitor would pass it on without a local APIC.
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self::from_supported(supported.as_slice(), tsc_deadline))
    }

    fn from_supported(supported: &[kvm_cpuid_entry2], tsc_deadline: bool) -> Self {
        let mut entries = supported.to_vec();
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
        // KVM since Linux 6.2 reports the first level of the topology only, and that one empty.
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

    /// The entries for vCPU `id` of `count`, with a time stamp counter of `tsc_khz` kHz.
    pub fn for_vcpu(&self, id: u8, count: u8, tsc_khz: u32) -> CpuId {
        let mut entries = self.entries.clone();
        let topology = Topology {
            id: id.into(),
            count: count.into(),
            is_amd: self.is_amd,
        };
        for entry in &mut entries {
            if entry.function == TIMING {
                entry.eax = tsc_khz;
            }
            topology.apply(entry);
        }
        // No more entries than KVM itself reported and one: within the limit of the structure.
        CpuId::from_entries(&entries).unwrap_or_else(|_| unreachable!("{} CPUID entries", entries.len()))
    }
}

/// One package, one core a vCPU, one thread a core.
struct Topology {
    id: u32,
    count: u32,
    is_amd: bool,
}

impl Topology {
    /// Bits of an APIC id that tell vCPUs apart.
    fn id_bits(&self) -> u32 {
        u32::BITS - (self.count - 1).leading_zeros()
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
            // ApicIdSize and the number of cores less one; reserved on Intel.
            0x8000_0008 if self.is_amd => entry.ecx = (self.id_bits() << 12) | (self.count - 1),
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (self.id, self.id, 0),
            _ => {}
        }
    }

    /// A cache of the third level is shared by all vCPUs, the others by none.
    fn apply_cache(&self, entry: &mut kvm_cpuid_entry2, intel: bool) {
        let level = (entry.eax >> 5) & 7;
        if entry.eax & 0x1f == 0 {
            return;
        }
        let last = (1 << self.id_bits()) - 1;
        let sharing = if level >= 3 { last } else { 0 };
        entry.eax = (entry.eax & 0x0000_3fff) | (sharing << 14);
        if intel {
            entry.eax |= last << 26;
        }
    }

    fn apply_level(&self, entry: &mut kvm_cpuid_entry2) {
        const THREADS: u32 = 1 << 8;
        const CORES: u32 = 2 << 8;
        (entry.eax, entry.ebx, entry.ecx) = match entry.index {
            0 => (0, 1, THREADS),
            _ => (self.id_bits(), self.count, CORES | entry.index),
        };
        entry.edx = self.id;
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::{AMD, HYPERVISOR_BASE, Profile, TIMING};

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

    fn registers(profile: &Profile, id: u8, count: u8, function: u32, index: u32) -> [u32; 4] {
        let cpuid = profile.for_vcpu(id, count, 2_500_000);
        let mut found = cpuid
            .as_slice()
            .iter()
            .filter(|e| (e.function, e.index) == (function, index));
        let entry = *found.next().unwrap();
        assert!(found.next().is_none(), "leaf {function:#x} is there twice");
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
        )
    }

    #[test]
    fn a_guest_sees_that_it_is_one() {
        let [_, ebx, ecx, edx] = registers(&profile(), 0, 1, 1, 0);
        assert_eq!((ebx, ecx, edx), (0x0001_0800, 1 << 31 | 1 << 24, 0));
        assert_eq!(registers(&profile(), 0, 1, HYPERVISOR_BASE, 0)[0], TIMING);
        assert_eq!(
            registers(&profile(), 0, 1, TIMING, 0),
            [2_500_000, 1_000_000, 0, 0]
        );
    }

    #[test]
    fn every_vcpu_is_a_core_of_one_package() {
        let [_, ebx, _, edx] = registers(&profile(), 2, 3, 1, 0);
        assert_eq!((ebx, edx), (0x0204_0800, 1 << 28));
        assert_eq!(registers(&profile(), 2, 3, 0xb, 0), [0, 1, 0x100, 2]);
        assert_eq!(registers(&profile(), 2, 3, 0xb, 1), [2, 3, 0x201, 2]);
        assert_eq!(registers(&profile(), 2, 3, 0x8000_0008, 0)[2], 2 << 12 | 2);
        assert_eq!(registers(&profile(), 2, 3, 0x8000_001e, 0), [2, 2, 0, 0]);
    }

    #[test]
    fn only_the_last_cache_is_shared() {
        assert_eq!(registers(&profile(), 0, 4, 4, 0)[0], 0x0c00_0121);
        assert_eq!(registers(&profile(), 0, 4, 4, 3)[0], 0x0c00_c163);
        assert_eq!(registers(&profile(), 0, 4, 4, 4)[0], 0);
        assert_eq!(registers(&profile(), 0, 1, 4, 3)[0], 0x0000_0163);
    }
}
