//! Register values and access widths.

use super::super::registers as r;
use super::echo::{FEATURE, ID, OFFERED};
use super::{Bench, READY, count};
use crate::bus::BusDevice;
use crate::sync::lock;

#[test]
fn registers_describe_device() {
    let mut bench = Bench::new();
    assert_eq!(bench.get(r::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(bench.get(r::VERSION), 2);
    assert_eq!(bench.get(r::DEVICE_ID), ID);
    assert_eq!(bench.get(r::VENDOR_ID).to_le_bytes(), *b"MAYF");
    for (select, expected) in [
        (0, u32::try_from(OFFERED).unwrap()),
        (1, 1),
        (2, 0),
        (u32::MAX, 0),
    ] {
        bench.set(r::DEVICE_FEATURES_SEL, select);
        assert_eq!(bench.get(r::DEVICE_FEATURES), expected, "{select}");
    }
    for (queue, size) in [(0, 16), (1, 4), (2, 0), (u32::MAX, 0)] {
        bench.set(r::QUEUE_SEL, queue);
        assert_eq!(bench.get(r::QUEUE_NUM_MAX), size);
        assert_eq!(bench.get(r::QUEUE_READY), 0);
    }
    for offset in [r::SHM_LEN_LOW, r::SHM_LEN_HIGH, r::SHM_BASE_LOW, r::SHM_BASE_HIGH] {
        assert_eq!(bench.get(offset), u32::MAX);
    }
    // Reserved, write-only, and QueueReset (0xc0): RING_RESET is not offered.
    for offset in [
        0x18,
        0x1c,
        0x3c,
        r::QUEUE_NUM,
        r::QUEUE_DESC_LOW,
        0xac,
        0xc0,
        0xf8,
    ] {
        assert_eq!(bench.get(offset), 0, "{offset:#x}");
    }
}

#[test]
fn registers_ignore_other_widths() {
    let mut bench = Bench::started();
    for offset in 0..r::CONFIG {
        for width in [1, 2, 3, 4, 8] {
            if width == 4 && offset % 4 == 0 {
                continue;
            }
            let mut data = vec![0xa5; width];
            bench.transport.read(offset, &mut data);
            assert_eq!(data, vec![0; width], "{offset:#x}");
            bench.transport.write(offset, &vec![0; width]);
        }
    }
    bench.transport.read(r::STATUS, &mut []);
    bench.transport.write(r::STATUS, &[]);
    assert_eq!(
        bench.get(r::STATUS),
        READY,
        "a write of another width was not ignored"
    );
    assert_eq!(count(&bench.seen.resets), 0);
}

#[test]
fn config_space_supports_all_widths() {
    let mut bench = Bench::new();
    *lock(&bench.seen.config_space) = (1..=12).collect();
    for offset in 0..16_u8 {
        for width in [1, 2, 4, 8] {
            let mut data = vec![0xa5; width];
            bench.transport.read(r::CONFIG + u64::from(offset), &mut data);
            let expected = (offset + 1..).map(|byte| if byte > 12 { 0 } else { byte });
            assert_eq!(data, expected.take(width).collect::<Vec<_>>());
            bench.transport.write(r::CONFIG + u64::from(offset), &data);
        }
    }
    let mut last = [0xa5];
    bench.transport.read(r::WINDOW - 1, &mut last);
    assert_eq!(last, [0]);
}

#[test]
fn generation_changes_with_configuration() {
    let mut bench = Bench::new();
    let change = |bench: &Bench, bytes: &[u8]| *lock(&bench.seen.config_space) = bytes.to_vec();
    let first = bench.get(r::CONFIG_GENERATION);
    assert_eq!(bench.get(r::CONFIG_GENERATION), first);
    change(&bench, &[1, 2]);
    let second = bench.get(r::CONFIG_GENERATION);
    assert_ne!(second, first);
    assert_eq!(bench.get(r::CONFIG_GENERATION), second);
    // A change and its undo, with an access between them.
    change(&bench, &[3, 4]);
    bench.get(r::CONFIG);
    change(&bench, &[1, 2]);
    let third = bench.get(r::CONFIG_GENERATION);
    assert!(third != second && third != first);
    bench.set(r::STATUS, 0);
    assert_eq!(bench.get(r::CONFIG_GENERATION), third);
}

#[test]
fn features_ok_fixes_features() {
    let mut bench = Bench::new();
    let accept = |bench: &mut Bench, low: u32, high: u32| {
        for (select, value) in [(0, low), (1, high), (2, u32::MAX)] {
            bench.set(r::DRIVER_FEATURES_SEL, select);
            bench.set(r::DRIVER_FEATURES, value);
        }
    };
    let negotiate = r::ACKNOWLEDGE | r::DRIVER | r::FEATURES_OK;
    accept(&mut bench, u32::MAX, 0);
    bench.set(r::STATUS, negotiate);
    assert_eq!(
        bench.get(r::STATUS),
        negotiate & !r::FEATURES_OK,
        "without VERSION_1"
    );
    // Bits that were not offered are cleared; writes after FEATURES_OK have no effect.
    accept(&mut bench, u32::try_from(FEATURE).unwrap() | 1 << 20, 1 << 20 | 1);
    bench.set(r::STATUS, negotiate);
    assert_eq!(bench.get(r::STATUS), negotiate);
    accept(&mut bench, 0, 0);
    for (index, queue) in (0..).zip(&bench.driver.queues) {
        crate::virtio::testing::set(&mut bench.transport, r::QUEUE_SEL, index);
        queue.register(&mut bench.transport);
    }
    bench.set(r::STATUS, READY);
    assert_eq!(bench.get(r::STATUS), READY);
    let features = bench.seen.features.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(features, FEATURE | 1 << 32);
}
