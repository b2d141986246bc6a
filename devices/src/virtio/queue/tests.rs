use std::time::Duration;

use snapshot::GuestMemory;
use vm_memory::GuestAddress;

use super::Virtqueue;
use super::chain::{Chain, ChainLimits, Error};
use crate::virtio::testing::{Buffer, FakeDriver, FakeQueue, INDIRECT, NEXT, RawDescriptor, Stress, WRITE};

const SIZE: u16 = 8;

fn driver() -> FakeDriver {
    FakeDriver::new(0x1_0000, &[SIZE])
}

fn next<'m>(queue: &mut Virtqueue, memory: &'m GuestMemory, limits: ChainLimits) -> Result<Chain<'m>, Error> {
    let descriptors = queue.pop_chain(memory).unwrap().unwrap();
    let mut chain = Chain::default();
    chain.refill(descriptors, memory, limits)?;
    Ok(chain)
}

fn collect(driver: &FakeDriver, limits: ChainLimits) -> Result<Chain<'_>, Error> {
    let mut queue = Virtqueue::new(driver.queues[0].device_side());
    next(&mut queue, &driver.memory, limits)
}

/// Makes `table`, at descriptor 0, available and collects it. Returns readable and writable length.
fn collect_table(table: &[RawDescriptor]) -> Result<(u64, u64), Error> {
    let mut driver = driver();
    for (index, descriptor) in (0..).zip(table) {
        driver.queues[0].set_descriptor(index, *descriptor);
    }
    driver.queues[0].make_available(0);
    collect(&driver, ChainLimits::WIDEST).map(|chain| (chain.readable.len(), chain.writable.len()))
}

fn descriptor(length: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor {
        address: 0x8000,
        length,
        flags,
        next,
    }
}

#[test]
fn chain_keeps_buffer_order() {
    let mut driver = driver();
    driver.write(0x8000, b"abcdef");
    let buffers = [
        Buffer::readable(0x8003, 3),
        Buffer::readable(0x8001, 0),
        Buffer::readable(0x8000, 3),
        Buffer::writable(0x9000, 2),
        Buffer::writable(0x9100, 2),
    ];
    let direct = driver.queues[0].add(&buffers);
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
fn indirect_table_extends_chain() {
    let mut driver = driver();
    let buffers = [
        Buffer::readable(0x8000, 5),
        Buffer::readable(0x9000, 6),
        Buffer::writable(0xa000, 7),
    ];
    // An odd address: an indirect table has no required alignment.
    driver.queues[0].add_indirect(0x7001, &buffers);
    let chain = collect(&driver, ChainLimits::WIDEST).unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (11, 7));
}

