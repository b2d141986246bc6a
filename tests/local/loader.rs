//! State files that are not what mayfly wrote: a clear error before the guest runs, or a guest that could be. Each is loaded in
//! this process, with a real machine behind it.

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

use crate::api::killed::small;
use crate::api::served::Directory;
use crate::api::snapshot::pause_and_create;

/// Threads that load: most of the time of a machine goes by waiting for its end.
const WORKERS: usize = 16;

/// Length of the header's fixed part, and where in it the length of the sections and the checksum are.
const FIXED: usize = 48;
const LENGTH: usize = 32;
const CHECKSUM: usize = 40;

/// What each byte does to a CRC-64/XZ.
static TABLE: LazyLock<[u64; 256]> = LazyLock::new(|| {
    std::array::from_fn(|byte| {
        (0..8).fold(byte as u64, |crc, _| {
            (crc >> 1) ^ (0xC96C_5795_D787_0F42 * (crc & 1))
        })
    })
});

/// Gives a state file the length of its sections and the checksum that it should have.
fn refit(bytes: &mut [u8]) {
    let length = (bytes.len() - front(bytes)) as u64;
    bytes[LENGTH..CHECKSUM].copy_from_slice(&length.to_le_bytes());
    refit_checksum(bytes);
}

/// Where the sections begin.
fn front(bytes: &[u8]) -> usize {
    FIXED + usize::from(u16::from_le_bytes([bytes[20], bytes[21]]))
}

fn refit_checksum(bytes: &mut [u8]) {
    let covered = bytes[..CHECKSUM].iter().chain(&bytes[FIXED..]);
    let checksum = !covered.fold(!0_u64, |crc, byte| {
        let place = crc.to_le_bytes()[0] ^ byte;
        (crc >> 8) ^ TABLE[usize::from(place)]
    });
    bytes[CHECKSUM..FIXED].copy_from_slice(&checksum.to_le_bytes());
}

/// A snapshot whose state file is replaced again and again.
struct Loader {
    folder: Directory,
    good: Vec<u8>,
}

impl Loader {
    fn new() -> Self {
        let folder = Directory::new();
        let served = small();
        pause_and_create(&served, &folder, "Full", "state", "memory");
        served.kill();
        let good = fs::read(folder.path("state")).unwrap();
        Self { folder, good }
    }

    /// Loads `bytes`; what is said if it is refused. The guest does not run.
    fn load(&self, bytes: &[u8]) -> Result<(), String> {
        // A file system on a disk would have each of them written there.
        let file = memory::memfd(c"state", bytes).unwrap();
        let state = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        let timeline = Arc::new(Timeline::new(Instant::now(), false));
        let mut control = Control::new(Box::new(|| Ok(console())), timeline);
        let thaw = LoadSnapshotParams::new(state, self.folder.path("memory"));
        control
            .load_snapshot(&thaw)
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

/// A section of a state file: its key, where its version is, and all of it.
struct Section {
    key: String,
    version: usize,
    bytes: Vec<u8>,
}

/// The sections, by the format that the crate `snapshot` documents.
fn sections(mut rest: &[u8]) -> Vec<Section> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let key = usize::from(u16::from_le_bytes([rest[0], rest[1]]));
        let name = usize::from(u16::from_le_bytes([rest[2 + key], rest[3 + key]]));
        let version = 4 + key + name;
        let payload = u32::from_le_bytes(rest[version + 4..version + 8].try_into().unwrap());
        let (section, others) = rest.split_at(version + 8 + usize::try_from(payload).unwrap());
        found.push(Section {
            key: std::str::from_utf8(&section[2..2 + key]).unwrap().to_owned(),
            version,
            bytes: section.to_vec(),
        });
        rest = others;
    }
    found
}

#[test]
fn every_byte_may_be_another() {
    let loader = Loader::new();
    loader.load(&loader.good).unwrap();
    let change = |at: usize| {
        let mut bytes = loader.good.clone();
        bytes[at] ^= [1, 0x80, 0xff][at % 3];
        refit_checksum(&mut bytes);
        if let Err(why) = loader.load(&bytes) {
            assert!(!why.contains("has ended"), "byte {at}: {why}");
        }
    };
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let places = (worker..loader.good.len()).step_by(WORKERS);
            scope.spawn(move || places.for_each(change));
        }
    });
}

#[test]
fn a_file_may_end_anywhere() {
    let loader = Loader::new();
    for length in 0..loader.good.len() {
        let mut bytes = loader.good[..length].to_vec();
        loader.load(&bytes).unwrap_err();
        if length >= front(&loader.good) {
            refit(&mut bytes);
            loader.load(&bytes).unwrap_err();
        }
    }
}

#[test]
fn every_section_is_there_once_and_of_its_version() {
    let loader = Loader::new();
    let (front, rest) = loader.good.split_at(front(&loader.good));
    let all = sections(rest);
    assert!(all.len() > 10);
    let said = |parts: &[&[u8]]| {
        let mut bytes = [&[front], parts].concat().concat();
        refit(&mut bytes);
        loader.load(&bytes).unwrap_err()
    };
    for (index, section) in all.iter().enumerate() {
        let mut parts: Vec<&[u8]> = all.iter().map(|section| section.bytes.as_slice()).collect();
        let named = |why: &str, text: &str| {
            let key = format!("section \"{}\"", section.key);
            assert!(why.contains(&key) && why.contains(text), "{}: {why}", section.key);
        };
        let mut other = section.bytes.clone();
        other[section.version] += 1;
        parts[index] = &other;
        named(&said(&parts), " is required");
        parts[index] = &section.bytes;
        parts.push(&section.bytes);
        named(&said(&parts), "exists twice");
        parts.pop();
        parts.remove(index);
        named(&said(&parts), "is missing");
    }
    let mut parts: Vec<&[u8]> = all.iter().map(|section| section.bytes.as_slice()).collect();
    parts.push(b"\x01\0x\x01\0y\0\0\0\0\0\0\0\0");
    let why = said(&parts);
    assert!(why.contains("restore the sections [\"x\"]"), "{why}");
}

#[test]
fn another_host_is_named() {
    let loader = Loader::new();
    let said = |at: usize, value: &[u8]| {
        let mut bytes = loader.good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        refit_checksum(&mut bytes);
        loader.load(&bytes).unwrap_err()
    };
    for (at, value, text) in [
        (8, &[2][..], "version 2"),
        (12, &[2], "of aarch64"),
        (17, &[0x40], "pages of 16384 bytes"),
        (24, &[0, 0x10, 0, 0], "4096 bytes of memory"),
        (FIXED, b"?", "of the CPU \"?"),
    ] {
        let why = said(at, value);
        assert!(why.contains(text), "{at}: {why}");
    }
}

#[test]
fn the_memory_file_is_the_one() {
    let loader = Loader::new();
    let memory = loader.folder.path("memory");
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
        let why = loader.load(&loader.good).unwrap_err();
        assert!(
            why.contains("cannot map the memory file: its size is "),
            "{other}: {why}"
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
