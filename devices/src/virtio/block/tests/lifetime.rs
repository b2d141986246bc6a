use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::{Buffer, ENGINES, Fixture, IN, NONE, OK, Scratch, options, pattern};
use crate::virtio::block::IoEngine;
use crate::virtio::device::VirtioDevice;

#[test]
fn reset_ends_memory_accesses() {
    for engine in ENGINES {
        let scratch = Scratch::new(1 << 20);
        let mut fixture = Fixture::on(&scratch, engine);
        for _ in 0..20 {
            for sector in 0..60 {
                let address = fixture.place(&[NONE; 512]);
                fixture.add(IN, sector, &[Buffer::writable(address, 512)]);
            }
            fixture.block.notify(0);
            fixture.reset();
            let length = super::MEMORY - usize::try_from(fixture.driver.buffers).unwrap();
            fixture.driver.write(fixture.driver.buffers, &vec![0x55; length]);
            assert_eq!(fixture.block.in_flight(), 0);
            assert!(fixture.is_idle());
            assert!(
                fixture
                    .driver
                    .read(fixture.driver.buffers, length)
                    .iter()
                    .all(|byte| *byte == 0x55)
            );
            fixture.activate(fixture.block.features());
        }
        assert_eq!(fixture.read(1, 512), (OK, pattern(512, 512)));
    }
}

/// Creates a file outside the page cache, so that io_uring cannot complete a read at its submission.
pub(super) fn uncached(length: u64) -> Scratch {
    let scratch = Scratch::new(length);
    let file = std::fs::File::open(scratch.path()).unwrap();
    file.sync_all().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    // SAFETY: the descriptor is open; the call accesses no memory.
    let result = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(result, 0);
    scratch
}

#[test]
fn uncached_reads_complete_by_event_or_drain() {
    let length = 4 << 20;
    for drains in [false, true] {
        let scratch = uncached(length);
        let mut fixture = Fixture::on(&scratch, IoEngine::Async);
        let mut placed = Vec::new();
        // Distant sectors in descending order prevent read-ahead.
        for step in (0..60).rev() {
            let sector = step * 130;
            let address = fixture.place(&[NONE; 4096]);
            let data = [
                Buffer::writable(address, 1001),
                Buffer::writable(address + 1001, 3095),
            ];
            placed.push((fixture.add(IN, sector, &data).1, address, sector));
        }
        fixture.block.notify(0);
        let early = fixture.driver.queues[0].collect_used().len();
        if drains {
            fixture.block.drain();
            assert_eq!(fixture.block.in_flight(), 0);
            assert_eq!(fixture.driver.queues[0].collect_used().len(), 60 - early);
        } else {
            fixture.run(60 - early);
        }
        for (status, address, sector) in placed {
            assert_eq!(fixture.status(status), OK);
            assert!(fixture.driver.read(address, 4096) == pattern(sector * 512, 4096));
        }
    }
}

/// Creates a device with sixty notified reads of `scratch`.
pub(super) fn start_reads(scratch: &Scratch) -> Fixture {
    let mut fixture = Fixture::on(scratch, IoEngine::Async);
    for sector in (0..60).rev() {
        let address = fixture.place(&[NONE; 4096]);
        fixture.add(IN, sector * 130, &[Buffer::writable(address, 4096)]);
    }
    fixture.block.notify(0);
    fixture
}

#[test]
fn drop_waits_for_requests_in_flight() {
    let scratch = uncached(4 << 20);
    let Fixture {
        block, driver, next, ..
    } = start_reads(&scratch);
    drop(block);
    let length = usize::try_from(next - driver.buffers).unwrap();
    driver.write(driver.buffers, &vec![0x55; length]);
    // The disk is unlocked, and guest memory does not change any more.
    super::await_unlocked(|| super::Disk::open(scratch.path(), options(false)));
    assert!(
        driver
            .read(driver.buffers, length)
            .iter()
            .all(|byte| *byte == 0x55)
    );
}
