//! Use of the prepared VM, by its vCPU threads, and its clock.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::super::served::{ApiProcess, Directory, load_body, pause_and_create, start_ticker};
use super::set_machine;

/// Returns number and thread ID of each vCPU thread, by number.
fn vcpu_threads(process: &ApiProcess) -> Vec<(u8, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
    let mut threads: Vec<(u8, String)> = tasks
        .filter_map(|task| {
            let task = task.ok()?;
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            let number = name.trim().strip_prefix("fc_vcpu ")?.parse().ok()?;
            Some((number, task.file_name().into_string().ok()?))
        })
        .collect();
    threads.sort();
    threads
}

/// Waits until the process has the threads of vCPUs 0 to `count` - 1, and no others of a VM that was replaced. Returns them.
fn wait_for_threads(process: &ApiProcess, count: u8) -> Vec<(u8, String)> {
    scratch::wait_for("vCPU threads", || {
        // Beside the main thread. A new thread may not have its name yet.
        let others = fs::read_dir(format!("/proc/{}/task", process.id()))
            .unwrap()
            .count()
            - 1;
        let threads = vcpu_threads(process);
        let is_complete = threads.iter().map(|(number, _)| *number).eq(0..count);
        (others == usize::from(count) && is_complete).then_some(threads)
    })
}

/// Boots a guest, and checks that its vCPU threads are the `prepared` ones.
fn expect_start_with(mut process: ApiProcess, prepared: &[(u8, String)]) {
    process.set_kernel("ticker.elf");
    process.run_action("InstanceStart");
    process.expect("tick 2\n");
    assert_eq!(vcpu_threads(&process), prepared);
    process.terminate();
}

#[test]
fn start_uses_prepared_vcpu() {
    let process = ApiProcess::start();
    let prepared = wait_for_threads(&process, 1);
    expect_start_with(process, &prepared);
}

#[test]
fn start_uses_vcpus_and_memory_of_machine_config() {
    let process = ApiProcess::start();
    set_machine(&process, 2, 64);
    let prepared = wait_for_threads(&process, 2);
    expect_start_with(process, &prepared);
}

#[test]
fn load_uses_prepared_vcpu() {
    let source = start_ticker();
    let directory = Directory::new();
    pause_and_create(&source, &directory, "Full", "state", "memory");
    source.terminate();
    let mut process = ApiProcess::start();
    let prepared = wait_for_threads(&process, 1);
    let body = load_body(&directory, "state", "memory", r#","resume_vm":true"#);
    process.expect_no_content("PUT", "/snapshot/load", &body);
    process.expect("tick");
    assert_eq!(vcpu_threads(&process), prepared);
    process.terminate();
}

#[test]
fn clock_of_prepared_vm_starts_at_boot() {
    let mut process = ApiProcess::start();
    wait_for_threads(&process, 1);
    sleep(Duration::from_millis(300));
    let start = Instant::now();
    process.set_kernel("kvmclock.elf");
    process.run_action("InstanceStart");
    process.expect("ready\n");
    process.run_action("SendCtrlAltDel");
    process.expect("time ");
    let time: u64 = process.read_line().trim().parse().unwrap();
    assert!(
        Duration::from_nanos(time) <= start.elapsed(),
        "the clock shows {time} ns after {:?}",
        start.elapsed()
    );
    process.terminate();
}
