use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes as _, GuestAddress};

use super::{
    Bytes, Error, allocate, map_file, map_snapshot, memfd, page_size, read_file_into, remap_snapshot,
};
use crate::boot::testing::Temporary;

fn pattern(pages: u64) -> Vec<u8> {
    (0..pages * page_size())
        .map(|at| u8::try_from(at / 7 % 251).unwrap())
        .collect()
}

fn page() -> usize {
    usize::try_from(page_size()).unwrap()
}

fn memory() -> crate::GuestMemory {
    allocate(&[
        (GuestAddress(0), 8 * page()),
        (GuestAddress(64 * page_size()), 2 * page()),
    ])
    .unwrap()
}

fn bytes(memory: &crate::GuestMemory, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

#[test]
fn allocate_larger_than_host_reads_zero() {
    let memory = allocate(&[(GuestAddress(1 << 32), 1 << 42)]).unwrap();
    assert_eq!(bytes(&memory, (1 << 32) + (1 << 41), 64), [0; 64]);
}

#[test]
fn allocate_invalid_regions_fails() {
    for (address, size) in [
        (0, 0),
        (0, 100),
        (100, page()),
        (u64::MAX - page_size() + 1, 2 * page()),
    ] {
        let error = allocate(&[(GuestAddress(address), size)]).unwrap_err();
        assert!(
            matches!(error, Error::Region { .. }),
            "{address:#x} {size:#x}: {error}"
        );
    }
    let twice = (GuestAddress(0), page());
    assert!(matches!(allocate(&[twice, twice]), Err(Error::Regions(_))));
    assert!(matches!(allocate(&[]), Err(Error::Regions(_))));
}

#[test]
fn allocate_beyond_address_space_names_size() {
    let error = allocate(&[(GuestAddress(0), 1 << 60)]).unwrap_err();
    assert!(matches!(error, Error::Reserve { size: Bytes(size), .. } if size == 1 << 60));
    assert!(
        error.to_string().contains("cannot reserve 1099511627776 MiB"),
        "{error}"
    );
}

#[test]
fn map_file_write_stays_private() {
    let content = pattern(3);
    let file = Temporary::with(&content);
    let (memory, opened) = (memory(), file.open());
    map_file(
        &memory,
        GuestAddress(page_size()),
        &opened,
        page_size(),
        2 * page(),
    )
    .unwrap();
    assert_eq!(bytes(&memory, page_size(), 2 * page()), content[page()..]);
    assert_eq!(bytes(&memory, 0, page()), vec![0; page()]);
    assert_eq!(bytes(&memory, 3 * page_size(), page()), vec![0; page()]);
    memory.write_obj(!0_u64, GuestAddress(page_size())).unwrap();
    assert_eq!(std::fs::read(file.path()).unwrap(), content);
}

#[test]
fn map_file_invalid_range_fails() {
    let file = Temporary::with(&pattern(16)).open();
    let memory = memory();
    let map = |address, offset, length| map_file(&memory, GuestAddress(address), &file, offset, length);
    for (address, offset, length) in [(1, 0, page()), (0, 1, page()), (0, 0, 1)] {
        assert!(matches!(
            map(address, offset, length),
            Err(Error::Unaligned { .. })
        ));
    }
    for (address, length) in [
        (7 * page_size(), 2 * page()),
        (9 * page_size(), page()),
        (u64::MAX - page_size() + 1, page()),
        (0, usize::MAX - page() + 1),
    ] {
        assert!(
            matches!(map(address, 0, length), Err(Error::Outside(_))),
            "{address:#x}"
        );
    }
    map(65 * page_size(), 0, page()).unwrap();
    map(3, 5, 0).unwrap();
}

#[test]
fn map_file_beyond_end_fails() {
    let file = Temporary::with(&pattern(2)[1..]).open();
    let memory = memory();
    let error = map_file(&memory, GuestAddress(0), &file, page_size(), page()).unwrap_err();
    assert!(matches!(error, Error::Short { size, .. } if size == 2 * page_size() - 1));
    let last_page = u64::MAX - page_size() + 1;
    let error = map_file(&memory, GuestAddress(0), &file, last_page, page()).unwrap_err();
    assert!(matches!(error, Error::Short { .. }));
}

#[test]
fn read_file_unaligned_range() {
    let content = pattern(3);
    let file = Temporary::with(&content).open();
    let memory = memory();
    read_file_into(&memory, GuestAddress(77), &file, 13, 2 * page()).unwrap();
    assert_eq!(bytes(&memory, 77, 2 * page()), content[13..13 + 2 * page()]);
    assert_eq!(bytes(&memory, 0, 77), [0; 77]);
    assert_eq!(bytes(&memory, 77 + 2 * page_size(), 100), [0; 100]);
    read_file_into(&memory, GuestAddress(0), &file, 0, 0).unwrap();
}

#[test]
fn read_file_invalid_range_fails() {
    let file = Temporary::with(&[1; 100]).open();
    let memory = memory();
    let read =
        |address, offset, length| read_file_into(&memory, GuestAddress(address), &file, offset, length);
    assert!(matches!(read(0, 0, 101), Err(Error::Short { size: 100, .. })));
    assert!(matches!(read(0, 200, 1), Err(Error::Short { .. })));
    assert!(matches!(read(0, u64::MAX, 1), Err(Error::Read { .. })));
    assert!(matches!(read(8 * page_size() - 1, 0, 2), Err(Error::Outside(_))));
    let directory = std::fs::File::open("/").unwrap();
    let error = read_file_into(&memory, GuestAddress(0), &directory, 0, 1).unwrap_err();
    assert!(matches!(error, Error::Read { .. }));
}

fn snapshot_regions() -> [(GuestAddress, usize); 2] {
    [(GuestAddress(0), 2 * page()), (GuestAddress(1 << 32), 3 * page())]
}

/// Creates a file of pages; each byte of a page is the page number, counted from `first`.
fn snapshot_file(first: u8, pages: u8) -> File {
    let mut file = memfd(c"snapshot", b"").unwrap();
    for number in first..first + pages {
        file.write_all(&vec![number; page()]).unwrap();
    }
    file
}

#[test]
fn map_snapshot_regions_are_contiguous_in_file() {
    let memory = map_snapshot(&snapshot_regions(), &snapshot_file(1, 5)).unwrap();
    let byte = |address| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
    assert_eq!(byte(0), 1);
    assert_eq!(byte(2 * page_size() - 1), 2);
    assert_eq!(byte(1 << 32), 3);
    assert_eq!(byte((1 << 32) + 3 * page_size() - 1), 5);
}

#[test]
fn map_snapshot_write_keeps_file() {
    let file = snapshot_file(1, 5);
    let (first, second) = (
        map_snapshot(&snapshot_regions(), &file).unwrap(),
        map_snapshot(&snapshot_regions(), &file).unwrap(),
    );
    first.write_obj(77_u8, GuestAddress(0)).unwrap();
    assert_eq!(second.read_obj::<u8>(GuestAddress(0)).unwrap(), 1);
}

#[test]
fn map_snapshot_other_length_fails() {
    for pages in [4, 6] {
        let error = map_snapshot(&snapshot_regions(), &snapshot_file(1, pages))
            .unwrap_err()
            .to_string();
        let found = (u64::from(pages) * page_size()) >> 10;
        assert!(
            error.starts_with(&format!("cannot map the memory file: its size is {found} KiB")),
            "{error}"
        );
    }
    let short = snapshot_file(1, 5);
    short.set_len(5 * page_size() - 1).unwrap();
    assert!(matches!(
        map_snapshot(&snapshot_regions(), &short),
        Err(Error::Snapshot { .. })
    ));
    for path in ["/", "/dev/zero"] {
        let error = map_snapshot(&snapshot_regions(), &File::open(path).unwrap()).unwrap_err();
        assert!(matches!(error, Error::Irregular), "{path}: {error}");
    }
}

#[test]
fn remap_snapshot_replaces_content() {
    let memory = allocate(&snapshot_regions()).unwrap();
    memory.write_obj(99_u8, GuestAddress(5)).unwrap();
    remap_snapshot(&memory, &snapshot_file(1, 5)).unwrap();
    memory.write_obj(98_u8, GuestAddress(1 << 32)).unwrap();
    remap_snapshot(&memory, &snapshot_file(11, 5)).unwrap();
    let byte = |address| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
    assert_eq!((byte(5), byte(1 << 32)), (11, 13));
}

#[test]
fn memfd_holds_given_bytes() {
    let file = memfd(c"test", b"bytes").unwrap();
    let mut bytes = [0; 5];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"bytes");
    assert_eq!(file.metadata().unwrap().len(), 5);
}
