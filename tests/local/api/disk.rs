//! Snapshots into a folder that does not take them: it is refused, and all is as it was.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::chroot::{in_own_mounts, mount};
use super::http::DONE;
use super::killed::{CREATE, Content, Moment, Series, interrupt, names};
use super::served::ApiProcess;
use super::snapshot::RESUMED;

const PAGE: usize = 4096;
const KINDS: [&str; 2] = ["Full", "Diff"];

/// Has `test` do with a folder that is a disk of so many KiB.
fn with_disk(size: u32, test: impl FnOnce(&Path) + Send) {
    in_own_mounts(|root| {
        let disk = root.join("disk");
        fs::create_dir(&disk).unwrap();
        let size = CString::new(format!("size={size}k")).unwrap();
        mount(Path::new("tmpfs"), &disk, c"tmpfs", 0, &size);
        test(&disk);
    });
}

/// Takes all of the disk but so many pages.
fn fill(disk: &Path, free: usize) {
    let path = disk.join("filler");
    let _ = fs::remove_file(&path);
    let mut file = File::create(&path).unwrap();
    while file.write_all(&[1; PAGE]).is_ok() {}
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub((free * PAGE) as u64)).unwrap();
}

/// The guest goes on, and what was made of it can be restored.
fn go_on(mut served: ApiProcess, series: &Series) {
    served.expect_no_content("PATCH", "/vm", RESUMED);
    served.expect("tick ");
    served.expect("tick ");
    served.kill();
    series.restored().kill();
}

#[test]
fn a_full_disk_is_said_and_the_old_snapshot_stays() {
    for kind in KINDS {
        with_disk(1 << 10, |disk| {
            let series = Series::new(kind, disk);
            let served = series.restored();
            let old = Content::of(disk);
            let mut refused = 0;
            for free in 0.. {
                fill(disk, free);
                let answer = served.ask("PUT", CREATE, &series.request());
                if answer.text == DONE {
                    break;
                }
                let why = answer.fault();
                let named = why.contains("/disk/state") || why.contains("/disk/memory");
                assert!(named && why.contains("No space left on device"), "{why}");
                assert!(Content::of(disk) == old, "{kind}, {free} pages free: {why}");
                assert_eq!(names(disk), ["filler", "memory", "state"]);
                assert_eq!(served.state(), "Paused");
                refused += 1;
            }
            assert!(refused > 1, "{kind}: {refused}");
            assert!(Content::of(disk) != old);
            go_on(served, &series);
        });
    }
}

#[test]
fn a_base_that_would_not_fit_with_its_difference_stays() {
    with_disk(1 << 10, |disk| {
        let series = Series::new("Diff", disk);
        let served = series.restored();
        // All that goes into this one takes space.
        let base = disk.join("memory");
        let size = fs::metadata(&base).unwrap().len();
        fs::remove_file(&base).unwrap();
        File::create_new(&base).unwrap().set_len(size).unwrap();
        // And no space comes of what goes.
        fs::hard_link(disk.join("state"), disk.join("kept")).unwrap();
        let old = Content::of(disk);
        let mut refused = 0;
        for free in 0.. {
            fill(disk, free);
            let answer = served.ask("PUT", CREATE, &series.request());
            if answer.text == DONE {
                break;
            }
            assert!(Content::of(disk) == old, "{free} pages free: {}", answer.text);
            refused += 1;
        }
        assert!(refused > 1, "{refused}");
        assert!(Content::of(disk) != old);
        served.kill();
    });
}

#[test]
fn killed_on_a_full_disk() {
    for kind in KINDS {
        with_disk(1 << 10, |disk| {
            let mut series = Series::new(kind, disk);
            fill(disk, 6);
            let stops = series.round(Moment::LAST);
            for moment in Moment::spread(stops, 20) {
                fill(disk, 6);
                series.round(moment);
            }
            assert!(series.found[0] > 10, "{kind}: {:?}", series.found);
            fs::remove_file(disk.join("filler")).unwrap();
            let served = series.restored();
            served.expect_no_content("PUT", CREATE, &series.request().replace("Diff", "Full"));
            assert_eq!(names(disk), ["memory", "state"]);
            served.kill();
            series.restored().kill();
        });
    }
}

#[test]
fn a_disk_that_is_read_only_meanwhile_keeps_the_old_snapshot() {
    for kind in KINDS {
        with_disk(1 << 10, |disk| {
            let series = Series::new(kind, disk);
            let served = series.restored();
            let old = Content::of(disk);
            let remount = |flags| mount(Path::new(""), disk, c"", libc::MS_REMOUNT | flags, c"");
            remount(libc::MS_RDONLY);
            let why = served.ask("PUT", CREATE, &series.request()).fault();
            assert!(
                why.contains("/disk/") && why.contains("Read-only file system"),
                "{why}"
            );
            assert!(Content::of(disk) == old);
            remount(0);
            served.expect_no_content("PUT", CREATE, &series.request());
            assert_eq!(names(disk), ["memory", "state"]);
            go_on(served, &series);
        });
    }
}

/// The folder is gone at this stop or that, and what is left of it is not half of a snapshot.
#[test]
fn a_folder_that_vanishes_meanwhile_is_said() {
    for kind in KINDS {
        with_disk(4 << 10, |disk| {
            let folder: PathBuf = disk.join("folder");
            fs::create_dir(&folder).unwrap();
            let series = Series::new(kind, &folder);
            let served = series.restored();
            let old = Content::of(&folder);
            let request = series.request();
            let (stops, stepped, mut client) = interrupt(&served, CREATE, &request, usize::MAX);
            stepped.release();
            assert_eq!(client.receive().text, DONE);
            let mut refused = 0;
            for stop in (1..=stops).step_by(4) {
                old.put(&folder);
                let (_, stepped, mut client) = interrupt(&served, CREATE, &request, stop);
                fs::rename(&folder, disk.join("gone")).unwrap();
                stepped.release();
                let answer = client.receive();
                if answer.text != DONE {
                    let why = answer.fault();
                    assert!(why.contains("No such file or directory"), "{why}");
                    refused += 1;
                }
                assert!(!folder.exists());
                assert_eq!(served.state(), "Paused");
                fs::rename(disk.join("gone"), &folder).unwrap();
            }
            assert!(refused > 3, "{refused} of {stops}");
            served.expect_no_content("PUT", CREATE, &request.replace("Diff", "Full"));
            assert_eq!(names(&folder), ["memory", "state"]);
            served.kill();
            series.restored().kill();
        });
    }
}
