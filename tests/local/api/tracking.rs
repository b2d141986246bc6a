//! Diffs of VMs with dirty page tracking, compared with full snapshots of the same moment, while guest and devices write.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use super::http::NO_CONTENT;
use super::served::{
    ApiProcess, Directory, PAUSED, RESUMED, create_snapshot, load_snapshot, pause_and_create,
};
use super::snapshot_cli::hide_proc;
use super::uffd::{FaultHandler, load_with_handler};
use crate::guest::TIMEOUT;
use crate::guests::{file, program};
use crate::network::{add_neighbor, create_host_tap, in_own_network};

const PAGE: usize = 4096;
const ROUNDS: usize = 4;
/// Maximum number of pages that were written with the content that they had.
const MAX_EQUAL: usize = 12;
pub const TRACKED: &str = r#","resume_vm":true,"track_dirty_pages":true"#;

/// Returns the numbers of the data pages of a file.
fn data_pages(path: &Path) -> BTreeSet<usize> {
    let file = File::open(path).unwrap();
    let seek = |at: usize, whence| {
        let at = libc::off_t::try_from(at).unwrap();
        // SAFETY: lseek has no pointer arguments.
        usize::try_from(unsafe { libc::lseek(file.as_raw_fd(), at, whence) }).ok()
    };
    let (mut pages, mut at) = (BTreeSet::new(), 0);
    while let Some(start) = seek(at, libc::SEEK_DATA) {
        at = seek(start, libc::SEEK_HOLE).unwrap();
        pages.extend(start / PAGE..at.div_ceil(PAGE));
    }
    pages
}

/// Compares the diff `diff` of the snapshot `base` with the full snapshot `next`, all of them memory files. Returns its pages.
pub fn compare(directory: &Directory, base: &str, diff: &str, next: &str) -> usize {
    let dirty = data_pages(&directory.path(diff));
    let [base, diff, next] = [base, diff, next].map(|name| fs::read(directory.path(name)).unwrap());
    let pages = base.chunks(PAGE).zip(diff.chunks(PAGE)).zip(next.chunks(PAGE));
    let mut changed = BTreeSet::new();
    for (number, ((base, diff), next)) in pages.enumerate() {
        if base != next {
            changed.insert(number);
        }
        let merged = if dirty.contains(&number) { diff } else { base };
        assert!(merged == next, "page {number} is wrong after a merge");
    }
    assert!(!changed.is_empty());
    let equal: Vec<_> = dirty.difference(&changed).collect();
    assert!(equal.len() <= MAX_EQUAL, "{equal:?} of {}", dirty.len());
    dirty.len()
}

/// Checks the diffs of a running VM with dirty page tracking in several rounds. `base` is the memory file of its last snapshot;
/// `progress` waits until guest and devices have written.
fn expect_exact_diffs(
    process: &mut ApiProcess,
    directory: &Directory,
    base: &str,
    mut progress: impl FnMut(&mut ApiProcess),
) {
    let create = |process: &ApiProcess, kind, state: &str, memory: &str| {
        create_snapshot(process, directory, kind, state, memory)
    };
    let mut base = base.to_owned();
    for round in 0..ROUNDS {
        progress(process);
        process.expect_no_content("PATCH", "/vm", PAUSED);
        // A failed snapshot loses no page.
        for kind in ["Diff", "Full"] {
            create(process, kind, "none/state", "failed").fault_message();
        }
        let [diff, next, empty] = ["diff", "next", "empty"].map(|name| format!("{name}-{round}"));
        let response = create(process, "Diff", &format!("{diff}-state"), &diff);
        assert_eq!(response.text, NO_CONTENT);
        for (kind, name) in [("Full", &next), ("Diff", &empty)] {
            let response = create(process, kind, &format!("{name}-state"), name);
            assert_eq!(response.text, NO_CONTENT);
        }
        compare(directory, &base, &diff, &next);
        assert_eq!(data_pages(&directory.path(&empty)), BTreeSet::new());
        process.expect_no_content("PATCH", "/vm", RESUMED);
        base = next;
    }
}

/// Sets up a tracked VM of 8 MiB and starts the guest `kernel`.
fn start_tracked(process: &ApiProcess, kernel: &str, arguments: &str) {
    let machine = r#"{"vcpu_count":1,"mem_size_mib":8,"track_dirty_pages":true}"#;
    process.expect_no_content("PUT", "/machine-config", machine);
    let boot = format!(
        r#"{{"kernel_image_path":"{}","boot_args":"{arguments}"}}"#,
        file(kernel)
    );
    process.expect_no_content("PUT", "/boot-source", &boot);
    process.run_action("InstanceStart");
}

