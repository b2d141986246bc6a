use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use super::{
    Bench, Buffer, DISCARD, ENGINES, FLUSH, GET_ID, IN, IOERR, NONE, OK, OUT, SECTORS, Scratch, UNSUPP,
    WRITE_ZEROES, config, pattern,
};
use crate::virtio::device::VirtioDevice;
use crate::virtio::testing::{NEXT, RawDescriptor, WRITE};

#[test]
fn endless_queue_releases_lock() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut bench = Bench::on(&scratch, engine);
        bench.reset();
        let header = bench.header(IN, SECTORS);
        let data = bench.place(&[0; 513]);
        let queue = &bench.driver.queues[0];
        let descriptor = |address, length, flags, next| RawDescriptor {
            address,
            length,
            flags,
            next,
        };
        queue.set_descriptor(0, descriptor(header, 16, NEXT, 1));
        queue.set_descriptor(1, descriptor(data, 512, NEXT | WRITE, 2));
        queue.set_descriptor(2, descriptor(data + 512, 1, WRITE, 0));
        // Both rings share memory, and the used index is one ahead: each used chain makes the next one available. The
        // request fails, so its used length, the next head, is 0.
        let ring = GuestAddress(queue.available);
        let mut activation = bench
            .driver
            .activation(bench.block.features() & !super::EVENT_IDX, bench.line.clone());
        activation.queues[0].try_set_used_ring_address(ring).unwrap();
        activation.queues[0].set_next_used(1);
        bench.driver.queues[0].set_available_index(1);
        bench.block.activate(activation);
        for batch in 1..=3 {
            let before = bench.block.metrics().errors;
            bench.block.notify(0);
            assert!((1..=256).contains(&(bench.block.metrics().errors - before)));
            assert!(
                !bench.is_idle(),
                "batch {batch} does not continue on the event loop"
            );
        }
        assert_eq!(bench.block.metrics().malformed, 0);
    }
}

#[test]
fn sectors_beyond_end_fail() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut bench = Bench::on(&scratch, engine);
        let before = scratch.contents();
        for sector in [
            SECTORS,
            SECTORS - 1,
            SECTORS + 1,
            u64::MAX,
            u64::MAX / 512,
            u64::MAX / 512 + 1,
            1 << 55,
        ] {
            assert_eq!(bench.read(sector, 1024), (IOERR, vec![NONE; 1024]));
            assert_eq!(bench.write(sector, &[7; 1024]), IOERR);
            assert_eq!(bench.run_segments(DISCARD, &[(sector, 2, 0)]), IOERR);
            // One invalid segment rejects the complete request.
            assert_eq!(
                bench.run_segments(WRITE_ZEROES, &[(0, 2, 0), (sector, 2, 0)]),
                IOERR
            );
        }
        assert!(scratch.contents() == before);
        assert_eq!(bench.block.metrics().errors, 28);
        assert_eq!(bench.read(SECTORS - 2, 1024).0, OK);
    }
}

#[test]
fn partial_sectors_fail() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut bench = Bench::on(&scratch, engine);
        for length in [1, 511, 513, 1000] {
            assert_eq!(bench.read(0, length).0, IOERR);
            assert_eq!(bench.write(0, &vec![1; usize::try_from(length).unwrap()]), IOERR);
        }
        assert_eq!(scratch.contents(), pattern(0, SECTORS * 512));
    }
}

#[test]
fn invalid_segments_fail() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut bench = Bench::on(&scratch, engine);
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(bench.run_segments(kind, &[]), IOERR);
            assert_eq!(bench.run_segments(kind, &[(0, 1, 0); 17]), IOERR);
            assert_eq!(bench.run_segments(kind, &[(0, u32::MAX, 0)]), IOERR);
            assert_eq!(bench.run_segments(kind, &[(0, 1, 1 << 31)]), UNSUPP);
            let address = bench.place(&[0; 24]);
            assert_eq!(
                bench.run_one(kind, 0, &[Buffer::readable(address, 24)]),
                (IOERR, 1)
            );
            assert_eq!(bench.run_segments(kind, &[(0, 1, 0); 16]), OK);
        }
    }
}

