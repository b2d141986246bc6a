//! Updates of drives and interfaces of a running guest. A rate limiter holds the guest until the test has made its update,
//! which avoids races.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::Command;

use super::served::{ApiProcess, create_tap_with_address};
use crate::guest::Guest;
use crate::guests::file;
use crate::network::{in_own_network, ping};

const SECTOR: usize = 512;
/// A rate limiter that permits one request a month.
const ONE_OPERATION: &str = r#"{"ops":{"size":1,"refill_time":2592000000}}"#;
/// A rate limiter update that removes the limit.
const NO_LIMIT: &str = r#"{"ops":{"size":0,"refill_time":0}}"#;

fn put_drive(process: &ApiProcess, id: &str, path: &str, limiter: &str) {
    let body = format!(
        r#"{{"drive_id":"{id}","is_root_device":false,"path_on_host":"{path}","is_read_only":false,"rate_limiter":{limiter}}}"#
    );
    process.expect_no_content("PUT", &format!("/drives/{id}"), &body);
}

fn put_writeback_drive(process: &ApiProcess, path: &str, engine: &str, limiter: &str) {
    let body = format!(
        r#"{{"drive_id":"a","is_root_device":false,"path_on_host":"{path}","io_engine":"{engine}","cache_type":"Writeback","rate_limiter":{limiter}}}"#
    );
    process.expect_no_content("PUT", "/drives/a", &body);
}

fn patch_drive(process: &ApiProcess, id: &str, change: &str) {
    let body = format!("{{\"drive_id\":\"{id}\"{change}}}");
    process.expect_no_content("PATCH", &format!("/drives/{id}"), &body);
}

/// Starts the disk guest with the drives `a`, throttled after its first request, and `b`.
fn start_throttled() -> ApiProcess {
    let process = ApiProcess::start();
    for name in ["a", "b"] {
        let path = process.directory.write(name, vec![0xa5; 100 * SECTOR]);
        put_drive(
            &process,
            name,
            &path,
            if name == "a" { ONE_OPERATION } else { NO_LIMIT },
        );
    }
    process.set_kernel("disk.elf");
    process.run_action("InstanceStart");
    process
}

#[test]
fn drive_update_replaces_file() {
    let mut process = start_throttled();
    process.expect("disk [a]\n");
    let path = process.directory.write("c", vec![0x5a; 100 * SECTOR]);
    patch_drive(&process, "a", &format!(",\"path_on_host\":\"{path}\""));
    let shown = process.request("GET", "/vm/config", "").json();
    assert_eq!(shown["drives"][0]["path_on_host"], path.as_str());
    patch_drive(&process, "a", &format!(",\"rate_limiter\":{NO_LIMIT}"));
    process.expect("ok disk 100 sectors\ndisk [b]\nok disk 100 sectors\n");
    let content = |name| fs::read(process.directory.path(name)).unwrap();
    assert!(
        content("a") == vec![0xa5; 100 * SECTOR],
        "the old file was written to"
    );
    assert!(
        content("c") != vec![0x5a; 100 * SECTOR],
        "the new file was not written to"
    );
    process.expect_exit(0);
}

#[test]
fn drive_update_refreshes_capacity() {
    let mut process = start_throttled();
    process.expect("disk [a]\n");
    let other = process.directory.write("c", vec![0; 300 * SECTOR]);
    patch_drive(&process, "b", &format!(",\"path_on_host\":\"{other}\""));
    // The file grows, and an update without fields refreshes the capacity.
    fs::File::options()
        .write(true)
        .open(&other)
        .unwrap()
        .set_len(1000 * 512)
        .unwrap();
    patch_drive(&process, "b", "");
    patch_drive(&process, "a", &format!(",\"rate_limiter\":{NO_LIMIT}"));
    process.expect("ok disk 100 sectors\ndisk [b]\nok disk 1000 sectors\n");
    process.expect_exit(0);
}

/// A loop device on a file of 1 MiB.
struct LoopDevice {
    path: String,
    _file: scratch::Temporary,
}

impl LoopDevice {
    fn new() -> Self {
        let file = scratch::Temporary::with(&[0xa5; 1 << 20]);
        let mut command = Command::new("losetup");
        let output = scratch::run(command.args(["--find", "--show"]).arg(file.path()));
        assert!(output.status.success(), "{output:?}");
        let path = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        Self { path, _file: file }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        scratch::run(Command::new("losetup").args(["--detach", &self.path]));
    }
}