/// Starts a guest that writes and reads its disk without end.
fn start_blocks(mut process: ApiProcess, engine: &str) -> ApiProcess {
    let disk = process.directory.text("disk");
    fs::write(&disk, vec![0; 64 * PAGE]).unwrap();
    let drive = format!(
        r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"{disk}","io_engine":"{engine}"}}"#
    );
    process.expect_no_content("PUT", "/drives/d", &drive);
    start_tracked(&process, "blocks.elf", "");
    process.expect("round 1\n");
    process
}

fn expect_round(process: &mut ApiProcess) {
    process.expect("round ");
    process.expect("round ");
}

/// Creates a full snapshot of `process` and resumes it.
fn create_first(process: &ApiProcess, directory: &Directory) {
    pause_and_create(process, directory, "Full", "state", "memory");
    process.expect_no_content("PATCH", "/vm", RESUMED);
}

fn shared_directory() -> Directory {
    Directory::new_in(Path::new("/dev/shm"))
}

#[test]
fn diffs_of_booted_vm_are_exact() {
    for engine in ["Sync", "Async"] {
        let directory = shared_directory();
        let mut process = start_blocks(ApiProcess::start(), engine);
        create_first(&process, &directory);
        expect_exact_diffs(&mut process, &directory, "memory", expect_round);
    }
}

#[test]
fn diffs_of_booted_vm_without_proc_are_exact() {
    for engine in ["Sync", "Async"] {
        let directory = shared_directory();
        let own = Directory::new();
        let mut command = Command::new(program());
        command.args(["--api-sock", &own.text("api.sock")]);
        hide_proc(&mut command);
        let mut process = start_blocks(ApiProcess::spawn(own, &mut command), engine);
        create_first(&process, &directory);
        expect_exact_diffs(&mut process, &directory, "memory", expect_round);
    }
}

