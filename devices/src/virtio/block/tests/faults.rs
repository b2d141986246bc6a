use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use super::{
    Buffer, DISCARD, ENGINES, FLUSH, Fixture, GET_ID, IN, IOERR, NONE, OK, OUT, SECTORS, Scratch, UNSUPP,
    WRITE_ZEROES, config, pattern,
};
use crate::virtio::device::VirtioDevice;
use crate::virtio::testing::{NEXT, RawDescriptor, WRITE};

#[test]
fn endless_queue_releases_lock() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        fixture.reset();
        let header = fixture.header(IN, SECTORS);
        let data = fixture.place(&[0; 513]);
        let queue = &fixture.driver.queues[0];
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
        let mut activation = fixture
            .driver
            .activation(fixture.block.features() & !super::EVENT_IDX, fixture.line.clone());
        activation.queues[0].try_set_used_ring_address(ring).unwrap();
        activation.queues[0].set_next_used(1);
        fixture.driver.queues[0].set_available_index(1);
        fixture.block.activate(activation);
        for batch in 1..=3 {
            let before = fixture.block.metrics().errors;
            fixture.block.notify(0);
            assert!((1..=256).contains(&(fixture.block.metrics().errors - before)));
            assert!(
                !fixture.is_idle(),
                "batch {batch} does not continue on the event loop"
            );
        }
        assert_eq!(fixture.block.metrics().malformed, 0);
    }
}

#[test]
fn sectors_beyond_end_fail() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
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
            assert_eq!(fixture.read(sector, 1024), (IOERR, vec![NONE; 1024]));
            assert_eq!(fixture.write(sector, &[7; 1024]), IOERR);
            assert_eq!(fixture.run_segments(DISCARD, &[(sector, 2, 0)]), IOERR);
            // One invalid segment rejects the complete request.
            assert_eq!(
                fixture.run_segments(WRITE_ZEROES, &[(0, 2, 0), (sector, 2, 0)]),
                IOERR
            );
        }
        assert!(scratch.contents() == before);
        assert_eq!(fixture.block.metrics().errors, 28);
        assert_eq!(fixture.read(SECTORS - 2, 1024).0, OK);
    }
}

#[test]
fn partial_sectors_fail() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        for length in [1, 511, 513, 1000] {
            assert_eq!(fixture.read(0, length).0, IOERR);
            assert_eq!(
                fixture.write(0, &vec![1; usize::try_from(length).unwrap()]),
                IOERR
            );
        }
        assert_eq!(scratch.contents(), pattern(0, SECTORS * 512));
    }
}

#[test]
fn invalid_segments_fail() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(fixture.run_segments(kind, &[]), IOERR);
            assert_eq!(fixture.run_segments(kind, &[(0, 1, 0); 17]), IOERR);
            assert_eq!(fixture.run_segments(kind, &[(0, u32::MAX, 0)]), IOERR);
            assert_eq!(fixture.run_segments(kind, &[(0, 1, 1 << 31)]), UNSUPP);
            let address = fixture.place(&[0; 24]);
            assert_eq!(
                fixture.run_one(kind, 0, &[Buffer::readable(address, 24)]),
                (IOERR, 1)
            );
            assert_eq!(fixture.run_segments(kind, &[(0, 1, 0); 16]), OK);
        }
    }
}

#[test]
fn unknown_type_is_unsupported() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        for kind in [2, 3, 5, 10, 12, 14, 15, u32::MAX] {
            let address = fixture.place(&[NONE; 512]);
            assert_eq!(
                fixture.run_one(kind, 0, &[Buffer::writable(address, 512)]),
                (UNSUPP, 0)
            );
            assert_eq!(fixture.run_one(kind, 0, &[]), (UNSUPP, 1));
        }
        assert_eq!(fixture.read(0, 512).0, OK);
    }
}

