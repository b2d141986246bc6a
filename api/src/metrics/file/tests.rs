mod lines;

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;

use scratch::{Directory, Reader};

use super::{ATOMIC, Error, OutputFile, is_line_output};

#[test]
fn file_is_created_and_appended() {
    let directory = Directory::new();
    let path = directory.path("log");
    assert_eq!(OutputFile::open(&path).unwrap().write(b"one\n").unwrap(), 4);
    let output = OutputFile::open(&path).unwrap();
    assert_eq!(output.write(b"two\n").unwrap(), 4);
    fs::write(&path, "").unwrap();
    // With O_APPEND, the write after a truncation leaves no hole.
    assert_eq!(output.write(b"three\n").unwrap(), 6);
    assert_eq!(fs::read(&path).unwrap(), b"three\n");
    assert_eq!(output.path(), path);
}

#[test]
fn descriptor_is_nonblocking_and_close_on_exec() {
    let directory = Directory::new();
    for path in [directory.path("file"), directory.fifo("fifo")] {
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
fn fifo_opens_without_reader() {
    let directory = Directory::new();
    let path = directory.fifo("fifo");
    let output = OutputFile::open(&path).unwrap();
    assert_eq!(output.write(b"early\n").unwrap(), 6);
    let mut reader = Reader::open(&path);
    assert_eq!(reader.take(100), b"early\n");
    drop(reader);
    assert_eq!(output.write(b"again\n").unwrap(), 6);
    assert_eq!(Reader::open(&path).take(100), b"again\n");
}

#[test]
fn disconnected_reader_acts_as_full_fifo() {
    let directory = Directory::new();
    let path = directory.fifo("fifo");
    let reader = Reader::open(&path);
    // Without the permission to read, the FIFO is open for writing only.
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
fn file_types_are_checked() {
    let directory = Directory::new();
    let socket = directory.path("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::write(directory.path("file"), "").unwrap();
    for (path, expected) in [
        (directory.path("file"), true),
        (directory.fifo("fifo"), true),
        ("/dev/null".into(), true),
        (directory.path(""), false),
        (socket, false),
    ] {
        assert_eq!(
            is_line_output(fs::metadata(&path).unwrap().file_type()),
            expected,
            "{path:?}"
        );
        assert_eq!(OutputFile::open(&path).is_ok(), expected, "{path:?}");
    }
}

#[test]
fn short_write_to_fifo_is_atomic() {
    let directory = Directory::new();
    let path = directory.fifo("fifo");
    let mut reader = Reader::open(&path);
    let size = reader.shrink();
    let output = OutputFile::open(&path).unwrap();
    let chunk = [b'x'; ATOMIC - 96];
    let mut count = 0;
    while output.write(&chunk).unwrap() == chunk.len() {
        count += 1;
        assert!(
            count <= size / chunk.len(),
            "without a reader, {count} chunks went in"
        );
    }
    assert_eq!(output.write(&chunk).unwrap(), 0);
    assert_eq!(reader.read().len(), count * chunk.len());
    assert_eq!(output.write(&chunk).unwrap(), chunk.len());
}

#[test]
fn open_error_names_path() {
    let directory = Directory::new();
    for path in [directory.path("nowhere/log"), directory.path("")] {
        let error = OutputFile::open(&path).unwrap_err();
        assert!(matches!(error, Error::Open { .. }), "{error:?}");
        let text = error.one_line();
        assert!(text.contains(&format!("{path:?}")), "{text}");
        assert!(text.contains("os error"), "{text}");
    }
}

#[test]
fn full_disk_fails() {
    let output = OutputFile::open("/dev/full".as_ref()).unwrap();
    let error = output.write(b"x").unwrap_err();
    assert!(
        error.one_line().starts_with("cannot write to \"/dev/full\": "),
        "{error:?}"
    );
}

#[test]
fn reopen_replaces_moved_file() {
    let directory = Directory::new();
    let path = directory.path("log");
    let old = OutputFile::open(&path).unwrap();
    assert!(old.is_same(&old.reopen().unwrap()));
    fs::rename(&path, directory.path("log.1")).unwrap();
    let new = old.reopen().unwrap();
    assert!(!old.is_same(&new));
    new.write(b"new\n").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new\n");
    assert_eq!(fs::read(directory.path("log.1")).unwrap(), b"");
}
