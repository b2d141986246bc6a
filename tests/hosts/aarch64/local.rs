//! The tests of tests/local, with a process of that program for each module. A test that cannot run here is left out by name, with its
//! reason: [`LEFT_OUT`]. The output of the run lists them.

use std::process::Command;
use std::time::Duration;

use super::{FC, Map, VIRT};

/// First words of the line with the number of passed tests.
pub const COUNT: &str = "tests of tests/local: ";
/// First words of a line with a test that is left out, and the reason.
pub const OMISSION: &str = "left out: ";

/// Limit of a group.
const LIMIT: Duration = Duration::from_secs(500);

/// Reasons of [`LEFT_OUT`].
const CLIENTS: &str =
    "its client is a program of this machine's architecture, or an interpreter with packages";
const BRIDGE: &str = "the kernel has no bridge without more modules";
const LOOP: &str = "the kernel has no loop devices without more modules";
const TERMINAL: &str = "the host has no pseudoterminals";
const FUSE: &str = "the kernel has no FUSE without more modules";
const STOPS: &str = "it stops at each of some hundred system calls, which takes minutes here";
const LOAD: &str =
    "it loads the processor for a minute here, and tests code without a part for the architecture";
const LONG: &str = "the module takes minutes here; `cargo test --test local` runs it on an aarch64 machine";
const CORE: &str = "the module takes minutes here, and some of its tests run; `cargo test --test local` runs the rest on an aarch64 machine";

/// Tests that do not run here: their names or parts of them, and the reasons. The program skips what contains one.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "docs::",
        "it runs the commands of the documentation in bash, with the tools that they name",
    ),
    ("api::clients::", CLIENTS),
    ("api::crowd::", BRIDGE),
    ("api::slow_disk::", FUSE),
    (
        "api::race::",
        "a race between two processors, which emulation makes slow",
    ),
    ("api::killed::", STOPS),
    ("api::change::block_device_discards_and_is_replaced", LOOP),
    ("api::change::held_back_requests_of_block_device_complete", LOOP),
    (
        "network::forwarded_ports_reach_guest",
        "the host has no package passt",
    ),
    ("core_dump::gdb_", "the host has no package gdb"),
    ("attached::api_connects_console_before_start", TERMINAL),
    ("attached::ctl_attaches_terminal_to_socket_and_pty", TERMINAL),
    ("attached::signal_restores_terminal_of_ctl", TERMINAL),
    (
        "attached::client_that_reads_nothing_does_not_stall_guest",
        "the guest prints a megabyte, which takes minutes here",
    ),
    (
        "images::images_of_umoci_and_skopeo_run",
        "the host has no packages umoci and skopeo",
    ),
    ("network::passt_ends_with_vm", "the host has no package passt"),
    ("api::lifecycle::paused_guest_prints_nothing", LOAD),
    ("api::malformed::", LOAD),
    ("api::operations::", LOAD),
    ("api::output::fifos_without_reader_stall_nothing", LOAD),
    ("loader::", LOAD),
    ("memory_limit::", LOAD),
    ("api::addresses::", LONG),
    ("api::attack::", LONG),
    ("api::clones::", LONG),
    ("api::disk::", LONG),
    ("api::identity::", LONG),
    ("api::roundtrip::", CORE),
    ("api::snapshot::", CORE),
    ("api::snapshot_cli::", LONG),
    ("api::status::", CORE),
    ("api::suspend::", CORE),
    ("api::tracking::", LONG),
    ("api::uffd::", CORE),
    ("command::", LONG),
    ("console::", LONG),
];

/// Defines a test for each module of tests, with guests of the map fc, and the list of the modules.
macro_rules! groups {
    ($($name:ident => $module:literal;)*) => {
        /// Modules that run here.
        const MODULES: &[&str] = &[$($module),*];

        $(
            #[test]
            fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                crate::host::run(name, || run_group(concat!($module, "::"), FC));
            }
        )*
    };
}

groups! {
    access => "access";
    attach => "attach";
    attached => "attached";
    core_dump => "core_dump";
    crash => "crash";
    debugger => "debugger";
    images => "images";
    isolation => "isolation";
    kvm_call_order => "kvm_call_order";
    network => "network";
    profile => "profile";
    virtio => "virtio";
    api_change => "api::change";
    api_chroot => "api::chroot";
    api_config_file => "api::config_file";
    api_first_frames => "api::first_frames";
    api_jailed => "api::jailed";
    api_kata => "api::kata";
    api_lifecycle => "api::lifecycle";
    api_output => "api::output";
    api_phases => "api::phases";
    api_preparation => "api::preparation";
    api_process => "api::process";
    api_replay => "api::replay";
}

