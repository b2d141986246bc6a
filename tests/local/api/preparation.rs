//! The VM that a process creates while it waits for its configuration.

/// On aarch64 a waiting process has no VM: its GIC must follow the memory.
#[cfg(target_arch = "x86_64")]
mod threads;

use std::fs;
use std::os::unix::fs::chroot;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::served::ApiProcess;
use crate::access::bare_root;
use crate::guests::file;

fn set_machine(process: &ApiProcess, vcpus: u8, memory: u32) {
    let body = format!(r#"{{"vcpu_count":{vcpus},"mem_size_mib":{memory}}}"#);
    process.expect_no_content("PUT", "/machine-config", &body);
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
    // On aarch64 memory starts at 0x80000000, and the identity record has its end.
    let regions = ["8000000 1", "80000000-87ff0000 1"];
    assert!(regions.iter().any(|region| printed.contains(region)), "{printed}");
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
