//! The order of the calls on KVM is a feature: a memory slot that is set after an interrupt controller in the kernel, or
//! after an ioeventfd, waits for milliseconds.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use crate::api::served::{ApiProcess, Directory};
use crate::api::snapshot::pause_and_create;
use crate::calls::{self, Call};
use crate::guests::{file, program};

const CREATE_VM: u64 = 0xae01;
const SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
const ENABLE_CAP: u64 = 0x4068_aea3;
const CREATE_IRQCHIP: u64 = 0xae60;
const CREATE_VCPU: u64 = 0xae41;
const SET_CPUID2: u64 = 0x4008_ae90;
const SET_REGS: u64 = 0x4090_ae82;
const RUN: u64 = 0xae80;
const IOEVENTFD: u64 = 0x4040_ae79;
const IRQFD: u64 = 0x4020_ae76;
const SET_SREGS: u64 = 0x4138_ae84;
const SET_LAPIC: u64 = 0x4400_ae8f;
const SET_MSRS: u64 = 0x4008_ae89;
const SET_MP_STATE: u64 = 0x4004_ae99;
const SET_VCPU_EVENTS: u64 = 0x4040_aea0;
const SET_CLOCK: u64 = 0x4030_ae7b;
const GET_SUPPORTED_CPUID: u64 = 0xc008_ae05;

fn requests(options: &[&str]) -> Vec<u64> {
    let mut command = Command::new(program());
    command.arg("run").arg(file("/guests/hello.elf")).args(options);
    let calls = calls::trace(&mut command, Stdio::null());
    calls.iter().filter_map(Call::request).collect()
}

/// Checks that each of `order` is there, and that all of one come before the first of the next.
fn check(requests: &[u64], order: &[u64]) {
    let first = |request| requests.iter().position(|one| *one == request);
    let last = |request| requests.iter().rposition(|one| *one == request);
    for pair in order.windows(2) {
        let (before, after) = (last(pair[0]), first(pair[1]));
        assert!(
            before.is_some() && before < after,
            "{:#x} is not before {:#x} in {requests:#x?}",
            pair[0],
            pair[1]
        );
    }
}

#[test]
fn slots_come_before_interrupt_controllers_and_vcpus() {
    let made = requests(&["--memory", "4G", "--cpus", "2"]);
    let count = |request| made.iter().filter(|one| **one == request).count();
    assert_eq!(
        (
            count(SET_USER_MEMORY_REGION),
            count(CREATE_VCPU),
            count(SET_CPUID2)
        ),
        (2, 2, 2)
    );
    check(
        &made,
        &[CREATE_VM, SET_USER_MEMORY_REGION, ENABLE_CAP, CREATE_VCPU],
    );
}

#[test]
fn a_vcpu_is_complete_before_it_runs() {
    let made = requests(&[]);
    check(
        &made,
        &[
            CREATE_VM,
            SET_USER_MEMORY_REGION,
            ENABLE_CAP,
            CREATE_VCPU,
            SET_CPUID2,
            SET_REGS,
            RUN,
        ],
    );
}

#[test]
fn slots_come_before_an_interrupt_controller_in_the_kernel() {
    let made = requests(&["--irqchip", "kernel"]);
    check(
        &made,
        &[
            CREATE_VM,
            SET_USER_MEMORY_REGION,
            CREATE_IRQCHIP,
            CREATE_VCPU,
            SET_CPUID2,
            RUN,
        ],
    );
}

#[test]
fn nothing_that_delays_the_end_is_registered() {
    let made = requests(&[]);
    assert!(!made.contains(&IOEVENTFD) && !made.contains(&IRQFD) && !made.contains(&CREATE_IRQCHIP));
    assert_eq!(
        made.iter()
            .filter(|request| **request == GET_SUPPORTED_CPUID)
            .count(),
        1
    );
}

