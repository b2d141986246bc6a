use std::os::unix::fs::MetadataExt;

use proptest::proptest;

use super::{
    Buffer, DISCARD, ENGINES, FLUSH, Fixture, GET_ID, IN, NONE, OK, OUT, SECTORS, Scratch, UNSUPP,
    WRITE_ZEROES, config, pattern,
};
use crate::virtio::DriverState;
use crate::virtio::block::{CacheType, IoEngine, request};
use crate::virtio::device::VirtioDevice;
use crate::virtio::mmio::registers::FEATURES_OK;

#[test]
fn read_returns_disk_contents() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        assert_eq!(fixture.read(0, 512), (OK, pattern(0, 512)));
        assert_eq!(fixture.read(3, 8192), (OK, pattern(3 * 512, 8192)));
        assert_eq!(
            fixture.read(SECTORS - 1, 512),
            (OK, pattern((SECTORS - 1) * 512, 512))
        );
        assert_eq!(fixture.read(0, 0), (OK, Vec::new()));
        let metrics = fixture.block.metrics();
        assert_eq!(
            (metrics.reads, metrics.read_bytes, metrics.errors),
            (4, 512 + 8192 + 512, 0)
        );
    }
}

#[test]
fn writes_to_guest_memory_are_logged() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        // Two buffers in several pages, and a response in a third.
        let [first, second] = [9000, 5000].map(|length| fixture.place(&vec![NONE; length]));
        let id = fixture.place(&[NONE; 4096]) + 2000;
        fixture.add(
            IN,
            1,
            &[Buffer::writable(first, 8192), Buffer::writable(second + 3, 4096)],
        );
        fixture.add(GET_ID, 0, &[Buffer::writable(id, 20)]);
        let before = fixture.driver.clear_log();
        fixture.run(2);
        fixture.driver.expect_writes_logged(&before);
    }
}

#[test]
fn write_changes_disk_contents() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        let mut expected = scratch.contents();
        for (sector, length, byte) in [(0_usize, 512_usize, 1_u8), (5, 12 * 512, 2), (63, 512, 3)] {
            assert_eq!(fixture.write(sector as u64, &vec![byte; length]), OK);
            expected[sector * 512..sector * 512 + length].fill(byte);
        }
        assert_eq!(scratch.contents(), expected);
        assert_eq!(fixture.run_one(FLUSH, 0, &[]), (OK, 1));
        let metrics = fixture.block.metrics();
        assert_eq!(
            (metrics.writes, metrics.written_bytes, metrics.flushes),
            (3, 14 * 512, 1)
        );
    }
}

#[test]
fn write_without_flush_feature_is_write_through() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        fixture.reset();
        fixture.activate(0);
        assert_eq!(fixture.write(1, &[9; 1024]), OK);
        assert_eq!(scratch.contents()[512..1536], [9; 1024]);
    }
}

#[test]
fn request_accepts_any_buffer_layout() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        let header = fixture.header(IN, 2);
        let data = fixture.place(&[NONE; 513]);
        let mut buffers: Vec<_> = (0..16).map(|byte| Buffer::readable(header + byte, 1)).collect();
        buffers.insert(7, Buffer::readable(header, 0));
        buffers.push(Buffer::writable(data, 513));
        fixture.driver.queues[0].add(&buffers);
        assert_eq!(fixture.run(1)[0].length, 513);
        assert_eq!(fixture.driver.read(data, 512), pattern(1024, 512));
        assert_eq!(fixture.status(data + 512), OK);

        let mut written = vec![1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0];
        written.extend([0x77; 512]);
        let all = fixture.place(&written);
        let status = fixture.place(&[NONE]);
        fixture.driver.queues[0].add(&[Buffer::readable(all, 528), Buffer::writable(status, 1)]);
        assert_eq!(fixture.run(1)[0].length, 1);
        assert_eq!(fixture.status(status), OK);
        assert_eq!(scratch.contents()[2048..2560], [0x77; 512]);
    }
}

