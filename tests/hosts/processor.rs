//! CPUID of a guest. Unlike hosts that emulate kernel mode, the emulated host returns the values of the VMM's table.

use std::collections::HashMap;

use crate::guest::Guest;

scenarios! {
    cpuid_reports_kvm => check_cpuid(|leaves| {
        let [features, signature, timing] = [1, 0x4000_0000, 0x4000_0010].map(|leaf| leaves[&(leaf, 0)]);
        assert_eq!(features[2] & HYPERVISOR, HYPERVISOR);
        assert_eq!(features[2] & TSC_DEADLINE, TSC_DEADLINE);
        assert_eq!(features[2] & RDRAND, RDRAND);
        assert_eq!(signature, [0x4000_0010, KVM[0], KVM[1], KVM[2]]);
        assert_eq!(leaves[&(0x4000_0001, 0)][0] & KVM_CLOCK, KVM_CLOCK);
        assert!(timing[0] > 100_000, "the TSC runs at {} kHz", timing[0]);
        assert_eq!(timing[1], 1_000_000, "the bus of the local APICs runs at 1 GHz");
    });
}

const RDRAND: u32 = 1 << 30;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// `KVMKVMKVM\0\0\0` in EBX, ECX and EDX.
const KVM: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];
/// `KVM_FEATURE_CLOCKSOURCE2`.
const KVM_CLOCK: u32 = 1 << 3;

type Leaves = HashMap<(u32, u32), [u32; 4]>;

fn check_cpuid(is_expected: fn(&Leaves)) {
    let printed = Guest::start(&crate::file("/guests/cpuid.elf")).expect_exit(0);
    println!("{printed}");
    is_expected(&printed.lines().filter_map(parse).collect());
}

/// Parses `cpuid LEAF.SUB = EAX EBX ECX EDX`: the subleaf is decimal, the rest hexadecimal.
fn parse(line: &str) -> Option<((u32, u32), [u32; 4])> {
    let (name, values) = line.strip_prefix("cpuid ")?.split_once(" = ")?;
    let (leaf, sub) = name.split_once('.')?;
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    let values: Vec<u32> = values.split_whitespace().filter_map(hex).collect();
    Some(((hex(leaf)?, sub.parse().ok()?), values.try_into().ok()?))
}
