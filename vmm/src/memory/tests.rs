use vm_memory::{Bytes as _, GuestAddress};

use super::{Bytes, Error, allocate, map_file, page_size, read_file_into};
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
fn fresh_memory_is_zero_and_may_be_larger_than_the_host() {
    let memory = allocate(&[(GuestAddress(1 << 32), 1 << 42)]).unwrap();
    assert_eq!(bytes(&memory, (1 << 32) + (1 << 41), 64), [0; 64]);
}

#[test]
fn regions_are_whole_pages_in_order() {
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
fn what_the_host_cannot_reserve_is_named() {
    let error = allocate(&[(GuestAddress(0), 1 << 60)]).unwrap_err();
    assert!(matches!(error, Error::Reserve { size: Bytes(size), .. } if size == 1 << 60));
    assert!(
        error.to_string().contains("cannot reserve 1099511627776 MiB"),
        "{error}"
    );
}

#[test]
fn a_mapped_file_is_seen_and_not_written() {
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
fn only_whole_pages_within_one_region_are_mapped() {
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
fn a_file_that_is_too_short_is_never_mapped() {
    let file = Temporary::with(&pattern(2)[1..]).open();
    let memory = memory();
    let error = map_file(&memory, GuestAddress(0), &file, page_size(), page()).unwrap_err();
    assert!(matches!(error, Error::Short { size, .. } if size == 2 * page_size() - 1));
    let last_page = u64::MAX - page_size() + 1;
    let error = map_file(&memory, GuestAddress(0), &file, last_page, page()).unwrap_err();
    assert!(matches!(error, Error::Short { .. }));
}

#[test]
fn any_bytes_of_a_file_can_be_read_in() {
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
fn reading_stays_within_file_and_region() {
    let file = Temporary::with(&[1; 100]).open();
    let memory = memory();
    let read =
        |address, offset, length| read_file_into(&memory, GuestAddress(address), &file, offset, length);
    assert!(matches!(read(0, 0, 101), Err(Error::Short { size: 100, .. })));
    assert!(matches!(read(0, 200, 1), Err(Error::Short { .. })));
    assert!(matches!(read(0, u64::MAX, 1), Err(Error::Read { .. })));
    assert!(matches!(read(8 * page_size() - 1, 0, 2), Err(Error::Outside(_))));
    let folder = std::fs::File::open("/").unwrap();
    let error = read_file_into(&memory, GuestAddress(0), &folder, 0, 1).unwrap_err();
    assert!(matches!(error, Error::Read { .. }));
}
