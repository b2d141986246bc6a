//! Snapshots of running guests, loaded in other processes.

pub mod devices;
mod rejected;
mod urunc;
mod working_set;

use std::fs;
use std::process::Command;

use super::http::NO_CONTENT;
use super::output::{limiter_without_refill, sum_of_metric};
use super::served::{
    ApiProcess, Directory, PAUSED, RESUMED, count_ticks, create_fifo, expect_progress, load_body,
    load_snapshot, pause_and_create, start_ticker,
};
#[cfg(target_arch = "x86_64")]
use crate::guests::file;
use crate::guests::program;

/// The response to deprecated fields.
const DEPRECATED: &str =
    "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nDeprecation: true\r\n\r\n";

#[test]
fn guest_continues_in_another_process() {
    let directory = Directory::new();
    let process = start_ticker();
    pause_and_create(&process, &directory, "Full", "state", "memory");
    let printed = process.kill();
    let restored = load_snapshot(&directory, "state", "memory", r#","resume_vm":true"#);
    assert_eq!(restored.state(), "Running");
    expect_progress(restored, printed);
}

#[test]
fn loaded_guest_waits_for_resume() {
    let directory = Directory::new();
    let process = start_ticker();
    pause_and_create(&process, &directory, "Full", "state", "memory");
    let printed = process.kill();
    let waiting = load_snapshot(&directory, "state", "memory", r#","resume_vm":false"#);
    assert_eq!(waiting.state(), "Paused");
    assert_eq!(waiting.kill(), "", "a paused guest printed");
    let restored = load_snapshot(&directory, "state", "memory", "");
    restored.expect_no_content("PATCH", "/vm", RESUMED);
    assert_eq!(restored.state(), "Running");
    expect_progress(restored, printed);
}

#[test]
fn relative_paths_are_in_working_directory() {
    let directory = Directory::new();
    let start = |directory: Directory| {
        let mut command = Command::new(program());
        command
            .args(["--api-sock", "api.sock"])
            .current_dir(directory.root());
        ApiProcess::spawn(directory, &mut command)
    };
    let mut process = start(directory);
    process.set_kernel("ticker.elf");
    process.run_action("InstanceStart");
    process.expect("tick 3\n");
    process.expect_no_content("PATCH", "/vm", PAUSED);
    let create = r#"{"snapshot_type":"Full","snapshot_path":"state","mem_file_path":"memory"}"#;
    // Also over existing files.
    for _ in 0..2 {
        process.expect_no_content("PUT", "/snapshot/create", create);
    }
    let other = Directory::new();
    for name in ["state", "memory"] {
        fs::copy(process.directory.path(name), other.path(name)).unwrap();
    }
    let printed = process.kill();
    let restored = start(other);
    let load = r#"{"snapshot_path":"state","mem_backend":{"backend_type":"File","backend_path":"memory"},"resume_vm":true}"#;
    restored.expect_no_content("PUT", "/snapshot/load", load);
    expect_progress(restored, printed);
}

/// Other architectures have one interrupt controller.
#[cfg(target_arch = "x86_64")]
#[test]
fn snapshot_with_kernel_irqchip_loads_and_is_repeated() {
    let directory = Directory::new();
    let (mut command, kernel) = (Command::new(program()), file("ticker.elf"));
    let socket = directory.text("api.sock");
    command.args(["run", &kernel, "--irqchip", "kernel", "--api-sock", &socket]);
    let mut process = ApiProcess::spawn(directory, &mut command);
    process.expect("tick 3\n");
    let files = Directory::new();
    pause_and_create(&process, &files, "Full", "state", "memory");
    let printed = process.kill();
    let mut restored = load_snapshot(&files, "state", "memory", r#","resume_vm":true"#);
    restored.expect(&format!("tick {}\n", count_ticks(&printed) + 3));
    pause_and_create(&restored, &files, "Full", "state", "memory");
    let printed = printed + &restored.kill();
    let restored = load_snapshot(&files, "state", "memory", r#","resume_vm":true"#);
    expect_progress(restored, printed);
}

#[test]
fn source_and_clones_continue() {
    let directory = Directory::new();
    let mut process = start_ticker();
    pause_and_create(&process, &directory, "Full", "state", "memory");
    process.expect_no_content("PATCH", "/vm", RESUMED);
    process.expect("tick 20\n");
    let all = process.kill();
    count_ticks(&all);
    let [first, second] =
        [(), ()].map(|()| load_snapshot(&directory, "state", "memory", r#","resume_vm":true"#));
    for mut clone in [first, second] {
        clone.expect("tick 20\n");
        let printed = clone.kill();
        let until = |text: &str| text.find("tick 20\n").unwrap();
        // The clone starts with the rest of the line that the snapshot interrupted.
        assert!(
            all[..until(&all)].ends_with(&printed[..until(&printed)]),
            "{printed}"
        );
    }
}

#[test]
fn restored_guest_creates_snapshots() {
    let directory = Directory::new();
    let process = start_ticker();
    pause_and_create(&process, &directory, "Full", "state", "memory");
    let mut printed = process.kill();
    for _ in 0..3 {
        let mut restored = load_snapshot(&directory, "state", "memory", r#","resume_vm":true"#);
        let last = count_ticks(&printed) + 3;
        restored.expect(&format!("tick {last}\n"));
        pause_and_create(&restored, &directory, "Full", "state", "memory");
        printed += &restored.kill();
        assert!(count_ticks(&printed) >= last);
    }
}

/// Creates a snapshot, loads it, runs the guest and pauses it. Returns the guest and its output before the snapshot.
fn restore_and_run(directory: &Directory) -> (ApiProcess, String) {
    let process = start_ticker();
    pause_and_create(&process, directory, "Full", "state", "memory");
    let printed = process.kill();
    let mut restored = load_snapshot(directory, "state", "memory", r#","resume_vm":true"#);
    restored.expect(&format!("tick {}\n", count_ticks(&printed) + 3));
    restored.expect_no_content("PATCH", "/vm", PAUSED);
    (restored, printed)
}

#[test]
fn diff_into_base_file_is_loadable() {
    let directory = Directory::new();
    let (restored, printed) = restore_and_run(&directory);
    pause_and_create(&restored, &directory, "Diff", "state", "memory");
    let printed = printed + &restored.kill();
    // The memory file holds the pages of the base and those that the guest has changed.
    let again = load_snapshot(&directory, "state", "memory", r#","resume_vm":true"#);
    expect_progress(again, printed);
}

#[test]
fn diff_of_booted_guest_is_complete() {
    let directory = Directory::new();
    let process = start_ticker();
    // An existing file of the same length is not the base of the guest.
    std::fs::write(directory.path("memory"), vec![0xee; 128 << 20]).unwrap();
    pause_and_create(&process, &directory, "Diff", "state", "memory");
    pause_and_create(&process, &directory, "Diff", "state-2", "memory-2");
    let printed = process.kill();
    for (state, memory) in [("state", "memory"), ("state-2", "memory-2")] {
        let restored = load_snapshot(&directory, state, memory, r#","resume_vm":true"#);
        expect_progress(restored, printed.clone());
    }
    let [first, second] = ["memory", "memory-2"].map(|name| std::fs::read(directory.path(name)).unwrap());
    assert!(first == second);
}

#[test]
fn separate_diff_loads_after_merge() {
    use std::os::unix::fs::MetadataExt;
    for memory in ["new", "empty"] {
        let directory = Directory::new();
        directory.write("empty", "");
        let (restored, printed) = restore_and_run(&directory);
        pause_and_create(&restored, &directory, "Diff", "diff-state", memory);
        let printed = printed + &restored.kill();
        let sizes = |name: &str| {
            let metadata = directory.path(name).metadata().unwrap();
            (metadata.len(), metadata.blocks())
        };
        let (base, diff) = (sizes("memory"), sizes(memory));
        assert!(diff.0 == base.0 && diff.1 < base.1, "{diff:?} {base:?}");

        let rejecting = ApiProcess::start();
        let load = load_body(&directory, "diff-state", memory, "");
        let message = rejecting.request("PUT", "/snapshot/load", &load).fault_message();
        assert!(message.contains("merge it into the snapshot"), "{message}");
        rejecting.expect_exit(1);

        let [diff_directory, base_directory] = ["diff", "base"].map(|name| {
            std::fs::create_dir(directory.path(name)).unwrap();
            directory.text(name)
        });
        for (from, to) in [
            ("diff-state", "diff/state"),
            (memory, "diff/memory"),
            ("state", "base/state"),
            ("memory", "base/memory"),
        ] {
            std::fs::rename(directory.path(from), directory.path(to)).unwrap();
        }
        let mut command = std::process::Command::new(crate::guests::program());
        let merged = scratch::run(command.args(["snapshot-merge", &base_directory, &diff_directory]));
        assert!(merged.status.success(), "{merged:?}");
        let again = load_snapshot(&directory, "base/state", "base/memory", r#","resume_vm":true"#);
        expect_progress(again, printed);
    }
}

#[test]
fn loaded_vm_reports_its_configuration() {
    let directory = Directory::new();
    let process = ApiProcess::start();
    let disk = directory.write("disk", [0; 4096]);
    let drive = format!(r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"{disk}"}}"#);
    process.expect_no_content("PUT", "/drives/d", &drive);
    process.expect_no_content("PUT", "/machine-config", r#"{"vcpu_count":2,"mem_size_mib":64}"#);
    process.set_kernel("ticker.elf");
    process.run_action("InstanceStart");
    pause_and_create(&process, &directory, "Full", "state", "memory");
    let shown = |process: &ApiProcess, path: &str| process.request("GET", path, "").json();
    let paths = ["/vm/config", "/machine-config"];
    let before = paths.map(|path| shown(&process, path));
    assert_eq!(before[1]["mem_size_mib"], 64);
    process.kill();
    let restored = load_snapshot(&directory, "state", "memory", "");
    assert_eq!(paths.map(|path| shown(&restored, path)), before);
    restored.kill();

    // Dirty page tracking is not part of the snapshot: each load sets it, by its new or its old name.
    for field in ["track_dirty_pages", "enable_diff_snapshots"] {
        let restored = ApiProcess::start();
        let load = load_body(&directory, "state", "memory", &format!(",\"{field}\":true"));
        let response = restored.request("PUT", "/snapshot/load", &load);
        let is_old = field == "enable_diff_snapshots";
        assert_eq!(response.text, if is_old { DEPRECATED } else { NO_CONTENT });
        assert_eq!(shown(&restored, "/machine-config")["track_dirty_pages"], true);
        restored.terminate();
    }
}

#[test]
fn mem_file_path_is_deprecated() {
    let directory = Directory::new();
    let process = start_ticker();
    pause_and_create(&process, &directory, "Full", "state", "memory");
    let printed = process.kill();
    let restored = ApiProcess::start();
    let load = format!(
        r#"{{"snapshot_path":"{}","mem_file_path":"{}","resume_vm":true,"enable_diff_snapshots":false}}"#,
        directory.text("state"),
        directory.text("memory")
    );
    assert_eq!(restored.request("PUT", "/snapshot/load", &load).text, DEPRECATED);
    expect_progress(restored, printed);
}

/// The limit is a setting of the process, as the file is, and not part of the snapshot.
#[test]
fn limit_of_serial_output_applies_to_loaded_guest() {
    let directory = Directory::new();
    let process = ApiProcess::start();
    let limiter = limiter_without_refill("tick 1\n".len() as u64);
    process.expect_no_content("PUT", "/serial", &format!(r#"{{"rate_limiter":{limiter}}}"#));
    process.set_kernel("ticker.elf");
    process.run_action("InstanceStart");
    pause_and_create(&process, &directory, "Full", "state", "memory");
    process.kill();

    let load = load_body(&directory, "state", "memory", r#","resume_vm":true"#);
    let mut unlimited = ApiProcess::start();
    unlimited.expect_no_content("PUT", "/snapshot/load", &load);
    unlimited.expect("tick ");
    unlimited.expect("tick ");
    unlimited.kill();

    let limited = ApiProcess::start();
    let (serial, metrics) = (directory.write("serial", ""), directory.write("metrics", ""));
    limited.expect_no_content("PUT", "/metrics", &format!(r#"{{"metrics_path":"{metrics}"}}"#));
    let body = format!(r#"{{"serial_out_path":"{serial}","rate_limiter":{limiter}}}"#);
    limited.expect_no_content("PUT", "/serial", &body);
    limited.expect_no_content("PUT", "/snapshot/load", &load);
    scratch::wait_until("dropped output", || {
        limited.run_action("FlushMetrics");
        sum_of_metric(&metrics, "uart", "rate_limiter_dropped_bytes") > 0
    });
    // A thread writes to a file on a disk, possibly after the first bytes are dropped.
    let length = || std::fs::metadata(&serial).unwrap().len();
    scratch::wait_until("output within the limit", || length() >= "tick 1\n".len() as u64);
    limited.terminate();
    assert_eq!(length(), "tick 1\n".len() as u64);
}

#[test]
fn loaded_guest_prints_to_configured_file() {
    let directory = Directory::new();
    let process = start_ticker();
    pause_and_create(&process, &directory, "Full", "state", "memory");
    let printed = process.kill();
    let restored = ApiProcess::start();
    let fifo = create_fifo(&restored.directory, "serial");
    restored.expect_no_content("PUT", "/serial", &format!(r#"{{"serial_out_path":"{fifo}"}}"#));
    let load = load_body(&directory, "state", "memory", r#","resume_vm":true"#);
    restored.expect_no_content("PUT", "/snapshot/load", &load);
    let mut all = printed;
    let wanted = count_ticks(&all) + 3;
    let mut file = scratch::limited(|| scratch::Limited(std::fs::File::open(fifo).unwrap()));
    while count_ticks(&all) < wanted {
        let mut bytes = [0; 64];
        let length = std::io::Read::read(&mut file, &mut bytes).unwrap();
        all += std::str::from_utf8(&bytes[..length]).unwrap();
    }
    assert_eq!(restored.kill(), "");
}
