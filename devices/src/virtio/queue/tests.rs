use snapshot::GuestMemory;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT};
use vm_memory::GuestAddress;

use super::chain::{Chain, ChainLimits, Error};
use crate::virtio::testing::{FakeDriver, FakeQueue, INDIRECT, NEXT, Piece, RawDescriptor, WRITE};

const SIZE: u16 = 8;

fn driver() -> FakeDriver {
    FakeDriver::new(0x1_0000, &[SIZE])
}

fn next<'m>(queue: &mut Queue, memory: &'m GuestMemory) -> DescriptorChain<&'m GuestMemory> {
    queue.iter(memory).unwrap().next().unwrap()
}

fn collect(driver: &FakeDriver, limits: ChainLimits) -> Result<Chain<'_>, Error> {
    let mut queue = driver.queues[0].device_side();
    Chain::collect(next(&mut queue, &driver.memory), &driver.memory, limits)
}

/// Publishes `table`, from descriptor 0 on, and collects it.
fn walk(table: &[RawDescriptor]) -> Result<(u64, u64), Error> {
    let mut driver = driver();
    for (index, descriptor) in (0..).zip(table) {
        driver.queues[0].set_descriptor(index, *descriptor);
    }
    driver.queues[0].make_available(0);
    collect(&driver, ChainLimits::WIDEST).map(|chain| (chain.readable.len(), chain.writable.len()))
}

fn piece(length: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor {
        address: 0x8000,
        length,
        flags,
        next,
    }
}

#[test]
fn a_chain_is_its_pieces_in_order() {
    let mut driver = driver();
    driver.write(0x8000, b"abcdef");
    let pieces = [
        Piece::readable(0x8003, 3),
        Piece::readable(0x8001, 0),
        Piece::readable(0x8000, 3),
        Piece::writable(0x9000, 2),
        Piece::writable(0x9100, 2),
    ];
    let direct = driver.queues[0].add(&pieces);
    let chain = collect(&driver, ChainLimits::WIDEST).unwrap();
    assert_eq!(chain.head, direct);
    assert_eq!((chain.readable.len(), chain.readable.count()), (6, 2));
    assert_eq!((chain.writable.len(), chain.writable.count()), (4, 2));
    let mut data = [0; 4];
    chain.readable.read_exact(1, &mut data).unwrap();
    assert_eq!(&data, b"efab");
    chain.writable.write_all(1, b"xy").unwrap();
    assert_eq!(driver.read(0x9000, 3), b"\0x\0");
    assert_eq!(driver.read(0x9100, 2), b"y\0");
}

#[test]
fn an_indirect_table_is_part_of_the_chain() {
    let mut driver = driver();
    let pieces = [
        Piece::readable(0x8000, 5),
        Piece::readable(0x9000, 6),
        Piece::writable(0xa000, 7),
    ];
    // The table needs no alignment.
    driver.queues[0].add_indirect(0x7001, &pieces);
    let chain = collect(&driver, ChainLimits::WIDEST).unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (11, 7));
}

#[test]
fn an_iovec_covers_a_range_exactly() {
    let mut driver = driver();
    let pieces = [0x8000, 0x9000, 0xa000].map(|address| Piece::readable(address, 0x10));
    driver.queues[0].add(&pieces);
    let chain = collect(&driver, ChainLimits::WIDEST).unwrap();
    let lengths = |range| -> Vec<usize> { chain.readable.iovec(range).map(|io| io.iov_len).collect() };
    assert_eq!(lengths(0..0x30), [0x10, 0x10, 0x10]);
    assert_eq!(lengths(0..u64::MAX), [0x10, 0x10, 0x10]);
    assert_eq!(lengths(0x10..0x20), [0x10]);
    assert_eq!(lengths(0xf..0x21), [1, 0x10, 1]);
    assert_eq!(lengths(0x12..0x14), [2]);
    assert!(lengths(0x30..0x40).is_empty());
    assert!(lengths(5..5).is_empty());
    let first = chain.readable.iovec(0..1).next().unwrap().iov_base;
    let shifted = chain.readable.iovec(3..4).next().unwrap().iov_base;
    assert_eq!(shifted.addr() - first.addr(), 3);
}

#[test]
fn a_piece_is_split_where_regions_meet() {
    let memory = GuestMemory::from_ranges(&[
        (GuestAddress(0), 0x8000),
        (GuestAddress(0x8000), 0x8000),
        (GuestAddress(0x1_1000), 0x1000),
    ])
    .unwrap();
    let mut queue = FakeQueue::new(memory.clone(), 0x1000, SIZE);
    queue.add(&[Piece::writable(0x7ffe, 4)]);
    queue.add(&[Piece::writable(0xfffe, 4)]);
    let mut device = queue.device_side();
    let chain = Chain::collect(next(&mut device, &memory), &memory, ChainLimits::WIDEST).unwrap();
    assert_eq!((chain.writable.count(), chain.writable.len()), (2, 4));
    let hole = Chain::collect(next(&mut device, &memory), &memory, ChainLimits::WIDEST);
    assert!(matches!(
        hole,
        Err(Error::Outside {
            address: 0xfffe,
            length: 4,
            ..
        })
    ));
}

#[test]
fn what_is_not_there_is_neither_read_nor_written() {
    let mut driver = driver();
    driver.queues[0].add(&[Piece::readable(0x8000, 4), Piece::writable(0x9000, 4)]);
    let chain = collect(&driver, ChainLimits::WIDEST).unwrap();
    for offset in [1, 4, 5, u64::MAX] {
        let mut data = [7; 4];
        assert!(matches!(
            chain.readable.read_exact(offset, &mut data),
            Err(Error::Short { .. })
        ));
        assert_eq!(data, [7; 4]);
        assert!(matches!(
            chain.writable.write_all(offset, &data),
            Err(Error::Short { .. })
        ));
    }
    assert_eq!(driver.read(0x9000, 8), [0; 8]);
    chain.readable.read_exact(4, &mut []).unwrap();
}

