use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;

use scratch::{Directory, Reader};

use super::{ATOMIC, Error, OutputFile, takes_lines};

#[test]
fn a_file_is_made_and_written_at_its_end() {
    let folder = Directory::new();
    let path = folder.path("log");
    assert_eq!(OutputFile::open(&path).unwrap().write(b"one\n").unwrap(), 4);
    let output = OutputFile::open(&path).unwrap();
    assert_eq!(output.write(b"two\n").unwrap(), 4);
    fs::write(&path, "").unwrap();
    // Not at the old offset: a log that is cut short by its owner does not get a hole.
    assert_eq!(output.write(b"three\n").unwrap(), 6);
    assert_eq!(fs::read(&path).unwrap(), b"three\n");
    assert_eq!(output.path(), path);
}

#[test]
fn nothing_is_inherited_and_nothing_waits() {
    let folder = Directory::new();
    for path in [folder.path("file"), folder.fifo("fifo")] {
        let output = OutputFile::open(&path).unwrap();
        // SAFETY: the call takes no pointer.
        let flags = unsafe { libc::fcntl(output.file.as_raw_fd(), libc::F_GETFL) };
        // SAFETY: the call takes no pointer.
        let descriptor = unsafe { libc::fcntl(output.file.as_raw_fd(), libc::F_GETFD) };
        assert_ne!(flags & libc::O_NONBLOCK, 0);
        assert_ne!(flags & libc::O_APPEND, 0);
        assert_eq!(descriptor, libc::FD_CLOEXEC);
    }
}

#[test]
fn a_fifo_needs_no_reader() {
    let folder = Directory::new();
    let path = folder.fifo("fifo");
    let output = OutputFile::open(&path).unwrap();
    assert_eq!(output.write(b"early\n").unwrap(), 6);
    let mut reader = Reader::open(&path);
    assert_eq!(reader.take(100), b"early\n");
    drop(reader);
    assert_eq!(output.write(b"again\n").unwrap(), 6);
    assert_eq!(Reader::open(&path).take(100), b"again\n");
}

#[test]
fn a_reader_that_has_gone_is_a_full_fifo() {
    let folder = Directory::new();
    let path = folder.fifo("fifo");
    let reader = Reader::open(&path);
    // As it is for a user who may write and not read.
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let output = OutputFile {
        path: path.clone(),
        file,
    };
    drop(reader);
    assert_eq!(output.write(b"early\n").unwrap(), 0);
    let mut reader = Reader::open(&path);
    assert_eq!(output.write(b"again\n").unwrap(), 6);
    assert_eq!(reader.take(100), b"again\n");
}

#[test]
fn lines_go_where_they_do_no_harm() {
    let folder = Directory::new();
    let socket = folder.path("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::write(folder.path("file"), "").unwrap();
    for (path, expected) in [
        (folder.path("file"), true),
        (folder.fifo("fifo"), true),
        ("/dev/null".into(), true),
        (folder.path(""), false),
        (socket, false),
    ] {
        assert_eq!(
            takes_lines(fs::metadata(&path).unwrap().file_type()),
            expected,
            "{path:?}"
        );
        assert_eq!(OutputFile::open(&path).is_ok(), expected, "{path:?}");
    }
}

#[test]
fn a_full_fifo_takes_a_piece_whole_or_not_at_all() {
    let folder = Directory::new();
    let path = folder.fifo("fifo");
    let mut reader = Reader::open(&path);
    let size = reader.shrink();
    let output = OutputFile::open(&path).unwrap();
    let piece = [b'x'; ATOMIC - 96];
    let mut count = 0;
    while output.write(&piece).unwrap() == piece.len() {
        count += 1;
        assert!(
            count <= size / piece.len(),
            "nobody reads, and yet {count} pieces went in"
        );
    }
    assert_eq!(output.write(&piece).unwrap(), 0);
    assert_eq!(reader.read().len(), count * piece.len());
    assert_eq!(output.write(&piece).unwrap(), piece.len());
}

#[test]
fn what_cannot_be_opened_is_named() {
    let folder = Directory::new();
    for path in [folder.path("nowhere/log"), folder.path("")] {
        let error = OutputFile::open(&path).unwrap_err();
        assert!(matches!(error, Error::Open { .. }), "{error:?}");
        let told = error.one_line();
        assert!(told.contains(&format!("{path:?}")), "{told}");
        assert!(told.contains("os error"), "{told}");
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let output = OutputFile::open("/dev/full".as_ref()).unwrap();
    let error = output.write(b"x").unwrap_err();
    assert!(
        error.one_line().starts_with("cannot write to \"/dev/full\": "),
        "{error:?}"
    );
}

#[test]
fn a_file_that_was_moved_away_is_left_alone() {
    let folder = Directory::new();
    let path = folder.path("log");
    let old = OutputFile::open(&path).unwrap();
    assert!(old.is_same(&old.reopen().unwrap()));
    fs::rename(&path, folder.path("log.1")).unwrap();
    let new = old.reopen().unwrap();
    assert!(!old.is_same(&new));
    new.write(b"new\n").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new\n");
    assert_eq!(fs::read(folder.path("log.1")).unwrap(), b"");
}