/// A snapshot of a guest with so many MiB that ends when it reads `q`.
fn snapshot(folder: &Directory, memory: u32) {
    let mut served = ApiProcess::start();
    let machine = format!(r#"{{"vcpu_count":1,"mem_size_mib":{memory}}}"#);
    served.expect_no_content("PUT", "/machine-config", &machine);
    served.boots("echo.elf");
    served.act("InstanceStart");
    served.expect("ready\n");
    pause_and_create(&served, folder, "Full", "state", "memory");
    served.kill();
}

/// The calls of a restore of that, up to the first time that the guest runs.
fn restore(folder: &Directory) -> Vec<Call> {
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(b"q").unwrap();
    let mut command = Command::new(program());
    command.arg("restore").arg(folder.path(""));
    let mut calls = calls::trace(&mut command, reader.into());
    // One that is interrupted at once only has KVM complete what was restored.
    let completes = |call: &Call| call.request() == Some(RUN) && call.result == Some(-i64::from(libc::EINTR));
    calls.retain(|call| !completes(call));
    let ran = calls.iter().position(|call| call.request() == Some(RUN)).unwrap();
    calls.truncate(ran + 1);
    calls
}

#[test]
fn a_restored_vcpu_has_its_state_before_it_runs() {
    let folder = Directory::new();
    snapshot(&folder, 64);
    let made: Vec<_> = restore(&folder).iter().filter_map(Call::request).collect();
    check(
        &made,
        &[
            CREATE_VM,
            SET_USER_MEMORY_REGION,
            ENABLE_CAP,
            CREATE_VCPU,
            SET_CPUID2,
            SET_SREGS,
            // The mode of the local APIC is in the special registers, and its timer's in its own, before the deadline.
            SET_LAPIC,
            SET_MSRS,
            SET_MP_STATE,
            // What is pending comes last: others before it would undo it.
            SET_VCPU_EVENTS,
            SET_CLOCK,
            RUN,
        ],
    );
    // The guest's CPUID is the snapshot's.
    for slow in [GET_SUPPORTED_CPUID, IOEVENTFD, IRQFD, CREATE_IRQCHIP] {
        assert!(!made.contains(&slow), "{slow:#x} in {made:#x?}");
    }
}

#[test]
fn a_restore_does_not_look_at_the_memory() {
    const LARGE: u64 = 16 << 20;
    let folder = Directory::new();
    snapshot(&folder, 256);
    let calls = restore(&folder);
    let memory = folder.path("memory");
    let mut used = calls.iter().filter(|call| call.file.as_ref() == Some(&memory));
    let map = used.next().unwrap();
    assert_eq!((map.number, map.arguments[1]), (libc::SYS_mmap, 256 << 20));
    assert!(used.next().is_none(), "{calls:#x?}");
    let of = |number| calls.iter().filter(move |call| call.number == number);
    let start = map.arguments[0];
    for call in of(libc::SYS_mmap) {
        let place = u64::try_from(call.result.unwrap()).unwrap();
        assert!(call.arguments[1] < LARGE || place == start, "{call:#x?}");
        let flags = u64::try_from(libc::MAP_POPULATE | libc::MAP_LOCKED).unwrap();
        assert_eq!(call.arguments[3] & flags, 0, "{call:#x?}");
    }
    let ends: Vec<_> = of(libc::SYS_brk).filter_map(|call| call.result).collect();
    let grown = ends.iter().max().unwrap() - ends.iter().min().unwrap();
    assert!(grown < 1 << 20, "{grown}");
    for number in [
        libc::SYS_mlock,
        libc::SYS_mlock2,
        libc::SYS_mlockall,
        libc::SYS_mremap,
    ] {
        assert_eq!(of(number).count(), 0);
    }
    let populates = [
        libc::MADV_POPULATE_READ,
        libc::MADV_POPULATE_WRITE,
        libc::MADV_WILLNEED,
    ];
    let populates = populates.map(|advice| u64::try_from(advice).unwrap());
    assert!(!of(libc::SYS_madvise).any(|call| populates.contains(&call.arguments[2])));
}

/// Calls by which a machine is made and its memory had.
const PREPARING: [libc::c_long; 5] = [
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_mmap,
    libc::SYS_madvise,
    libc::SYS_ioctl,
];

#[test]
fn a_restore_does_as_much_for_much_memory() {
    let [little, much] = [32, 1024].map(|memory| {
        let folder = Directory::new();
        snapshot(&folder, memory);
        let calls = restore(&folder);
        // What is done from then on is in no order.
        let whole = calls.iter().position(|call| call.request() == Some(SET_CLOCK));
        let calls = calls[..whole.unwrap()].iter();
        let made = calls.filter(|call| call.first && PREPARING.contains(&call.number));
        made.map(|call| (call.number, call.request())).collect::<Vec<_>>()
    });
    assert_eq!(little, much);
}
