//! Damaged state files: the load fails before the guest runs, or creates a valid machine. The test loads each file in this
//! process, with a real VM.

use std::fs;
use std::os::fd::AsRawFd;
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Instant;

use devices::serial::SerialOutput;
use vmm::ErrorChain;
use vmm::control::{Control, LoadSnapshotParams, Timeline};
use vmm::memory;
use vmm::vm::Console;

use crate::api::killed::start_small_ticker;
use crate::api::served::{Directory, pause_and_create};

/// Threads that load. The teardown of a VM spends most of its time waiting.
const WORKERS: usize = 16;

/// Length of the fixed part of the header, and the offsets of the section length and of the checksum in it.
const FIXED_LENGTH: usize = 48;
const LENGTH_OFFSET: usize = 32;
const CHECKSUM_OFFSET: usize = 40;

/// Table of CRC-64/XZ by byte.
static CRC_TABLE: LazyLock<[u64; 256]> = LazyLock::new(|| {
    std::array::from_fn(|byte| {
        (0..8).fold(byte as u64, |crc, _| {
            (crc >> 1) ^ (0xC96C_5795_D787_0F42 * (crc & 1))
        })
    })
});

/// Corrects the section length and the checksum in the header of a state file.
fn fix_header(bytes: &mut [u8]) {
    let length = (bytes.len() - header_length(bytes)) as u64;
    bytes[LENGTH_OFFSET..CHECKSUM_OFFSET].copy_from_slice(&length.to_le_bytes());
    fix_checksum(bytes);
}

/// Returns the length of the header.
fn header_length(bytes: &[u8]) -> usize {
    FIXED_LENGTH + usize::from(u16::from_le_bytes([bytes[20], bytes[21]]))
}

fn fix_checksum(bytes: &mut [u8]) {
    let covered = bytes[..CHECKSUM_OFFSET].iter().chain(&bytes[FIXED_LENGTH..]);
    let checksum = !covered.fold(!0_u64, |crc, byte| {
        let index = crc.to_le_bytes()[0] ^ byte;
        (crc >> 8) ^ CRC_TABLE[usize::from(index)]
    });
    bytes[CHECKSUM_OFFSET..FIXED_LENGTH].copy_from_slice(&checksum.to_le_bytes());
}

/// A snapshot whose state file the test replaces.
struct Loader {
    directory: Directory,
    good: Vec<u8>,
}

impl Loader {
    fn new() -> Self {
        let directory = Directory::new();
        let process = start_small_ticker();
        pause_and_create(&process, &directory, "Full", "state", "memory");
        process.kill();
        let good = fs::read(directory.path("state")).unwrap();
        Self { directory, good }
    }

    /// Loads the state file `bytes` without running the guest. Returns the error text on failure.
    fn load(&self, bytes: &[u8]) -> Result<(), String> {
        // A memfd: files on a disk would cause writeback of each variant.
        let file = memory::memfd(c"state", bytes).unwrap();
        let state = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        let timeline = Arc::new(Timeline::new(Instant::now(), false));
        let mut control = Control::new(Box::new(|| Ok(console())), timeline);
        let params = LoadSnapshotParams::new(state, self.directory.path("memory"));
        control
            .load_snapshot(params)
            .map(drop)
            .map_err(|error| ErrorChain(&error).to_string())
    }
}

fn console() -> Console {
    let null = fs::File::options().write(true).open("/dev/null").unwrap();
    Console {
        output: SerialOutput::new(null.into()).unwrap(),
        input: None,
        filter: None,
        guard: None,
    }
}

/// A section of a state file: its key, the offset of its version, and its bytes.
struct Section {
    key: String,
    version: usize,
    bytes: Vec<u8>,
}

/// Parses the sections, in the format of the crate `snapshot`.
fn parse_sections(mut rest: &[u8]) -> Vec<Section> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let key = usize::from(u16::from_le_bytes([rest[0], rest[1]]));
        let name = usize::from(u16::from_le_bytes([rest[2 + key], rest[3 + key]]));
        let version = 4 + key + name;
        let payload = u32::from_le_bytes(rest[version + 4..version + 8].try_into().unwrap());
        let (section, tail) = rest.split_at(version + 8 + usize::try_from(payload).unwrap());
        found.push(Section {
            key: std::str::from_utf8(&section[2..2 + key]).unwrap().to_owned(),
            version,
            bytes: section.to_vec(),
        });
        rest = tail;
    }
    found
}

