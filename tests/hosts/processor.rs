//! CPUID of a guest. Unlike hosts that emulate kernel mode, the emulated host returns the values of the VMM's table.

use std::collections::HashMap;
use std::fs;

use crate::guest::{Guest, mayfly_command};
use crate::snapshots::{DIRECTORY, SOCKET, pause_and_create};

scenarios! {
    cpuid_reports_kvm => check_cpuid("", |leaves| {
        let [features, signature, timing] = [1, 0x4000_0000, 0x4000_0010].map(|leaf| leaves[&(leaf, 0)]);
        assert_eq!(features[2] & HYPERVISOR, HYPERVISOR);
        assert_eq!(features[2] & TSC_DEADLINE, TSC_DEADLINE);
        assert_eq!(features[2] & RDRAND, RDRAND);
        assert_eq!(signature, [0x4000_0010, KVM[0], KVM[1], KVM[2]]);
        assert_eq!(leaves[&(0x4000_0001, 0)][0] & KVM_CLOCK, KVM_CLOCK);
        assert!(timing[0] > 100_000, "the TSC runs at {} kHz", timing[0]);
        assert_eq!(timing[1], 1_000_000, "the bus of the local APICs runs at 1 GHz");
    });
    cpuid_hides_virtualization => svm_is_hidden_unless_requested();
    requests_give_virtualization => check_leaves(crate::snapshots::start_with_features("/guests/cpuid.elf", "virtualization"), |leaves| {
        assert_eq!(leaves[&EXTENDED][2] & SVM, SVM);
    });
    untrusted_state_hides_virtualization => untrusted_state_requests_no_feature();
}

const RDRAND: u32 = 1 << 30;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// `KVMKVMKVM\0\0\0` in EBX, ECX and EDX.
const KVM: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];
/// `KVM_FEATURE_CLOCKSOURCE2`.
const KVM_CLOCK: u32 = 1 << 3;

/// Leaf and subleaf of extended features.
const EXTENDED: (u32, u32) = (0x8000_0001, 0);
const SVM: u32 = 1 << 2;
const SVM_FEATURES: (u32, u32) = (0x8000_000a, 0);

type Leaves = HashMap<(u32, u32), [u32; 4]>;

/// KVM on the emulated host offers SVM to its guests.
fn svm_is_hidden_unless_requested() {
    check_cpuid("", |leaves| {
        assert_eq!(leaves[&EXTENDED][2] & SVM, 0);
        assert_eq!(leaves[&SVM_FEATURES], [0; 4]);
    });
    check_cpuid("--cpu-features virtualization", |leaves| {
        assert_eq!(leaves[&EXTENDED][2] & SVM, SVM);
        assert_ne!(leaves[&SVM_FEATURES], [0; 4]);
    });
}

/// A state with the setting `virtualization`, and with SVM in CPUID, is loaded by its user; an attacker gets nothing by them.
fn untrusted_state_requests_no_feature() {
    let api = format!("--api-sock {SOCKET}");
    let guest = "/guests/echo.elf --memory 16M --cpu-features virtualization";
    let mut guest = Guest::start(&format!("{guest} {api}"));
    guest.expect("ready\n");
    pause_and_create(&mut guest, "Full");
    drop(guest);
    let mut guest = Guest::launch(&format!("restore {DIRECTORY} {api}"));
    guest.type_line("more");
    guest.expect("more");
    guest.terminate();
    let restore = ["restore", DIRECTORY, "--untrusted"];
    let rejected = scratch::run(mayfly_command().args(restore));
    let message = String::from_utf8_lossy(&rejected.stderr);
    assert!(
        !rejected.status.success() && message.contains("CPUID leaf 0x80000001 ECX bit 2 (svm)"),
        "{message}"
    );
    let mut guest = Guest::launch(&format!("restore {DIRECTORY} --untrusted --mask-cpu {api}"));
    guest.type_line("more");
    guest.expect("more");
    guest.terminate();
    fs::remove_dir_all(DIRECTORY).unwrap();
}

fn check_cpuid(options: &str, is_expected: fn(&Leaves)) {
    let guest = crate::file("/guests/cpuid.elf");
    check_leaves(Guest::start(&format!("{guest} {options}")), is_expected);
}

fn check_leaves(guest: Guest, is_expected: fn(&Leaves)) {
    let printed = guest.expect_exit(0);
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