#[test]
fn block_device_discards_and_is_replaced() {
    if !scratch::require(scratch::Requirement::LoopDevice) {
        return;
    }
    let (first, second) = (LoopDevice::new(), LoopDevice::new());
    let mut process = ApiProcess::start();
    put_writeback_drive(&process, &first.path, "Async", NO_LIMIT);
    let kernel = file("slow.elf");
    let body = format!(r#"{{"kernel_image_path":"{kernel}","boot_args":"stay=1"}}"#);
    process.expect_no_content("PUT", "/boot-source", &body);
    process.run_action("InstanceStart");
    process.expect("end 0\n");
    assert!(
        fs::read(&first.path).unwrap() == vec![0; 1 << 20],
        "the discard has an effect"
    );
    patch_drive(&process, "a", &format!(",\"path_on_host\":\"{}\"", second.path));
    process.terminate();
}

/// Runs the disk guest, whose requests wait for the rate limiter: the event loop executes them.
fn run_held_back(path: &str, engine: &str) {
    let mut process = ApiProcess::start();
    put_writeback_drive(&process, path, engine, ONE_OPERATION);
    process.set_kernel("disk.elf");
    process.run_action("InstanceStart");
    process.expect("disk [a] flush\n");
    patch_drive(
        &process,
        "a",
        r#","rate_limiter":{"ops":{"size":1,"refill_time":15}}"#,
    );
    process.expect("ok disk ");
    process.expect_exit(0);
}

/// The disk is larger than the pieces of a flush, and not in the page cache.
#[test]
fn held_back_requests_of_cold_file_complete() {
    let directory = scratch::Directory::new();
    let path = directory.write("disk", vec![0xa5; 8 << 20]);
    let file = fs::File::open(&path).unwrap();
    file.sync_all().unwrap();
    // SAFETY: the call has no pointer arguments.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    run_held_back(&path, "Sync");
}

#[test]
fn held_back_requests_of_block_device_complete() {
    if scratch::require(scratch::Requirement::LoopDevice) {
        run_held_back(&LoopDevice::new().path, "Async");
    }
}

#[test]
fn update_to_disk_in_use_is_rejected() {
    let mut process = start_throttled();
    process.expect("disk [a]\n");
    let used = process.directory.write("used", vec![0; 100 * SECTOR]);
    let mut holder = Guest::start(&format!("{} --disk {used}", file("end-hlt.elf")));
    holder.expect("halting");
    let body = format!(r#"{{"drive_id":"a","path_on_host":"{used}"}}"#);
    let message = process.request("PATCH", "/drives/a", &body).fault_message();
    assert!(message.contains("another process uses it"), "{message}");
    holder.terminate();
    process.terminate();
}

#[test]
fn rejected_update_leaves_drive_unchanged() {
    let mut process = start_throttled();
    process.expect("disk [a]\n");
    for change in [
        r#""path_on_host":"/nowhere/disk""#,
        r#""path_on_host":"/""#,
        r#""path_on_host":"/nowhere/disk","rate_limiter":{"ops":{"size":0,"refill_time":0}}"#,
        r#""path_on_host":7"#,
        r#""rate_limiter":{"ops":{"size":1}}"#,
    ] {
        let response = process.request("PATCH", "/drives/a", &format!("{{\"drive_id\":\"a\",{change}}}"));
        assert_eq!(response.status(), 400, "{change}: {response:?}");
    }
    assert_eq!(process.state(), "Running");
    patch_drive(&process, "a", &format!(",\"rate_limiter\":{NO_LIMIT}"));
    process.expect("ok disk 100 sectors\ndisk [b]\nok disk 100 sectors\n");
    process.expect_exit(0);
}

#[test]
fn interface_update_replaces_rate_limiter() {
    in_own_network(|| {
        create_tap_with_address("tap0");
        let mut process = ApiProcess::start();
        let body = format!(
            r#"{{"iface_id":"1","host_dev_name":"tap0","guest_mac":"02:00:00:00:00:07","tx_rate_limiter":{ONE_OPERATION}}}"#
        );
        process.expect_no_content("PUT", "/network-interfaces/1", &body);
        let kernel = file("net.elf");
        let body = format!(r#"{{"kernel_image_path":"{kernel}","boot_args":"ip=10.0.0.2"}}"#);
        process.expect_no_content("PUT", "/boot-source", &body);
        process.run_action("InstanceStart");
        process.expect("net 02:00:00:00:00:07 at 10.0.0.2\n");
        // The limiter permits one frame, the ARP reply.
        let unanswered = scratch::run(Command::new("ping").args(["-c", "1", "-W", "1", "10.0.0.2"]));
        assert!(!unanswered.status.success(), "{unanswered:?}");
        let body = format!(r#"{{"iface_id":"1","tx_rate_limiter":{NO_LIMIT}}}"#);
        process.expect_no_content("PATCH", "/network-interfaces/1", &body);
        ping("10.0.0.2", 2);
        process.terminate();
    });
}