/// Defines a test for some tests of a module that takes minutes.
macro_rules! cores {
    ($($name:ident => $module:literal [$($test:literal)+];)*) => {
        $(
            #[test]
            fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                crate::host::run(name, || run_core($module, &[$(concat!($module, "::", $test)),+]));
            }
        )*
    };
}

cores! {
    core_of_api_roundtrip => "api::roundtrip" ["disk::requests_in_flight_survive_restores"];
    core_of_api_snapshot => "api::snapshot" [
        "guest_continues_in_another_process"
        "diff_into_base_file_is_loadable"
        "devices::drive_reopens_same_file"
        "rejected::create_of_running_guest_is_rejected"
        "rejected::load_into_configured_vm_is_rejected"
    ];
    core_of_api_status => "api::status" [
        "halt_with_interrupts_off_is_reported_once"
        "paused_guest_has_registers"
        "status_before_start_is_empty"
        "drive_with_driver_has_features"
    ];
    core_of_api_suspend => "api::suspend" [
        "idle_guest_is_suspended_when_ready"
        "requested_suspend_loses_no_tick"
        "suspend_in_progress_is_cancelled"
        "changed_drive_is_refused_unless_replaced"
    ];
    core_of_api_uffd => "api::uffd" [
        "guest_continues_with_fault_handler"
        "snapshot_with_fault_handler_loads_without_it"
        "unreachable_handler_ends_mayfly"
    ];
}

/// Returns a command for the program with `arguments`.
fn program(map: Map, arguments: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["-m", "/bin/local-root"]).args(arguments);
    command.env("MAYFLY_GUESTS", format!("/guests/{}", map.name));
    command
}

/// Runs the tests of the module `prefix`, with guests of `map`.
fn run_group(prefix: &str, map: Map) {
    let mut arguments = vec![prefix];
    for (name, reason) in LEFT_OUT {
        if name.starts_with(prefix) {
            println!("{OMISSION}{name}: {reason}");
        }
        arguments.extend(["--skip", *name]);
    }
    assert_ne!(run_program(map, &arguments), 0);
}

/// Runs `tests` of `module`, with guests of the map fc.
fn run_core(module: &str, tests: &[&str]) {
    let is_module = |name: &str| name.trim_end_matches("::") == module;
    let (name, reason) = LEFT_OUT.iter().find(|(name, _)| is_module(name)).unwrap();
    println!("{OMISSION}{name}: {reason}");
    let count = run_program(FC, &[&["--exact"], tests].concat());
    assert_eq!(count, tests.len());
}

/// Runs tests, which must pass. Returns their number.
fn run_program(map: Map, arguments: &[&str]) -> usize {
    let output = scratch::run_within(LIMIT, &mut program(map, arguments));
    let printed = String::from_utf8_lossy(&output.stdout);
    println!("{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", output.status);
    let passed = printed
        .lines()
        .find_map(|line| line.strip_prefix("test result: ok. "));
    let count = passed.and_then(|rest| rest.split_once(' ')).unwrap().0;
    println!("{COUNT}{count}");
    count.parse().unwrap()
}

/// The sequences of orchestrators and clients, with images of the map virt, whose path in their requests selects the map.
mod gic2 {
    use super::{VIRT, run_group};

    #[test]
    fn replay_with_images_of_virt() {
        let name = concat!(module_path!(), "::replay_with_images_of_virt");
        crate::host::run(name, || run_group("api::replay::", VIRT));
    }

    #[test]
    fn config_file_with_images_of_virt() {
        let name = concat!(module_path!(), "::config_file_with_images_of_virt");
        crate::host::run(name, || run_group("api::config_file::", VIRT));
    }
}

/// On the host with a GICv3 alone: the list of the program decides.
#[test]
fn each_test_has_a_group_or_a_reason() {
    let name = concat!(module_path!(), "::each_test_has_a_group_or_a_reason");
    crate::host::run(name, || {
        let output = scratch::run(&mut program(FC, &["--list", "--format", "terse"]));
        let printed = String::from_utf8(output.stdout).unwrap();
        let tests: Vec<&str> = printed
            .lines()
            .filter_map(|line| line.strip_suffix(": test"))
            .collect();
        for test in &tests {
            let has_group = MODULES
                .iter()
                .any(|module| test.starts_with(&format!("{module}::")));
            let is_left_out = LEFT_OUT.iter().any(|(name, _)| test.contains(name));
            assert!(has_group || is_left_out, "{test}: add its module, or the reason");
        }
        for (name, _) in LEFT_OUT {
            let is_test = tests.iter().any(|test| test.contains(name));
            assert!(is_test, "{name} is left out, and no test has this name");
        }
    });
}
