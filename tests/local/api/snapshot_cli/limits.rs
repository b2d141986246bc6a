//! CPUID bits and MSRs in a state file that this host does not support.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use vmm::arch::{Native, Platform};

use super::super::served::{ApiProcess, Directory, load_body};
use super::{create_snapshot, expect_ticks, restore, run_err};
use crate::forged::{VcpuState, change_vcpu, read_vcpu};
use crate::guests::{file, program};

/// `MSR_KVM_WALL_CLOCK`: KVM writes the time to the address in it.
const WALL_CLOCK: u32 = 0x11;
const MTRR_DEFAULT: u32 = 0x2ff;

/// Creates a snapshot of a VM with two vCPUs in the directory `s`.
fn create() -> Directory {
    let kept = Directory::new();
    let home = Directory::new();
    let socket = home.text("api.sock");
    let mut command = Command::new(program());
    let kernel = file("ticker.elf");
    command.args([
        "run",
        &kernel,
        "--memory",
        "32M",
        "--cpus",
        "2",
        "--api-sock",
        &socket,
    ]);
    let mut vm = ApiProcess::spawn(home, &mut command);
    vm.expect("tick 2\n");
    create_snapshot(&vm, &kept.text("s"), &[]);
    vm.terminate();
    kept
}

fn state(directory: &Directory, name: &str) -> PathBuf {
    directory.path(name).join("state")
}

/// Returns a copy of the snapshot with a changed vCPU `id`, in directory `f`.
fn forge(directory: &Directory, id: u8, change: impl FnOnce(&mut VcpuState)) -> String {
    let forged = directory.path("f");
    let _ = fs::remove_dir_all(&forged);
    fs::create_dir(&forged).unwrap();
    for name in ["state", "memory"] {
        fs::copy(directory.path("s").join(name), forged.join(name)).unwrap();
    }
    change_vcpu(&forged.join("state"), id, change);
    directory.text("f")
}

/// Expects that a restore of `snapshot` fails with `text`, trusted or not.
fn expect_rejected(snapshot: &str, text: &str) {
    for options in [&["restore", snapshot][..], &["restore", snapshot, "--untrusted"]] {
        let stderr = run_err(options);
        assert!(
            stderr.contains(text) && stderr.contains(" (--mask-cpu)"),
            "{stderr}"
        );
    }
}

/// Restores `snapshot` with `--mask-cpu`, which must log `text`. Returns the state of vCPU `id` of a snapshot of the clone.
fn run_masked(directory: &Directory, snapshot: &str, id: u8, text: &str) -> VcpuState {
    let log = directory.text("log");
    let mut clone = restore(snapshot, &["--untrusted", "--mask-cpu", "--log-file", &log]);
    expect_ticks(&mut clone, 3);
    create_snapshot(&clone, &directory.text("c"), &[]);
    clone.terminate();
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains(text), "no {text:?} in {log}");
    read_vcpu(&state(directory, "c"), id)
}

fn leaf(vcpu: &mut VcpuState, function: u32) -> &mut kvm_cpuid_entry2 {
    let mut entries = vcpu.cpuid.iter_mut();
    entries
        .find(|entry| entry.function == function && entry.index == 0)
        .unwrap()
}

fn msr(vcpu: &VcpuState, index: u32) -> Option<u64> {
    let mut msrs = vcpu.msrs.iter();
    msrs.find(|(other, _)| *other == index).map(|(_, value)| *value)
}

