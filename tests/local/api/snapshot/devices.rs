//! Drives and interfaces of a restored guest, with and without overrides.

use std::fs;
use std::process::Command;

use super::super::http::go_request;
use super::super::served::{
    ApiProcess, Directory, RESUMED, create_tap_with_address, load_body, load_snapshot, pause_and_create,
};
use crate::guests::{file, program};
use crate::network::{fetch, in_own_network, ping, run_command};

const SECTOR: usize = 512;
/// A rate limiter that permits one request a month.
const ONE_OPERATION: &str = r#"{"ops":{"size":1,"refill_time":2592000000}}"#;
/// A rate limiter update that removes the limit.
const NO_LIMIT: &str = r#"{"ops":{"size":0,"refill_time":0}}"#;

/// Creates a snapshot, in `directory`, of the disk guest during its second request. Returns the path of the disk.
pub fn create_disk_snapshot(directory: &Directory) -> String {
    let mut process = ApiProcess::start();
    let disk = directory.write("disk", vec![0xa5; 100 * SECTOR]);
    let drive = format!(
        r#"{{"drive_id":"a","is_root_device":false,"path_on_host":"{disk}","rate_limiter":{ONE_OPERATION}}}"#
    );
    process.expect_no_content("PUT", "/drives/a", &drive);
    process.set_kernel("disk.elf");
    process.run_action("InstanceStart");
    process.expect("disk [a]\n");
    pause_and_create(&process, directory, "Full", "state", "memory");
    process.kill();
    disk
}

fn run_to_end(mut process: ApiProcess) {
    let limiter = format!(r#"{{"drive_id":"a","rate_limiter":{NO_LIMIT}}}"#);
    process.expect_no_content("PATCH", "/drives/a", &limiter);
    process.expect("ok disk 100 sectors\n");
    process.expect_exit(0);
}

#[test]
fn drive_override_replaces_file() {
    let directory = Directory::new();
    let disk = create_disk_snapshot(&directory);
    let before = fs::read(&disk).unwrap();
    fs::remove_file(&disk).unwrap();
    for name in ["first", "second"] {
        let clone = directory.write(name, &before);
        let fields =
            format!(r#","resume_vm":true,"drive_overrides":[{{"drive_id":"a","path_on_host":"{clone}"}}]"#);
        let restored = load_snapshot(&directory, "state", "memory", &fields);
        let shown = restored.request("GET", "/vm/config", "").json();
        assert_eq!(shown["drives"][0]["path_on_host"], clone.as_str());
        run_to_end(restored);
        assert!(fs::read(clone).unwrap() != before, "{name} was not written to");
    }
}

#[test]
fn truncated_memory_file_ends_mayfly_with_its_name() {
    let directory = Directory::new();
    create_disk_snapshot(&directory);
    let clone = load_snapshot(&directory, "state", "memory", "");
    let memory = fs::File::options()
        .write(true)
        .open(directory.path("memory"))
        .unwrap();
    memory.set_len(0).unwrap();
    // The drive accesses its virtqueue before the guest runs. mayfly ends without a response.
    let mut client = clone.connect();
    client.send(go_request("PATCH", "/vm", RESUMED));
    let stderr = clone.expect_abort(149);
    let expected = format!("the memory file {:?} was truncated", directory.path("memory"));
    assert!(stderr.contains(&expected), "{stderr}");
}

#[test]
fn truncated_memory_file_ends_restore_with_its_name() {
    let directory = Directory::new();
    create_disk_snapshot(&directory);
    let own = Directory::new();
    let socket = own.text("api.sock");
    let clone = ApiProcess::spawn(
        own,
        Command::new(program()).args(["restore", &directory.text("."), "--paused", "--api-sock", &socket]),
    );
    let mut client = clone.connect();
    // Answered after the load.
    assert_eq!(client.request("GET", "/", "").json()["state"], "Paused");
    let memory = fs::File::options().write(true).open(directory.path("memory"));
    memory.unwrap().set_len(0).unwrap();
    client.send(go_request("PATCH", "/vm", RESUMED));
    let stderr = clone.expect_abort(121);
    assert!(stderr.contains("was truncated"), "{stderr}");
}

#[test]
fn drive_reopens_same_file() {
    let directory = Directory::new();
    let disk = create_disk_snapshot(&directory);
    let before = fs::read(&disk).unwrap();
    run_to_end(load_snapshot(
        &directory,
        "state",
        "memory",
        r#","resume_vm":true"#,
    ));
    assert!(fs::read(&disk).unwrap() != before, "the drive was not written to");
}

#[test]
fn missing_disk_is_reported() {
    let directory = Directory::new();
    let disk = create_disk_snapshot(&directory);
    fs::remove_file(&disk).unwrap();
    let process = ApiProcess::start();
    let load = load_body(&directory, "state", "memory", "");
    let message = process.request("PUT", "/snapshot/load", &load).fault_message();
    assert!(
        message.starts_with("Load snapshot error: ") && message.contains(&disk),
        "{message}"
    );
    process.expect_exit(1);
}

fn ping_guest() {
    ping("10.0.0.2", 3);
}

#[test]
fn network_override_replaces_tap() {
    in_own_network(|| {
        let directory = Directory::new();
        create_tap_with_address("tap0");
        let mut process = ApiProcess::start();
        let interface = r#"{"iface_id":"net1","host_dev_name":"tap0","guest_mac":"02:00:00:00:00:07"}"#;
        process.expect_no_content("PUT", "/network-interfaces/net1", interface);
        let boot = format!(
            r#"{{"kernel_image_path":"{}","boot_args":"ip=10.0.0.2"}}"#,
            file("net.elf")
        );
        process.expect_no_content("PUT", "/boot-source", &boot);
        process.run_action("InstanceStart");
        process.expect("net 02:00:00:00:00:07 at 10.0.0.2\n");
        ping_guest();
        pause_and_create(&process, &directory, "Full", "state", "memory");
        process.kill();

        // First on the same tap, then on another one after the removal of the first.
        let restored = load_snapshot(&directory, "state", "memory", r#","resume_vm":true"#);
        ping_guest();
        restored.kill();
        run_command("ip link del tap0");
        create_tap_with_address("tap1");
        let fields = r#","resume_vm":true,"network_overrides":[{"iface_id":"net1","host_dev_name":"tap1"}]"#;
        let mut restored = load_snapshot(&directory, "state", "memory", fields);
        let shown = restored.request("GET", "/vm/config", "").json();
        assert_eq!(shown["network-interfaces"][0]["host_dev_name"], "tap1");
        ping_guest();
        let page = fetch("10.0.0.2");
        assert!(page.ends_with("\r\n\r\nhello from mayfly\n"), "{page}");
        // The count in guest memory includes the pings before the snapshot.
        restored.expect(" 6 pings 1 pages\n");
        restored.expect_exit(0);
    });
}
