//! Image loaders: ELF, bzImage and flat multiboot images.
//!
//! An image that is accepted loads into guest memory and nowhere else: the content of each segment is that of the file, and
//! reserved ranges stay zero.

use std::ops::Range;
use std::path::Path;

use snapshot::GuestMemory;
use snapshot::file::Architecture;
use vm_memory::{Bytes, GuestAddress};
use vmm::ErrorChain;
use vmm::boot::segment::Segment;
use vmm::boot::{Image, Protocol};
use vmm::memory::{allocate, memfd};

pub const DICTIONARY: &[&[u8]] = &[
    b"\x7fELF\x02\x01\x01",
    b"\x7fELF\x01\x01\x01",
    b"\x3e\x00",
    b"\xb7\x00",
    b"HdrS\x0f\x02",
    b"\x55\xaa",
    b"\x02\xb0\xad\x1b",
    b"Xen\0",
    b"\x01\0\0\0\x07\0\0\0",
    b"\x04\0\0\0\x12\0\0\0",
];

/// Size of guest memory.
const MEMORY: u64 = 32 << 20;

/// Ranges of boot data.
const RESERVED: [Range<u64>; 2] = [0..0x1000, 0x9_f000..0xa_0000];

pub fn run(bytes: &[u8]) {
    for architecture in [Architecture::X86_64, Architecture::Aarch64] {
        let file = memfd(c"image", bytes).expect("cannot create a file in memory");
        match Image::from_file(Path::new("image"), file, architecture) {
            Ok(image) => check(&image, bytes),
            Err(error) => drop(ErrorChain(&error).to_string()),
        }
    }
}

fn check(image: &Image, bytes: &[u8]) {
    let info = image.info();
    let notes: usize = info.notes.iter().map(|note| note.description.len()).sum();
    assert!(notes <= bytes.len(), "the notes are longer than the file");
    let selected = image.select_protocol(None);
    assert_eq!(selected.is_ok(), !image.protocols().is_empty());
    for protocol in Protocol::ALL {
        for segment in image.segments(protocol) {
            check_segment(segment, bytes.len() as u64);
        }
        check_load(image, protocol, bytes);
    }
}

/// Checks the invariants of [`Segment`].
fn check_segment(segment: &Segment, size: u64) {
    let Segment { file, physical, .. } = segment;
    assert!(file.start <= file.end && file.end <= size, "{segment:?}");
    assert!(physical.start < physical.end, "{segment:?}");
    assert!(
        file.end - file.start <= physical.end - physical.start,
        "{segment:?}"
    );
    let mapped = segment.mapped();
    assert!(mapped.is_empty() || (physical.start <= mapped.start && mapped.end <= physical.end));
}

fn check_load(image: &Image, protocol: Protocol, bytes: &[u8]) {
    let memory = allocate(&[(GuestAddress(0), 32 << 20)]).expect("cannot allocate guest memory");
    let loaded = match image.load(protocol, &memory, &RESERVED) {
        Ok(loaded) => loaded,
        Err(error) => return drop(ErrorChain(&error).to_string()),
    };
    let segments = image.segments(protocol);
    for segment in segments {
        assert!(segment.physical.end <= MEMORY, "{segment:?} is outside memory");
        assert!(segment.physical.end <= loaded.end);
        check_content(segment, &memory, bytes);
    }
    for range in RESERVED {
        assert!(
            is_zero(&memory, &range),
            "the load wrote to the reserved range {range:#x?}"
        );
    }
    let is_entry_loaded = segments
        .iter()
        .any(|segment| segment.physical.contains(&loaded.entry));
    assert!(is_entry_loaded, "the entry {:#x} is in no segment", loaded.entry);
}

/// Checks that guest memory holds the content of `segment`, and zeros behind it.
fn check_content(segment: &Segment, memory: &GuestMemory, bytes: &[u8]) {
    let as_usize = |value: u64| usize::try_from(value).expect("an offset in the file fits");
    let content = &bytes[as_usize(segment.file.start)..as_usize(segment.file.end)];
    let start = segment.physical.start;
    assert!(
        read(memory, start, content.len() as u64) == content,
        "the content of {segment:?} differs"
    );
    let rest = start + content.len() as u64..segment.physical.end;
    let rest = rest.start..rest.end.min(rest.start + 0x2000);
    assert!(is_zero(memory, &rest), "{segment:?} ends with other bytes");
}

fn is_zero(memory: &GuestMemory, range: &Range<u64>) -> bool {
    let bytes = read(memory, range.start, range.end - range.start);
    bytes == vec![0; bytes.len()]
}

fn read(memory: &GuestMemory, address: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).expect("the length fits")];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .expect("cannot read guest memory");
    bytes
}