#[test]
fn cpuid_bits_beyond_host_are_rejected_or_masked() {
    let directory = create();
    let before = read_vcpu(&state(&directory, "s"), 1);
    // Reserved bits, which no host supports; bit 20 of leaf 7 belongs to a number on some.
    let forged = forge(&directory, 1, |vcpu| {
        leaf(vcpu, 7).edx |= 1;
        leaf(vcpu, 1).ecx |= 1 << 16;
    });
    expect_rejected(
        &forged,
        "CPUID leaf 0x1 ECX bit 16, CPUID leaf 0x7 index 0x0 EDX bit 0;",
    );
    expect_rejected(&forged, "vCPU 1");
    let names = "the guest loses features of its processor: CPUID leaf 0x1 ECX bit 16, ";
    let mut masked = run_masked(&directory, &forged, 1, names);
    assert_eq!(leaf(&mut masked, 7).edx & 1, 0);
    assert_eq!(leaf(&mut masked, 1).ecx & 1 << 16, 0);
    assert_eq!(masked.cpuid.len(), before.cpuid.len());

    // Hyper-V: KVM supports it, but mayfly does not offer it.
    let forged = forge(&directory, 0, |vcpu| {
        leaf(vcpu, 0x4000_0001).eax = u32::from_le_bytes(*b"Hv#1");
        vcpu.cpuid.push(kvm_cpuid_entry2 {
            function: 0x4000_0003,
            eax: 1 << 5,
            ..Default::default()
        });
    });
    expect_rejected(&forged, "CPUID leaf 0x40000003 EAX bit 5;");

    // An entry without index stands for all of them.
    let forged = forge(&directory, 0, |vcpu| {
        leaf(vcpu, 7).flags &= !KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    });
    expect_rejected(&forged, "CPUID leaf 0x7 EBX bit ");
}

/// A guest has no feature that it gets by request alone, and a state with one is rejected, even if KVM supports it.
#[test]
fn features_by_request_are_rejected_or_masked() {
    let directory = create();
    let mut own = read_vcpu(&state(&directory, "s"), 0);
    let mut is_tested = false;
    for (function, register, bit, name) in [
        (0x1, ECX, 5, "CPUID leaf 0x1 ECX bit 5 (vmx)"),
        (0x1, ECX, 15, "CPUID leaf 0x1 ECX bit 15 (pdcm)"),
        (0x7, EBX, 2, "CPUID leaf 0x7 index 0x0 EBX bit 2 (sgx)"),
        (0x7, EBX, 11, "CPUID leaf 0x7 index 0x0 EBX bit 11 (rtm)"),
        (0x7, EBX, 12, "CPUID leaf 0x7 index 0x0 EBX bit 12 (cqm)"),
        (0x7, EBX, 25, "CPUID leaf 0x7 index 0x0 EBX bit 25 (intel_pt)"),
        (0x8000_0001, ECX, 2, "CPUID leaf 0x80000001 ECX bit 2 (svm)"),
        (
            0x8000_0001,
            ECX,
            23,
            "CPUID leaf 0x80000001 ECX bit 23 (perfctr_core)",
        ),
    ] {
        if *register(leaf(&mut own, function)) & 1 << bit != 0 {
            // KVM without hardware virtualization shows each guest the features of the processor.
            assert!(!Native::has_hardware_virtualization(), "the guest has {name}");
            continue;
        }
        let forged = forge(&directory, 0, |vcpu| *register(leaf(vcpu, function)) |= 1 << bit);
        expect_rejected(&forged, name);
        if !is_tested {
            let mut masked = run_masked(&directory, &forged, 0, name);
            assert_eq!(*register(leaf(&mut masked, function)) & 1 << bit, 0);
        }
        is_tested = true;
    }
    assert!(is_tested);
    // Registers of counters and of VMX: KVM reads 0 where the vCPU lacks them, and earlier states have such values.
    assert!(
        [0xc1, 0x186, 0x480, 0xc001_0200]
            .iter()
            .all(|index| msr(&own, *index).is_none())
    );
    let forged = forge(&directory, 0, |vcpu| vcpu.msrs.insert(0, (0x186, 0)));
    let mut clone = restore(&forged, &[]);
    expect_ticks(&mut clone, 1);
    clone.terminate();
    let forged = forge(&directory, 0, |vcpu| vcpu.msrs.insert(0, (0x480, 1)));
    expect_rejected(&forged, "KVM does not support MSR 0x480 (IA32_VMX_BASIC);");
}

/// Register of a leaf.
type Register = fn(&mut kvm_cpuid_entry2) -> &mut u32;
const EBX: Register = |entry| &mut entry.ebx;
const ECX: Register = |entry| &mut entry.ecx;