#[test]
fn changed_byte_is_rejected_or_loads() {
    let loader = Loader::new();
    loader.load(&loader.good).unwrap();
    let change = |at: usize| {
        let mut bytes = loader.good.clone();
        bytes[at] ^= [1, 0x80, 0xff][at % 3];
        fix_checksum(&mut bytes);
        if let Err(error) = loader.load(&bytes) {
            assert!(!error.contains("has ended"), "byte {at}: {error}");
        }
    };
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let offsets = (worker..loader.good.len()).step_by(WORKERS);
            scope.spawn(move || offsets.for_each(change));
        }
    });
}

#[test]
fn truncated_file_is_rejected() {
    let loader = Loader::new();
    for length in 0..loader.good.len() {
        let mut bytes = loader.good[..length].to_vec();
        loader.load(&bytes).unwrap_err();
        if length >= header_length(&loader.good) {
            fix_header(&mut bytes);
            loader.load(&bytes).unwrap_err();
        }
    }
}

#[test]
fn missing_repeated_or_newer_section_is_rejected() {
    let loader = Loader::new();
    let (header, rest) = loader.good.split_at(header_length(&loader.good));
    let all = parse_sections(rest);
    assert!(all.len() > 10);
    let load_error = |parts: &[&[u8]]| {
        let mut bytes = [&[header], parts].concat().concat();
        fix_header(&mut bytes);
        loader.load(&bytes).unwrap_err()
    };
    for (index, section) in all.iter().enumerate() {
        let mut parts: Vec<&[u8]> = all.iter().map(|section| section.bytes.as_slice()).collect();
        let expect_error = |error: &str, text: &str| {
            let key = format!("section \"{}\"", section.key);
            assert!(
                error.contains(&key) && error.contains(text),
                "{}: {error}",
                section.key
            );
        };
        let mut other = section.bytes.clone();
        other[section.version] += 1;
        parts[index] = &other;
        expect_error(&load_error(&parts), " is required");
        parts[index] = &section.bytes;
        parts.push(&section.bytes);
        expect_error(&load_error(&parts), "exists twice");
        parts.pop();
        parts.remove(index);
        expect_error(&load_error(&parts), "is missing");
    }
    let mut parts: Vec<&[u8]> = all.iter().map(|section| section.bytes.as_slice()).collect();
    parts.push(b"\x01\0x\x01\0y\0\0\0\0\0\0\0\0");
    let error = load_error(&parts);
    assert!(error.contains("restore the sections [\"x\"]"), "{error}");
}

#[test]
fn state_of_another_host_is_rejected() {
    let loader = Loader::new();
    let load_error = |at: usize, value: &[u8]| {
        let mut bytes = loader.good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        fix_checksum(&mut bytes);
        loader.load(&bytes).unwrap_err()
    };
    for (at, value, text) in [
        (8, &[2][..], "version 2"),
        (12, &[2], "of aarch64"),
        (17, &[0x40], "pages of 16384 bytes"),
        (24, &[0, 0x10, 0, 0], "4096 bytes of memory"),
        (FIXED_LENGTH, b"?", "of the CPU \"?"),
    ] {
        let error = load_error(at, value);
        assert!(error.contains(text), "{at}: {error}");
    }
}

#[test]
fn memory_file_of_wrong_size_or_type_is_rejected() {
    let loader = Loader::new();
    let memory = loader.directory.path("memory");
    let file = fs::File::options().write(true).open(&memory).unwrap();
    let length = file.metadata().unwrap().len();
    for other in [
        0,
        1,
        length - 4096,
        length - 1,
        length + 1,
        length + 4096,
        1 << 40,
    ] {
        file.set_len(other).unwrap();
        let error = loader.load(&loader.good).unwrap_err();
        assert!(
            error.contains("cannot map the memory file: its size is "),
            "{other}: {error}"
        );
    }
    fs::remove_file(&memory).unwrap();
    assert!(
        loader
            .load(&loader.good)
            .unwrap_err()
            .contains("cannot open the memory file")
    );
    fs::create_dir(&memory).unwrap();
    loader.load(&loader.good).unwrap_err();
    fs::remove_dir(&memory).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &memory).unwrap();
    loader.load(&loader.good).unwrap_err();
}
