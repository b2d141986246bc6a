use std::os::fd::AsRawFd;

use libc::iovec;

use super::{Buffer, Fixture, IN, IOERR, NONE, OK, OUT, SECTORS, Scratch, probe};
use crate::virtio::block::IoEngine;
use crate::virtio::block::uring::skip;

/// Returns iovecs of `lengths` at 1000 times their index. Nothing accesses these addresses.
fn iovecs(lengths: &[usize]) -> Vec<iovec> {
    let iovec = |(index, length): (usize, &usize)| iovec {
        iov_base: std::ptr::without_provenance_mut(index * 1000),
        iov_len: *length,
    };
    lengths.iter().enumerate().map(iovec).collect()
}

#[test]
fn skip_removes_leading_bytes() {
    let cases: [(u64, &[(usize, usize)]); 7] = [
        (0, &[(0, 10), (1000, 20), (2000, 30)]),
        (3, &[(3, 7), (1000, 20), (2000, 30)]),
        (10, &[(1000, 20), (2000, 30)]),
        (11, &[(1001, 19), (2000, 30)]),
        (30, &[(2000, 30)]),
        (59, &[(2029, 1)]),
        (60, &[]),
    ];
    for (count, expected) in cases {
        let mut iovecs = iovecs(&[10, 20, 30]);
        skip(&mut iovecs, count);
        let left: Vec<_> = iovecs
            .iter()
            .map(|iovec| (iovec.iov_base.addr(), iovec.iov_len))
            .collect();
        assert_eq!(left, expected, "after {count} bytes");
    }
}

/// Breaks the io_uring for good: replaces its descriptor.
fn break_uring(fixture: &Fixture) {
    let null = std::fs::File::open("/dev/null").unwrap();
    let ring = fixture.block.uring_descriptor().unwrap();
    // SAFETY: the call receives no pointer.
    let result = unsafe { libc::dup2(null.as_raw_fd(), ring) };
    assert_eq!(result, ring);
}

/// Creates a write-through device: io_uring executes its writes.
fn write_through(scratch: &Scratch) -> Fixture {
    let mut fixture = Fixture::on(scratch, IoEngine::Async);
    fixture.reset();
    fixture.activate(0);
    fixture
}

#[test]
fn permanent_failure_selects_sync() {
    if probe().is_err() {
        return;
    }
    let scratch = Scratch::new(SECTORS * 512);
    let mut fixture = write_through(&scratch);
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    assert_eq!(fixture.block.engine(), IoEngine::Async);
    break_uring(&fixture);
    let address = fixture.place(&[NONE; 512]);
    let statuses = [
        fixture.add(OUT, 0, &[Buffer::readable(address, 512)]).1,
        fixture.add(IN, 0, &[Buffer::writable(address, 512)]).1,
        fixture.add(OUT, 0, &[Buffer::readable(address, 512)]).1,
    ];
    assert_eq!(fixture.run(3).len(), 3);
    assert_eq!(statuses.map(|status| fixture.status(status)), [IOERR, OK, IOERR]);
    assert_eq!(fixture.block.engine(), IoEngine::Sync);
    assert_eq!(
        (fixture.block.metrics().errors, fixture.block.in_flight()),
        (2, 0)
    );
    assert!(fixture.is_idle(), "the device retries forever");
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    fixture.reset();
    fixture.activate(0);
    assert_eq!(fixture.write(0, &[1; 512]), OK);
}

#[test]
fn uring_outlives_reset() {
    if probe().is_err() {
        return;
    }
    let scratch = Scratch::new(SECTORS * 512);
    let mut fixture = write_through(&scratch);
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    let ring = fixture.block.uring_descriptor();
    assert!(ring.is_some());
    fixture.reset();
    assert_eq!(fixture.block.uring_descriptor(), ring);
    fixture.activate(0);
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    assert_eq!(fixture.block.uring_descriptor(), ring);
}
