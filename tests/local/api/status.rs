//! Status of vCPUs and devices: guests that are silent for different reasons.

use std::fs;
use std::fs::File;
use std::os::fd::AsRawFd;

use serde_json::{Value, json};
use vmm::arch::{Architecture, Native, Platform};

use super::served::{ApiProcess, Directory, PAUSED, RESUMED, pause_and_create, start_ticker};
use crate::file;

/// KVM_CHECK_EXTENSION and KVM_CAP_BINARY_STATS_FD of the KVM API.
const KVM_CHECK_EXTENSION: libc::Ioctl = 0xae03;
const KVM_CAP_BINARY_STATS_FD: libc::c_int = 203;

/// Starts `guest` with the command line `arguments` and a drive `d`, and waits until it prints `text`.
fn start(guest: &str, arguments: &str, text: &str) -> ApiProcess {
    // Built before the process starts: the first test builds all guests.
    let kernel = file(guest);
    let directory = Directory::new();
    let log = directory.text("log");
    let disk = directory.write("disk", vec![0; 64 * 4096]);
    let mut process = ApiProcess::start_with(directory, &["--log-path", &log, "--level", "Warning"]);
    let boot = json!({"kernel_image_path": kernel, "boot_args": arguments});
    process.expect_no_content("PUT", "/boot-source", &boot.to_string());
    let drive = json!({"drive_id": "d", "path_on_host": disk, "is_root_device": false});
    process.expect_no_content("PUT", "/drives/d", &drive.to_string());
    process.run_action("InstanceStart");
    process.expect(text);
    process
}

fn get(process: &ApiProcess, path: &str) -> Value {
    let response = process.request("GET", path, "");
    assert_eq!(response.status(), 200, "{path}: {}", response.text);
    response.json()
}

fn status(process: &ApiProcess) -> Value {
    get(process, "/vm/status")
}

/// Waits until vCPU 0 is in `state`.
fn await_state(process: &ApiProcess, state: &str) {
    scratch::wait_until("a state of the vCPU", || {
        status(process)["vcpus"][0]["state"] == state
    });
}

/// Waits until the registers of vCPU 0 have `state` and the interrupt flag `interrupts`. Returns the complete response.
fn await_registers(process: &ApiProcess, state: &str, interrupts: bool) -> Value {
    scratch::wait_for("registers of the vCPU", || {
        let registers = get(process, "/vm/registers");
        let vcpu = &registers["vcpus"][0];
        (vcpu["state"] == state && vcpu["accepts_interrupts"] == interrupts).then_some(registers)
    })
}

/// Returns true if KVM reports a vCPU that waits in a halt. On aarch64 its registers are those of one that runs.
fn reports_halt() -> bool {
    Native::ARCHITECTURE == Architecture::X86_64
}

/// Returns the state of a halted vCPU in its registers.
fn halted() -> &'static str {
    if reports_halt() { "Halted" } else { "Running" }
}

/// Returns the number of exits by an interruption of vCPU 0.
fn interruptions(process: &ApiProcess) -> String {
    let metrics = process.request("GET", "/metrics", "");
    let line = metrics
        .text
        .lines()
        .find(|line| line.starts_with("mayfly_vcpu_exits_total") && line.contains("\"interrupt\""));
    line.unwrap().to_owned()
}

#[test]
fn halt_with_interrupts_off_is_reported_once() {
    let process = start("end-hlt.elf", "", "halting\n");
    await_state(&process, "Halted");
    // Without a kick the interrupt flag is not known.
    let before = interruptions(&process);
    let uninspected = status(&process);
    assert_eq!(uninspected["halted_with_interrupts_off"], false);
    assert_eq!(interruptions(&process), before);
    scratch::wait_until("an idle time", || {
        status(&process)["vcpus"][0]["idle_us"].as_u64() > Some(0)
    });
    let log = process.directory.path("log");
    let warnings = || {
        fs::read_to_string(&log)
            .unwrap()
            .matches("interrupts off")
            .count()
    };
    assert_eq!(warnings(), 0);
    for _ in 0..2 {
        let registers = await_registers(&process, halted(), false);
        assert_eq!(registers["halted_with_interrupts_off"], reports_halt());
        assert_eq!(status(&process)["halted_with_interrupts_off"], reports_halt());
        assert_eq!(warnings(), usize::from(reports_halt()));
    }
    assert_ne!(interruptions(&process), before);
    await_state(&process, "Halted");
}

