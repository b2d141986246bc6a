//! Register values and access widths.

use super::super::registers as r;
use super::echo::{FEATURE, ID, OFFERED};
use super::{Fixture, READY, count};
use crate::bus::BusDevice;
use crate::sync::lock;

#[test]
fn registers_describe_device() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.get(r::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(fixture.get(r::VERSION), 2);
    assert_eq!(fixture.get(r::DEVICE_ID), ID);
    assert_eq!(fixture.get(r::VENDOR_ID).to_le_bytes(), *b"MAYF");
    for (select, expected) in [
        (0, u32::try_from(OFFERED).unwrap()),
        (1, 1),
        (2, 0),
        (u32::MAX, 0),
    ] {
        fixture.set(r::DEVICE_FEATURES_SEL, select);
        assert_eq!(fixture.get(r::DEVICE_FEATURES), expected, "{select}");
    }
    for (queue, size) in [(0, 16), (1, 4), (2, 0), (u32::MAX, 0)] {
        fixture.set(r::QUEUE_SEL, queue);
        assert_eq!(fixture.get(r::QUEUE_NUM_MAX), size);
        assert_eq!(fixture.get(r::QUEUE_READY), 0);
    }
    for offset in [r::SHM_LEN_LOW, r::SHM_LEN_HIGH, r::SHM_BASE_LOW, r::SHM_BASE_HIGH] {
        assert_eq!(fixture.get(offset), u32::MAX);
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
        assert_eq!(fixture.get(offset), 0, "{offset:#x}");
    }
}

#[test]
fn registers_ignore_other_widths() {
    let mut fixture = Fixture::started();
    for offset in 0..r::CONFIG {
        for width in [1, 2, 3, 4, 8] {
            if width == 4 && offset % 4 == 0 {
                continue;
            }
            let mut data = vec![0xa5; width];
            fixture.transport.read(offset, &mut data);
            assert_eq!(data, vec![0; width], "{offset:#x}");
            fixture.transport.write(offset, &vec![0; width]);
        }
    }
    fixture.transport.read(r::STATUS, &mut []);
    fixture.transport.write(r::STATUS, &[]);
    assert_eq!(
        fixture.get(r::STATUS),
        READY,
        "a write of another width was not ignored"
    );
    assert_eq!(count(&fixture.seen.resets), 0);
}

#[test]
fn config_space_supports_all_widths() {
    let mut fixture = Fixture::new();
    *lock(&fixture.seen.config_space) = (1..=12).collect();
    for offset in 0..16_u8 {
        for width in [1, 2, 4, 8] {
            let mut data = vec![0xa5; width];
            fixture.transport.read(r::CONFIG + u64::from(offset), &mut data);
            let expected = (offset + 1..).map(|byte| if byte > 12 { 0 } else { byte });
            assert_eq!(data, expected.take(width).collect::<Vec<_>>());
            fixture.transport.write(r::CONFIG + u64::from(offset), &data);
        }
    }
    let mut last = [0xa5];
    fixture.transport.read(r::REGISTERS_LENGTH - 1, &mut last);
    assert_eq!(last, [0]);
}

#[test]
fn generation_changes_with_configuration() {
    let mut fixture = Fixture::new();
    let change = |fixture: &Fixture, bytes: &[u8]| *lock(&fixture.seen.config_space) = bytes.to_vec();
    let first = fixture.get(r::CONFIG_GENERATION);
    assert_eq!(fixture.get(r::CONFIG_GENERATION), first);
    change(&fixture, &[1, 2]);
    let second = fixture.get(r::CONFIG_GENERATION);
    assert_ne!(second, first);
    assert_eq!(fixture.get(r::CONFIG_GENERATION), second);
    // A change and its undo, with an access between them.
    change(&fixture, &[3, 4]);
    fixture.get(r::CONFIG);
    change(&fixture, &[1, 2]);
    let third = fixture.get(r::CONFIG_GENERATION);
    assert!(third != second && third != first);
    fixture.set(r::STATUS, 0);
    assert_eq!(fixture.get(r::CONFIG_GENERATION), third);
}

#[test]
fn features_ok_fixes_features() {
    let mut fixture = Fixture::new();
    let accept = |fixture: &mut Fixture, low: u32, high: u32| {
        for (select, value) in [(0, low), (1, high), (2, u32::MAX)] {
            fixture.set(r::DRIVER_FEATURES_SEL, select);
            fixture.set(r::DRIVER_FEATURES, value);
        }
    };
    let negotiate = r::ACKNOWLEDGE | r::DRIVER | r::FEATURES_OK;
    accept(&mut fixture, u32::MAX, 0);
    fixture.set(r::STATUS, negotiate);
    assert_eq!(
        fixture.get(r::STATUS),
        negotiate & !r::FEATURES_OK,
        "with virtqueue features that were not offered"
    );
    // Bits that were not offered are cleared; writes after FEATURES_OK have no effect.
    accept(
        &mut fixture,
        u32::try_from(FEATURE).unwrap() | 1 << 20,
        1 << 20 | 1,
    );
    fixture.set(r::STATUS, negotiate);
    assert_eq!(fixture.get(r::STATUS), negotiate);
    accept(&mut fixture, 0, 0);
    for (index, queue) in (0..).zip(&fixture.driver.queues) {
        crate::virtio::testing::set(&mut fixture.transport, r::QUEUE_SEL, index);
        queue.register(&mut fixture.transport);
    }
    fixture.set(r::STATUS, READY);
    assert_eq!(fixture.get(r::STATUS), READY);
    let features = fixture.seen.features.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(features, FEATURE | 1 << 32);
}
