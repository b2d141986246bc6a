//! What a guest learns from CPUID, which only a faithful machine answers by the monitor's tables.

use std::collections::HashMap;

use crate::guest::Guest;

scenarios! {
    cpuid_says_that_this_is_kvm => check(|leaves| {
        let [features, signature, timing] = [1, 0x4000_0000, 0x4000_0010].map(|leaf| leaves[&(leaf, 0)]);
        assert_eq!(features[2] & HYPERVISOR, HYPERVISOR);
        assert_eq!(features[2] & TSC_DEADLINE, TSC_DEADLINE);
        assert_eq!(features[2] & RDRAND, RDRAND);
        assert_eq!(signature, [0x4000_0010, KVM[0], KVM[1], KVM[2]]);
        assert_eq!(leaves[&(0x4000_0001, 0)][0] & KVM_CLOCK, KVM_CLOCK);
        assert!(timing[0] > 100_000, "the time stamp counter has {} kHz", timing[0]);
        assert_eq!(timing[1], 1_000_000, "the bus of the local APICs has 1 GHz");
    });
}

const RDRAND: u32 = 1 << 30;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// KVMKVMKVM and three NULs, in EBX, ECX and EDX.
const KVM: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];
/// KVM_FEATURE_CLOCKSOURCE2
const KVM_CLOCK: u32 = 1 << 3;

type Leaves = HashMap<(u32, u32), [u32; 4]>;

fn check(holds: fn(&Leaves)) {
    let printed = Guest::start(&crate::file("/guests/cpuid.elf")).ends_with(0);
    println!("{printed}");
    holds(&printed.lines().filter_map(parse).collect());
}

/// `cpuid LEAF.SUB = EAX EBX ECX EDX`, the sub-leaf in decimal and all else in hexadecimal.
fn parse(line: &str) -> Option<((u32, u32), [u32; 4])> {
    let (name, values) = line.strip_prefix("cpuid ")?.split_once(" = ")?;
    let (leaf, sub) = name.split_once('.')?;
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    let values: Vec<u32> = values.split_whitespace().filter_map(hex).collect();
    Some(((hex(leaf)?, sub.parse().ok()?), values.try_into().ok()?))
}