#[test]
fn read_only_disk_rejects_writes() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut config = config(scratch.path(), engine);
        config.read_only = true;
        let mut fixture = Fixture::new(&config);
        assert_eq!(fixture.write(0, &[1; 512]), IOERR);
        assert_eq!(fixture.run_segments(DISCARD, &[(0, 8, 0)]), UNSUPP);
        assert_eq!(fixture.run_segments(WRITE_ZEROES, &[(0, 8, 0)]), UNSUPP);
        assert_eq!(fixture.run_one(FLUSH, 0, &[]), (OK, 1));
        assert_eq!(fixture.read(0, 512), (OK, pattern(0, 512)));
        assert_eq!(scratch.contents(), pattern(0, SECTORS * 512));
    }
}

#[test]
fn truncated_file_fails_missing_sectors() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        scratch.set_len(10 * 512);
        let address = fixture.place(&[NONE; 2048]);
        let data = [
            Buffer::writable(address, 700),
            Buffer::writable(address + 700, 1348),
        ];
        // The used length covers the two remaining sectors.
        assert_eq!(fixture.run_one(IN, 8, &data), (IOERR, 1024));
        assert_eq!(fixture.driver.read(address, 1024), pattern(8 * 512, 1024));
        assert_eq!(fixture.read(10, 512).0, IOERR);
        assert_eq!(fixture.read(9, 512).0, OK);
        assert_eq!(fixture.write(20, &[3; 512]), OK);
        assert_eq!(fixture.read(20, 512), (OK, vec![3; 512]));
    }
}

#[test]
fn full_disk_fails_write_through() {
    for engine in ENGINES {
        let mut fixture = Fixture::with_fake_disk("/dev/full", SECTORS * 512, engine);
        fixture.reset();
        fixture.activate(0);
        assert_eq!(fixture.write(0, &[1; 4096]), IOERR);
        assert_eq!(fixture.block.metrics().errors, 1);
    }
}

#[test]
fn full_disk_fails_request() {
    for engine in ENGINES {
        let mut fixture = Fixture::with_fake_disk("/dev/full", SECTORS * 512, engine);
        assert_eq!(fixture.write(0, &[1; 4096]), IOERR);
        // A character device supports neither fdatasync nor fallocate.
        assert_eq!(fixture.run_one(FLUSH, 0, &[]), (IOERR, 1));
        assert_eq!(fixture.run_segments(WRITE_ZEROES, &[(0, 8, 0)]), IOERR);
        assert_eq!(fixture.read(0, 512), (OK, vec![0; 512]));
        let metrics = fixture.block.metrics();
        assert_eq!(
            (metrics.errors, metrics.writes, metrics.flushes, metrics.discards),
            (3, 0, 0, 0)
        );
        assert!(!fixture.interrupt.is_reset_needed());
    }
}

#[test]
fn failed_discard_and_zeroes_are_reported() {
    // The device accepts writes, but fallocate fails: no block is discarded or zeroed.
    for engine in ENGINES {
        let mut fixture = Fixture::with_fake_disk("/dev/null", SECTORS * 512, engine);
        assert_eq!(fixture.run_segments(DISCARD, &[(0, 8, 0)]), IOERR);
        assert_eq!(fixture.run_segments(WRITE_ZEROES, &[(0, 8, 0)]), IOERR);
        assert_eq!(fixture.block.metrics().errors, 2);
    }
}

/// Asserts that a malformed chain, added by `add_malformed`, stops the device until its reset.
fn expect_stop(add_malformed: impl Fn(&mut Fixture)) {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        let address = fixture.place(&[NONE; 512]);
        let (_, status) = fixture.add(IN, 1, &[Buffer::writable(address, 512)]);
        add_malformed(&mut fixture);
        fixture.block.notify(0);
        assert!(fixture.interrupt.is_reset_needed());
        assert_eq!(fixture.block.metrics().malformed, 1);
        // The request before the malformed chain is completed.
        assert_eq!(
            (fixture.status(status), fixture.driver.queues[0].used_index()),
            (OK, 1)
        );
        let address = fixture.place(&[NONE; 512]);
        let (_, status) = fixture.add(IN, 1, &[Buffer::writable(address, 512)]);
        fixture.block.notify(0);
        assert_eq!(fixture.status(status), NONE);
        assert_eq!(fixture.block.metrics().malformed, 1);
        fixture.reset();
        fixture.activate(fixture.block.features());
        assert_eq!(fixture.read(2, 512), (OK, pattern(1024, 512)));
        assert!(!fixture.interrupt.is_reset_needed());
    }
}