#[test]
fn diffs_of_restored_vm_are_exact() {
    let directory = shared_directory();
    let source = start_blocks(ApiProcess::start(), "Sync");
    pause_and_create(&source, &directory, "Full", "state", "memory");
    // The drive stays for the restored VM.
    let disk = source.directory.text("disk");
    let copy = directory.text("disk");
    fs::copy(disk, &copy).unwrap();
    source.kill();
    let drive = format!(r#","drive_overrides":[{{"drive_id":"d","path_on_host":"{copy}"}}]"#);
    let mut restored = load_snapshot(&directory, "state", "memory", &format!("{TRACKED}{drive}"));
    expect_exact_diffs(&mut restored, &directory, "memory", expect_round);
}

#[test]
fn diffs_of_served_vm_are_exact() {
    let directory = shared_directory();
    let source = start_blocks(ApiProcess::start(), "Sync");
    pause_and_create(&source, &directory, "Full", "state", "memory");
    let copy = directory.text("disk");
    fs::copy(source.directory.text("disk"), &copy).unwrap();
    source.kill();
    let drive = format!(r#","drive_overrides":[{{"drive_id":"d","path_on_host":"{copy}"}}]"#);
    let handler = FaultHandler::start(&directory, "memory");
    let mut restored = load_with_handler(&directory, "state", &format!("{TRACKED}{drive}"));
    expect_exact_diffs(&mut restored, &directory, "memory", expect_round);
    restored.kill();
    handler.join();
}

#[test]
fn diffs_with_packets_are_exact() {
    in_own_network(|| {
        create_host_tap();
        add_neighbor("10.0.0.2", [2, 0, 0, 0, 0, 7]);
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        for without_proc in [false, true] {
            let directory = shared_directory();
            let own = Directory::new();
            let mut command = Command::new(program());
            command.args(["--api-sock", &own.text("api.sock")]);
            if without_proc {
                hide_proc(&mut command);
            }
            let mut process = ApiProcess::spawn(own, &mut command);
            let interface = r#"{"iface_id":"n","host_dev_name":"tap0","guest_mac":"02:00:00:00:00:07"}"#;
            process.expect_no_content("PUT", "/network-interfaces/n", interface);
            start_tracked(&process, "sequence.elf", "us=4000");
            process.expect("ready\n");
            create_first(&process, &directory);
            let mut sent = 0_u32;
            expect_exact_diffs(&mut process, &directory, "memory", |_| {
                for _ in 0..5 {
                    socket.send_to(&sent.to_be_bytes(), "10.0.0.2:7").unwrap();
                    sent += 1;
                }
                // The reply to the last datagram: kind 2, and its number.
                let last = [2_u32.to_be_bytes(), (sent - 1).to_be_bytes()].concat();
                let mut packet = [0; 64];
                while packet[..8] != last[..] {
                    socket.recv(&mut packet).unwrap();
                }
            });
            process.kill();
        }
    });
}

/// Without /proc, mayfly compares memory with the memory file, or reads the dirty log of KVM.
#[test]
fn diff_of_restored_vm_without_proc_holds_changes() {
    let directory = Directory::new();
    let mut source = ApiProcess::start();
    start_tracked(&source, "ticker.elf", "");
    source.expect("tick 3\n");
    pause_and_create(&source, &directory, "Full", "state", "memory");
    source.kill();
    for fields in [r#","resume_vm":true"#, TRACKED] {
        let own = Directory::new();
        let mut command = Command::new(program());
        command.args(["--api-sock", &own.text("api.sock")]);
        hide_proc(&mut command);
        let mut restored = ApiProcess::spawn(own, &mut command);
        let load = super::served::load_body(&directory, "state", "memory", fields);
        restored.expect_no_content("PUT", "/snapshot/load", &load);
        restored.expect("tick ");
        restored.expect("tick ");
        pause_and_create(&restored, &directory, "Diff", "diff-state", "diff");
        let response = create_snapshot(&restored, &directory, "Full", "next-state", "next");
        assert_eq!(response.text, NO_CONTENT);
        compare(&directory, "memory", "diff", "next");
        for name in ["diff-state", "diff", "next-state", "next"] {
            fs::remove_file(directory.path(name)).unwrap();
        }
    }
}

/// Creates a diff in `memory` after some progress. Returns its output on a merge into `base` and a load.
#[test]
fn tracked_diffs_merge_in_order() {
    let directory = Directory::new();
    for name in ["base", "one", "two"] {
        fs::create_dir(directory.path(name)).unwrap();
    }
    let mut process = ApiProcess::start();
    start_tracked(&process, "ticker.elf", "");
    process.expect("tick 3\n");
    for (kind, name) in [("Full", "base"), ("Diff", "one"), ("Diff", "two")] {
        let [state, memory] = ["state", "memory"].map(|file| format!("{name}/{file}"));
        pause_and_create(&process, &directory, kind, &state, &memory);
        if name != "two" {
            process.expect_no_content("PATCH", "/vm", RESUMED);
            process.expect("tick ");
            process.expect("tick ");
        }
    }
    let sizes =
        ["base", "one", "two"].map(|name| data_pages(&directory.path(&format!("{name}/memory"))).len());
    assert!(sizes[1] < sizes[0] && sizes[2] < sizes[0], "{sizes:?}");
    let printed = process.kill();
    // A diff of later pages is none of the base: it must not load alone.
    let alone = ApiProcess::start();
    let body = super::served::load_body(&directory, "two/state", "two/memory", "");
    alone.request("PUT", "/snapshot/load", &body).fault_message();
    let paths = ["base", "one", "two"].map(|name| directory.text(name));
    let mut command = Command::new(program());
    let merged = scratch::run(command.arg("snapshot-merge").args(paths));
    assert!(merged.status.success(), "{merged:?}");
    let restored = load_snapshot(&directory, "base/state", "base/memory", r#","resume_vm":true"#);
    super::served::expect_progress(restored, printed);
}

/// A diff in the files of a diff stays a diff, with and without tracking; one in the files of the last snapshot holds new pages only.
#[test]
fn repeated_diff_keeps_contents() {
    for fields in [r#","resume_vm":true"#, TRACKED] {
        let directory = Directory::new();
        let mut source = ApiProcess::start();
        start_tracked(&source, "ticker.elf", "");
        source.expect("tick 3\n");
        pause_and_create(&source, &directory, "Full", "state", "memory");
        source.kill();
        let mut restored = load_snapshot(&directory, "state", "memory", fields);
        for _ in 0..2 {
            restored.expect("tick ");
            pause_and_create(&restored, &directory, "Diff", "diff-state", "diff");
            restored.expect_no_content("PATCH", "/vm", RESUMED);
        }
        restored.kill();
        let alone = ApiProcess::start();
        let body = super::served::load_body(&directory, "diff-state", "diff", "");
        let message = alone.request("PUT", "/snapshot/load", &body).fault_message();
        assert!(message.contains("Diff snapshot"), "{message}");
    }
}
