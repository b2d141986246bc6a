use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::{any, prop_assert, proptest};
use scratch::Directory;
use serde::{Deserialize, Serialize};

use super::header::update_checksum;
use super::{
    Architecture, Contents, Error, FormatError, Header, HostIdentity, Links, MAX_CPU, MAX_SECTIONS,
    PendingStateFile, VERSION, read, read_with, version, write, write_bytes,
};
use crate::section::{ArchiveWriter, Schema};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Blob(Vec<u8>);

impl Schema for Blob {
    const NAME: &'static str = "blob";
    const VERSION: u32 = 1;
}

fn header() -> Header {
    Header {
        host: HostIdentity {
            architecture: Architecture::Aarch64,
            page_size: 16384,
            cpu: "Grünkern 3000".into(),
        },
        memory: 128 << 20,
        contents: Contents::Diff,
    }
}

fn sections(length: usize) -> ArchiveWriter {
    let mut writer = ArchiveWriter::new();
    writer.write("blob", &Blob(vec![7; length])).unwrap();
    writer
}

fn written(directory: &Directory) -> (PathBuf, Vec<u8>) {
    let path = directory.path("state");
    write(&path, &header(), sections(20)).unwrap();
    let bytes = fs::read(&path).unwrap();
    (path, bytes)
}