#[test]
fn chains_that_loop_or_leave_their_table_are_broken() {
    let broken = |table: &[RawDescriptor], there| match walk(table) {
        Err(Error::Broken { head: 0, descriptors }) => assert_eq!(descriptors, there),
        other => panic!("{other:?}"),
    };
    broken(&[piece(1, NEXT, 0)], SIZE.into());
    broken(&[piece(1, NEXT, 1), piece(1, NEXT, 0)], SIZE.into());
    broken(&[piece(0, NEXT, 0)], SIZE.into());
    broken(&[piece(1, NEXT, SIZE)], 1);
    broken(&[piece(1, NEXT, u16::MAX)], 1);
    let all: Vec<_> = (1..=SIZE).map(|next| piece(1, NEXT, next % SIZE)).collect();
    broken(&all, SIZE.into());
}

#[test]
fn a_head_outside_the_table_is_broken() {
    for head in [SIZE, u16::MAX] {
        let mut driver = driver();
        driver.queues[0].make_available(head);
        let error = collect(&driver, ChainLimits::WIDEST).unwrap_err();
        assert!(matches!(error, Error::Broken { descriptors: 0, head: found } if found == head));
    }
}

#[test]
fn indirect_tables_are_checked() {
    let table = |address, length| RawDescriptor {
        address,
        length,
        flags: INDIRECT,
        next: 0,
    };
    let inside = |descriptor| {
        let mut driver = driver();
        driver.queues[0].write_descriptor(0x7000, descriptor);
        driver.queues[0].set_descriptor(0, piece(1, NEXT, 1));
        driver.queues[0].set_descriptor(1, table(0x7000, 16));
        driver.queues[0].make_available(0);
        collect(&driver, ChainLimits::WIDEST).map(|chain| chain.readable.len())
    };
    assert_eq!(inside(piece(2, 0, 0)).unwrap(), 3);
    for wrong in [
        table(0x7000, 16),
        piece(2, NEXT, 1),
        piece(2, NEXT, 0),
        piece(2, NEXT | INDIRECT, 0),
    ] {
        assert!(matches!(inside(wrong), Err(Error::Broken { .. })), "{wrong:?}");
    }
    for (address, length) in [
        (0x7000, 0),
        (0x7000, 15),
        (0x7000, 17),
        (0x7000, u32::MAX),
        (0x7000, 16 * 0x1_0000),
        (0x10_0000, 16),
        (0xfff8, 16),
        (u64::MAX, 16),
        (u64::MAX - 15, 16),
    ] {
        let walked = walk(&[table(address, length)]);
        assert!(
            matches!(walked, Err(Error::Broken { .. })),
            "{address:#x} {length:#x}"
        );
    }
}

#[test]
fn pieces_outside_memory_are_refused() {
    for (address, length) in [
        (0x1_0000, 1),
        (0xffff, 2),
        (0x8000, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - 3, 8),
    ] {
        for flags in [0, WRITE] {
            let walked = walk(&[RawDescriptor {
                address,
                length,
                flags,
                next: 0,
            }]);
            assert!(
                matches!(walked, Err(Error::Outside { .. })),
                "{address:#x} {length:#x}"
            );
        }
    }
    let nothing = RawDescriptor {
        address: u64::MAX,
        ..RawDescriptor::default()
    };
    assert_eq!(
        walk(&[nothing]).unwrap(),
        (0, 0),
        "a piece of no bytes is nowhere"
    );
}

#[test]
fn readable_pieces_come_first() {
    for length in [0, 1] {
        let walked = walk(&[piece(length, WRITE | NEXT, 1), piece(1, 0, 0)]);
        assert!(matches!(walked, Err(Error::Order { head: 0 })));
    }
}

#[test]
fn limits_are_kept() {
    let limited = |count: usize, pieces, bytes| {
        let mut driver = driver();
        driver.queues[0].add(&vec![Piece::readable(0x8000, 10); count]);
        collect(&driver, ChainLimits { pieces, bytes }).map(|chain| chain.readable.len())
    };
    assert_eq!(limited(3, 3, 30).unwrap(), 30);
    assert!(matches!(
        limited(3, 2, 30),
        Err(Error::TooManyPieces { limit: 2, .. })
    ));
    assert!(matches!(limited(3, 3, 29), Err(Error::TooLong { limit: 29, .. })));
    let mut driver = driver();
    driver.queues[0].add_indirect(0x4000, &vec![Piece::readable(0x8000, 0); 1025]);
    let widest = collect(
        &driver,
        ChainLimits {
            pieces: usize::MAX,
            bytes: u64::MAX,
        },
    );
    assert!(matches!(widest, Err(Error::TooManyPieces { limit: 1024, .. })));
}

#[test]
fn a_chain_takes_the_place_of_another() {
    let mut driver = driver();
    driver.queues[0].add(&[Piece::readable(0x8000, 4), Piece::writable(0x9000, 4)]);
    let second = driver.queues[0].add(&[Piece::readable(0x8000, 1)]);
    let mut queue = driver.queues[0].device_side();
    let mut chain = Chain::collect(
        next(&mut queue, &driver.memory),
        &driver.memory,
        ChainLimits::WIDEST,
    )
    .unwrap();
    chain
        .replace(
            next(&mut queue, &driver.memory),
            &driver.memory,
            ChainLimits::WIDEST,
        )
        .unwrap();
    assert_eq!(
        (chain.head, chain.readable.len(), chain.writable.len()),
        (second, 1, 0)
    );
}