#[test]
fn unknown_type_is_unsupported() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut bench = Bench::on(&scratch, engine);
        for kind in [2, 3, 5, 10, 12, 14, 15, u32::MAX] {
            let address = bench.place(&[NONE; 512]);
            assert_eq!(
                bench.run_one(kind, 0, &[Buffer::writable(address, 512)]),
                (UNSUPP, 0)
            );
            assert_eq!(bench.run_one(kind, 0, &[]), (UNSUPP, 1));
        }
        assert_eq!(bench.read(0, 512).0, OK);
    }
}

#[test]
fn read_only_disk_rejects_writes() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut config = config(scratch.path(), engine);
        config.read_only = true;
        let mut bench = Bench::new(&config);
        assert_eq!(bench.write(0, &[1; 512]), IOERR);
        assert_eq!(bench.run_segments(DISCARD, &[(0, 8, 0)]), UNSUPP);
        assert_eq!(bench.run_segments(WRITE_ZEROES, &[(0, 8, 0)]), UNSUPP);
        assert_eq!(bench.run_one(FLUSH, 0, &[]), (OK, 1));
        assert_eq!(bench.read(0, 512), (OK, pattern(0, 512)));
        assert_eq!(scratch.contents(), pattern(0, SECTORS * 512));
    }
}

#[test]
fn truncated_file_fails_missing_sectors() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut bench = Bench::on(&scratch, engine);
        scratch.set_len(10 * 512);
        let address = bench.place(&[NONE; 2048]);
        let data = [
            Buffer::writable(address, 700),
            Buffer::writable(address + 700, 1348),
        ];
        // The used length covers the two remaining sectors.
        assert_eq!(bench.run_one(IN, 8, &data), (IOERR, 1024));
        assert_eq!(bench.driver.read(address, 1024), pattern(8 * 512, 1024));
        assert_eq!(bench.read(10, 512).0, IOERR);
        assert_eq!(bench.read(9, 512).0, OK);
        assert_eq!(bench.write(20, &[3; 512]), OK);
        assert_eq!(bench.read(20, 512), (OK, vec![3; 512]));
    }
}

#[test]
fn full_disk_fails_write_through() {
    for engine in ENGINES {
        let mut bench = Bench::with_fake_disk("/dev/full", SECTORS * 512, engine);
        bench.reset();
        bench.activate(0);
        assert_eq!(bench.write(0, &[1; 4096]), IOERR);
        assert_eq!(bench.block.metrics().errors, 1);
    }
}

#[test]
fn full_disk_fails_request() {
    for engine in ENGINES {
        let mut bench = Bench::with_fake_disk("/dev/full", SECTORS * 512, engine);
        assert_eq!(bench.write(0, &[1; 4096]), IOERR);
        // A character device supports neither fdatasync nor fallocate.
        assert_eq!(bench.run_one(FLUSH, 0, &[]), (IOERR, 1));
        assert_eq!(bench.run_segments(WRITE_ZEROES, &[(0, 8, 0)]), IOERR);
        assert_eq!(bench.read(0, 512), (OK, vec![0; 512]));
        let metrics = bench.block.metrics();
        assert_eq!(
            (metrics.errors, metrics.writes, metrics.flushes, metrics.discards),
            (3, 0, 0, 0)
        );
        assert!(!bench.signal.is_reset_needed());
    }
}

/// Asserts that a malformed chain, added by `add_malformed`, stops the device until its reset.
fn expect_stop(add_malformed: impl Fn(&mut Bench)) {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut bench = Bench::on(&scratch, engine);
        let address = bench.place(&[NONE; 512]);
        let (_, status) = bench.add(IN, 1, &[Buffer::writable(address, 512)]);
        add_malformed(&mut bench);
        bench.block.notify(0);
        assert!(bench.signal.is_reset_needed());
        assert_eq!(bench.block.metrics().malformed, 1);
        // The request before the malformed chain is completed.
        assert_eq!(
            (bench.status(status), bench.driver.queues[0].used_index()),
            (OK, 1)
        );
        let address = bench.place(&[NONE; 512]);
        let (_, status) = bench.add(IN, 1, &[Buffer::writable(address, 512)]);
        bench.block.notify(0);
        assert_eq!(bench.status(status), NONE);
        assert_eq!(bench.block.metrics().malformed, 1);
        bench.reset();
        bench.activate(bench.block.features());
        assert_eq!(bench.read(2, 512), (OK, pattern(1024, 512)));
        assert!(!bench.signal.is_reset_needed());
    }
}