#[test]
fn iovec_covers_exact_range() {
    let mut driver = driver();
    let buffers = [0x8000, 0x9000, 0xa000].map(|address| Buffer::readable(address, 0x10));
    driver.queues[0].add(&buffers);
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
fn buffer_splits_between_regions() {
    let memory = GuestMemory::from_ranges(&[
        (GuestAddress(0), 0x8000),
        (GuestAddress(0x8000), 0x8000),
        (GuestAddress(0x1_1000), 0x1000),
    ])
    .unwrap();
    let mut queue = FakeQueue::new(memory.clone(), 0x1000, SIZE);
    queue.add(&[Buffer::writable(0x7ffe, 4)]);
    queue.add(&[Buffer::writable(0xfffe, 4)]);
    let mut device = Virtqueue::new(queue.device_side());
    let chain = next(&mut device, &memory, ChainLimits::WIDEST).unwrap();
    assert_eq!((chain.writable.count(), chain.writable.len()), (2, 4));
    let hole = next(&mut device, &memory, ChainLimits::WIDEST);
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
fn limit_counts_parts_of_split_buffers() {
    let regions = [(GuestAddress(0), 0x8000), (GuestAddress(0x8000), 0x8000)];
    let memory = GuestMemory::from_ranges(&regions).unwrap();
    let mut queue = FakeQueue::new(memory.clone(), 0x1000, SIZE);
    queue.add(&[Buffer::readable(0x7ffe, 4), Buffer::writable(0x9000, 4)]);
    let collect = |iovecs| {
        let mut device = Virtqueue::new(queue.device_side());
        let limits = ChainLimits {
            iovecs,
            ..ChainLimits::WIDEST
        };
        next(&mut device, &memory, limits).map(|chain| chain.readable.count() + chain.writable.count())
    };
    assert_eq!(collect(3).unwrap(), 3);
    assert!(matches!(collect(2), Err(Error::TooManyBuffers { limit: 2, .. })));
}

#[test]
fn access_beyond_end_fails() {
    let mut driver = driver();
    driver.queues[0].add(&[Buffer::readable(0x8000, 4), Buffer::writable(0x9000, 4)]);
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
fn looping_or_escaping_chain_is_malformed() {
    let expect_malformed = |table: &[RawDescriptor], expected| match collect_table(table) {
        Err(Error::Malformed { head: 0, descriptors }) => assert_eq!(descriptors, expected),
        other => panic!("{other:?}"),
    };
    expect_malformed(&[descriptor(1, NEXT, 0)], SIZE.into());
    expect_malformed(&[descriptor(1, NEXT, 1), descriptor(1, NEXT, 0)], SIZE.into());
    expect_malformed(&[descriptor(0, NEXT, 0)], SIZE.into());
    expect_malformed(&[descriptor(1, NEXT, SIZE)], 1);
    expect_malformed(&[descriptor(1, NEXT, u16::MAX)], 1);
    let all: Vec<_> = (1..=SIZE).map(|next| descriptor(1, NEXT, next % SIZE)).collect();
    expect_malformed(&all, SIZE.into());
}

#[test]
fn head_outside_table_is_malformed() {
    for head in [SIZE, u16::MAX] {
        let mut driver = driver();
        driver.queues[0].make_available(head);
        let error = collect(&driver, ChainLimits::WIDEST).unwrap_err();
        assert!(matches!(error, Error::Malformed { descriptors: 0, head: found } if found == head));
    }
}

#[test]
fn invalid_indirect_table_is_malformed() {
    let table = |address, length| RawDescriptor {
        address,
        length,
        flags: INDIRECT,
        next: 0,
    };
    let collect_indirect = |inner| {
        let mut driver = driver();
        driver.queues[0].write_descriptor(0x7000, inner);
        driver.queues[0].set_descriptor(0, descriptor(1, NEXT, 1));
        driver.queues[0].set_descriptor(1, table(0x7000, 16));
        driver.queues[0].make_available(0);
        collect(&driver, ChainLimits::WIDEST).map(|chain| chain.readable.len())
    };
    assert_eq!(collect_indirect(descriptor(2, 0, 0)).unwrap(), 3);
    for invalid in [
        table(0x7000, 16),
        descriptor(2, NEXT, 1),
        descriptor(2, NEXT, 0),
        descriptor(2, NEXT | INDIRECT, 0),
    ] {
        assert!(
            matches!(collect_indirect(invalid), Err(Error::Malformed { .. })),
            "{invalid:?}"
        );
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
        let collected = collect_table(&[table(address, length)]);
        assert!(
            matches!(collected, Err(Error::Malformed { .. })),
            "{address:#x} {length:#x}"
        );
    }
}

#[test]
fn buffer_outside_memory_fails() {
    for (address, length) in [
        (0x1_0000, 1),
        (0xffff, 2),
        (0x8000, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - 3, 8),
    ] {
        for flags in [0, WRITE] {
            let collected = collect_table(&[RawDescriptor {
                address,
                length,
                flags,
                next: 0,
            }]);
            assert!(
                matches!(collected, Err(Error::Outside { .. })),
                "{address:#x} {length:#x}"
            );
        }
    }
    let empty_buffer = RawDescriptor {
        address: u64::MAX,
        ..RawDescriptor::default()
    };
    assert_eq!(
        collect_table(&[empty_buffer]).unwrap(),
        (0, 0),
        "an empty buffer has no address"
    );
}

#[test]
fn readable_after_writable_fails() {
    for length in [0, 1] {
        let collected = collect_table(&[descriptor(length, WRITE | NEXT, 1), descriptor(1, 0, 0)]);
        assert!(matches!(collected, Err(Error::Order { head: 0 })));
    }
}

#[test]
fn chain_above_limit_fails() {
    let limited = |count: usize, iovecs, bytes| {
        let mut driver = driver();
        driver.queues[0].add(&vec![Buffer::readable(0x8000, 10); count]);
        collect(&driver, ChainLimits { iovecs, bytes }).map(|chain| chain.readable.len())
    };
    assert_eq!(limited(3, 3, 30).unwrap(), 30);
    assert!(matches!(
        limited(3, 2, 30),
        Err(Error::TooManyBuffers { limit: 2, .. })
    ));
    assert!(matches!(limited(3, 3, 29), Err(Error::TooLong { limit: 29, .. })));
    let mut driver = driver();
    driver.queues[0].add_indirect(0x4000, &vec![Buffer::readable(0x8000, 0); 1025]);
    let widest = collect(
        &driver,
        ChainLimits {
            iovecs: usize::MAX,
            bytes: u64::MAX,
        },
    );
    assert!(matches!(widest, Err(Error::TooManyBuffers { limit: 1024, .. })));
}

#[test]
fn chain_has_at_most_four_gib() {
    let collect_all = |lengths: &[u32]| {
        let mut driver = FakeDriver::new(1 << 30, &[SIZE]);
        let buffers: Vec<_> = lengths
            .iter()
            .map(|length| Buffer::readable(0, *length))
            .collect();
        driver.queues[0].add(&buffers);
        collect(&driver, ChainLimits::WIDEST).map(|chain| chain.readable.len())
    };
    let quarter = 1 << 30;
    assert_eq!(collect_all(&[quarter; 4]).unwrap(), 1 << 32);
    assert!(matches!(
        collect_all(&[quarter, quarter, quarter, quarter, 1]),
        Err(Error::TooLong {
            limit: 0x1_0000_0000,
            ..
        })
    ));
}

#[test]
fn refill_replaces_contents() {
    let mut driver = driver();
    driver.queues[0].add(&[Buffer::readable(0x8000, 4), Buffer::writable(0x9000, 4)]);
    let second = driver.queues[0].add(&[Buffer::readable(0x8000, 1)]);
    let memory = &driver.memory;
    let mut queue = Virtqueue::new(driver.queues[0].device_side());
    let mut chain = next(&mut queue, memory, ChainLimits::WIDEST).unwrap();
    let descriptors = queue.pop_chain(memory).unwrap().unwrap();
    chain.refill(descriptors, memory, ChainLimits::WIDEST).unwrap();
    assert_eq!(
        (chain.head, chain.readable.len(), chain.writable.len()),
        (second, 1, 0)
    );
}

/// Runs driver and device on two threads.
fn stress(event_idx: bool) {
    let duration = Duration::from_secs(2);
    let counts = scratch::limited(move || Stress { event_idx, duration }.run());
    println!("{counts:?}");
    // Both sides wait now and then, on one processor, too.
    assert!(counts.available > 0 && counts.used > 0, "{counts:?}");
}

#[test]
fn driver_on_another_thread_loses_nothing() {
    stress(false);
}

#[test]
fn driver_on_another_thread_loses_nothing_with_event_idx() {
    stress(true);
}
