use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::{any, prop_assert, proptest};
use scratch::Directory;
use serde::{Deserialize, Serialize};

use super::header::refit;
use super::{
    Architecture, Contents, Error, FormatError, Header, HostIdentity, MAX_CPU, MAX_SECTIONS, VERSION, read,
    version, write,
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
        contents: Contents::Difference,
    }
}

fn sections(length: usize) -> ArchiveWriter {
    let mut writer = ArchiveWriter::new();
    writer.write("blob", &Blob(vec![7; length])).unwrap();
    writer
}

fn written(folder: &Directory) -> (PathBuf, Vec<u8>) {
    let path = folder.path("state");
    write(&path, &header(), sections(20)).unwrap();
    let bytes = fs::read(&path).unwrap();
    (path, bytes)
}

fn fault(path: &Path, bytes: &[u8], host: Option<&HostIdentity>) -> FormatError {
    fs::write(path, bytes).unwrap();
    match read(path, host) {
        Err(Error::Refused { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_written_is_read() {
    let folder = Directory::new();
    let (path, _) = written(&folder);
    let state = read(&path, Some(&header().host)).unwrap();
    assert_eq!(state.header(), &header());
    assert_eq!(state.sections(), sections(20).into_bytes());
    let mut reader = state.reader().unwrap();
    assert_eq!(reader.read::<Blob>("blob").unwrap(), Blob(vec![7; 20]));
    reader.finish().unwrap();
}

#[test]
fn the_checksum_is_the_one_that_is_named() {
    let folder = Directory::new();
    let (_, bytes) = written(&folder);
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
fn every_truncation_is_refused() {
    let folder = Directory::new();
    let (path, bytes) = written(&folder);
    for length in 0..bytes.len() {
        let found = fault(&path, &bytes[..length], None);
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
fn a_longer_file_is_refused() {
    let folder = Directory::new();
    let (path, mut bytes) = written(&folder);
    bytes.push(0);
    refit(&mut bytes);
    assert!(matches!(fault(&path, &bytes, None), FormatError::Length { .. }));
    // By the file's own length, too: nothing is read of one that no header can match.
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    assert!(matches!(read(&path, None), Err(Error::Refused { .. })));
}

#[test]
fn every_changed_byte_is_refused() {
    let folder = Directory::new();
    let (path, good) = written(&folder);
    for at in 0..good.len() {
        for change in [1, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            fault(&path, &bytes, None);
        }
    }
}

#[test]
fn with_the_checksum_refitted_nothing_breaks() {
    let folder = Directory::new();
    let (path, good) = written(&folder);
    for at in 0..good.len() {
        for change in [1, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            refit(&mut bytes);
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

/// Changes `at` to `value` in a good file with the checksum refitted and returns what is then said of it.
fn refitted(at: usize, value: &[u8], host: Option<&HostIdentity>) -> FormatError {
    let folder = Directory::new();
    let (path, mut bytes) = written(&folder);
    bytes[at..at + value.len()].copy_from_slice(value);
    refit(&mut bytes);
    fault(&path, &bytes, host)
}

#[test]
fn fields_that_cannot_be_are_refused() {
    let said = |at, value: &[u8]| refitted(at, value, None).to_string();
    assert!(said(0, b"M").contains("no state file of mayfly"));
    assert!(said(8, &[2]).contains("version 2"));
    assert!(said(12, &[3]).contains("\"architecture\" is 3"));
    for page_size in [0_u32, 2048, 4097] {
        assert!(said(16, &page_size.to_le_bytes()).contains("page size"));
    }
    assert!(said(20, &(MAX_CPU + 1).to_le_bytes()).contains("1025 of the processor"));
    assert!(said(22, &[2]).contains("\"contents\" is 2"));
    assert!(said(24, &[0; 8]).contains("\"memory\" is 0"));
    assert!(said(24, &[1]).contains("\"memory\""));
    for length in [MAX_SECTIONS + 1, u64::MAX] {
        assert!(said(32, &length.to_le_bytes()).contains("at most 16777216"));
    }
    assert!(said(48, &[0xff]).contains("not UTF-8"));
}

#[test]
fn the_version_is_told_also_of_what_cannot_be_read() {
    let folder = Directory::new();
    let (path, mut bytes) = written(&folder);
    assert_eq!(version(&path).unwrap(), VERSION);
    bytes[8..12].copy_from_slice(&[0, 1, 0, 0]);
    assert!(matches!(
        fault(&path, &bytes, None),
        FormatError::Version { found: 256, .. }
    ));
    assert_eq!(version(&path).unwrap(), 256);
    for (bytes, text) in [
        (vec![7; 99], "no state file of mayfly"),
        (vec![7; 47], "47 bytes"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = version(&path).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(text), "{source}");
    }
}

#[test]
fn another_host_is_told_apart() {
    let host = header().host;
    let folder = Directory::new();
    let (path, bytes) = written(&folder);
    let said = |host: &HostIdentity| fault(&path, &bytes, Some(host)).to_string();
    let mut other = host.clone();
    other.architecture = Architecture::X86_64;
    assert_eq!(
        said(&other),
        "it is of aarch64, and this host is x86_64; restore it on a host of its own kind"
    );
    other = host.clone();
    other.page_size = 4096;
    assert!(said(&other).contains("pages of 16384 bytes, and this host's are 4096"));
    other = host;
    other.cpu = "Grünkern 4000".into();
    assert!(said(&other).contains("\"Grünkern 3000\", and this host has \"Grünkern 4000\""));
}

#[test]
fn what_is_too_long_is_not_written() {
    let folder = Directory::new();
    let path = folder.path("state");
    let fits = usize::try_from(MAX_SECTIONS).unwrap() - 64;
    write(&path, &header(), sections(fits)).unwrap();
    read(&path, None).unwrap();
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
fn only_regular_files_are_opened() {
    let folder = Directory::new();
    let pipe = folder.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [pipe.as_path(), folder.root(), Path::new("/dev/zero")] {
        let error = read(path, None).unwrap_err();
        assert!(matches!(
            error,
            Error::Refused {
                source: FormatError::Irregular,
                ..
            }
        ));
    }
    let missing = folder.path("missing");
    let error = read(&missing, None).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
    super::remove(&missing).unwrap();
    let (path, _) = written(&folder);
    super::remove(&path).unwrap();
    assert!(!path.exists());
}

/// Run in a process of its own by the test below, under a limit on what it may write.
#[test]
#[ignore = "is run by a_disk_that_fills_up_leaves_the_old_file"]
fn write_beyond_the_limit() {
    let path = PathBuf::from(std::env::var_os("STATE").unwrap());
    let error = write(&path, &header(), sections(64 << 10)).unwrap_err();
    assert!(matches!(error, Error::Write { .. }), "{error}");
}

#[test]
fn a_disk_that_fills_up_leaves_the_old_file() {
    let folder = Directory::new();
    let (path, before) = written(&folder);
    let limited =
        "trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact file::tests::write_beyond_the_limit --ignored";
    let run = Command::new("sh")
        .args(["-c", limited])
        .arg(std::env::current_exe().unwrap())
        .env("STATE", &path)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(output.contains("1 passed"), "{output}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(folder.root()).unwrap().count(), 1);
}

proptest! {
    #[test]
    fn no_file_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), magic: bool) {
        let folder = Directory::new();
        let path = folder.path("state");
        let mut bytes = bytes;
        if magic && bytes.len() >= 48 {
            bytes[..12].copy_from_slice(b"mayflyst\x01\0\0\0");
            let rest = bytes.len() as u64 - 48;
            bytes[20..22].copy_from_slice(&[0, 0]);
            bytes[32..40].copy_from_slice(&rest.to_le_bytes());
            refit(&mut bytes);
        }
        fs::write(&path, &bytes).unwrap();
        prop_assert!(read(&path, None).map_or(true, |state| state.sections().len() + 48 == bytes.len()));
    }
}
