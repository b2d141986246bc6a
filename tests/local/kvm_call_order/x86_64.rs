//! Calls that prepare the irqchip and the vCPUs of x86_64.

use scratch::Directory;

use super::{
    CREATE_VCPU, CREATE_VM, ENABLE_CAP, IOEVENTFD, IRQFD, RUN, SET_USER_MEMORY_REGION, check_order,
    create_snapshot, trace_requests, trace_restore,
};
use crate::calls::Call;

const CREATE_IRQCHIP: u64 = 0xae60;
const SET_CPUID2: u64 = 0x4008_ae90;
const SET_REGS: u64 = 0x4090_ae82;
const SET_SREGS: u64 = 0x4138_ae84;
const SET_LAPIC: u64 = 0x4400_ae8f;
const SET_MSRS: u64 = 0x4008_ae89;
const SET_MP_STATE: u64 = 0x4004_ae99;
const SET_VCPU_EVENTS: u64 = 0x4040_aea0;
const SET_CLOCK: u64 = 0x4030_ae7b;
const GET_SUPPORTED_CPUID: u64 = 0xc008_ae05;
const GET_MSR_INDEX_LIST: u64 = 0xc004_ae02;

#[test]
fn slots_precede_split_irqchip_and_vcpus() {
    let requests = trace_requests(&["--memory", "4G", "--cpus", "2"]);
    let count = |request| requests.iter().filter(|other| **other == request).count();
    assert_eq!(
        (
            count(SET_USER_MEMORY_REGION),
            count(CREATE_VCPU),
            count(SET_CPUID2)
        ),
        (2, 2, 2)
    );
    check_order(
        &requests,
        &[CREATE_VM, SET_USER_MEMORY_REGION, ENABLE_CAP, CREATE_VCPU],
    );
}

#[test]
fn vcpu_setup_precedes_run() {
    let requests = trace_requests(&[]);
    check_order(
        &requests,
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

/// KVM turns off the counters of vCPUs that do not exist yet.
#[test]
fn counters_are_turned_off_unless_requested() {
    for (options, count) in [
        (&["--irqchip", "kernel"][..], 1),
        (&["--cpu-features", "pmu"], 1),
        (&[], 2),
    ] {
        let requests = trace_requests(options);
        let enabled = requests.iter().filter(|request| **request == ENABLE_CAP).count();
        assert_eq!(enabled, count, "{options:?}");
        check_order(&requests, &[SET_USER_MEMORY_REGION, ENABLE_CAP, CREATE_VCPU]);
    }
}

#[test]
fn slots_precede_kernel_irqchip() {
    let requests = trace_requests(&["--irqchip", "kernel"]);
    check_order(
        &requests,
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
fn boot_registers_no_eventfds() {
    let requests = trace_requests(&[]);
    assert!(
        !requests.contains(&IOEVENTFD) && !requests.contains(&IRQFD) && !requests.contains(&CREATE_IRQCHIP)
    );
    assert_eq!(
        requests
            .iter()
            .filter(|request| **request == GET_SUPPORTED_CPUID)
            .count(),
        1
    );
}

#[test]
fn restored_vcpu_state_precedes_run() {
    let directory = Directory::new();
    create_snapshot(&directory, 64);
    let calls = trace_restore(&directory);
    let requests: Vec<_> = calls.iter().filter_map(Call::request).collect();
    check_order(
        &requests,
        &[
            CREATE_VM,
            SET_USER_MEMORY_REGION,
            ENABLE_CAP,
            CREATE_VCPU,
            SET_CPUID2,
            SET_SREGS,
            // SREGS hold the mode of the local APIC, and its registers the timer mode, which the TSC deadline MSR requires.
            SET_LAPIC,
            SET_MSRS,
            SET_MP_STATE,
            // Pending events come last: the other calls would overwrite them.
            SET_VCPU_EVENTS,
            SET_CLOCK,
            RUN,
        ],
    );
    for slow in [IOEVENTFD, IRQFD, CREATE_IRQCHIP] {
        assert!(!requests.contains(&slow), "{slow:#x} in {requests:#x?}");
    }
    // The query of all CPUID leaves takes long where the host is a virtual machine. A snapshot of this host needs none.
    assert!(!requests.contains(&GET_SUPPORTED_CPUID), "{requests:#x?}");
    let mut queries = calls
        .iter()
        .filter(|call| call.request() == Some(GET_MSR_INDEX_LIST));
    let first = queries.next().unwrap();
    assert!(!first.is_main_thread && queries.next().is_none(), "{calls:#x?}");
}

/// System calls that create a machine and map its memory.
const SETUP_CALLS: [libc::c_long; 5] = [
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_mmap,
    libc::SYS_madvise,
    libc::SYS_ioctl,
];

#[test]
fn restore_calls_do_not_depend_on_memory_size() {
    let [little, much] = [32, 1024].map(|memory| {
        let directory = Directory::new();
        create_snapshot(&directory, memory);
        let calls = trace_restore(&directory);
        // After KVM_SET_CLOCK, threads run in parallel and the order varies.
        let end = calls.iter().position(|call| call.request() == Some(SET_CLOCK));
        let calls = calls[..end.unwrap()].iter();
        let requests = calls.filter(|call| call.is_main_thread && SETUP_CALLS.contains(&call.number));
        requests
            .map(|call| (call.number, call.request()))
            .collect::<Vec<_>>()
    });
    assert_eq!(little, much);
}
