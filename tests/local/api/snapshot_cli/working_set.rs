//! Recording and prefetch of the working set of a restored guest.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use super::super::served::{ApiProcess, Directory};
use super::{
    command_with_timeout, create_snapshot, create_snapshot_of, expect_ticks, restore, run_err, run_ok,
};
use crate::guest::TIMEOUT;
use crate::guests::{file, program};

/// Runs `command` with `input` for the guest, which exits on it.
fn run_with_input(command: &mut Command, input: &[u8]) -> Output {
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(input).unwrap();
    let output = scratch::run_with_input(command, reader);
    drop(writer);
    output
}

fn run_restored(directory: &str, options: &[&str], input: &[u8]) -> String {
    let mut command = command_with_timeout();
    command.args(["restore", directory]).args(options);
    let output = run_with_input(&mut command, input);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}{stderr}");
    assert!(printed.contains("ok touch 512 pages"), "{printed}{stderr}");
    stderr
}

/// Returns the numbers of touched and of written pages, by snapshot-info.
fn page_counts(set: &str) -> [u64; 2] {
    let info = run_ok(&["snapshot-info", set]);
    ["touched", "written"].map(|name| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    })
}

/// Returns the names in the directory without that of the snapshot.
fn names(kept: &Directory) -> Vec<String> {
    let entries = fs::read_dir(kept.path("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "s").collect()
}

/// Creates a diff snapshot of the paused clone. Returns the number of its pages on disk.
fn diff_pages(clone: &ApiProcess, kept: &Directory, name: &str) -> u64 {
    assert_eq!(clone.state(), "Paused");
    create_snapshot(clone, &kept.text(name), &["--diff"]);
    fs::metadata(kept.path(name).join("memory")).unwrap().blocks() / 8
}

#[test]
fn working_set_is_recorded_at_guest_exit() {
    let (kept, directory) = create_snapshot_of("touch.elf", "touched 512 pages\n");
    let [reads, writes] = ["reads", "writes"].map(|name| kept.text(name));
    let length = ["--record-ms", "600000"];
    run_restored(
        &directory,
        &[&["--record-working-set", &reads], &length[..]].concat(),
        b"q",
    );
    run_restored(
        &directory,
        &[&["--record-working-set", &writes], &length[..]].concat(),
        b"wq",
    );
    let ([touched, written], [touched_2, written_2]) = (page_counts(&reads), page_counts(&writes));
    assert!(touched >= 512 && written < 100, "{touched} {written}");
    assert!(
        (512..612).contains(&written_2) && touched_2 >= written_2,
        "{written_2}"
    );
    for set in [&reads, &writes] {
        for input in [&b"q"[..], b"wq"] {
            run_restored(&directory, &["--working-set", set], input);
        }
    }
}

#[test]
fn prefetched_pages_are_in_diff_snapshot() {
    let (kept, directory) = create_snapshot_of("touch.elf", "touched 512 pages\n");
    let set = kept.text("set");
    run_restored(&directory, &["--record-working-set", &set], b"wq");
    let without = restore(&directory, &["--paused"]);
    let before = diff_pages(&without, &kept, "without");
    without.terminate();
    let with = restore(&directory, &["--paused", "--working-set", &set]);
    let after = diff_pages(&with, &kept, "with");
    with.terminate();
    assert!(before < 100 && after >= 500, "{before} {after}");
    // Prefetched pages keep their content.
    run_ok(&["snapshot-merge", &directory, &kept.text("with")]);
    run_restored(&directory, &[], b"q");
    // The merge makes it a different snapshot.
    let stderr = run_err(&["restore", &directory, "--working-set", &set]);
    assert!(
        stderr.contains(&set) && stderr.contains("belongs to another snapshot"),
        "{stderr}"
    );
}

#[test]
fn cold_memory_file_is_read_ahead() {
    if !scratch::require(scratch::Requirement::DiskDirectory) {
        return;
    }
    let (kept, directory) = create_snapshot_of("touch.elf", "touched 512 pages\n");
    let set = kept.text("set");
    run_restored(&directory, &["--record-working-set", &set], b"q");
    let memory = fs::File::open(kept.path("s/memory")).unwrap();
    memory.sync_all().unwrap();
    let resident = || resident_pages(&memory);
    let evict = || {
        // SAFETY: the call has no pointer arguments.
        unsafe { libc::posix_fadvise(memory.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        resident() == 0
    };
    scratch::wait_until("a cold memory file", evict);
    let clone = ApiProcess::start();
    let [state, path] = ["s/state", "s/memory"].map(|name| kept.text(name));
    let backend = format!(r#"{{"backend_type":"File","backend_path":"{path}"}}"#);
    let load = format!(r#"{{"snapshot_path":"{state}","mem_backend":{backend},"working_set":"{set}"}}"#);
    clone.expect_no_content("PUT", "/snapshot/load", &load);
    assert_eq!(clone.state(), "Paused");
    scratch::wait_until("the working set in the page cache", || resident() >= 512);
    clone.terminate();
}

/// Returns the number of pages of `file` in the page cache.
fn resident_pages(file: &fs::File) -> usize {
    const PAGE: usize = 4096;
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
    // SAFETY: the kernel chooses the address of the mapping.
    let mapping = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(mapping, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    let mut pages = vec![0_u8; length.div_ceil(PAGE)];
    // SAFETY: `pages` has a byte for each page of the mapping.
    assert_eq!(unsafe { libc::mincore(mapping, length, pages.as_mut_ptr()) }, 0);
    // SAFETY: nothing refers to the mapping.
    unsafe { libc::munmap(mapping, length) };
    pages.iter().filter(|page| **page & 1 != 0).count()
}

#[test]
fn recording_ends_after_its_time() {
    let (kept, directory) = create_snapshot_of("ticker.elf", "tick 2\n");
    let set = kept.text("set");
    let mut clone = restore(&directory, &["--record-working-set", &set, "--record-ms", "1"]);
    let start = Instant::now();
    while !Path::new(&set).exists() {
        assert!(start.elapsed() < TIMEOUT, "the recording did not end");
        expect_ticks(&mut clone, 1);
    }
    // Within 1 ms the guest may touch no page: the counts are not checked.
    page_counts(&set);
    expect_ticks(&mut clone, 5);
    clone.terminate();
    assert_eq!(names(&kept), ["set"]);
}

#[test]
fn snapshot_or_exit_completes_recording() {
    let (kept, directory) = create_snapshot_of("ticker.elf", "tick 2\n");
    let [by_snapshot, by_exit] = ["snapshot", "exit"].map(|name| kept.text(name));
    let length = ["--record-ms", "600000"];
    let record = |set| {
        restore(
            &directory,
            &[&["--record-working-set", set], &length[..]].concat(),
        )
    };
    let mut clone = record(&by_snapshot);
    expect_ticks(&mut clone, 2);
    assert!(!Path::new(&by_snapshot).exists(), "the recording ended early");
    create_snapshot(&clone, &kept.text("again"), &[]);
    assert!(page_counts(&by_snapshot)[1] >= 1);
    expect_ticks(&mut clone, 2);
    clone.terminate();
    let mut clone = record(&by_exit);
    expect_ticks(&mut clone, 2);
    clone.terminate();
    assert!(page_counts(&by_exit)[1] >= 1);
}

#[test]
fn paused_guest_is_not_recorded() {
    let (kept, directory) = create_snapshot_of("ticker.elf", "tick 2\n");
    let set = kept.text("set");
    let options = ["--record-working-set", &set, "--record-ms", "1"];
    let clone = restore(&directory, &[&options[..], &["--paused"]].concat());
    assert_eq!(clone.state(), "Paused");
    // The recording starts at the first resume; a snapshot before it does not end it.
    create_snapshot(&clone, &kept.text("again"), &[]);
    assert!(!Path::new(&set).exists());
    clone.terminate();
    assert_eq!(names(&kept), ["again"]);
}

#[test]
fn invalid_working_set_is_rejected() {
    let (kept, directory) = create_snapshot_of("touch.elf", "touched 512 pages\n");
    let set = kept.text("set");
    run_restored(&directory, &["--record-working-set", &set], b"q");
    let good = fs::read(&set).unwrap();
    let middle = good.len() / 2;
    let mut flipped = good.clone();
    flipped[middle] ^= 1;
    kept.write(
        "text",
        "not a working set, but longer than the header of a working set",
    );
    kept.write("empty", "");
    kept.write("cut", &good[..good.len() - 1]);
    kept.write("half", &good[..middle]);
    kept.write("longer", [&good[..], b"x"].concat());
    kept.write("flipped", flipped);
    kept.fifo("fifo");
    for (name, cause) in [
        ("none", "No such file"),
        ("text", "not a state file of mayfly"),
        ("empty", "too short"),
        ("cut", "bytes has a header for"),
        ("half", "bytes has a header for"),
        ("longer", "bytes has a header for"),
        ("flipped", "checksum"),
        ("fifo", "not a regular file"),
        ("s", "not a regular file"),
        ("s/state", "not a working set"),
        ("s/memory", "cannot use the working set"),
    ] {
        let path = kept.text(name);
        let stderr = run_err(&["restore", &directory, "--working-set", &path]);
        assert!(
            stderr.contains(&path) && stderr.contains(cause),
            "{name}: {stderr}"
        );
    }
}

#[test]
fn working_set_of_another_snapshot_is_rejected() {
    let (kept, directory) = create_snapshot_of("touch.elf", "touched 512 pages\n");
    let set = kept.text("set");
    run_restored(&directory, &["--record-working-set", &set], b"q");
    let again = kept.text("again");
    let clone = restore(&directory, &["--paused"]);
    assert_eq!(clone.state(), "Paused");
    create_snapshot(&clone, &again, &[]);
    clone.terminate();
    let stderr = run_err(&["restore", &again, "--working-set", &set]);
    assert!(
        stderr.contains(&set) && stderr.contains("belongs to another snapshot"),
        "{stderr}"
    );
    let socket = kept.text("large.sock");
    let mut large = ApiProcess::spawn(
        Directory::new(),
        Command::new(program()).args([
            "run",
            &file("touch.elf"),
            "--memory",
            "64M",
            "--api-sock",
            &socket,
        ]),
    );
    large.expect("touched 512 pages\n");
    let other = kept.text("large");
    run_ok(&["snapshot", &other, "--api-sock", &socket]);
    drop(large);
    let stderr = run_err(&["restore", &other, "--working-set", &set]);
    assert!(stderr.contains("bytes of memory, the guest has"), "{stderr}");
}

#[test]
fn unwritable_recording_is_rejected() {
    let (kept, directory) = create_snapshot_of("touch.elf", "touched 512 pages\n");
    for (name, cause) in [
        ("none/set", "directory must exist"),
        ("s", "a directory, pipe or device"),
    ] {
        let path = kept.text(name);
        let stderr = run_err(&["restore", &directory, "--record-working-set", &path]);
        assert!(
            stderr.contains("cannot record a working set") && stderr.contains(cause),
            "{stderr}"
        );
    }
    assert!(names(&kept).is_empty());
}

/// Returns mayfly with an empty /proc. Requires root.
fn command_without_proc(arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["170".as_ref(), program().as_os_str()])
        .args(arguments);
    hide_proc(&mut command);
    command
}

/// Gives `command` an empty /proc. Requires root.
pub fn hide_proc(command: &mut Command) {
    let check = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    let enter = move || {
        // SAFETY: the call takes no pointer and affects the child process only.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        let null = std::ptr::null();
        // SAFETY: the target is a C string; the kernel ignores the other pointers with MS_PRIVATE.
        check(unsafe { libc::mount(null, c"/".as_ptr(), null, flags, null.cast()) })?;
        let (kind, target) = (c"tmpfs".as_ptr(), c"/proc".as_ptr());
        // SAFETY: all pointers are C strings for the length of the call, except the last, which may be null.
        check(unsafe { libc::mount(kind, target, kind, 0, null.cast()) })
    };
    // SAFETY: the closure runs between fork and exec and makes system calls only.
    unsafe { command.pre_exec(enter) };
}

#[test]
fn working_set_loads_but_does_not_record_without_proc() {
    let (kept, directory) = create_snapshot_of("touch.elf", "touched 512 pages\n");
    let set = kept.text("set");
    run_restored(&directory, &["--record-working-set", &set], b"wq");
    let output = run_with_input(
        &mut command_without_proc(&["restore", &directory, "--working-set", &set]),
        b"q",
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = run_with_input(
        &mut command_without_proc(&["restore", &directory, "--record-working-set", &set]),
        b"q",
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("cannot record a working set") && stderr.contains("mount /proc"),
        "{stderr}"
    );
    assert!(output.stdout.is_empty(), "the guest ran");
}
