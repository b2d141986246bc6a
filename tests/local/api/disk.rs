//! Full, read-only and vanishing disks: failed snapshot creation leaves the old snapshot and the VM unchanged; serial output
//! continues.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use scratch::{KillOnDrop, Limited};

use super::chroot::{in_own_mounts, mount, remount};
use super::http::NO_CONTENT;
use super::killed::{CREATE, Content, KillPoint, Series, interrupt_request, names};
use super::served::{ApiProcess, RESUMED};
use crate::guests::{file, program};

const PAGE: usize = 4096;
const KINDS: [&str; 2] = ["Full", "Diff"];

/// Runs `test` with a tmpfs of `size` KiB.
fn with_disk(size: u32, test: impl FnOnce(&Path) + Send) {
    in_own_mounts(|root| {
        let disk = root.join("disk");
        fs::create_dir(&disk).unwrap();
        let size = CString::new(format!("size={size}k")).unwrap();
        mount(Path::new("tmpfs"), &disk, c"tmpfs", 0, &size);
        test(&disk);
    });
}

/// Fills the disk except `free` pages.
fn fill_disk(disk: &Path, free: usize) {
    let path = disk.join("filler");
    let _ = fs::remove_file(&path);
    let mut file = File::create(&path).unwrap();
    while file.write_all(&[1; PAGE]).is_ok() {}
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub((free * PAGE) as u64)).unwrap();
}

/// Resumes the guest, then loads its snapshot.
fn expect_usable(mut process: ApiProcess, series: &Series) {
    process.expect_no_content("PATCH", "/vm", RESUMED);
    process.expect("tick ");
    process.expect("tick ");
    process.kill();
    series.load_and_pause().kill();
}

#[test]
fn full_disk_keeps_old_snapshot() {
    for kind in KINDS {
        with_disk(1 << 10, |disk| {
            let series = Series::new(kind, disk);
            let process = series.load_and_pause();
            let old = Content::read(disk);
            let mut rejected = 0;
            for free in 0.. {
                fill_disk(disk, free);
                let response = process.request("PUT", CREATE, &series.create_body());
                if response.text == NO_CONTENT {
                    break;
                }
                let message = response.fault_message();
                let named = message.contains("/disk/state") || message.contains("/disk/memory");
                assert!(named && message.contains("No space left on device"), "{message}");
                assert!(Content::read(disk) == old, "{kind}, {free} pages free: {message}");
                assert_eq!(names(disk), ["filler", "memory", "state"]);
                assert_eq!(process.state(), "Paused");
                rejected += 1;
            }
            assert!(rejected > 1, "{kind}: {rejected}");
            assert!(Content::read(disk) != old);
            expect_usable(process, &series);
        });
    }
}

#[test]
fn full_disk_keeps_base_of_diff() {
    with_disk(1 << 10, |disk| {
        let series = Series::new("Diff", disk);
        let process = series.load_and_pause();
        // A base of holes: each page of the diff needs a new block.
        let base = disk.join("memory");
        let size = fs::metadata(&base).unwrap().len();
        fs::remove_file(&base).unwrap();
        File::create_new(&base).unwrap().set_len(size).unwrap();
        // A link keeps the blocks of the replaced state file allocated.
        fs::hard_link(disk.join("state"), disk.join("kept")).unwrap();
        let old = Content::read(disk);
        let mut rejected = 0;
        for free in 0.. {
            fill_disk(disk, free);
            let response = process.request("PUT", CREATE, &series.create_body());
            if response.text == NO_CONTENT {
                break;
            }
            assert!(Content::read(disk) == old, "{free} pages free: {}", response.text);
            rejected += 1;
        }
        assert!(rejected > 1, "{rejected}");
        assert!(Content::read(disk) != old);
        process.kill();
    });
}