#[test]
fn drive_without_driver_is_in_reset() {
    let process = start("loop.elf", "", "looping\n");
    let (address, irq) = match Native::ARCHITECTURE {
        Architecture::X86_64 => ("0xc0001000", 5),
        Architecture::Aarch64 => ("0x40003000", 16),
    };
    let drive = json!([{
        "kind": "Drive", "id": "d", "address": address, "irq": irq,
        "has_driver": false, "status": [], "features": [],
    }]);
    assert_eq!(status(&process)["devices"], drive);
}

#[test]
fn drive_with_driver_has_features() {
    let process = start("blocks.elf", "", "round 1\n");
    let drive = status(&process)["devices"][0].clone();
    assert_eq!(drive["has_driver"], true);
    let bits = json!(["Acknowledged", "Driver", "FeaturesAccepted", "DriverOk"]);
    assert_eq!(drive["status"], bits);
    let features = drive["features"].as_array().unwrap();
    assert!(features.contains(&json!("VERSION_1")), "{drive}");
}

#[test]
fn spinning_guest_runs() {
    let process = start("loop.elf", "", "looping\n");
    let first = status(&process);
    assert_eq!(first["vcpus"][0]["state"], "Running");
    scratch::wait_until("more processor time", || {
        status(&process)["vcpus"][0]["cpu_time_us"].as_u64() > first["vcpus"][0]["cpu_time_us"].as_u64()
    });
    let registers = await_registers(&process, "Running", false);
    assert_eq!(registers["halted_with_interrupts_off"], false);
    let ip = registers["vcpus"][0]["instruction_pointer"].as_str().unwrap();
    let image = match Native::ARCHITECTURE {
        Architecture::X86_64 => "0x100",
        Architecture::Aarch64 => "0x80000",
    };
    assert!(ip.starts_with(image), "{ip} is not in the image");
}

/// The keyboard is of x86_64.
#[cfg(target_arch = "x86_64")]
#[test]
fn guest_that_waits_for_interrupts_is_not_reported() {
    let process = start("keyboard.elf", "irq=1", "ready\n");
    await_state(&process, "Halted");
    let registers = await_registers(&process, halted(), true);
    assert_eq!(registers["halted_with_interrupts_off"], false);
    assert_eq!(status(&process)["halted_with_interrupts_off"], false);
    // The kicks have not disturbed it.
    let mut process = process;
    process.run_action("SendCtrlAltDel");
    process.expect("ok keyboard");
}

/// Address of the last access of the guest poke.elf.
const LAST_UNCLAIMED: &str = match Native::ARCHITECTURE {
    Architecture::X86_64 => "0xfe100000",
    Architecture::Aarch64 => "0x7f100000",
};

#[test]
fn last_unclaimed_accesses_are_listed() {
    let process = start("poke.elf", "stay=1", "ok poke");
    let access = |width, is_write| {
        json!({
            "vcpu_id": 0, "space": "Memory", "address": LAST_UNCLAIMED, "width": width, "is_write": is_write, "count": 1,
        })
    };
    let writes = [8, 4, 2, 1].map(|width| access(width, true));
    let reads = [8, 4, 2, 1].map(|width| access(width, false));
    assert_eq!(
        status(&process)["unclaimed_accesses"],
        json!([writes, reads].concat())
    );
}

#[test]
fn paused_guest_has_registers() {
    let process = start("end-hlt.elf", "", "halting\n");
    await_registers(&process, halted(), false);
    process.expect_no_content("PATCH", "/vm", PAUSED);
    await_state(&process, "Paused");
    for _ in 0..3 {
        await_registers(&process, halted(), false);
    }
    let snapshot = Directory::new();
    pause_and_create(&process, &snapshot, "Full", "state", "memory");
    process.expect_no_content("PATCH", "/vm", RESUMED);
    await_state(&process, "Halted");
    await_registers(&process, halted(), false);
}

#[test]
fn statistics_are_open_after_an_exit() {
    let kvm = File::open("/dev/kvm").unwrap();
    // SAFETY: the call takes a number.
    if unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CHECK_EXTENSION, KVM_CAP_BINARY_STATS_FD) } == 0 {
        return scratch::skip("statistics of KVM", "use Linux 5.14 or later");
    }
    let process = start_ticker();
    let halts = || status(&process)["vcpus"][0]["halts"].as_u64();
    let first = scratch::wait_for("statistics", halts);
    scratch::wait_until("more halts", || halts().unwrap() > first);
}

#[test]
fn status_before_start_is_empty() {
    let process = ApiProcess::start();
    let empty = status(&process);
    assert_eq!(empty["state"], "Not started");
    assert_eq!((&empty["vcpus"], &empty["devices"]), (&json!([]), &json!([])));
    assert_eq!(get(&process, "/vm/registers")["vcpus"], json!([]));
}
