//! Start, pause, resume and exit of a guest.

use std::fs;
use std::path::Path;

use scratch::Directory;
use vmm::arch::{Architecture, Native, Platform};

use super::http::fault_response;
use super::served::ApiProcess;
use crate::guests::file;

#[test]
fn guest_boots_and_exits() {
    let mut process = ApiProcess::start();
    let body = format!(
        r#"{{"kernel_image_path":"{}","boot_args":"k=v  -- a \"b\" [ c ]"}}"#,
        file("cmdline.elf")
    );
    process.expect_no_content("PUT", "/boot-source", &body);
    process.run_action("InstanceStart");
    process.expect("[k=v  -- a \"b\" [ c ]]\nok cmdline");
    let (_, stderr) = process.expect_exit(0);
    assert_eq!(stderr, "");
}

#[test]
fn image_boots_with_initrd() {
    let image = match Native::ARCHITECTURE {
        Architecture::X86_64 => "bzimage.bin",
        Architecture::Aarch64 => "image.bin",
    };
    let mut process = ApiProcess::start();
    let body = format!(
        r#"{{"kernel_image_path":"{}","initrd_path":"{}","boot_args":""}}"#,
        file(image),
        file("initrd")
    );
    process.expect_no_content("PUT", "/boot-source", &body);
    process.run_action("InstanceStart");
    process.expect("ok initrd 10000 bytes sum 57344");
    process.expect_exit(0);
}

/// The exit status is that of Firecracker: 0 after a reset, 1 after a triple fault, which only x86_64 has.
#[test]
fn guest_exit_determines_exit_status() {
    for (guest, status, text) in [
        ("end-reset.elf", 0, ""),
        ("end-poweroff.elf", 0, ""),
        #[cfg(target_arch = "x86_64")]
        ("end-vector.elf", 0, ""),
        #[cfg(target_arch = "x86_64")]
        ("end-code.elf", 42, ""),
        #[cfg(target_arch = "x86_64")]
        ("end-triple.elf", 1, "triple fault"),
    ] {
        let process = ApiProcess::start();
        process.set_kernel(guest);
        process.run_action("InstanceStart");
        let (_, stderr) = process.expect_exit(status);
        assert!(stderr.contains(text), "{guest}: {stderr}");
    }
}

/// Sends requests until the file at `path` is longer than `length`, at most `limit`. Returns their number.
fn request_until_longer(process: &ApiProcess, path: &str, length: u64, limit: u32) -> u32 {
    let mut client = process.connect();
    for count in 0..limit {
        if fs::metadata(path).unwrap().len() > length {
            return count;
        }
        assert_eq!(client.request("GET", "/", "").status(), 200);
    }
    limit
}

#[test]
fn paused_guest_prints_nothing() {
    let process = ApiProcess::start();
    // In memory: on a disk, mayfly may write output of the guest after the pause.
    let directory = Directory::new_in(Path::new("/dev/shm"));
    let path = directory.text("serial");
    let length = || fs::metadata(&path).unwrap().len();
    process.set_kernel("ticker.elf");
    process.expect_no_content("PUT", "/serial", &format!("{{\"serial_out_path\":\"{path}\"}}"));
    process.run_action("InstanceStart");
    request_until_longer(&process, &path, 0, u32::MAX);
    // Time of one to two ticks, in requests.
    let tick = request_until_longer(&process, &path, length(), u32::MAX)
        + request_until_longer(&process, &path, length() + "tick 1\n".len() as u64, u32::MAX);
    for _ in 0..3 {
        process.expect_no_content("PATCH", "/vm", r#"{"state":"Paused"}"#);
        assert_eq!(process.state(), "Paused");
        let paused = length();
        let count = request_until_longer(&process, &path, paused, 10 * tick + 100);
        assert_eq!(count, 10 * tick + 100, "the guest printed while it was paused");
        process.expect_no_content("PATCH", "/vm", r#"{"state":"Paused"}"#);
        process.expect_no_content("PATCH", "/vm", r#"{"state":"Resumed"}"#);
        process.expect_no_content("PATCH", "/vm", r#"{"state":"Resumed"}"#);
        assert_eq!(process.state(), "Running");
        request_until_longer(&process, &path, paused, u32::MAX);
    }
    let printed = fs::read_to_string(path).unwrap();
    process.terminate();
    for (index, line) in printed.lines().take(5).enumerate() {
        assert_eq!(line, format!("tick {}", index + 1));
    }
}

#[test]
fn sigterm_ends_paused_guest() {
    let process = ApiProcess::start();
    process.set_kernel("loop.elf");
    process.run_action("InstanceStart");
    process.expect_no_content("PATCH", "/vm", r#"{"state":"Paused"}"#);
    process.terminate();
}

#[test]
fn start_succeeds_after_failed_start() {
    let mut process = ApiProcess::start();
    let start = || process.request("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    assert_eq!(
        start().text,
        fault_response("Start microvm error: Cannot start microvm without kernel configuration.")
    );
    process.set_kernel("segments.elf");
    process.expect_no_content("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":2}"#);
    for _ in 0..2 {
        let message = start().fault_message();
        assert!(
            message.starts_with("Start microvm error: ") && message.contains("MiB suffice"),
            "{message}"
        );
        assert_eq!(process.state(), "Not started");
    }
    process.expect_no_content("PATCH", "/machine-config", r#"{"mem_size_mib":64}"#);
    process.run_action("InstanceStart");
    process.expect("ok segments");
    process.expect_exit(0);
}

#[test]
fn missing_file_leaves_configuration_unchanged() {
    let mut process = ApiProcess::start();
    process.set_kernel("hello.elf");
    for (path, body, prefix) in [
        (
            "/boot-source",
            r#"{"kernel_image_path":"/nowhere/k"}"#,
            "Boot source error: ",
        ),
        (
            "/drives/d",
            r#"{"drive_id":"d","is_root_device":false,"path_on_host":"/nowhere/d"}"#,
            "Drive config error: ",
        ),
        (
            "/serial",
            r#"{"serial_out_path":"/nowhere/s"}"#,
            "Serial config error: ",
        ),
        (
            "/network-interfaces/n",
            r#"{"iface_id":"n","host_dev_name":"no such tap name"}"#,
            "Network config error: ",
        ),
    ] {
        let message = process.request("PUT", path, body).fault_message();
        assert!(message.starts_with(prefix), "{path}: {message}");
    }
    process.run_action("InstanceStart");
    process.expect("hello from mayfly");
    process.expect_exit(0);
}
