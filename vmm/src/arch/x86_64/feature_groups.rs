//! Processor features that a guest gets by request alone: leaves, bits and model-specific registers of each group.
//!
//! A unikernel has no use for them, and each is a part of KVM or of the processor that a hostile guest could attack. KVM ignores accesses
//! of a guest to most of their registers, if CPUID does not announce them. docs/security.md has the same table.

use std::ops::RangeInclusive;

use kvm_bindings::kvm_cpuid_entry2;

use super::limits::{EAX, EBX, ECX, EDX, registers};
use crate::config::{CpuidGroup, CpuidGroups};

/// Leaf, index, register and bits of it.
type Bits = (u32, u32, usize, &'static [u32]);

/// Features of one group.
struct FeatureGroup {
    group: CpuidGroup,
    /// Leaves that describe this group alone. They are removed: a processor returns zeros for a leaf that it does not have.
    leaves: &'static [u32],
    bits: &'static [Bits],
    /// Registers that KVM lists, and whose values a vCPU without the group does not need.
    msrs: &'static [RangeInclusive<u32>],
}

/// Intel SDM volume 2A, CPUID, and volume 4; AMD APM volume 2, appendix A, and volume 3, appendix E.
const GROUPS: [FeatureGroup; CpuidGroup::ALL.len()] = [
    // VMX and SMX; SVM and SKINIT; SEV. KVM emulates the instructions: this code has had most of the escapes from guests.
    FeatureGroup {
        group: CpuidGroup::Virtualization,
        leaves: &[0x8000_000a, 0x8000_001f],
        bits: &[(0x1, 0, ECX, &[5, 6]), (0x8000_0001, 0, ECX, &[2, 12])],
        msrs: &[0x480..=0x493],
    },
    // Counters, also of caches and by sampling (DS, IBS). They measure the work of others on the same core, and KVM needs perf of the
    // host for them.
    FeatureGroup {
        group: CpuidGroup::Pmu,
        leaves: &[0xa, 0x23, 0x8000_001b, 0x8000_0022],
        bits: &[
            (0x1, 0, ECX, &[2, 4, 15]),
            (0x1, 0, EDX, &[21]),
            (0x7, 1, EAX, &[8]),
            (0x8000_0001, 0, ECX, &[10, 23, 24, 28]),
        ],
        msrs: &[
            0xc1..=0xc8,
            0x186..=0x18d,
            0x309..=0x30c,
            0x329..=0x329,
            0x345..=0x345,
            0x38d..=0x390,
            0x3f1..=0x3f2,
            0x4c1..=0x4c8,
            0x600..=0x600,
            0xc000_0300..=0xc000_0303,
            0xc001_0000..=0xc001_0007,
            0xc001_0200..=0xc001_020b,
        ],
    },
    // Processor Trace and last branch records: the processor writes to memory by tables of the guest.
    FeatureGroup {
        group: CpuidGroup::Trace,
        leaves: &[0x14, 0x1c],
        bits: &[(0x7, 0, EBX, &[25]), (0x7, 0, EDX, &[19])],
        msrs: &[0x560..=0x561, 0x570..=0x572, 0x580..=0x587],
    },
    // Enclaves, their launch control and attestation. mayfly gives the guest no enclave memory.
    FeatureGroup {
        group: CpuidGroup::Sgx,
        leaves: &[0x12],
        bits: &[(0x7, 0, EBX, &[2]), (0x7, 0, ECX, &[30]), (0x7, 0, EDX, &[1])],
        msrs: &[],
    },
    // Shares of caches and memory bandwidth are set for the whole processor, by the host.
    FeatureGroup {
        group: CpuidGroup::ResourceControl,
        leaves: &[0xf, 0x10, 0x8000_0020],
        bits: &[(0x7, 0, EBX, &[12, 15]), (0x8000_0008, 0, EBX, &[6])],
        msrs: &[],
    },
    // HLE, RTM and its control bits. An aborted transaction reads data of others without a fault (TAA). KVM turns RTM off for a guest
    // that does not have it, where the processor has IA32_TSX_CTRL.
    FeatureGroup {
        group: CpuidGroup::Tsx,
        leaves: &[],
        bits: &[(0x7, 0, EBX, &[4, 11]), (0x7, 0, EDX, &[11, 13, 16])],
        msrs: &[],
    },
];

/// Removes the features of all groups but those `requested` from `entries`.
pub fn mask(entries: &mut Vec<kvm_cpuid_entry2>, requested: CpuidGroups) {
    for group in groups_without(requested) {
        entries.retain(|entry| !group.leaves.contains(&entry.function));
        for entry in entries.iter_mut() {
            for (register, bits) in group.bits_of(entry) {
                match register {
                    EAX => entry.eax &= !bits,
                    EBX => entry.ebx &= !bits,
                    ECX => entry.ecx &= !bits,
                    _ => entry.edx &= !bits,
                }
            }
        }
    }
}

/// Returns the groups of which `entries` has a feature.
pub fn present(entries: &[kvm_cpuid_entry2]) -> CpuidGroups {
    let is_present = |group: &&FeatureGroup| {
        entries.iter().any(|entry| {
            let values = registers(entry);
            let has_leaf = group.leaves.contains(&entry.function) && values != [0; 4];
            has_leaf
                || group
                    .bits_of(entry)
                    .any(|(register, bits)| values[register] & bits != 0)
        })
    };
    let found = GROUPS.iter().filter(is_present);
    found.map(|group| group.group).collect()
}

/// Returns true if an MSR has no meaning for a vCPU with the features of `groups` alone.
pub fn is_masked_msr(index: u32, groups: CpuidGroups) -> bool {
    groups_without(groups).any(|group| group.msrs.iter().any(|range| range.contains(&index)))
}

fn groups_without(groups: CpuidGroups) -> impl Iterator<Item = &'static FeatureGroup> {
    GROUPS.iter().filter(move |group| !groups.contains(group.group))
}