fn read_error(path: &Path, bytes: &[u8], host: Option<&HostIdentity>) -> FormatError {
    fs::write(path, bytes).unwrap();
    match read(path, host) {
        Err(Error::Rejected { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn write_read_round_trip() {
    let directory = Directory::new();
    let (path, bytes) = written(&directory);
    let state = read(&path, Some(&header().host)).unwrap();
    assert_eq!(state.header(), &header());
    assert_eq!(state.checksum().to_le_bytes(), bytes[40..48]);
    assert_eq!(state.sections(), sections(20).into_bytes());
    let mut reader = state.reader().unwrap();
    assert_eq!(reader.read::<Blob>("blob").unwrap(), Blob(vec![7; 20]));
    reader.finish().unwrap();
}

#[test]
fn link_is_rejected_by_its_open() {
    let directory = Directory::new();
    let (path, _) = written(&directory);
    let link = directory.path("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    read_with(&link, None, Links::Follow).unwrap();
    read_with(&path, None, Links::Reject).unwrap();
    let error = read_with(&link, None, Links::Reject).unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Rejected {
                source: FormatError::NotRegular,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn shortest_file_is_valid() {
    let directory = Directory::new();
    let path = directory.path("state");
    let mut header = header();
    header.host.cpu.clear();
    header.host.page_size = 4096;
    write(&path, &header, ArchiveWriter::new()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 48);
    assert_eq!(version(&path).unwrap(), VERSION);
    let state = read(&path, None).unwrap();
    assert_eq!((state.header(), state.sections()), (&header, &[][..]));
}

/// Creates a complete file for `path` that is not committed.
fn pending(path: &Path) -> PendingStateFile {
    let mut file = PendingStateFile::create(path).unwrap();
    file.fill(&header(), sections(20)).unwrap();
    file
}

#[test]
fn state_that_cannot_be_synced_is_not_committed() {
    let directory = Directory::new();
    let path = directory.path("state");
    let mut file = pending(&path);
    file.sync().unwrap();
    let mut broken = pending(&path);
    broken.replacement.break_sync();
    assert!(matches!(broken.sync(), Err(Error::Replace { path: found, .. }) if found == path));
    assert!(matches!(broken.commit(), Err(Error::Replace { .. })));
    assert!(!path.exists());
    // Already synced.
    file.replacement.break_sync();
    file.commit().unwrap();
    read(&path, None).unwrap();
}

#[test]
fn unsynced_commit_replaces_state() {
    let directory = Directory::new();
    let path = directory.path("state");
    fs::write(&path, "old").unwrap();
    let mut file = pending(&path);
    file.replacement.break_sync();
    file.commit_unsynced().unwrap();
    read(&path, None).unwrap();
}

#[test]
fn checksum_is_crc64_xz() {
    let directory = Directory::new();
    let (_, bytes) = written(&directory);
    let covered = [&bytes[..40], &bytes[48..]].concat();
    let mut crc = !0_u64;
    for byte in covered {
        crc ^= u64::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xC96C_5795_D787_0F42 * (crc & 1));
        }
    }
    assert_eq!(bytes[40..48], (!crc).to_le_bytes());
}

#[test]
fn every_truncation_is_rejected() {
    let directory = Directory::new();
    let (path, bytes) = written(&directory);
    for length in 0..bytes.len() {
        let found = read_error(&path, &bytes[..length], None);
        let length = length as u64;
        let short = FormatError::Short { length };
        let cut = FormatError::Length {
            found: length,
            expected: bytes.len() as u64,
        };
        assert!([short, cut].contains(&found), "{length}: {found}");
    }
}

#[test]
fn longer_file_is_rejected() {
    let directory = Directory::new();
    let (path, mut bytes) = written(&directory);
    bytes.push(0);
    update_checksum(&mut bytes);
    assert!(matches!(
        read_error(&path, &bytes, None),
        FormatError::Length { .. }
    ));
    // A length beyond every valid header must not cause an allocation or a read.
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    assert!(matches!(read(&path, None), Err(Error::Rejected { .. })));
}

#[test]
fn every_changed_byte_is_rejected() {
    let directory = Directory::new();
    let (path, good) = written(&directory);
    for at in 0..good.len() {
        for change in [1, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            read_error(&path, &bytes, None);
        }
    }
}

#[test]
fn changed_byte_with_valid_checksum_is_safe() {
    let directory = Directory::new();
    let (path, good) = written(&directory);
    for at in 0..good.len() {
        for change in [1, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            update_checksum(&mut bytes);
            fs::write(&path, &bytes).unwrap();
            let Ok(state) = read(&path, Some(&header().host)) else {
                continue;
            };
            let found = state.reader().and_then(|mut reader| reader.read::<Blob>("blob"));
            let same = found.is_ok_and(|blob| blob == Blob(vec![7; 20]));
            let harmless = (22..32).contains(&at) || (40..48).contains(&at);
            assert_eq!(same, harmless, "byte {at}");
        }
    }
}

/// Writes `value` at offset `at` of a valid file, updates the checksum, and returns the error of a read.
fn patched_error(at: usize, value: &[u8], host: Option<&HostIdentity>) -> FormatError {
    let directory = Directory::new();
    let (path, mut bytes) = written(&directory);
    bytes[at..at + value.len()].copy_from_slice(value);
    update_checksum(&mut bytes);
    read_error(&path, &bytes, host)
}

#[test]
fn invalid_field_is_rejected() {
    let error = |at, value: &[u8]| patched_error(at, value, None).to_string();
    assert!(error(0, b"M").contains("not a state file of mayfly"));
    assert!(error(8, &[2]).contains("version 2"));
    assert!(error(12, &[3]).contains("\"architecture\" has the invalid value 3"));
    for page_size in [0_u32, 2048, 4097] {
        assert!(error(16, &page_size.to_le_bytes()).contains("\"page size\" has the invalid value"));
    }
    assert!(error(20, &(MAX_CPU + 1).to_le_bytes()).contains("1025 bytes of CPU identity"));
    assert!(error(22, &[2]).contains("\"contents\" has the invalid value 2"));
    assert!(error(24, &[0; 8]).contains("\"memory\" has the invalid value 0"));
    assert!(error(24, &[1]).contains("\"memory\""));
    for length in [MAX_SECTIONS + 1, u64::MAX] {
        assert!(error(32, &length.to_le_bytes()).contains("at most 16777216"));
    }
    assert!(error(48, &[0xff]).contains("not UTF-8"));
}

#[test]
fn version_reads_unsupported_versions() {
    let directory = Directory::new();
    let (path, mut bytes) = written(&directory);
    assert_eq!(version(&path).unwrap(), VERSION);
    bytes[8..12].copy_from_slice(&[0, 1, 0, 0]);
    assert!(matches!(
        read_error(&path, &bytes, None),
        FormatError::Version { found: 256, .. }
    ));
    assert_eq!(version(&path).unwrap(), 256);
    for (bytes, text) in [
        (vec![7; 99], "not a state file of mayfly"),
        (vec![7; 47], "47 bytes"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = version(&path).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(text), "{source}");
    }
}

#[test]
fn other_host_is_rejected() {
    let host = header().host;
    let directory = Directory::new();
    let (path, bytes) = written(&directory);
    let error = |host: &HostIdentity| read_error(&path, &bytes, Some(host)).to_string();
    let mut other = host.clone();
    other.architecture = Architecture::X86_64;
    assert_eq!(
        error(&other),
        "snapshot of aarch64 does not fit this host, which is x86_64; load it on a host of the same architecture"
    );
    other = host.clone();
    other.page_size = 4096;
    assert!(error(&other).contains("pages of 16384 bytes does not fit this host, which has 4096"));
    other = host;
    other.cpu = "Grünkern 4000".into();
    assert!(error(&other).contains("\"Grünkern 3000\" does not fit this host, which has \"Grünkern 4000\""));
}

#[test]
fn write_beyond_limits_fails() {
    let directory = Directory::new();
    let path = directory.path("state");
    let fits = usize::try_from(MAX_SECTIONS).unwrap() - 64;
    let mut longest = header();
    longest.host.cpu = "x".repeat(MAX_CPU.into());
    write_bytes(&path, &longest, &vec![7; fits + 64]).unwrap();
    assert_eq!(read(&path, None).unwrap().header(), &longest);
    assert!(matches!(
        write(&path, &header(), sections(fits + 64)),
        Err(Error::TooLong { .. })
    ));
    let mut long = header();
    long.host.cpu = "x".repeat(usize::from(MAX_CPU) + 1);
    assert!(matches!(
        write(&path, &long, sections(1)),
        Err(Error::TooLong { .. })
    ));
    read(&path, None).unwrap();
}

#[test]
fn irregular_file_is_rejected() {
    let directory = Directory::new();
    let pipe = directory.path("pipe");
    scratch::make_fifo(&pipe);
    for path in [pipe.as_path(), directory.root(), Path::new("/dev/zero")] {
        let error = read(path, None).unwrap_err();
        assert!(matches!(
            error,
            Error::Rejected {
                source: FormatError::NotRegular,
                ..
            }
        ));
    }
    let missing = directory.path("missing");
    let error = read(&missing, None).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
    super::remove(&missing).unwrap();
    assert!(matches!(
        super::remove(directory.root()),
        Err(Error::Remove { .. })
    ));
    let (path, _) = written(&directory);
    super::remove(&path).unwrap();
    assert!(!path.exists());
}

/// Runs in its own process, started by the next test with a file size limit.
#[test]
#[ignore = "run by write_to_full_disk_keeps_old_file in its own process"]
fn write_beyond_file_size_limit() {
    scratch::ignore_file_size_signal();
    let path = PathBuf::from(std::env::var_os("STATE").unwrap());
    let error = write(&path, &header(), sections(64 << 10)).unwrap_err();
    assert!(matches!(error, Error::Write { .. }), "{error}");
}

#[test]
fn write_to_full_disk_keeps_old_file() {
    let directory = Directory::new();
    let (path, before) = written(&directory);
    let limited = "ulimit -f 8; exec \"$0\" --exact file::tests::write_beyond_file_size_limit --ignored";
    let run = scratch::run(
        Command::new("sh")
            .args(["-c", limited])
            .arg(std::env::current_exe().unwrap())
            .env("STATE", &path),
    );
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(output.contains("1 passed"), "{output}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(directory.root()).unwrap().count(), 1);
}

proptest! {
    #[test]
    fn read_arbitrary_file_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120), magic: bool) {
        let directory = Directory::new();
        let path = directory.path("state");
        let mut bytes = bytes;
        if magic && bytes.len() >= 48 {
            bytes[..12].copy_from_slice(b"mayflyst\x01\0\0\0");
            let rest = bytes.len() as u64 - 48;
            bytes[20..22].copy_from_slice(&[0, 0]);
            bytes[32..40].copy_from_slice(&rest.to_le_bytes());
            update_checksum(&mut bytes);
        }
        fs::write(&path, &bytes).unwrap();
        prop_assert!(read(&path, None).map_or(true, |state| state.sections().len() + 48 == bytes.len()));
    }
}
