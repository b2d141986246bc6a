use super::lifetime::{start_reads, uncached};
use super::update::capacity;
use super::{
    Buffer, ENGINES, Fixture, HOURS, IN, NONE, OK, OUT, SECTORS, Scratch, await_unlocked, bucket, config,
    disk_error, options, pattern,
};
use crate::testing::ManualClock;
use crate::virtio::block::{Block, Disk, IoEngine};
use crate::virtio::device::VirtioDevice;

#[test]
fn save_with_requests_in_flight_fails() {
    let scratch = uncached(4 << 20);
    let mut fixture = start_reads(&scratch);
    // All reads may be complete already, and then the save succeeds.
    if fixture.block.in_flight() > 0 {
        let error = fixture.block.save().unwrap_err();
        assert!(error.to_string().contains("unfinished requests"));
    }
    fixture.block.drain();
    assert!(fixture.block.save().is_ok());
}

#[test]
fn drain_of_idle_device_raises_no_event() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut fixture = Fixture::on(&scratch, IoEngine::Sync);
    assert_eq!(fixture.read(0, 512).0, OK);
    fixture.block.drain();
    assert!(fixture.is_idle());
    assert_eq!(fixture.block.queue_states()[0].next_avail, 1);
}

#[test]
fn rate_limiter_round_trips() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut config = config(scratch.path(), IoEngine::Sync);
    config.read_only = true;
    config.operations = bucket(3, HOURS);
    let mut fixture = Fixture::new(&config);
    assert_eq!(fixture.read(0, 512).0, OK);
    let mut restored = Block::open(&config, Box::new(ManualClock::default())).unwrap();
    restored.restore(fixture.block.save().unwrap()).unwrap();

    let mut fixture = Fixture::of(restored, ManualClock::default());
    assert_eq!(fixture.read(0, 512).0, OK);
    assert_eq!(fixture.read(1, 512).0, OK);
    let address = fixture.place(&[NONE; 512]);
    fixture.add(IN, 2, &[Buffer::writable(address, 512)]);
    fixture.block.notify(0);
    assert!(fixture.driver.queues[0].collect_used().is_empty());
    assert_eq!(fixture.block.queue_states()[0].next_avail, 2);
}

#[test]
fn available_request_runs_after_restore() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut fixture = Fixture::on(&scratch, IoEngine::Sync);
    let state = fixture.block.save().unwrap();
    fixture.reset();
    let address = fixture.place(&[NONE; 512]);
    let (_, status) = fixture.add(IN, 0, &[Buffer::writable(address, 512)]);
    fixture.start(fixture.block.features());
    fixture.block.restore(state).unwrap();
    // No notification, and no interrupt for an unchanged configuration.
    fixture.process_events(0);
    assert_eq!((fixture.status(status), fixture.interrupt.status()), (OK, 1));
}

#[test]
fn restore_notifies_changed_capacity() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut fixture = Fixture::on(&scratch, IoEngine::Sync);
    let state = fixture.block.save().unwrap();
    scratch.set_len(2 * SECTORS * 512);
    fixture.block.reopen(None).unwrap();
    fixture.reset();
    fixture.interrupt.clear();
    fixture.start(fixture.block.features());
    fixture.block.restore(state.clone()).unwrap();
    // The saved state keeps the capacity that was reported to the driver, for the next restore.
    assert_eq!(fixture.block.save().unwrap(), state);
    assert_eq!(fixture.interrupt.status(), 0);
    fixture.process_events(0);
    assert_eq!((fixture.interrupt.status(), capacity(&fixture)), (2, 2 * SECTORS));
    assert_ne!(fixture.block.save().unwrap(), state);
}

#[test]
fn unlocked_device_leaves_disk_and_queue_unchanged() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        fixture.block.unlock();
        let address = fixture.place(&[1; 512]);
        fixture.add(OUT, 0, &[Buffer::readable(address, 512)]);
        fixture.block.notify(0);
        for descriptor in fixture.block.watched_fds() {
            fixture.block.process_event(descriptor.token);
        }
        fixture.block.drain();
        assert_eq!(fixture.block.queue_states()[0].next_avail, 0);
        assert!(scratch.contents() == pattern(0, SECTORS * 512));
        // Another drive may have it meanwhile, and then the device stays unlocked.
        let other = Disk::open(scratch.path(), options(false)).unwrap();
        assert!(fixture.block.lock().is_err());
        fixture.block.notify(0);
        assert_eq!(fixture.block.queue_states()[0].next_avail, 0);
        drop(other);
        await_unlocked(|| fixture.block.lock().map_err(disk_error));
        assert!(Disk::open(scratch.path(), options(true)).is_err());
        fixture.run(1);
        assert_eq!(scratch.contents()[..512], [1; 512]);
    }
}

#[test]
fn replacement_of_unlocked_disk_stays_unlocked() {
    let (scratch, other) = (Scratch::new(512), Scratch::new(1024));
    let mut fixture = Fixture::on(&scratch, IoEngine::Sync);
    fixture.block.unlock();
    let user = Disk::open(other.path(), options(false)).unwrap();
    assert!(fixture.block.reopen(Some(other.path())).is_err());
    assert_eq!(fixture.block.disk().path(), scratch.path());
    drop(user);
    await_unlocked(|| fixture.block.reopen(Some(other.path())));
    await_unlocked(|| Disk::open(other.path(), options(false)));
    await_unlocked(|| fixture.block.lock().map_err(disk_error));
    assert!(Disk::open(other.path(), options(false)).is_err());
}
