use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use snapshot::Persist;

use super::{Bench, ENGINES, FLUSH, IN, NONE, OK, Piece, SECTORS, Scratch, config, pattern};
use crate::limiter::Bucket;
use crate::testing::{ManualClock, survives_a_snapshot};
use crate::virtio::block::device::with_io_uring;
use crate::virtio::block::{Block, IoEngine};
use crate::virtio::device::VirtioDevice;

/// Long enough that it does not come about during a test.
const HOURS: u64 = 100 * 3_600_000;

fn bucket(size: u64, refill_time_ms: u64) -> Option<Bucket> {
    Some(Bucket {
        size,
        refill_time_ms,
        one_time_burst: 0,
    })
}

#[test]
fn a_throttled_request_waits_for_the_timer() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut config = config(scratch.path(), engine);
        config.operations = bucket(2, 2);
        let mut bench = Bench::new(&config);
        let mut statuses = Vec::new();
        for sector in 0..3 {
            let address = bench.place(&[NONE; 512]);
            statuses.push(bench.add(IN, sector, &[Piece::writable(address, 512)]).1);
        }
        bench.block.notify(0);
        assert_eq!(bench.driver.queues[0].collect_used().len(), 2);
        assert_eq!(bench.status(statuses[2]), NONE);
        assert_eq!(bench.block.metrics().throttled, 1);
        let [timer, _] = bench.block.sources()[..] else {
            panic!("a timer and an eventfd");
        };
        assert!(bench.polled(timer.descriptor, 60_000));
        bench.clock.advance(Duration::from_millis(1));
        bench.block.ready(timer.token);
        assert_eq!(bench.driver.queues[0].collect_used().len(), 1);
        assert_eq!(bench.status(statuses[2]), OK);
        assert!(!bench.polled(timer.descriptor, 0));
    }
}

#[test]
fn bytes_are_limited_too_until_the_limit_is_taken_away() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut config = config(scratch.path(), engine);
        config.bandwidth = bucket(4096, HOURS);
        let mut bench = Bench::new(&config);
        assert_eq!(bench.read(0, 4096).0, OK);
        // No bytes of its own.
        assert_eq!(bench.one(FLUSH, 0, &[]).0, OK);
        assert_eq!(bench.write_later(&[8; 512]), 0);
        bench.block.update_limiter(bucket(0, 0), None);
        assert_eq!(bench.run(1).len(), 1);
        assert_eq!(scratch.contents()[..512], [8; 512]);
    }
}

impl Bench {
    /// Adds a write at sector 0 and notifies. Returns how many requests are used.
    fn write_later(&mut self, data: &[u8]) -> usize {
        let address = self.place(data);
        let length = u32::try_from(data.len()).unwrap();
        self.add(super::OUT, 0, &[Piece::readable(address, length)]);
        self.block.notify(0);
        self.driver.queues[0].collect_used().len()
    }
}

#[test]
fn a_throttled_queue_wakes_nobody() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut config = config(scratch.path(), IoEngine::Sync);
    config.operations = bucket(1, HOURS);
    let mut bench = Bench::new(&config);
    assert_eq!(bench.read(0, 512).0, OK);
    assert_eq!(bench.write_later(&[1; 512]), 0);
    assert!(bench.is_idle());
    bench.reset();
    assert!(bench.is_idle());
}

#[test]
fn another_size_is_announced() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut bench = Bench::on(&scratch, engine);
        let capacity = |bench: &Bench| {
            let mut data = [0; 8];
            bench.block.read_config(0, &mut data);
            u64::from_le_bytes(data)
        };
        scratch.set_len(2 * SECTORS * 512);
        assert_eq!(bench.read(SECTORS, 512).0, super::IOERR);
        bench.block.update(scratch.path()).unwrap();
        assert_eq!((capacity(&bench), bench.line.take() > 0), (2 * SECTORS, true));
        assert_eq!(bench.signal.status() & 2, 2);
        assert_eq!(bench.read(SECTORS, 512), (OK, vec![0; 512]));

        let other = Scratch::empty();
        assert!(bench.block.update(other.path()).is_err());
        assert_eq!(bench.read(0, 512), (OK, pattern(0, 512)));
        other.set_len(1024);
        bench.block.update(other.path()).unwrap();
        assert_eq!(capacity(&bench), 2);
        assert_eq!(bench.read(0, 512), (OK, vec![0; 512]));
        // The first one is free again, the second one is taken.
        assert!(super::Disk::open(scratch.path(), false).is_ok());
        assert!(super::Disk::open(other.path(), false).is_err());
        // Of the first file nothing was changed by the way.
        assert_eq!(scratch.contents()[..512], pattern(0, 512));
    }
}

#[test]
fn nothing_is_touched_after_a_reset() {
    for engine in ENGINES {
        let scratch = Scratch::new(1 << 20);
        let mut bench = Bench::on(&scratch, engine);
        for _ in 0..20 {
            for sector in 0..60 {
                let address = bench.place(&[NONE; 512]);
                bench.add(IN, sector, &[Piece::writable(address, 512)]);
            }
            bench.block.notify(0);
            bench.reset();
            let length = super::MEMORY - usize::try_from(bench.driver.buffers).unwrap();
            bench.driver.write(bench.driver.buffers, &vec![0x55; length]);
            assert_eq!(bench.block.in_flight(), 0);
            assert!(bench.is_idle());
            assert!(
                bench
                    .driver
                    .read(bench.driver.buffers, length)
                    .iter()
                    .all(|byte| *byte == 0x55)
            );
            bench.activate(bench.block.features());
        }
        assert_eq!(bench.read(1, 512), (OK, pattern(512, 512)));
    }
}

