use std::error::Error as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::{Scratch, config, terms};
use crate::testing::ManualClock;
use crate::virtio::block::disk::{Error, opening};
use crate::virtio::block::{Block, Disk, IoEngine};

fn refusal(path: &Path, read_only: bool) -> String {
    Disk::open(path, terms(read_only)).unwrap_err().to_string()
}

#[test]
fn a_file_that_is_no_disk_says_why() {
    assert!(
        refusal(Path::new("/nowhere/disk"), false).contains("there is no disk \"/nowhere/disk\": make it")
    );
    let scratch = Scratch::empty();
    assert!(refusal(scratch.path(), false).contains("is empty: give it a size"));
    scratch.set_len(1000);
    assert!(refusal(scratch.path(), false).contains("has 1000 bytes, which is no multiple of 512"));
    assert!(refusal(Path::new("/dev/null"), false).contains("neither a file nor a block device"));
    fs::remove_file(scratch.path()).unwrap();
    fs::create_dir(scratch.path()).unwrap();
    for read_only in [false, true] {
        assert!(refusal(scratch.path(), read_only).contains("is a folder"));
    }
    fs::remove_dir(scratch.path()).unwrap();
    symlink(scratch.path(), scratch.path()).unwrap();
    let error = Disk::open(scratch.path(), terms(true)).unwrap_err();
    assert!(error.to_string().contains("cannot open the disk"));
    assert!(error.source().unwrap().to_string().contains("symbolic link"));
}

#[test]
fn a_pipe_does_not_block() {
    let scratch = Scratch::empty();
    fs::remove_file(scratch.path()).unwrap();
    let path = std::ffi::CString::new(scratch.path().to_str().unwrap()).unwrap();
    // SAFETY: the path ends with a zero byte and lives until the call is over.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    assert!(refusal(scratch.path(), true).contains("neither a file"));
}

#[test]
fn a_file_that_may_not_be_opened_says_why() {
    let scratch = Scratch::new(512);
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o400)).unwrap();
    // SAFETY: nothing is passed.
    if unsafe { libc::geteuid() } == 0 {
        // Nothing is forbidden to root. The words are looked at by the next test.
        return;
    }
    assert!(refusal(scratch.path(), false).contains("may not be opened for reading and writing"));
    assert!(Disk::open(scratch.path(), terms(true)).is_ok());
}

#[test]
fn nobody_is_advised_to_do_what_was_done() {
    let said = |read_only, code| {
        let source = std::io::Error::from_raw_os_error(code);
        opening(Path::new("/disk"), read_only, source).to_string()
    };
    for code in [libc::EACCES, libc::EPERM, libc::EROFS] {
        assert!(said(false, code).contains("make the drive read-only"), "{code}");
        assert!(!said(true, code).contains("make the drive read-only"), "{code}");
    }
    assert!(said(true, libc::EACCES).contains("may not be opened for reading: give"));
}

#[test]
fn a_disk_is_one_by_whatever_name() {
    let scratch = Scratch::new(512);
    let (hard, soft) = (Scratch::empty(), Scratch::empty());
    for other in [&hard, &soft] {
        fs::remove_file(other.path()).unwrap();
    }
    fs::hard_link(scratch.path(), hard.path()).unwrap();
    symlink(scratch.path(), soft.path()).unwrap();
    let _writer = Disk::open(scratch.path(), terms(false)).unwrap();
    for other in [&hard, &soft] {
        assert!(refusal(other.path(), true).contains("is in use"));
        assert!(refusal(other.path(), false).contains("is in use"));
    }
}

#[test]
fn a_disk_has_one_writer_or_many_readers() {
    let scratch = Scratch::new(512);
    let open = |read_only| Disk::open(scratch.path(), terms(read_only));
    {
        let _writer = open(false).unwrap();
        for read_only in [false, true] {
            assert!(matches!(open(read_only), Err(Error::InUse(_))));
        }
    }
    let readers = [open(true).unwrap(), open(true).unwrap()];
    assert!(refusal(scratch.path(), false).contains("only read-only drives can share one"));
    drop(readers);
    assert!(open(false).is_ok());
}

#[test]
fn the_drive_is_named() {
    let config = config(Path::new("/nowhere"), IoEngine::Sync);
    let Err(error) = Block::open(&config, Box::new(ManualClock::default())) else {
        panic!("there is no such file");
    };
    assert!(error.to_string().contains("a drive with a long name"));
    assert!(error.source().unwrap().to_string().contains("/nowhere"));
}