#[test]
fn kill_on_full_disk_keeps_snapshot() {
    for kind in KINDS {
        with_disk(1 << 10, |disk| {
            let mut series = Series::new(kind, disk);
            fill_disk(disk, 6);
            let stops = series.run_round(KillPoint::AFTER_RESPONSE);
            for kill_point in KillPoint::spread(stops, 20) {
                fill_disk(disk, 6);
                series.run_round(kill_point);
            }
            assert!(series.outcomes[0] > 10, "{kind}: {:?}", series.outcomes);
            fs::remove_file(disk.join("filler")).unwrap();
            let process = series.load_and_pause();
            process.expect_no_content("PUT", CREATE, &series.create_body().replace("Diff", "Full"));
            assert_eq!(names(disk), ["memory", "state"]);
            process.kill();
            series.load_and_pause().kill();
        });
    }
}

#[test]
fn serial_output_continues_once_disk_has_space() {
    with_disk(64, |disk| {
        let path = disk.join("output");
        let output = File::create(&path).unwrap();
        fill_disk(disk, 0);
        let mut command = Command::new(program());
        command.arg("run").arg(file("echo.elf"));
        command
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(Stdio::piped());
        let mut child = KillOnDrop(command.spawn().unwrap());
        let mut errors = BufReader::new(Limited(child.0.stderr.take().unwrap()));
        let mut warning = String::new();
        errors.read_line(&mut warning).unwrap();
        assert!(warning.contains("cannot write the serial output"), "{warning}");
        fs::remove_file(disk.join("filler")).unwrap();
        scratch::wait_until("output", || fs::read(&path).unwrap() == b"ready\n");
        child.0.stdin.take().unwrap().write_all(b"q").unwrap();
        scratch::wait_exit(&mut child.0);
        assert_eq!(fs::read(&path).unwrap(), b"ready\n\nbye\n");
    });
}

#[test]
fn read_only_disk_keeps_old_snapshot() {
    for kind in KINDS {
        with_disk(1 << 10, |disk| {
            let series = Series::new(kind, disk);
            let process = series.load_and_pause();
            let old = Content::read(disk);
            // A child that another test has started may hold a written file of this disk until its execve.
            scratch::wait_until("the end of writes", || remount(disk, libc::MS_RDONLY).is_ok());
            let message = process
                .request("PUT", CREATE, &series.create_body())
                .fault_message();
            assert!(
                message.contains("/disk/") && message.contains("Read-only file system"),
                "{message}"
            );
            assert!(Content::read(disk) == old);
            remount(disk, 0).unwrap();
            process.expect_no_content("PUT", CREATE, &series.create_body());
            assert_eq!(names(disk), ["memory", "state"]);
            expect_usable(process, &series);
        });
    }
}

/// Moves the directory away at various stops of the request, which then fails or has completed.
#[test]
fn vanished_directory_is_reported() {
    for kind in KINDS {
        with_disk(4 << 10, |disk| {
            let directory: PathBuf = disk.join("directory");
            fs::create_dir(&directory).unwrap();
            let series = Series::new(kind, &directory);
            let process = series.load_and_pause();
            let old = Content::read(&directory);
            let request = series.create_body();
            let (stops, stepper, mut client) = interrupt_request(&process, CREATE, &request, usize::MAX);
            stepper.release();
            assert_eq!(client.receive().text, NO_CONTENT);
            let mut rejected = 0;
            for stop in (1..=stops).step_by(4) {
                old.write(&directory);
                let (_, stepper, mut client) = interrupt_request(&process, CREATE, &request, stop);
                fs::rename(&directory, disk.join("gone")).unwrap();
                stepper.release();
                let response = client.receive();
                if response.text != NO_CONTENT {
                    let message = response.fault_message();
                    assert!(message.contains("No such file or directory"), "{message}");
                    rejected += 1;
                }
                assert!(!directory.exists());
                assert_eq!(process.state(), "Paused");
                fs::rename(disk.join("gone"), &directory).unwrap();
            }
            assert!(rejected > 3, "{rejected} of {stops}");
            process.expect_no_content("PUT", CREATE, &request.replace("Diff", "Full"));
            assert_eq!(names(&directory), ["memory", "state"]);
            process.kill();
            series.load_and_pause().kill();
        });
    }
}