#[test]
fn request_without_status_stops_queue() {
    expect_stop(|fixture| {
        let header = fixture.header(FLUSH, 0);
        fixture.driver.queues[0].add(&[Buffer::readable(header, 16)]);
    });
}

#[test]
fn request_without_header_stops_queue() {
    expect_stop(|fixture| {
        let status = fixture.place(&[NONE]);
        fixture.driver.queues[0].add(&[Buffer::writable(status, 1)]);
    });
    expect_stop(|fixture| {
        let header = fixture.header(IN, 0);
        let status = fixture.place(&[NONE]);
        fixture.driver.queues[0].add(&[Buffer::readable(header, 15), Buffer::writable(status, 1)]);
    });
}

#[test]
fn buffer_outside_memory_stops_queue() {
    for address in [u64::MAX - 255, super::MEMORY as u64 - 100, 1 << 40] {
        expect_stop(|fixture| {
            fixture.add(IN, 0, &[Buffer::writable(address, 512)]);
        });
    }
}

#[test]
fn looping_chain_stops_queue() {
    expect_stop(|fixture| {
        let descriptor = RawDescriptor {
            address: 0x1000,
            length: 512,
            flags: NEXT | WRITE,
            next: 200,
        };
        fixture.driver.queues[0].set_descriptor(200, descriptor);
        fixture.driver.queues[0].make_available(200);
    });
}

#[test]
fn readable_after_writable_stops_queue() {
    expect_stop(|fixture| {
        let header = fixture.header(IN, 0);
        fixture.driver.queues[0].add(&[Buffer::writable(header, 1), Buffer::readable(header, 16)]);
    });
}

#[test]
fn head_outside_table_stops_queue() {
    expect_stop(|fixture| fixture.driver.queues[0].make_available(256));
}

#[test]
fn available_index_jump_stops_queue() {
    for engine in ENGINES {
        for index in [257, 1000, u16::MAX] {
            let scratch = Scratch::new(SECTORS * 512);
            let mut fixture = Fixture::on(&scratch, engine);
            fixture.driver.queues[0].set_available_index(index);
            fixture.block.notify(0);
            assert!(fixture.interrupt.is_reset_needed());
        }
    }
}

#[test]
fn repeated_head_runs_once_per_entry() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        let address = fixture.place(&[NONE; 512]);
        let (head, status) = fixture.add(IN, 1, &[Buffer::writable(address, 512)]);
        for _ in 1..256 {
            fixture.driver.queues[0].make_available(head);
        }
        assert_eq!(fixture.run(256).len(), 256);
        assert_eq!(fixture.status(status), OK);
        // The batch was full, so the device requests another one. It is empty.
        fixture.process_events(60_000);
        assert!(fixture.is_idle());
        assert!(!fixture.interrupt.is_reset_needed());
    }
}

#[test]
fn inactive_device_ignores_requests() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        fixture.reset();
        let (_, status) = fixture.add(GET_ID, 0, &[]);
        fixture.block.notify(0);
        for token in 0..3 {
            fixture.block.process_event(token);
        }
        fixture.block.drain();
        assert_eq!(fixture.status(status), NONE);
        assert_eq!(fixture.line.take(), 0);
        assert!(fixture.block.queue_states().is_empty());
        fixture.start(0);
        fixture.block.notify(1);
        assert_eq!(fixture.status(status), NONE);
        // Chains from before DRIVER_OK need no notification.
        fixture.process_events(0);
        assert_eq!(fixture.driver.queues[0].collect_used().len(), 1);
        assert_eq!(fixture.status(status), OK);
        assert_eq!(fixture.write(0, &[1; 512]), OK);
        assert_eq!(fixture.run_one(OUT, 0, &[]), (OK, 1));
    }
}
