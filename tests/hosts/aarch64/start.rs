//! Cost of a start and of a load, in system calls and KVM calls: the emulated host says nothing of time. The start is compared with a
//! floor, benches/floor/aarch64.c.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

use scratch::Temporary;

use crate::calls::{self, Call};
use crate::guest::{Guest, mayfly_command};

const SOCKET: &str = "/tmp/api";
const DIRECTORY: &str = "/tmp/snapshot";

/// Requests of the KVM API, Documentation/virt/kvm/api.rst.
const NAMES: [(u64, &str); 22] = [
    (0xae00, "KVM_GET_API_VERSION"),
    (0xae01, "KVM_CREATE_VM"),
    (0xae03, "KVM_CHECK_EXTENSION"),
    (0xae04, "KVM_GET_VCPU_MMAP_SIZE"),
    (0xae41, "KVM_CREATE_VCPU"),
    (0xae80, "KVM_RUN"),
    (0x4008_ae61, "KVM_IRQ_LINE"),
    (0x4020_ae46, "KVM_SET_USER_MEMORY_REGION"),
    (0x4020_ae76, "KVM_IRQFD"),
    (0x4040_ae79, "KVM_IOEVENTFD"),
    (0x4004_ae8b, "KVM_SET_SIGNAL_MASK"),
    (0x4004_ae99, "KVM_SET_MP_STATE"),
    (0x4040_aea0, "KVM_SET_VCPU_EVENTS"),
    (0x4068_aea3, "KVM_ENABLE_CAP"),
    (0x4010_aeab, "KVM_GET_ONE_REG"),
    (0x4010_aeac, "KVM_SET_ONE_REG"),
    (0x4020_aeae, "KVM_ARM_VCPU_INIT"),
    (0x8020_aeaf, "KVM_ARM_PREFERRED_TARGET"),
    (0xc008_aeb0, "KVM_GET_REG_LIST"),
    (0xc00c_aee0, "KVM_CREATE_DEVICE"),
    (0x4018_aee1, "KVM_SET_DEVICE_ATTR"),
    (0x4018_aee2, "KVM_GET_DEVICE_ATTR"),
];

/// KVM calls of a start beside those of the floor, with the number of each and the reason.
const EXTRA: [(&str, usize, &str); 6] = [
    ("KVM_GET_API_VERSION", 1, "check of the version"),
    (
        "KVM_CHECK_EXTENSION",
        7,
        "5 required capabilities, the size of guest-physical addresses, and the offset of the counters",
    ),
    (
        "KVM_ENABLE_CAP",
        2,
        "SYSTEM_SUSPEND of PSCI, and writable identification registers",
    ),
    ("KVM_GET_ONE_REG", 1, "MPIDR_EL1, for the device tree"),
    ("KVM_SET_DEVICE_ATTR", 1, "number of interrupts of the GIC"),
    (
        "KVM_SET_ONE_REG",
        2,
        "PSTATE, and the address of the device tree in x0",
    ),
];

/// KVM calls of a load beside those of the floor. The state of vCPU and GIC has as many calls as registers: these are limits.
const EXTRA_OF_LOAD: [(&str, usize, &str); 9] = [
    ("KVM_GET_API_VERSION", 1, "check of the version"),
    (
        "KVM_CHECK_EXTENSION",
        8,
        "as in a start, and once more the offset of the counters",
    ),
    ("KVM_ENABLE_CAP", 2, "as in a start"),
    ("KVM_GET_ONE_REG", 1, "MPIDR_EL1, for the GIC"),
    ("KVM_GET_REG_LIST", 1, "registers of this host"),
    ("KVM_GET_DEVICE_ATTR", 1, "priority bits of the GIC"),
    ("KVM_SET_MP_STATE", 1, "PSCI state"),
    ("KVM_SET_VCPU_EVENTS", 1, "pending SError"),
    (
        "KVM_IRQ_LINE",
        4,
        "new identity, and input that arrives after the load",
    ),
];
/// Registers of a vCPU and of a GIC. The numbers vary with the kernel of the host.
const MAX_VCPU_REGISTERS: usize = 260;
const MAX_GIC_REGISTERS: usize = 280;

/// Maximum system calls from the first instruction of the process to the first guest entry, without waits for other threads.
/// The number varies: the main thread continues while the vCPU thread enters the guest.
const MAX_START_CALLS: usize = 120;

mod gic2 {
    #[test]
    fn start_makes_calls_of_floor() {
        let name = concat!(module_path!(), "::start_makes_calls_of_floor");
        // KVM shows its versions only at the creation.
        let version = [("KVM_CREATE_DEVICE", 1, "attempt to create a GICv3")];
        crate::host::run(name, || super::check_start("2", &version));
    }
}

mod gic3 {
    #[test]
    fn start_makes_calls_of_floor() {
        let name = concat!(module_path!(), "::start_makes_calls_of_floor");
        crate::host::run(name, || super::check_start("3", &[]));
    }

    #[test]
    fn slots_and_vcpus_precede_gic() {
        let name = concat!(module_path!(), "::slots_and_vcpus_precede_gic");
        crate::host::run(name, super::check_order);
    }

