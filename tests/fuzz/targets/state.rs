//! State file of a snapshot: header, sections and their payloads.
//!
//! A file that is accepted is written again with the same bytes. A decoded payload has one canonical encoding, which decodes to
//! itself. Lengths and checksum of an input are corrected, so that the code behind these checks is reached.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use devices::virtio::block::{BlockState, UnfinishedState};
use devices::virtio::mmio::TransportState;
use devices::virtio::net::{FirstFramesState, NetState};
use devices::{Cmos, I8042, Pit, Serial, SplitIrqchip};
use scratch::Directory;
use snapshot::file::{self, StateFile};
use snapshot::{ArchiveReader, ArchiveWriter, Persist, Schema};
use vmm::ErrorChain;
use vmm::config::VmConfig;
use vmm::control::{describe_snapshot, state_version};
use vmm::identity::IdentityState;
use vmm::memory::memfd;
use vmm::vcpu::NativeVcpuState;

pub const DICTIONARY: &[&[u8]] = &[
    b"mayflyst",
    b"machine",
    b"vcpu/0",
    b"irqchip",
    b"virtio/0",
    b"virtio/0/device",
    b"\x80\x80\x80\x80\x01",
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"/dev/null",
];

/// Length of the fixed part of the header of a state file.
const FIXED_LENGTH: usize = 48;
/// Offset of the length of the processor identity.
const CPU_LENGTH: usize = 20;
/// Offset of the length of the sections.
const LENGTH: usize = 32;
/// Offset of the checksum.
const CHECKSUM: usize = 40;

/// Table of CRC-64/XZ by byte.
const CRC_TABLE: [u64; 256] = crc_table();

const fn crc_table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0xC96C_5795_D787_0F42 * (crc & 1));
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// Sets the length of the sections and the checksum of a state file, so that the loader reads the sections. A file shorter than
/// the header stays unchanged.
pub fn correct_header(bytes: &mut [u8]) {
    if bytes.len() < FIXED_LENGTH {
        return;
    }
    let cpu = u64::from(u16::from_le_bytes([bytes[CPU_LENGTH], bytes[CPU_LENGTH + 1]]));
    let length = (bytes.len() - FIXED_LENGTH) as u64;
    bytes[LENGTH..CHECKSUM].copy_from_slice(&length.saturating_sub(cpu).to_le_bytes());
    let covered = bytes[..CHECKSUM].iter().chain(&bytes[FIXED_LENGTH..]);
    let checksum = !covered.fold(!0_u64, |crc, byte| {
        let index = crc.to_le_bytes()[0] ^ byte;
        (crc >> 8) ^ CRC_TABLE[usize::from(index)]
    });
    bytes[CHECKSUM..FIXED_LENGTH].copy_from_slice(&checksum.to_le_bytes());
}

/// Returns the path of a file in memory, valid while the file is open.
pub fn path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

pub fn run(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    correct_header(&mut bytes);
    let state = memfd(c"state", &bytes).expect("cannot create a file in memory");
    let path = path(&state);
    if let Err(error) = state_version(&path) {
        drop(ErrorChain(&error).to_string());
    }
    match describe_snapshot(&path) {
        Ok((header, config)) => drop(format!("{header:?} {config:?}")),
        Err(error) => drop(ErrorChain(&error).to_string()),
    }
    if let Ok(read) = file::read(&path, None) {
        check_copy(&read, &bytes);
        check_sections(&read);
    }
}

/// Writes the file again and compares the bytes.
fn check_copy(state: &StateFile, bytes: &[u8]) {
    thread_local! {
        static DIRECTORY: Directory = Directory::new();
    }
    DIRECTORY.with(|directory| {
        let copy: &Path = &directory.path("copy");
        let mut pending = file::PendingStateFile::create(copy).expect("cannot create the copy");
        pending
            .fill_bytes(state.header(), state.sections())
            .expect("cannot write the copy");
        pending.commit_unsynced().expect("cannot rename the copy");
        let written = fs::read(copy).expect("cannot read the copy");
        assert!(written == bytes, "the copy differs");
    });
}

fn check_sections(state: &StateFile) {
    type StateOf<T> = <T as Persist>::State;
    if state.reader().is_err() {
        return;
    }
    let sections = state.sections();
    check_section::<VmConfig>(sections, "machine");
    check_section::<NativeVcpuState>(sections, "vcpu/0");
    check_section::<StateOf<Pit>>(sections, "pit");
    check_section::<StateOf<I8042>>(sections, "i8042");
    check_section::<StateOf<Cmos>>(sections, "cmos");
    check_section::<StateOf<SplitIrqchip>>(sections, "irqchip");
    check_section::<StateOf<Serial>>(sections, "serial");
    check_section::<IdentityState>(sections, "identity");
    for number in 0..4 {
        let device = format!("virtio/{number}");
        check_section::<TransportState>(sections, &device);
        check_section::<BlockState>(sections, &format!("{device}/device"));
        check_section::<UnfinishedState>(sections, &format!("{device}/device/unfinished"));
        check_section::<NetState>(sections, &format!("{device}/device"));
        check_section::<FirstFramesState>(sections, &format!("{device}/device/first-frames"));
    }
}

/// Decodes section `key`, if it exists as an `S`. A state has several encodings, because postcard accepts integers with leading
/// zeros; the state that decodes from the canonical one must be the same.
fn check_section<S: Schema>(sections: &[u8], key: &str) {
    let Some(state) = decode::<S>(sections, key) else {
        return;
    };
    let canonical = encode(&state, key);
    let decoded = decode::<S>(&canonical, key).unwrap_or_else(|| panic!("section {key:?} is rejected"));
    assert!(encode(&decoded, key) == canonical, "section {key:?} differs");
}

fn decode<S: Schema>(sections: &[u8], key: &str) -> Option<S> {
    let mut reader = ArchiveReader::parse(sections).ok()?;
    reader.read(key).ok()
}

fn encode<S: Schema>(state: &S, key: &str) -> Vec<u8> {
    let mut writer = ArchiveWriter::new();
    writer.write(key, state).expect("a decoded state can be encoded");
    writer.into_bytes()
}
