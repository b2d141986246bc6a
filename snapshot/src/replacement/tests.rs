use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use scratch::Directory;

use super::{AtomicFile, Error, NAMES};

#[test]
fn the_old_file_stays_until_the_new_one_is_whole() {
    let folder = Directory::new();
    let path = folder.path("state");
    fs::write(&path, "old").unwrap();
    let replacement = AtomicFile::create(&path).unwrap();
    replacement.file().write_all(b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    replacement.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(folder.names(), ["state"]);
}

#[test]
fn what_is_given_up_leaves_nothing() {
    let folder = Directory::new();
    let replacement = AtomicFile::create(&folder.path("state")).unwrap();
    assert_eq!(folder.names(), [".state.part0"]);
    drop(replacement);
    assert!(folder.names().is_empty());
}

#[test]
fn writers_do_not_disturb_each_other() {
    let folder = Directory::new();
    let path = folder.path("state");
    let first = AtomicFile::create(&path).unwrap();
    let second = AtomicFile::create(&path).unwrap();
    first.file().write_all(b"first").unwrap();
    second.file().write_all(b"second").unwrap();
    second.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"second");
    first.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"first");
}

#[test]
fn what_killed_writers_left_is_neither_used_nor_followed() {
    let folder = Directory::new();
    let elsewhere = folder.path("elsewhere");
    fs::write(&elsewhere, "kept").unwrap();
    symlink(&elsewhere, folder.path(".state.part0")).unwrap();
    // Who still has it open writes to nobody's file.
    fs::write(folder.path(".state.part1"), "left").unwrap();
    let mut left = fs::File::options()
        .write(true)
        .open(folder.path(".state.part1"))
        .unwrap();
    let replacement = AtomicFile::create(&folder.path("state")).unwrap();
    left.write_all(b"more").unwrap();
    replacement.file().write_all(b"new").unwrap();
    replacement.commit().unwrap();
    assert_eq!(fs::read(&elsewhere).unwrap(), b"kept");
    assert_eq!(fs::read(folder.path("state")).unwrap(), b"new");
    assert_eq!(folder.names(), [".state.part0", "elsewhere", "state"]);
}

#[test]
fn what_killed_writers_left_is_in_nobodys_way() {
    let folder = Directory::new();
    for number in 0..NAMES {
        fs::write(folder.path(&format!(".state.part{number}")), "left").unwrap();
    }
    fs::write(folder.path(".memory.part0"), "another's").unwrap();
    AtomicFile::create(&folder.path("state"))
        .unwrap()
        .commit()
        .unwrap();
    assert_eq!(folder.names(), [".memory.part0", "state"]);
    for number in 0..NAMES {
        symlink("state", folder.path(&format!(".state.part{number}"))).unwrap();
    }
    let error = AtomicFile::create(&folder.path("state")).unwrap_err();
    assert!(matches!(error, Error::Create { .. }), "{error}");
}

#[test]
fn only_files_are_replaced() {
    let folder = Directory::new();
    let path = folder.path("state");
    fs::create_dir(&path).unwrap();
    for path in [&path, Path::new("/dev/null"), Path::new("/")] {
        let error = AtomicFile::create(path).unwrap_err();
        assert!(matches!(error, Error::Irregular(_)), "{error}");
    }
    let missing = folder.path("missing/state");
    assert!(matches!(AtomicFile::create(&missing), Err(Error::Create { .. })));
    assert!(matches!(
        AtomicFile::create(&folder.path("missing/..")),
        Err(Error::Nameless(_))
    ));
}

#[test]
fn a_name_that_is_taken_meanwhile_is_an_error() {
    let folder = Directory::new();
    let path = folder.path("state");
    let replacement = AtomicFile::create(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = replacement.commit().unwrap_err();
    assert!(matches!(error, Error::Rename { .. }), "{error}");
    assert_eq!(folder.names(), ["state"]);
}

#[test]
fn a_link_stays_a_link() {
    let folder = Directory::new();
    let (path, link) = (folder.path("state"), folder.path("link"));
    fs::write(&path, "old").unwrap();
    symlink("state", &link).unwrap();
    let replacement = AtomicFile::create(&link).unwrap();
    replacement.file().write_all(b"new").unwrap();
    replacement.commit().unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&path).unwrap(), b"new");
}