    #[test]
    fn load_makes_calls_of_state() {
        let name = concat!(module_path!(), "::load_makes_calls_of_state");
        crate::host::run(name, super::check_load);
    }
}

/// Returns the name of a KVM call. A call that KVM rejects because a vCPU is busy is repeated and does not count.
fn name(call: &Call) -> Option<String> {
    let request = call.request().filter(|request| request >> 8 & 0xff == 0xae)?;
    if call.result == Some(-i64::from(libc::EBUSY)) {
        return None;
    }
    let known = NAMES.iter().find(|(number, _)| *number == request);
    Some(known.map_or_else(|| format!("{request:#x}"), |(_, name)| (*name).to_owned()))
}

/// Returns the numbers of the KVM calls by name.
fn kvm_calls(calls: &[Call]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in calls.iter().filter_map(name) {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

fn trace_floor(gic: &str) -> Vec<Call> {
    calls::trace(Command::new("/bin/floor").args(["128", gic]), Stdio::null())
}

/// Returns the number of system calls before the first guest entry. Waits for other threads vary from run to run.
fn calls_before_entry(calls: &[Call]) -> usize {
    let waits = [libc::SYS_futex, libc::SYS_sched_yield];
    calls
        .iter()
        .take_while(|call| name(call).as_deref() != Some("KVM_RUN"))
        .filter(|call| !waits.contains(&call.number))
        .count()
}

fn check_start(gic: &str, more: &[(&str, usize, &str)]) {
    let floor = trace_floor(gic);
    let mayfly = calls::trace(
        mayfly_command().args(["run", "/guests/fc/hello.elf"]),
        Stdio::null(),
    );
    let mut expected = kvm_calls(&floor);
    for (name, count, _) in EXTRA.iter().chain(more) {
        *expected.entry((*name).to_owned()).or_default() += count;
    }
    let mut made = kvm_calls(&mayfly);
    // The vCPU thread flushes pending work by one KVM_RUN if it waits for the main thread, which restricts itself meanwhile.
    if let Some(count) = made.get_mut("KVM_RUN") {
        *count -= usize::from(*count > expected["KVM_RUN"]);
    }
    assert_eq!(made, expected);
    let (least, count) = (calls_before_entry(&floor), calls_before_entry(&mayfly));
    assert!(
        count <= MAX_START_CALLS,
        "{count} system calls; the floor makes {least}"
    );
}

/// Traces a start with two vCPUs and a drive.
fn check_order() {
    let disk = Temporary::with(&[0; 512]);
    let options = format!(
        "run /guests/fc/hello.elf --cpus 2 --disk {}",
        disk.path().display()
    );
    let calls = calls::trace(mayfly_command().args(options.split_whitespace()), Stdio::null());
    let names: Vec<String> = calls.iter().filter_map(name).collect();
    let first = |name: &str| names.iter().position(|other| other == name);
    let last = |name: &str| names.iter().rposition(|other| other == name);
    let order = [
        "KVM_CREATE_VM",
        // KVM waits milliseconds for a slot that follows the GIC or an eventfd.
        "KVM_SET_USER_MEMORY_REGION",
        // The GIC has an interface for each vCPU.
        "KVM_ARM_VCPU_INIT",
        "KVM_CREATE_DEVICE",
        "KVM_SET_DEVICE_ATTR",
        "KVM_RUN",
    ];
    for pair in order.windows(2) {
        let (before, after) = (last(pair[0]), first(pair[1]));
        assert!(before.is_some() && before < after, "{pair:?} in {names:#?}");
    }
    assert!(first("KVM_SET_USER_MEMORY_REGION") < first("KVM_CREATE_VCPU"));
    assert!(last("KVM_CREATE_VCPU") < first("KVM_CREATE_DEVICE"), "{names:#?}");
    // Devices use neither: an ioeventfd or irqfd would follow the slots.
    for eventfd in ["KVM_IOEVENTFD", "KVM_IRQFD"] {
        assert_eq!(first(eventfd), None, "{names:#?}");
    }
}

fn check_load() {
    let mut guest = Guest::start(&format!("/guests/fc/echo.elf --memory 64M --api-sock {SOCKET}"));
    guest.expect("ready");
    let command = ["snapshot", DIRECTORY, "--api-sock", SOCKET];
    let Output { status, stderr, .. } = scratch::run(mayfly_command().args(command));
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    guest.terminate();
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(b"q").unwrap();
    let calls = calls::trace(mayfly_command().args(["restore", DIRECTORY]), reader.into());
    fs::remove_dir_all(DIRECTORY).unwrap();
    let mut expected = kvm_calls(&trace_floor("3"));
    for (name, count, _) in EXTRA_OF_LOAD {
        *expected.entry(name.to_owned()).or_default() += count;
    }
    let mut found = kvm_calls(&calls);
    for (name, limit) in [
        ("KVM_SET_ONE_REG", MAX_VCPU_REGISTERS),
        ("KVM_SET_DEVICE_ATTR", MAX_GIC_REGISTERS),
    ] {
        let count = found.remove(name).unwrap();
        assert!(count <= limit, "{count} calls of {name}");
        expected.remove(name);
    }
    // The guests print different texts.
    found.remove("KVM_RUN");
    expected.remove("KVM_RUN");
    assert_eq!(found, expected);
}