#[test]
fn batch_raises_one_interrupt() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        // Without EVENT_IDX, the driver expects every notification.
        fixture.reset();
        fixture.activate(fixture.block.features() & !super::EVENT_IDX);
        let mut statuses = Vec::new();
        for sector in 0..60 {
            let address = fixture.place(&[0; 512]);
            statuses.push((
                fixture.add(IN, sector, &[Buffer::writable(address, 512)]).1,
                address,
                sector,
            ));
        }
        // All sectors are in the page cache: the notification completes all requests.
        fixture.block.notify(0);
        assert_eq!(fixture.driver.queues[0].collect_used().len(), 60);
        assert_eq!(fixture.line.take(), 1);
        for (status, address, sector) in statuses {
            assert_eq!(fixture.status(status), OK);
            assert_eq!(fixture.driver.read(address, 512), pattern(sector * 512, 512));
        }
        fixture.block.notify(0);
        assert_eq!(fixture.line.take(), 0);
    }
}

#[test]
fn polling_driver_receives_no_interrupt() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        fixture.reset();
        fixture.activate(fixture.block.features() & !super::EVENT_IDX);
        let flags = fixture.driver.queues[0].available;
        for (flag, interrupts) in [(1, 0), (0, 1)] {
            // VIRTQ_AVAIL_F_NO_INTERRUPT set or clear.
            fixture.driver.write(flags, &[flag, 0]);
            let address = fixture.place(&[0; 512]);
            fixture.add(IN, 0, &[Buffer::writable(address, 512)]);
            fixture.block.notify(0);
            assert_eq!(fixture.driver.queues[0].collect_used().len(), 1);
            assert_eq!(fixture.line.take(), interrupts);
        }
    }
}

#[test]
fn id_is_truncated_to_buffer() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        for (length, used) in [(20_u32, 21), (5, 6), (0, 1), (30, 20)] {
            let address = fixture.place(&[NONE; 32]);
            assert_eq!(
                fixture.run_one(GET_ID, 0, &[Buffer::writable(address, length)]),
                (OK, used)
            );
            let mut expected = [NONE; 32];
            let length = usize::try_from(length.min(20)).unwrap();
            expected[..length].copy_from_slice(&b"a drive with a long name"[..length]);
            assert_eq!(fixture.driver.read(address, 32), expected);
        }
    }
}

#[test]
fn short_id_is_padded() {
    let scratch = Scratch::new(512);
    let mut config = config(scratch.path(), IoEngine::Sync);
    config.id = "root".to_owned();
    let mut fixture = Fixture::new(&config);
    let address = fixture.place(&[NONE; 20]);
    assert_eq!(
        fixture.run_one(GET_ID, 0, &[Buffer::writable(address, 20)]),
        (OK, 21)
    );
    assert_eq!(
        fixture.driver.read(address, 20),
        *b"root\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
}

#[test]
fn discard_deallocates_blocks() {
    for engine in ENGINES {
        let scratch = Scratch::new(1 << 20);
        let mut fixture = Fixture::on(&scratch, engine);
        assert_eq!(fixture.run_one(FLUSH, 0, &[]).0, OK);
        let blocks = || scratch.path().metadata().unwrap().blocks();
        let before = blocks();
        assert!(before >= 2048);
        assert_eq!(fixture.run_segments(DISCARD, &[(0, 1024, 0), (1536, 512, 0)]), OK);
        assert!(blocks() <= before - 1500, "{} blocks of {before}", blocks());
        assert_eq!(scratch.contents().len(), 1 << 20);
        assert_eq!(
            scratch.contents()[512 << 10..768 << 10],
            pattern(512 << 10, 256 << 10)
        );
        assert_eq!(fixture.run_segments(DISCARD, &[(0, 8, 1)]), UNSUPP);
        assert_eq!(fixture.block.metrics().discards, 1);
    }
}

#[test]
fn write_zeroes_zeroes_sectors() {
    for engine in ENGINES {
        let scratch = Scratch::new(1 << 20);
        let mut fixture = Fixture::on(&scratch, engine);
        let mut expected = scratch.contents();
        for (segments, unmap) in [
            (&[(1, 3, 0), (100, 900, 0)][..], 0),
            (&[(1200, 800, 1)], 1),
            (&[(7, 0, 0)], 0),
        ] {
            assert_eq!(fixture.run_segments(WRITE_ZEROES, segments), OK, "unmap {unmap}");
            for (sector, count, _) in segments {
                let start = usize::try_from(*sector).unwrap() * 512;
                expected[start..start + usize::try_from(*count).unwrap() * 512].fill(0);
            }
            assert!(scratch.contents() == expected);
        }
        assert_eq!(fixture.run_segments(WRITE_ZEROES, &[(0, 8, 2)]), UNSUPP);
    }
}

#[test]
fn sparse_file_stays_sparse() {
    for engine in ENGINES {
        let scratch = Scratch::empty();
        scratch.set_len(1 << 40);
        let mut fixture = Fixture::on(&scratch, engine);
        let last = (1 << 31) - 1;
        assert_eq!(fixture.read(last, 512), (OK, vec![0; 512]));
        assert_eq!(fixture.write(last, &[5; 512]), OK);
        assert_eq!(fixture.read(last, 512), (OK, vec![5; 512]));
        assert!(scratch.path().metadata().unwrap().blocks() < 64);
    }
}

#[test]
fn features_and_config_space_match_config() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut config = config(scratch.path(), IoEngine::Sync);
    let word = |fixture: &Fixture, offset| {
        let mut data = [0; 4];
        fixture.block.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    };
    let bits = |features: u64| (0..64).filter(|bit| features & 1 << bit != 0).collect::<Vec<_>>();
    let fixture = Fixture::new(&config);
    assert_eq!(fixture.block.device_id(), 2);
    assert_eq!(bits(fixture.block.features()), [2, 6, 9, 13, 14, 28, 29]);
    assert_eq!(
        [0, 4, 8, 12, 20].map(|offset| word(&fixture, offset)),
        [64, 0, 0, 254, 512]
    );
    assert_eq!(
        [36, 40, 44, 48, 52, 56].map(|offset| word(&fixture, offset)),
        [1 << 22, 16, 8, 1 << 13, 16, 1]
    );
    let mut beyond = [1; 8];
    fixture.block.read_config(56, &mut beyond);
    assert_eq!(beyond, [1, 0, 0, 0, 0, 0, 0, 0]);
    fixture.block.read_config(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0; 8]);
    drop(fixture);
    config.cache = CacheType::Unsafe;
    config.read_only = true;
    let fixture = Fixture::new(&config);
    assert_eq!(bits(fixture.block.features()), [2, 5, 6, 28, 29]);
    assert_eq!(word(&fixture, 36), 0);
}