#[test]
fn request_without_status_stops_queue() {
    expect_stop(|bench| {
        let header = bench.header(FLUSH, 0);
        bench.driver.queues[0].add(&[Buffer::readable(header, 16)]);
    });
}

#[test]
fn request_without_header_stops_queue() {
    expect_stop(|bench| {
        let status = bench.place(&[NONE]);
        bench.driver.queues[0].add(&[Buffer::writable(status, 1)]);
    });
    expect_stop(|bench| {
        let header = bench.header(IN, 0);
        let status = bench.place(&[NONE]);
        bench.driver.queues[0].add(&[Buffer::readable(header, 15), Buffer::writable(status, 1)]);
    });
}

#[test]
fn buffer_outside_memory_stops_queue() {
    for address in [u64::MAX - 255, super::MEMORY as u64 - 100, 1 << 40] {
        expect_stop(|bench| {
            bench.add(IN, 0, &[Buffer::writable(address, 512)]);
        });
    }
}

#[test]
fn looping_chain_stops_queue() {
    expect_stop(|bench| {
        let descriptor = RawDescriptor {
            address: 0x1000,
            length: 512,
            flags: NEXT | WRITE,
            next: 200,
        };
        bench.driver.queues[0].set_descriptor(200, descriptor);
        bench.driver.queues[0].make_available(200);
    });
}

#[test]
fn readable_after_writable_stops_queue() {
    expect_stop(|bench| {
        let header = bench.header(IN, 0);
        bench.driver.queues[0].add(&[Buffer::writable(header, 1), Buffer::readable(header, 16)]);
    });
}

#[test]
fn head_outside_table_stops_queue() {
    expect_stop(|bench| bench.driver.queues[0].make_available(256));
}

#[test]
fn available_index_jump_stops_queue() {
    for engine in ENGINES {
        for index in [257, 1000, u16::MAX] {
            let scratch = Scratch::new(SECTORS * 512);
            let mut bench = Bench::on(&scratch, engine);
            bench.driver.queues[0].set_available_index(index);
            bench.block.notify(0);
            assert!(bench.signal.is_reset_needed());
        }
    }
}

#[test]
fn repeated_head_runs_once_per_entry() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut bench = Bench::on(&scratch, engine);
        let address = bench.place(&[NONE; 512]);
        let (head, status) = bench.add(IN, 1, &[Buffer::writable(address, 512)]);
        for _ in 1..256 {
            bench.driver.queues[0].make_available(head);
        }
        assert_eq!(bench.run(256).len(), 256);
        assert_eq!(bench.status(status), OK);
        // The batch was full, so the device requests another one. It is empty.
        bench.process_events(60_000);
        assert!(bench.is_idle());
        assert!(!bench.signal.is_reset_needed());
    }
}

#[test]
fn inactive_device_ignores_requests() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut bench = Bench::on(&scratch, engine);
        bench.reset();
        let (_, status) = bench.add(GET_ID, 0, &[]);
        bench.block.notify(0);
        for token in 0..3 {
            bench.block.process_event(token);
        }
        bench.block.drain();
        assert_eq!(bench.status(status), NONE);
        assert_eq!(bench.line.take(), 0);
        assert!(bench.block.queue_states().is_empty());
        bench.start(0);
        bench.block.notify(1);
        assert_eq!(bench.status(status), NONE);
        // Chains from before DRIVER_OK need no notification.
        bench.process_events(0);
        assert_eq!(bench.driver.queues[0].collect_used().len(), 1);
        assert_eq!(bench.status(status), OK);
        assert_eq!(bench.write(0, &[1; 512]), OK);
        assert_eq!(bench.run_one(OUT, 0, &[]), (OK, 1));
    }
}
