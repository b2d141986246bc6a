//! Limits of saved CPUID entries by the processor, without a query of KVM.
//!
//! `KVM_GET_SUPPORTED_CPUID` reads some hundred CPUID leaves, each of which costs an exit where the host is a virtual machine: it takes
//! a tenth of the time of a load. These limits need only the leaves with features, and suffice for the state of an ordinary VM. They
//! are narrower than those of KVM: a state beyond them is compared with the answer of KVM ([`limits`](super::limits)).
//!
//! A feature is within the limits if the processor has it and Linux 5.10 gives it to each guest then, or if KVM provides it without the
//! processor. Linux 6.8 also permits some later features, if KVM is of that version. A feature that this kernel disables by a parameter
//! is not detected. An untrusted state always requires the query, and so does the state of a guest that has requested features
//! ([`feature_groups`](super::feature_groups)).

use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use kvm_bindings::{KVM_CAP_USER_MEMORY2, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use super::limits::{Registers, feature_bits, number_fields, registers};

/// Function and index of a leaf; no index if KVM ignores it.
type Leaf = (u32, Option<u32>);

/// Executes CPUID on the processor.
pub type ReadCpuid = fn(u32, u32) -> Registers;

/// Leaves with features: those that a guest has if the processor has them, and those that KVM provides itself.
/// arch/x86/kvm/cpuid.c, `kvm_set_cpu_caps` and `__do_cpuid_func`.
#[rustfmt::skip]
const FEATURES: [(Leaf, Registers, Registers); 13] = [
    // KVM provides x2APIC, the TSC deadline and the hypervisor bit.
    ((0x1, None), [0, 0, 0x76da_3203, 0x0f8b_fbff], [0, 0, 0x8120_0000, 0]),
    // ARAT.
    ((0x6, None), [0; 4], [4, 0, 0, 0]),
    // TSC_ADJUST, ARCH_CAPABILITIES.
    ((0x7, Some(0)), [0, 0xf1bf_07a9, 0x1a40_5f4e, 0x8c00_451c], [0, 2, 0, 0x2000_0000]),
    ((0x7, Some(1)), [0x20, 0, 0, 0], [0; 4]),
    // Bits of SPEC_CTRL, which an earlier KVM may answer by #GP: if KVM is recent.
    ((0x7, Some(2)), [0, 0, 0, SPEC_CTRL_BITS], [0; 4]),
    ((0xd, Some(0)), [0x2e7, 0, 0, 0], [0; 4]),
    ((0xd, Some(1)), [0xf, 0, 0, 0], [0; 4]),
    ((0x4000_0001, None), [0; 4], [0x0100_fefb, 0, 0, 0]),
    ((0x8000_0001, None), [0, 0, 0x0061_0bf3, 0xefd3_fbff], [0; 4]),
    ((0x8000_0007, None), [0, 0, 0, 0x100], [0; 4]),
    // Also IBRS_SAME_MODE of later kernels: it has neither registers nor instructions.
    ((0x8000_0008, None), [0, 0x170a_d205, 0, 0], [0; 4]),
    // Hints.
    ((0x8000_001a, None), [0; 4], [7, 0, 0, 0]),
    // Instructions that serialize, vulnerabilities that the processor lacks, and IBPB_BRTYPE, which Linux sets itself before Zen 3. If the
    // processor has them: VERW_CLEAR, and SBPB if KVM is recent.
    ((0x8000_0021, None), [SBPB | 0x20, 0, 0, 0], [0x1000_0245, 0, 6, 0]),
];

/// Indexed leaves without features.
const INDEXED: [u32; 5] = [0x4, 0xb, 0xd, 0x1f, 0x8000_001d];
/// Other leaves without features: names, caches, topology, frequencies.
const PLAIN: [u32; 16] = [
    0x0,
    0x2,
    0x5,
    0x15,
    0x16,
    0x4000_0000,
    0x4000_0010,
    0x8000_0000,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0005,
    0x8000_0006,
    0x8000_0019,
    0x8000_001e,
    0x8000_001c,
];

/// Bit in EAX of leaf 0x8000_0021: the guest may write SBPB to PRED_CMD, which KVM without it answers by #GP.
const SBPB: u32 = 1 << 27;
/// Bits in EDX of leaf 7 index 2: PSFD, IPRED_CTRL, RRSBA_CTRL, DDPD_U, BHI_CTRL and MCDT_NO.
const SPEC_CTRL_BITS: u32 = 0x3f;
const LEAF7_ECX_PKU: u32 = 1 << 3;
const LEAF7_ECX_OSPKE: u32 = 1 << 4;

/// Registers of the leaves in [`FEATURES`] that were read: each CPUID instruction is an exit where the host is a virtual machine.
static READ: [OnceLock<Registers>; FEATURES.len()] = [const { OnceLock::new() }; FEATURES.len()];

/// Reads the leaves that the states of most VMs need.
pub fn prefetch() {
    if __cpuid_count(0x8000_0000, 0).eax < 0x8000_0008 {
        return;
    }
    for (function, index) in [
        (0x1, 0),
        (0x7, 0),
        (0xd, 0),
        (0xd, 1),
        (0x8000_0001, 0),
        (0x8000_0007, 0),
        (0x8000_0008, 0),
    ] {
        read_cpuid(function, index);
    }
    // The last index of the leaf.
    if read_cpuid(0x7, 0)[0] >= 2 {
        read_cpuid(0x7, 2);
    }
}

/// Reads a leaf of the processor.
pub fn read_cpuid(function: u32, index: u32) -> Registers {
    let read = || {
        let leaf = __cpuid_count(function, index);
        [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
    };
    let is_leaf = |((known, known_index), ..): &(Leaf, Registers, Registers)| {
        *known == function && known_index.unwrap_or(0) == index
    };
    match FEATURES.iter().position(is_leaf) {
        Some(position) => *READ[position].get_or_init(read),
        None => read(),
    }
}

/// Returns true if KVM has the features that Linux 5.10 lacks and this module permits: the capability is of Linux 6.8, which has them all.
pub fn is_recent(kvm: &Kvm) -> bool {
    kvm.check_extension_raw(KVM_CAP_USER_MEMORY2.into()) > 0
}

/// Returns the limits of the `saved` entries, each at the position of its entry. An entry without limits gets a placeholder.
pub fn native_limits(
    saved: &[kvm_cpuid_entry2],
    read: ReadCpuid,
    is_recent: &dyn Fn() -> bool,
) -> Vec<kvm_cpuid_entry2> {
    let limit = |entry| limit(entry, read, is_recent).unwrap_or(PLACEHOLDER);
    saved.iter().map(limit).collect()
}

/// Entry of no leaf.
const PLACEHOLDER: kvm_cpuid_entry2 = kvm_cpuid_entry2 {
    function: u32::MAX,
    index: 0,
    flags: 0,
    eax: 0,
    ebx: 0,
    ecx: 0,
    edx: 0,
    padding: [0; 3],
};

fn limit(
    entry: &kvm_cpuid_entry2,
    read: ReadCpuid,
    is_recent: &dyn Fn() -> bool,
) -> Option<kvm_cpuid_entry2> {
    let is_indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
    let leaf = (entry.function, is_indexed.then_some(entry.index));
    let Some((_, native, provided)) = FEATURES.iter().find(|(known, ..)| *known == leaf) else {
        let plain: &[u32] = if is_indexed { &INDEXED } else { &PLAIN };
        return plain.contains(&entry.function).then_some(*entry);
    };
    let mut limits = *provided;
    let mut numbers = [0; 4];
    for (register, number) in numbers.iter_mut().enumerate() {
        *number = number_fields(entry.function, register)
            .iter()
            .fold(0, |all, field| all | field);
    }
    let (saved, checked) = (registers(entry), feature_bits(entry));
    let is_within = |register: usize| {
        saved[register] & (checked[register] & !provided[register] | numbers[register]) == 0
    };
    if !(0..4).all(is_within) {
        let found = native_features(leaf, read, is_recent);
        for register in 0..4 {
            limits[register] |= found[register] & native[register] | found[register] & numbers[register];
        }
    }
    let [eax, ebx, ecx, edx] = limits;
    Some(kvm_cpuid_entry2 {
        eax,
        ebx,
        ecx,
        edx,
        ..*entry
    })
}

/// Reads a leaf, and adjusts it to the rules of KVM.
fn native_features((function, index): Leaf, read: ReadCpuid, is_recent: &dyn Fn() -> bool) -> Registers {
    let mut found = read(function, index.unwrap_or(0));
    match function {
        0x7 if index == Some(0) => {
            // The kernel must use protection keys.
            if found[2] & LEAF7_ECX_OSPKE == 0 {
                found[2] &= !LEAF7_ECX_PKU;
            }
            // KVM announces the registers against speculation under the names of both vendors.
            if found[3] & SPECULATION[0].0 == 0 && read(0x8000_0000, 0)[0] >= 0x8000_0008 {
                let amd = read(0x8000_0008, 0)[1];
                found[3] |= translate(amd, SPECULATION.map(|(intel, amd)| (amd, intel)));
            }
        }
        0x8000_0008 => {
            // KVM may add the width of guest addresses, at most that of the host.
            found[0] = found[0] & 0xffff | (found[0] & 0xff) << 16;
            if found[1] & SPECULATION[0].1 != SPECULATION[0].1 && read(0, 0)[0] >= 7 {
                found[1] |= translate(read(7, 0)[3], SPECULATION);
            }
        }
        0x7 if index == Some(2) && found[3] != 0 && !is_recent() => found[3] = 0,
        0x8000_0021 if found[0] & SBPB != 0 && !is_recent() => found[0] &= !SBPB,
        _ => {}
    }
    found
}

/// Bits in EDX of leaf 7, and in EBX of leaf 0x8000_0008: SPEC_CTRL as IBPB and IBRS; STIBP; SSBD.
const SPECULATION: [(u32, u32); 3] = [
    (1 << 26, 1 << 12 | 1 << 14),
    (1 << 27, 1 << 15),
    (1 << 31, 1 << 24),
];

/// Returns the second bits of all pairs whose first bits are in `found`.
fn translate(found: u32, pairs: [(u32, u32); 3]) -> u32 {
    let present = pairs.iter().filter(|(from, _)| found & from == *from);
    present.fold(0, |all, (_, to)| all | to)
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::super::feature_groups::tests::all_features;
    use super::super::limits::tests::entry;
    use super::super::limits::{Registers, find_excess};
    use super::{SBPB, SPEC_CTRL_BITS, native_limits};

    /// A processor of Intel: everything is set except bit 4 of ECX in leaf 7, OSPKE.
    fn all(function: u32, index: u32) -> Registers {
        match (function, index) {
            (0x7, 0) => [2, u32::MAX, !(1 << 4), u32::MAX],
            (0x8000_0008, _) => [0x3030, 0, 0, 0],
            _ => [u32::MAX; 4],
        }
    }

    fn none(_: u32, _: u32) -> Registers {
        [0; 4]
    }

    fn no_read(function: u32, index: u32) -> Registers {
        panic!("leaf {function:#x} index {index:#x} is read");
    }

    fn names(saved: &[kvm_cpuid_entry2], read: super::ReadCpuid) -> Vec<String> {
        let limits = native_limits(saved, read, &|| true);
        find_excess(&limits, saved)
            .iter()
            .flat_map(super::super::limits::Excess::names)
            .collect()
    }

    #[test]
    fn leaves_without_features_are_not_read() {
        let saved = [
            entry(0, None, [0xd, 1, 2, 3]),
            // HTT, OSXSAVE, MONITOR, and bits that KVM provides.
            entry(1, None, [1, 2, 0x8920_0008, 1 << 28]),
            entry(6, None, [4, 0, 0, 0]),
            entry(7, Some(0), [1, 2, 0, 1 << 29]),
            entry(0xb, Some(1), [4, 4, 0x201, 3]),
            entry(0xa, None, [0; 4]),
            entry(0x4000_0001, None, [0x0100_7efb, 0, 0, 0]),
            entry(0x8000_0021, None, [0x1000_0204, 0, 6, 0]),
        ];
        assert!(names(&saved, no_read).is_empty());
    }

    #[test]
    fn features_of_processor_are_within_limits() {
        let saved = [
            entry(1, None, [0, 0, 0x0600_0201, 0x0780_0000]),
            entry(7, Some(0), [1, 1 << 5, 1 << 22, 1 << 26 | 1 << 31]),
            // AMD's names for the registers of Intel.
            entry(0x8000_0008, None, [0x2f_3030, 0x0100_d000, 0, 0]),
            entry(0x8000_0021, None, [0x1800_0265, 0, 0, 0]),
        ];
        assert!(names(&saved, all).is_empty());
        assert_eq!(names(&saved[..1], none).len(), 8);
        assert_eq!(names(&saved[3..], none).len(), 2);
    }

    #[test]
    fn features_of_later_kernels_exceed_limits_of_earlier_kvm() {
        let saved = [
            entry(0x8000_0021, None, [SBPB | 0x20, 0, 0, 0]),
            entry(0x7, Some(2), [0, 0, 0, SPEC_CTRL_BITS]),
        ];
        assert!(names(&saved, all).is_empty());
        let limits = native_limits(&saved, all, &|| false);
        assert_eq!((limits[0].eax & (SBPB | 0x20), limits[1].edx), (0x20, 0));
    }

    #[test]
    fn registers_of_amd_have_names_of_intel() {
        fn amd(function: u32, _: u32) -> Registers {
            match function {
                0x8000_0000 => [0x8000_0021, 0, 0, 0],
                0x8000_0008 => [0x3030, 1 << 12 | 1 << 14 | 1 << 24, 0, 0],
                _ => [0; 4],
            }
        }
        let saved = |edx| [entry(7, Some(0), [0, 0, 0, edx])];
        assert!(names(&saved(1 << 26 | 1 << 31), amd).is_empty());
        assert_eq!(
            names(&saved(1 << 27), amd),
            ["CPUID leaf 0x7 index 0x0 EDX bit 27 (intel_stibp)"]
        );
    }

    /// The processor has all of these, and KVM too.
    #[test]
    fn features_by_request_exceed_limits() {
        for feature in all_features() {
            assert_eq!(names(&[feature], all).len(), 1, "{feature:x?}");
        }
    }

    /// The processor has all of these.
    #[test]
    fn features_that_kvm_may_lack_exceed_limits() {
        for saved in [
            // VMX, PKU without OSPKE, LA57, Intel PT.
            entry(1, None, [0, 0, 1 << 5, 0]),
            entry(7, Some(0), [1, 0, 1 << 3, 0]),
            entry(7, Some(0), [1, 0, 1 << 16, 0]),
            entry(7, Some(0), [1, 1 << 25, 0, 0]),
            entry(7, Some(1), [1 << 4, 0, 0, 0]),
            // AMX.
            entry(0xd, Some(0), [1 << 18, 0, 0, 0]),
            // SVM, TSXLDTRK, counters, a width of 52 bits.
            entry(0x8000_0001, None, [0, 0, 1 << 2, 0]),
            entry(0x7, Some(0), [1, 0, 0, 1 << 16]),
            entry(0x8000_0001, None, [0, 0, 1 << 23, 0]),
            entry(0xa, None, [2, 0, 0, 0]),
            entry(0x8000_000a, None, [1, 0, 0, 0]),
            entry(0x8000_0008, None, [0x3034, 0, 0, 0]),
            // Leaves of other features; an index where there is none, and none where there is one.
            entry(0x14, Some(0), [0, 1, 0, 0]),
            entry(0x4000_0003, None, [1, 0, 0, 0]),
            entry(1, Some(0), [0, 0, 1, 0]),
            entry(7, None, [0, 1 << 5, 0, 0]),
        ] {
            assert_eq!(names(&[saved], all).len(), 1, "{saved:x?}");
        }
    }
}