impl FeatureGroup {
    /// Returns the bits of the group in the leaf of `entry`, by register.
    fn bits_of(&self, entry: &kvm_cpuid_entry2) -> impl Iterator<Item = (usize, u32)> + use<> {
        let (function, index) = (entry.function, entry.index);
        let all = self.bits.iter();
        let found = all.filter(move |(leaf, subleaf, ..)| (*leaf, *subleaf) == (function, index));
        found.map(|(.., register, bits)| (*register, bits.iter().fold(0, |all, bit| all | 1 << bit)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::super::limits::tests::entry;
    use super::super::limits::{Registers, registers};
    use super::{Bits, FeatureGroup, GROUPS, is_masked_msr, mask, present};
    use crate::config::{CpuidGroup, CpuidGroups};

    const REGISTERS: [&str; 4] = ["EAX", "EBX", "ECX", "EDX"];

    fn only(group: CpuidGroup) -> CpuidGroups {
        [group].into_iter().collect()
    }

    fn all() -> CpuidGroups {
        CpuidGroup::ALL.into_iter().collect()
    }

    /// Returns an entry for each feature of `group`, which has no other.
    fn features(group: &FeatureGroup) -> Vec<kvm_cpuid_entry2> {
        let index = |leaf: u32, index: u32| matches!(leaf, 0x7 | 0xf | 0x10 | 0x12 | 0x14).then_some(index);
        let leaves = group.leaves.iter().flat_map(|leaf| {
            (0..4).map(|register| {
                let mut values = [0; 4];
                values[register] = 1 << 31;
                entry(*leaf, index(*leaf, 0), values)
            })
        });
        let bits = group.bits.iter().flat_map(|(leaf, subleaf, register, bits)| {
            bits.iter().map(|bit| {
                let mut values = [0; 4];
                values[*register] = 1 << bit;
                entry(*leaf, index(*leaf, *subleaf), values)
            })
        });
        leaves.chain(bits).collect()
    }

    /// Returns an entry for each feature of each group.
    pub fn all_features() -> Vec<kvm_cpuid_entry2> {
        GROUPS.iter().flat_map(features).collect()
    }

    fn values(entries: &[kvm_cpuid_entry2]) -> Vec<(u32, u32, Registers)> {
        let value = |entry: &kvm_cpuid_entry2| (entry.function, entry.index, registers(entry));
        entries.iter().map(value).collect()
    }

    #[test]
    fn table_has_each_group_in_order() {
        assert_eq!(GROUPS.map(|group| group.group), CpuidGroup::ALL);
        assert_eq!(all_features().len(), 4 * 12 + 26);
    }

    #[test]
    fn each_feature_is_masked_unless_requested() {
        for group in &GROUPS {
            for feature in features(group) {
                assert_eq!(present(&[feature]), only(group.group), "{feature:x?}");
                let mut masked = vec![feature];
                mask(&mut masked, CpuidGroups::default());
                assert!(
                    masked.iter().all(|entry| registers(entry) == [0; 4]),
                    "{feature:x?}"
                );
                assert!(present(&masked).is_empty());
                for other in CpuidGroup::ALL {
                    let mut kept = vec![feature];
                    mask(&mut kept, only(other));
                    let is_kept = values(&kept) == values(&[feature]);
                    assert_eq!(is_kept, other == group.group, "{other} {feature:x?}");
                }
            }
        }
    }

    #[test]
    fn other_features_are_kept() {
        let before: Vec<_> = [
            entry(0x1, None, [1, 2, !0x8074, !(1 << 21)]),
            entry(0x7, Some(0), [2, !0x0200_9814, !(1 << 30), !0x0009_2802]),
            entry(0x7, Some(1), [!(1 << 8), u32::MAX, u32::MAX, u32::MAX]),
            entry(0x7, Some(2), [u32::MAX; 4]),
            entry(0x4000_0001, None, [u32::MAX; 4]),
            entry(0x8000_0001, None, [1, 2, !0x1180_1404, u32::MAX]),
            entry(0x8000_0008, None, [0x3030, !(1 << 6), 2, 3]),
        ]
        .into();
        let mut after = before.clone();
        mask(&mut after, CpuidGroups::default());
        assert_eq!(values(&after), values(&before));
    }

    #[test]
    fn registers_are_those_of_their_group() {
        for (index, group) in [
            (0x480, CpuidGroup::Virtualization),
            (0x491, CpuidGroup::Virtualization),
            (0xc1, CpuidGroup::Pmu),
            (0x18d, CpuidGroup::Pmu),
            (0x38f, CpuidGroup::Pmu),
            (0xc000_0302, CpuidGroup::Pmu),
            (0xc001_0004, CpuidGroup::Pmu),
            (0xc001_020b, CpuidGroup::Pmu),
            (0x570, CpuidGroup::Trace),
        ] {
            assert!(is_masked_msr(index, CpuidGroups::default()), "{index:#x}");
            assert!(!is_masked_msr(index, only(group)), "{index:#x}");
        }
        // Time stamp counter, feature control, IA32_TSX_CTRL, page attributes, EFER, TSC ratio, HWCR.
        for index in [0x10, 0x3a, 0x122, 0x277, 0xc000_0080, 0xc000_0104, 0xc001_0015] {
            assert!(!is_masked_msr(index, CpuidGroups::default()), "{index:#x}");
        }
        assert!(!is_masked_msr(0x480, all()));
    }

    /// Returns the row of a group in docs/security.md, up to its reason.
    fn row(group: &FeatureGroup) -> String {
        let mut places: Vec<String> = Vec::new();
        for (leaf, subleaf, register, bits) in group.bits as &[Bits] {
            let index = match (leaf, subleaf) {
                (0x7, index) => format!(" index {index}"),
                _ => String::new(),
            };
            let bits: Vec<_> = bits.iter().map(u32::to_string).collect();
            let bits = bits.join(", ");
            places.push(format!("{leaf:#x}{index} {} {bits}", REGISTERS[*register]));
        }
        let leaves: Vec<_> = group.leaves.iter().map(|leaf| format!("{leaf:#x}")).collect();
        if !leaves.is_empty() {
            places.push(format!("all of {}", leaves.join(", ")));
        }
        format!("| `{}` | {} |", group.group, places.join("; "))
    }

    #[test]
    fn table_is_that_of_docs() {
        let docs = include_str!("../../../../docs/security.md");
        for group in &GROUPS {
            let row = row(group);
            assert!(docs.contains(&row), "docs/security.md lacks {row}");
        }
    }
}