/// Returns the lengths of buffers that split `total` bytes at `cuts`.
fn split_lengths(cuts: &[u32], total: u32) -> Vec<u32> {
    let mut offsets: Vec<u32> = cuts.iter().map(|cut| cut % total).chain([0, total]).collect();
    offsets.sort_unstable();
    offsets.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(40))]
    #[test]
    fn scattered_write_reads_back(
        sectors in 1_u32..40, first in 0_u64..24, seed in proptest::prelude::any::<u8>(),
        out in proptest::collection::vec(proptest::prelude::any::<u32>(), 0..40),
        back in proptest::collection::vec(proptest::prelude::any::<u32>(), 0..40),
    ) {
        for engine in ENGINES {
            let scratch = Scratch::new(SECTORS * 512);
            let mut fixture = Fixture::on(&scratch, engine);
            let total = sectors * 512;
            let data: Vec<u8> = (0..total).map(|at| u8::try_from(at % 249).unwrap() ^ seed).collect();
            let mut rest = &data[..];
            let mut buffers = Vec::new();
            for length in split_lengths(&out, total) {
                let (chunk, after) = rest.split_at(usize::try_from(length).unwrap());
                buffers.push(Buffer::readable(fixture.place(chunk), length));
                rest = after;
            }
            assert_eq!(fixture.run_one(OUT, first, &buffers), (OK, 1));
            let mut buffers = Vec::new();
            for length in split_lengths(&back, total) {
                buffers.push(Buffer::writable(fixture.place(&vec![NONE; usize::try_from(length).unwrap()]), length));
            }
            assert_eq!(fixture.run_one(IN, first, &buffers), (OK, total + 1));
            let read: Vec<u8> = buffers
                .iter()
                .flat_map(|buffer| fixture.driver.read(buffer.address, usize::try_from(buffer.length).unwrap()))
                .collect();
            assert!(read == data);
        }
    }
}

#[test]
fn all_offered_features_are_named() {
    let offered = request::features(true, true) | request::features(false, true);
    let id = virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
    let names = DriverState::new(id, FEATURES_OK.into(), false, offered).features();
    assert_eq!(
        names.iter().find(|name| name.starts_with("bit")),
        None,
        "{names:?}"
    );
}
