use std::cell::Cell;
use std::error::Error as _;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::{Scratch, await_unlocked, config, options};
use crate::testing::ManualClock;
use crate::virtio::block::disk::{Error, open_error, without_wait};
use crate::virtio::block::{Block, Disk, IoEngine};

fn open_failure(path: &Path, read_only: bool) -> String {
    Disk::open(path, options(read_only)).unwrap_err().to_string()
}

#[test]
fn unusable_file_fails_with_reason() {
    assert!(
        open_failure(Path::new("/nowhere/disk"), false)
            .contains("cannot open disk \"/nowhere/disk\": it does not exist; create it")
    );
    let scratch = Scratch::empty();
    assert!(open_failure(scratch.path(), false).contains("it is empty; set its size"));
    scratch.set_len(511);
    assert!(open_failure(scratch.path(), false).contains("its 511 bytes are less than a sector"));
    assert!(open_failure(Path::new("/dev/null"), false).contains("neither a file nor a block device"));
    fs::remove_file(scratch.path()).unwrap();
    fs::create_dir(scratch.path()).unwrap();
    for read_only in [false, true] {
        assert!(open_failure(scratch.path(), read_only).contains("it is a directory"));
    }
    fs::remove_dir(scratch.path()).unwrap();
    symlink(scratch.path(), scratch.path()).unwrap();
    let error = Disk::open(scratch.path(), options(true)).unwrap_err();
    assert!(error.to_string().contains("cannot open disk"));
    assert!(error.source().unwrap().to_string().contains("symbolic link"));
}

#[test]
fn pipe_does_not_block() {
    let scratch = Scratch::empty();
    fs::remove_file(scratch.path()).unwrap();
    let path = std::ffi::CString::new(scratch.path().to_str().unwrap()).unwrap();
    // SAFETY: the path is a C string and outlives the call.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    assert!(open_failure(scratch.path(), true).contains("neither a file"));
}

#[test]
fn forbidden_file_fails_with_reason() {
    let scratch = Scratch::new(512);
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o400)).unwrap();
    scratch::bound_by_permissions(|| {
        assert!(open_failure(scratch.path(), false).contains("for reading and writing: permission denied"));
        assert!(Disk::open(scratch.path(), options(true)).is_ok());
    });
}

#[test]
fn only_writable_disk_error_suggests_read_only() {
    let message = |read_only, code| {
        let source = std::io::Error::from_raw_os_error(code);
        open_error(Path::new("/disk"), read_only, source).to_string()
    };
    for code in [libc::EACCES, libc::EPERM, libc::EROFS] {
        assert!(
            message(false, code).contains("make the drive read-only"),
            "{code}"
        );
        assert!(
            !message(true, code).contains("make the drive read-only"),
            "{code}"
        );
    }
    assert!(message(true, libc::EACCES).contains("for reading: permission denied; grant"));
}

#[test]
fn lock_covers_all_names_of_file() {
    let scratch = Scratch::new(512);
    let (hard, soft) = (Scratch::empty(), Scratch::empty());
    for other in [&hard, &soft] {
        fs::remove_file(other.path()).unwrap();
    }
    fs::hard_link(scratch.path(), hard.path()).unwrap();
    symlink(scratch.path(), soft.path()).unwrap();
    let _writer = Disk::open(scratch.path(), options(false)).unwrap();
    for other in [&hard, &soft] {
        assert!(open_failure(other.path(), true).contains("another drive of this VM uses it"));
        assert!(open_failure(other.path(), false).contains("another drive of this VM uses it"));
    }
}

#[test]
fn disk_has_one_writer_or_many_readers() {
    let scratch = Scratch::new(512);
    let open = |read_only| Disk::open(scratch.path(), options(read_only));
    {
        let _writer = open(false).unwrap();
        for read_only in [false, true] {
            assert!(matches!(open(read_only), Err(Error::InUse { .. })));
        }
    }
    let readers = [true; 2].map(|read_only| await_unlocked(|| open(read_only)));
    assert!(open_failure(scratch.path(), false).contains("make all drives of it read-only or shared"));
    drop(readers);
    await_unlocked(|| open(false));
}

#[test]
fn open_error_names_drive() {
    let config = config(Path::new("/nowhere"), IoEngine::Sync);
    let Err(error) = Block::open(&config, Box::new(ManualClock::default())) else {
        panic!("a missing file was opened");
    };
    assert!(error.to_string().contains("a drive with a long name"));
    assert!(error.source().unwrap().to_string().contains("/nowhere"));
}

#[test]
fn call_that_would_wait_transfers_nothing() {
    let outcome = |code| {
        let lacks_nowait = Cell::new(false);
        let result = without_wait(Err(io::Error::from_raw_os_error(code)), &lacks_nowait);
        (result.map_err(|error| error.raw_os_error()), lacks_nowait.get())
    };
    assert_eq!(outcome(libc::EAGAIN), (Ok(0), false));
    // A call that waits reports the error of the disk.
    assert_eq!(outcome(libc::EIO), (Ok(0), false));
    assert_eq!(outcome(libc::EOPNOTSUPP), (Ok(0), true));
    assert_eq!(outcome(libc::EINVAL), (Ok(0), true));
    // A call that waits accesses no guest memory, and would succeed.
    assert_eq!(outcome(libc::EFAULT), (Err(Some(libc::EFAULT)), false));
}