/// A bit of a feature that this host lacks has its name in the message.
#[test]
fn missing_feature_is_named() {
    let directory = create();
    // Not the CPUID of the guest: the KVM of some hosts returns others than were set.
    let supported = Kvm::new().unwrap().get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let supported = supported.unwrap();
    let is_leaf = |entry: &&kvm_cpuid_entry2| (entry.function, entry.index) == (7, 0);
    let host = supported.as_slice().iter().find(is_leaf).unwrap();
    let missing = [
        (16, "la57"),
        (3, "pku"),
        (7, "shstk"),
        (5, "waitpkg"),
        (31, "pks"),
    ];
    let absent = |(bit, _): &&(u32, &str)| host.ecx & 1 << bit == 0;
    let (bit, name) = missing.iter().find(absent).unwrap();
    let forged = forge(&directory, 0, |vcpu| leaf(vcpu, 7).ecx |= 1 << bit);
    expect_rejected(
        &forged,
        &format!("CPUID leaf 0x7 index 0x0 ECX bit {bit} ({name})"),
    );
}

#[test]
fn msrs_beyond_host_are_rejected_or_masked() {
    let directory = create();
    // KVM accepts the first two: Hyper-V allocates pages, and the clock writes guest memory.
    for (index, value, name) in [
        (0x4000_0000, 1, "MSR 0x40000000 (HV_X64_MSR_GUEST_OS_ID)"),
        (WALL_CLOCK, 0x1000, "MSR 0x11 (KVM_WALL_CLOCK)"),
        (0xdead, 1, "MSR 0xdead"),
    ] {
        let forged = forge(&directory, 0, |vcpu| vcpu.msrs.insert(0, (index, value)));
        expect_rejected(&forged, &format!("KVM does not support {name};"));
        let masked = run_masked(&directory, &forged, 0, name);
        assert_eq!(msr(&masked, index), None, "{name}");
    }
    // A value that KVM rejects.
    let kept = read_vcpu(&state(&directory, "s"), 0);
    let forged = forge(&directory, 0, |vcpu| {
        for (_, value) in vcpu.msrs.iter_mut().filter(|(index, _)| *index == MTRR_DEFAULT) {
            *value = u64::MAX;
        }
    });
    let name = "KVM rejects 0xffffffffffffffff for MSR 0x2ff (MTRRdefType)";
    expect_rejected(&forged, name);
    let masked = run_masked(&directory, &forged, 0, name);
    assert_ne!(msr(&masked, MTRR_DEFAULT), Some(u64::MAX));
    assert!(msr(&kept, MTRR_DEFAULT).is_some());
}

#[test]
fn api_names_field_that_masks() {
    let directory = create();
    forge(&directory, 0, |vcpu| leaf(vcpu, 7).edx |= 1);
    let load = |fields: &str| {
        let process = ApiProcess::start();
        let body = load_body(&directory, "f/state", "f/memory", fields);
        (process.request("PUT", "/snapshot/load", &body), process)
    };
    let (response, process) = load("");
    let message = response.fault_message();
    let text = "KVM does not support CPUID leaf 0x7 index 0x0 EDX bit 0";
    assert!(
        message.contains(text) && message.ends_with(" by mask_cpu"),
        "{message}"
    );
    process.expect_exit(1);
    let (response, mut process) = load(r#","mask_cpu":true,"resume_vm":true"#);
    assert_eq!(response.text, super::super::http::NO_CONTENT);
    expect_ticks(&mut process, 3);
    process.terminate();
}

/// A snapshot of this host is within its limits, and keeps its CPUID in a clone.
#[test]
fn own_snapshot_is_within_limits() {
    let directory = create();
    let path = |name: &str| state(&directory, name);
    let mut clone = restore(&directory.text("s"), &[]);
    expect_ticks(&mut clone, 1);
    create_snapshot(&clone, &directory.text("c"), &[]);
    clone.terminate();
    let entries = |path: &Path| {
        let entries = read_vcpu(path, 1).cpuid;
        entries
            .iter()
            .map(|entry| (entry.function, entry.index, entry.eax, entry.ecx))
            .collect::<Vec<_>>()
    };
    assert_eq!(entries(&path("s")), entries(&path("c")));
}
