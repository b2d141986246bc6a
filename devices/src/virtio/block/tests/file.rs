use std::error::Error as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::{Scratch, config};
use crate::testing::ManualClock;
use crate::virtio::block::file::Error;
use crate::virtio::block::{Block, Disk, IoEngine};

fn refusal(path: &Path, read_only: bool) -> String {
    Disk::open(path, read_only).unwrap_err().to_string()
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
    let error = Disk::open(scratch.path(), true).unwrap_err();
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
        // Nothing is forbidden to root, so that only the words can be looked at.
        let error = crate::virtio::block::file::opening(
            scratch.path(),
            false,
            std::io::Error::from_raw_os_error(libc::EACCES),
        );
        assert!(error.to_string().contains("reading and writing"));
        return;
    }
    assert!(refusal(scratch.path(), false).contains("may not be opened for reading and writing"));
    assert!(Disk::open(scratch.path(), true).is_ok());
}

#[test]
fn a_disk_has_one_writer_or_many_readers() {
    let scratch = Scratch::new(512);
    let open = |read_only| Disk::open(scratch.path(), read_only);
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
