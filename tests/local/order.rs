//! The order of the calls on KVM is a feature: a memory slot that is set after an interrupt controller in the kernel, or
//! after an ioeventfd, waits for milliseconds.

use std::process::{Command, Stdio};

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
