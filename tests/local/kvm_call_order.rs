//! Order of the KVM calls. A memory slot that is set after an in-kernel irqchip or an ioeventfd waits milliseconds for
//! an SRCU grace period of KVM.

/// Calls of x86_64.
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::io::{self, Write};
use std::process::{Command, Stdio};

use vmm::arch::{Architecture, Native, Platform};

use crate::api::served::{ApiProcess, Directory, pause_and_create};
use crate::calls::{self, Call};
use crate::guests::{file, program};

const CREATE_VM: u64 = 0xae01;
const SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
const ENABLE_CAP: u64 = 0x4068_aea3;
const CREATE_VCPU: u64 = 0xae41;
const ARM_VCPU_INIT: u64 = 0x4020_aeae;
const CREATE_DEVICE: u64 = 0xc00c_aee0;
const RUN: u64 = 0xae80;
const IOEVENTFD: u64 = 0x4040_ae79;
const IRQFD: u64 = 0x4020_ae76;

fn trace_requests(options: &[&str]) -> Vec<u64> {
    let mut command = Command::new(program());
    command.arg("run").arg(file("/guests/hello.elf")).args(options);
    let calls = calls::trace(&mut command, Stdio::null());
    calls.iter().filter_map(Call::request).collect()
}

/// Checks that each request of `order` exists and that its last call precedes the first call of the next.
fn check_order(requests: &[u64], order: &[u64]) {
    let first = |request| requests.iter().position(|other| *other == request);
    let last = |request| requests.iter().rposition(|other| *other == request);
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
fn slots_precede_interrupt_controllers() {
    let requests = trace_requests(&["--cpus", "2"]);
    let order: &[u64] = match Native::ARCHITECTURE {
        Architecture::X86_64 => &[CREATE_VM, SET_USER_MEMORY_REGION, ENABLE_CAP, CREATE_VCPU, RUN],
        // The GIC has an interface for each vCPU, and KVM creates it only between calls of the vCPUs. Each thread sets the registers of its
        // own vCPU, while another may run.
        Architecture::Aarch64 => &[CREATE_VM, SET_USER_MEMORY_REGION, CREATE_VCPU, CREATE_DEVICE, RUN],
    };
    check_order(&requests, order);
    if Native::ARCHITECTURE == Architecture::Aarch64 {
        check_order(&requests, &[SET_USER_MEMORY_REGION, ARM_VCPU_INIT, CREATE_DEVICE]);
    }
    assert!(!requests.contains(&IOEVENTFD) && !requests.contains(&IRQFD));
}

/// Creates a snapshot of a guest with `memory` MiB. The guest exits when it reads `q`.
pub fn create_snapshot(directory: &Directory, memory: u32) {
    let mut process = ApiProcess::start();
    let machine = format!(r#"{{"vcpu_count":1,"mem_size_mib":{memory}}}"#);
    process.expect_no_content("PUT", "/machine-config", &machine);
    process.set_kernel("echo.elf");
    process.run_action("InstanceStart");
    process.expect("ready\n");
    pause_and_create(&process, directory, "Full", "state", "memory");
    process.kill();
}

/// Restores the snapshot. Returns the system calls up to the first guest entry.
fn trace_restore(directory: &Directory) -> Vec<Call> {
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(b"q").unwrap();
    let mut command = Command::new(program());
    command.arg("restore").arg(directory.path(""));
    let mut calls = calls::trace(&mut command, reader.into());
    // KVM_RUN with immediate_exit returns EINTR without guest entry; mayfly uses it to flush pending work.
    let is_flush = |call: &Call| call.request() == Some(RUN) && call.result == Some(-i64::from(libc::EINTR));
    calls.retain(|call| !is_flush(call));
    let entry = calls.iter().position(|call| call.request() == Some(RUN)).unwrap();
    calls.truncate(entry + 1);
    calls
}

#[test]
fn restore_does_not_read_memory() {
    const LARGE: u64 = 16 << 20;
    let directory = Directory::new();
    create_snapshot(&directory, 256);
    let calls = trace_restore(&directory);
    let memory = directory.path("memory");
    let mut used = calls.iter().filter(|call| call.file.as_ref() == Some(&memory));
    let map = used.next().unwrap();
    assert_eq!((map.number, map.arguments[1]), (libc::SYS_mmap, 256 << 20));
    assert!(used.next().is_none(), "{calls:#x?}");
    let calls_of = |number| calls.iter().filter(move |call| call.number == number);
    let start = map.arguments[0];
    for call in calls_of(libc::SYS_mmap) {
        let place = u64::try_from(call.result.unwrap()).unwrap();
        assert!(call.arguments[1] < LARGE || place == start, "{call:#x?}");
        let flags = u64::try_from(libc::MAP_POPULATE | libc::MAP_LOCKED).unwrap();
        assert_eq!(call.arguments[3] & flags, 0, "{call:#x?}");
    }
    let ends: Vec<_> = calls_of(libc::SYS_brk).filter_map(|call| call.result).collect();
    let grown = ends.iter().max().unwrap() - ends.iter().min().unwrap();
    assert!(grown < 1 << 20, "{grown}");
    for number in [
        libc::SYS_mlock,
        libc::SYS_mlock2,
        libc::SYS_mlockall,
        libc::SYS_mremap,
    ] {
        assert_eq!(calls_of(number).count(), 0);
    }
    let populates = [
        libc::MADV_POPULATE_READ,
        libc::MADV_POPULATE_WRITE,
        libc::MADV_WILLNEED,
    ];
    let populates = populates.map(|advice| u64::try_from(advice).unwrap());
    assert!(!calls_of(libc::SYS_madvise).any(|call| populates.contains(&call.arguments[2])));
}
