//! From the start of a guest to its end.

use std::fs;

use super::http::fault;
use super::served::ApiProcess;
use crate::guests::file;

#[test]
fn a_guest_boots_and_ends() {
    let mut served = ApiProcess::start();
    let body = format!(
        r#"{{"kernel_image_path":"{}","boot_args":"k=v  -- a \"b\" [ c ]"}}"#,
        file("cmdline.elf")
    );
    served.expect_no_content("PUT", "/boot-source", &body);
    served.act("InstanceStart");
    served.expect("[k=v  -- a \"b\" [ c ]]\nok cmdline");
    let (_, said) = served.ends_with(0);
    assert_eq!(said, "");
}

/// As Firecracker's ends: a reset is success, a guest that cannot go on is 1.
#[test]
fn the_end_of_a_guest_is_the_exit_status() {
    for (guest, status, text) in [
        ("end-reset.elf", 0, ""),
        ("end-poweroff.elf", 0, ""),
        ("end-vector.elf", 0, ""),
        ("end-code.elf", 42, ""),
        ("end-triple.elf", 1, "triple fault"),
    ] {
        let served = ApiProcess::start();
        served.boots(guest);
        served.act("InstanceStart");
        let (_, said) = served.ends_with(status);
        assert!(said.contains(text), "{guest}: {said}");
    }
}

/// Asks until the file at `path` is longer than `length`, or `limit` times; how often.
fn asks_until_longer(served: &ApiProcess, path: &str, length: u64, limit: u32) -> u32 {
    let mut client = served.connect();
    for count in 0..limit {
        if fs::metadata(path).unwrap().len() > length {
            return count;
        }
        assert_eq!(client.ask("GET", "/", "").status(), 200);
    }
    limit
}

#[test]
fn a_paused_guest_stands_still() {
    let served = ApiProcess::start();
    let path = served.folder.text("serial");
    let length = || fs::metadata(&path).unwrap().len();
    served.boots("ticker.elf");
    served.expect_no_content("PUT", "/serial", &format!("{{\"serial_out_path\":\"{path}\"}}"));
    served.act("InstanceStart");
    asks_until_longer(&served, &path, 0, u32::MAX);
    // How long a tick and a half of it takes, in requests.
    let tick = asks_until_longer(&served, &path, length(), u32::MAX)
        + asks_until_longer(&served, &path, length() + "tick 1\n".len() as u64, u32::MAX);
    for _ in 0..3 {
        served.expect_no_content("PATCH", "/vm", r#"{"state":"Paused"}"#);
        assert_eq!(served.state(), "Paused");
        let paused = length();
        let asked = asks_until_longer(&served, &path, paused, 10 * tick + 100);
        assert_eq!(asked, 10 * tick + 100, "the guest printed while it was paused");
        served.expect_no_content("PATCH", "/vm", r#"{"state":"Paused"}"#);
        served.expect_no_content("PATCH", "/vm", r#"{"state":"Resumed"}"#);
        served.expect_no_content("PATCH", "/vm", r#"{"state":"Resumed"}"#);
        assert_eq!(served.state(), "Running");
        asks_until_longer(&served, &path, paused, u32::MAX);
    }
    let printed = fs::read_to_string(path).unwrap();
    served.terminate();
    for (index, line) in printed.lines().take(5).enumerate() {
        assert_eq!(line, format!("tick {}", index + 1));
    }
}

#[test]
fn a_paused_guest_is_ended() {
    let served = ApiProcess::start();
    served.boots("loop.elf");
    served.act("InstanceStart");
    served.expect_no_content("PATCH", "/vm", r#"{"state":"Paused"}"#);
    served.terminate();
}

#[test]
fn a_failed_start_can_be_tried_again() {
    let mut served = ApiProcess::start();
    let start = || served.ask("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    assert_eq!(
        start().text,
        fault("Start microvm error: Cannot start microvm without kernel configuration.")
    );
    served.boots("segments.elf");
    served.expect_no_content("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":2}"#);
    for _ in 0..2 {
        let why = start().fault();
        assert!(
            why.starts_with("Start microvm error: ") && why.contains("segments.elf"),
            "{why}"
        );
        assert_eq!(served.state(), "Not started");
    }
    served.expect_no_content("PATCH", "/machine-config", r#"{"mem_size_mib":64}"#);
    served.act("InstanceStart");
    served.expect("ok segments");
    served.ends_with(0);
}

#[test]
fn a_file_that_is_not_there_changes_nothing() {
    let mut served = ApiProcess::start();
    served.boots("hello.elf");
    for (path, body, part) in [
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
        let why = served.ask("PUT", path, body).fault();
        assert!(why.starts_with(part), "{path}: {why}");
    }
    served.act("InstanceStart");
    served.expect("hello from mayfly");
    served.ends_with(0);
}
