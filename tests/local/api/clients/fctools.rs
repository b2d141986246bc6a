//! The tests that fctools ships, with mayfly in the place of Firecracker and mayfly-jailer in that of its jailer.
//!
//! The kernel of their VMs is a guest that resets at Ctrl-Alt-Del, as the tests expect, and needs no root file system.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;
use std::{env, fs};

use serde_json::{Value, json};

use super::results::{self, Results};
use super::{SCRIPT_LIMIT, SCRIPTS, set_up};
use crate::api::served::Directory;
use crate::guests::{file, jailer, program};

const CLIENT: &str = "fctools";
const CACHE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache");
/// Delays between the start of a VM and the first step of a test. The tests of `process` neither wait for the socket nor for the
/// guest: those that fail after the first delay run again with the second.
const BOOT_WAITS: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(10)];
/// Tests of the program `vm` that create taps and rules of nftables.
const NETWORK_TESTS: [&str; 2] = [
    "vm_can_boot_with_namespaced_networking",
    "vm_can_boot_with_simple_networking",
];
/// Limit of each wait of the tests.
const WAIT_LIMIT: Duration = Duration::from_secs(60);
/// User and group of a jailed VMM.
const JAILED_USER: u32 = 65534;
/// Size of the root file system, which no guest reads.
const DISK_SIZE: u64 = 1 << 20;

/// Returns the path of the test program `name`, which the setup has built.
fn test_program(name: &str) -> String {
    let messages = fs::read_to_string(format!("{CACHE}/fctools/programs.json")).unwrap();
    let messages = messages
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut programs = messages.filter(|message| message["target"]["name"] == name);
    let program = programs.find_map(|message| message["executable"].as_str().map(str::to_owned));
    program.unwrap_or_else(|| panic!("fctools has no test program {name}"))
}

/// Returns a configuration with the kernel and the disk of `directory`.
fn configuration(directory: &str, is_read_only: bool) -> Vec<u8> {
    let configuration = json!({
        "boot-source": {
            "kernel_image_path": format!("{directory}/kernel"),
            "boot_args": "console=ttyS0 reboot=k panic=1 pci=off",
        },
        "drives": [{
            "drive_id": "rootfs",
            "is_root_device": true,
            "is_read_only": is_read_only,
            "path_on_host": format!("{directory}/rootfs.ext4"),
        }],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
    });
    serde_json::to_vec(&configuration).unwrap()
}

/// Creates the files that the tests name. They run at `/srv/data`.
fn create_data(boot_wait: Duration) -> Directory {
    let directory = Directory::new();
    for name in ["toolchain", "assets", "configs"] {
        fs::create_dir(directory.path(name)).unwrap();
    }
    // Links, which fctools.sh follows: an open copy could be inherited by a process of another test.
    let link = |target: &Path, name: &str| std::os::unix::fs::symlink(target, directory.path(name)).unwrap();
    link(Path::new(&program()), "toolchain/firecracker");
    link(&jailer(), "toolchain/jailer");
    fs::copy(file("end-keyboard.elf"), directory.path("assets/kernel")).unwrap();
    let disk = fs::File::create(directory.path("assets/rootfs.ext4")).unwrap();
    disk.set_len(DISK_SIZE).unwrap();
    directory.write(
        "configs/unrestricted.json",
        configuration("/srv/data/assets", true),
    );
    // The jail has all files in its root.
    directory.write("configs/jailed.json", configuration("", false));
    let options = json!({
        // The tests that compare versions run Firecracker's snapshot-editor, and fail without it.
        "toolchain": {"version": "", "snapshot_version": ""},
        "waits": {
            "shutdown_timeout_ms": WAIT_LIMIT.as_millis(),
            "boot_wait_ms": boot_wait.as_millis(),
            "boot_socket_timeout_ms": WAIT_LIMIT.as_millis(),
        },
        "network_interface": "lo",
        "jailer_uid": JAILED_USER,
        "jailer_gid": JAILED_USER,
    });
    directory.write("options.json", options.to_string());
    directory
}

/// Runs `program` with `arguments`, in namespaces of its own.
fn run_confined(program: &str, boot_wait: Duration, arguments: &[String]) -> Output {
    let data = create_data(boot_wait);
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    command
        .arg(format!("{SCRIPTS}/fctools.sh"))
        .arg(data.root())
        .arg(program);
    command.args(["--test-threads", "8", "--exact"]).args(arguments);
    scratch::run_within(SCRIPT_LIMIT, &mut command)
}

/// Returns the tests that ran, and true for those that passed.
fn parse(output: &str) -> BTreeMap<String, bool> {
    let results = output.lines().filter_map(|line| {
        let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
        let passed = match result {
            "ok" => true,
            "FAILED" => false,
            other => panic!("{name}: {other}"),
        };
        Some((name.to_owned(), passed))
    });
    results.collect()
}

/// Runs tests of `program`, selected by `arguments`, and compares their results with the list of `group`.
fn check_group(group: &str, program: &str, arguments: Vec<String>) {
    if !scratch::require(scratch::Requirement::Root)
        || !scratch::require(scratch::Requirement::MountNamespace)
    {
        return;
    }
    set_up();
    let program = test_program(program);
    let list = Results::read(CLIENT);
    let skipped = list.skipped_in(group);
    let skip = skipped
        .iter()
        .flat_map(|name| ["--skip".to_owned(), name.clone()]);
    let arguments: Vec<String> = arguments.into_iter().chain(skip).collect();
    let output = run_confined(&program, BOOT_WAITS[0], &arguments);
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let mut found = parse(&text);
    let listed: Vec<&String> = list.failed.values().flatten().collect();
    let is_unexpected = |name: &String| !listed.contains(&&format!("{group}: {name}"));
    let failed = found
        .iter()
        .filter(|(_, passed)| !**passed)
        .map(|(name, _)| name.clone());
    let failed: Vec<String> = failed.filter(is_unexpected).collect();
    if !failed.is_empty() {
        let output = run_confined(&program, BOOT_WAITS[1], &failed);
        text = String::from_utf8_lossy(&output.stdout).into_owned();
        found.extend(parse(&text));
    }
    results::check(CLIENT, group, &found, &text);
}

#[test]
fn fctools_controls_vm() {
    let network = NETWORK_TESTS.iter().flat_map(|name| ["--skip", name]);
    check_group("vm", "vm", network.map(str::to_owned).collect());
}

#[test]
fn fctools_attaches_network() {
    if scratch::require(scratch::Requirement::Nftables) {
        check_group("network", "vm", NETWORK_TESTS.map(str::to_owned).to_vec());
    }
}

#[test]
fn fctools_sends_requests() {
    check_group("vm_api", "vm_api", Vec::new());
}

#[test]
fn fctools_controls_process() {
    check_group("process", "process", Vec::new());
}

#[test]
fn fctools_verifies_installation() {
    check_group("other", "other", Vec::new());
}

#[test]
fn fctools_reads_metrics() {
    check_group("extensions", "extensions", Vec::new());
}