/// A file of which nothing is in the page cache, so that io_uring cannot do reads while they are put in.
fn cold(length: u64) -> Scratch {
    let scratch = Scratch::new(length);
    let file = std::fs::File::open(scratch.path()).unwrap();
    file.sync_all().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    // SAFETY: the descriptor is open; no memory is involved.
    let result = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(result, 0);
    scratch
}

#[test]
fn what_is_not_in_the_page_cache_comes_by_the_eventfd_or_by_draining() {
    let length = 4 << 20;
    for drains in [false, true] {
        let scratch = cold(length);
        let mut bench = Bench::on(&scratch, IoEngine::Async);
        let mut placed = Vec::new();
        // Far apart and backwards, where nothing is read ahead.
        for step in (0..60).rev() {
            let sector = step * 130;
            let address = bench.place(&[NONE; 4096]);
            let data = [
                Piece::writable(address, 1001),
                Piece::writable(address + 1001, 3095),
            ];
            placed.push((bench.add(IN, sector, &data).1, address, sector));
        }
        bench.block.notify(0);
        let early = bench.driver.queues[0].collect_used().len();
        if drains {
            bench.block.drain();
            assert_eq!(bench.block.in_flight(), 0);
            assert_eq!(bench.driver.queues[0].collect_used().len(), 60 - early);
        } else {
            bench.run(60 - early);
        }
        for (status, address, sector) in placed {
            assert_eq!(bench.status(status), OK);
            assert!(bench.driver.read(address, 4096) == pattern(sector * 512, 4096));
        }
    }
}

#[test]
fn a_device_dropped_with_requests_in_flight_waits_for_them() {
    let scratch = cold(4 << 20);
    let mut bench = Bench::on(&scratch, IoEngine::Async);
    for sector in (0..60).rev() {
        let address = bench.place(&[NONE; 4096]);
        bench.add(IN, sector * 130, &[Piece::writable(address, 4096)]);
    }
    bench.block.notify(0);
    let Bench {
        block, driver, next, ..
    } = bench;
    drop(block);
    let length = usize::try_from(next - driver.buffers).unwrap();
    driver.write(driver.buffers, &vec![0x55; length]);
    // Whoever opens the disk now has it alone, and what is in memory stays.
    assert!(super::Disk::open(scratch.path(), false).is_ok());
    assert!(
        driver
            .read(driver.buffers, length)
            .iter()
            .all(|byte| *byte == 0x55)
    );
}

#[test]
fn without_io_uring_a_drive_is_served_all_the_same() {
    assert_eq!(with_io_uring("a", Ok(())), IoEngine::Async);
    let refused = std::io::Error::from_raw_os_error(libc::EPERM);
    assert_eq!(with_io_uring("a", Err(refused)), IoEngine::Sync);
}

#[test]
fn requests_in_flight_are_not_saved() {
    let scratch = cold(4 << 20);
    let mut bench = Bench::on(&scratch, IoEngine::Async);
    for sector in (0..60).rev() {
        let address = bench.place(&[NONE; 4096]);
        bench.add(IN, sector * 130, &[Piece::writable(address, 4096)]);
    }
    bench.block.notify(0);
    // Some may be done by now, and then there is nothing to refuse.
    if bench.block.in_flight() > 0 {
        let error = bench.block.save().unwrap_err();
        assert!(error.to_string().contains("in flight"));
    }
    bench.block.drain();
    assert!(bench.block.save().is_ok());
}

#[test]
fn the_limiter_survives_a_snapshot() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut config = config(scratch.path(), IoEngine::Sync);
    config.read_only = true;
    config.operations = bucket(3, HOURS);
    let mut bench = Bench::new(&config);
    assert_eq!(bench.read(0, 512).0, OK);
    let fresh = || Block::open(&config, Box::new(ManualClock::default())).unwrap();
    // What the clock showed is no part of the state, so that a restored device is what is compared.
    let mut restored = fresh();
    let mut writer = snapshot::Writer::new();
    snapshot::Component::put(&bench.block, "b", &mut writer).unwrap();
    let bytes = writer.into_bytes();
    snapshot::Component::take(&mut restored, "b", &mut snapshot::Reader::parse(&bytes).unwrap()).unwrap();
    survives_a_snapshot(&restored, fresh);

    let mut bench = Bench::of(restored, ManualClock::default());
    assert_eq!(bench.read(0, 512).0, OK);
    assert_eq!(bench.read(1, 512).0, OK);
    let address = bench.place(&[NONE; 512]);
    bench.add(IN, 2, &[Piece::writable(address, 512)]);
    bench.block.notify(0);
    assert!(bench.driver.queues[0].collect_used().is_empty());
    assert_eq!(bench.block.queue_states()[0].next_avail, 2);
}
