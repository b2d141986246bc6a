//! The VM that a process creates while it waits for its configuration.

use std::fs;
use std::os::unix::fs::chroot;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::served::{ApiProcess, Directory, load_body, start_ticker};
use crate::access::bare_root;
use crate::guests::file;

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

fn set_machine(process: &ApiProcess, vcpus: u8, memory: u32) {
    let body = format!(r#"{{"vcpu_count":{vcpus},"mem_size_mib":{memory}}}"#);
    process.expect_no_content("PUT", "/machine-config", &body);
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
    super::served::pause_and_create(&source, &directory, "Full", "state", "memory");
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
fn each_machine_config_replaces_prepared_vm() {
    let process = ApiProcess::start();
    for (vcpus, memory) in [(2, 64), (1, 64), (1, 96), (2, 96), (1, 128)] {
        set_machine(&process, vcpus, memory);
    }
    process.set_kernel("memory.elf");
    process.run_action("InstanceStart");
    // The guest checks both ends of its memory.
    let (printed, _) = process.expect_exit(0);
    assert!(printed.contains("ok memory"), "{printed}");
    assert!(printed.contains("-8000000 1"), "{printed}");
}

/// kvmclock is of x86_64.
#[cfg(target_arch = "x86_64")]
#[test]
fn clock_of_prepared_vm_starts_at_boot() {
    use std::time::{Duration, Instant};

    let mut process = ApiProcess::start();
    wait_for_threads(&process, 1);
    std::thread::sleep(Duration::from_millis(300));
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

#[test]
fn waiting_process_without_kvm_serves_and_reports_it_at_start() {
    if !scratch::require(scratch::Requirement::Root) {
        return;
    }
    let root = bare_root();
    fs::copy(file("hello.elf"), root.path("hello.elf")).unwrap();
    let path = root.root().to_owned();
    let mut command = Command::new("/mayfly");
    command.args(["--api-sock", "/api.sock"]);
    // SAFETY: the closure runs between fork and exec and makes system calls only.
    unsafe {
        command.pre_exec(move || {
            chroot(&path)?;
            std::env::set_current_dir("/")
        });
    }
    let process = ApiProcess::spawn(root, &mut command);
    assert_eq!(process.state(), "Not started");
    set_machine(&process, 1, 64);
    process.expect_no_content("PUT", "/boot-source", r#"{"kernel_image_path":"/hello.elf"}"#);
    let response = process.request("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    assert!(
        response.text.starts_with("HTTP/1.1 400 ") && response.text.contains("cannot open /dev/kvm"),
        "{}",
        response.text
    );
    assert_eq!(process.state(), "Not started");
    process.terminate();
}
