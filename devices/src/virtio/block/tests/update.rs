use std::path::Path;

use super::worker::{ALL, stuck};
use super::{ENGINES, Fixture, IOERR, OK, SECTORS, Scratch, await_unlocked, config, options, pattern};
use crate::virtio::block::disk::Error;
use crate::virtio::block::{Block, Disk, IoEngine};
use crate::virtio::device::VirtioDevice;

impl Block {
    /// Opens the file at `path`, or measures the open file, and updates the disk.
    pub(super) fn reopen(&mut self, path: Option<&Path>) -> Result<(), Error> {
        let mut update = self.begin_update()?.update(path)?;
        self.update(&mut update)
    }
}

/// Returns the capacity in sectors.
pub(super) fn capacity(fixture: &Fixture) -> u64 {
    let mut data = [0; 8];
    fixture.block.read_config(0, &mut data);
    u64::from_le_bytes(data)
}

#[test]
fn update_notifies_new_capacity() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, engine);
        scratch.set_len(2 * SECTORS * 512);
        assert_eq!(fixture.read(SECTORS, 512).0, IOERR);
        fixture.block.reopen(Some(scratch.path())).unwrap();
        assert_eq!((capacity(&fixture), fixture.line.take() > 0), (2 * SECTORS, true));
        assert_eq!(fixture.interrupt.status() & 2, 2);
        assert_eq!(fixture.read(SECTORS, 512), (OK, vec![0; 512]));

        let other = Scratch::empty();
        assert!(fixture.block.reopen(Some(other.path())).is_err());
        assert_eq!(fixture.read(0, 512), (OK, pattern(0, 512)));
        other.set_len(1024);
        fixture.block.reopen(Some(other.path())).unwrap();
        assert_eq!(capacity(&fixture), 2);
        assert_eq!(fixture.read(0, 512), (OK, vec![0; 512]));
        // The first disk is unlocked, the second one is locked.
        await_unlocked(|| Disk::open(scratch.path(), options(false)));
        assert!(Disk::open(other.path(), options(false)).is_err());
        // The first disk is unchanged.
        assert_eq!(scratch.contents()[..512], pattern(0, 512));
    }
}

#[test]
fn update_without_path_measures_disk() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut fixture = Fixture::on(&scratch, IoEngine::Sync);
    scratch.set_len(2 * SECTORS * 512);
    // The open file counts, not its path.
    let moved = scratch.path().with_extension("moved");
    std::fs::rename(scratch.path(), &moved).unwrap();
    let updated = fixture.block.reopen(None);
    std::fs::rename(&moved, scratch.path()).unwrap();
    updated.unwrap();
    assert_eq!((capacity(&fixture), fixture.line.take() > 0), (2 * SECTORS, true));
    scratch.set_len(0);
    assert!(matches!(fixture.block.reopen(None), Err(Error::Empty(path)) if path == scratch.path()));
    assert_eq!((capacity(&fixture), fixture.line.take()), (2 * SECTORS, 0));
}

#[test]
fn failed_update_keeps_disk() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let other = Scratch::new(SECTORS * 512);
        let odd = Scratch::new(300);
        let _writer = Disk::open(other.path(), options(false)).unwrap();
        let mut fixture = Fixture::on(&scratch, engine);
        let mut update_error = |path: &Path| fixture.block.reopen(Some(path)).unwrap_err();
        assert!(matches!(
            update_error(Path::new("/nowhere/disk")),
            Error::Missing(_)
        ));
        assert!(matches!(update_error(Path::new("/")), Error::Directory(_)));
        assert!(matches!(update_error(Path::new("/dev/null")), Error::Kind(_)));
        assert!(matches!(update_error(odd.path()), Error::Size { size: 300, .. }));
        assert!(matches!(update_error(other.path()), Error::InUse { .. }));
        assert_eq!((capacity(&fixture), fixture.line.take()), (SECTORS, 0));
        assert_eq!(fixture.block.disk().path(), scratch.path());
        assert_eq!(fixture.read(0, 512), (OK, pattern(0, 512)));
        assert!(matches!(
            Disk::open(scratch.path(), options(true)),
            Err(Error::InUse { .. })
        ));
    }
}

#[test]
fn incomplete_sector_is_invisible_and_unchanged() {
    // The size of a small tar file that the driver rounds down, as Firecracker does.
    let length = SECTORS * 512 + 100;
    for engine in ENGINES {
        let scratch = Scratch::new(length);
        let mut fixture = Fixture::on(&scratch, engine);
        assert_eq!(capacity(&fixture), SECTORS);
        assert_eq!(fixture.write(SECTORS - 1, &[1; 512]), OK);
        assert_eq!(fixture.read(SECTORS - 1, 512), (OK, vec![1; 512]));
        assert_eq!(fixture.read(SECTORS, 512).0, IOERR);
        assert_eq!(fixture.write(SECTORS, &[1; 512]), IOERR);
        assert_eq!(
            scratch.contents()[usize::try_from(SECTORS * 512).unwrap()..],
            pattern(SECTORS * 512, 100)
        );
        scratch.set_len(length + 512);
        fixture.block.reopen(None).unwrap();
        assert_eq!(capacity(&fixture), SECTORS + 1);
    }
}

#[test]
fn empty_disk_fails_until_replaced() {
    for engine in ENGINES {
        let stub = Scratch::empty();
        let mut config = config(stub.path(), engine);
        config.allow_empty = true;
        let mut fixture = Fixture::new(&config);
        assert_eq!(capacity(&fixture), 0);
        assert_eq!(fixture.read(0, 512).0, IOERR);
        assert_eq!(fixture.write(0, &[1; 512]), IOERR);
        assert_eq!(fixture.run_segments(super::DISCARD, &[(0, 1, 0)]), IOERR);
        assert_eq!(fixture.run_one(super::FLUSH, 0, &[]).0, OK);
        assert_eq!(stub.contents().len(), 0);
        let disk = Scratch::new(SECTORS * 512);
        fixture.block.reopen(Some(disk.path())).unwrap();
        assert_eq!(capacity(&fixture), SECTORS);
        assert_eq!(fixture.read(1, 512), (OK, pattern(512, 512)));
        // An update also accepts the grown placeholder.
        stub.set_len(1024);
        await_unlocked(|| fixture.block.reopen(Some(stub.path())));
        assert_eq!(fixture.read(1, 512), (OK, vec![0; 512]));
    }
}

#[test]
fn preparation_of_update_cancels_no_work() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, SECTORS);
    fixture.add_segment(super::DISCARD, 0, 8);
    fixture.block.notify(0);
    storage.expect_calls(1);
    fixture.block.complete_requests();
    assert_eq!(fixture.block.in_flight(), 1);
    assert_eq!(fixture.block.queue_states()[0].next_avail, 1);
    storage.permit(ALL);
    fixture.run(1);
    assert_eq!(storage.expect_calls(1).len(), 1);
}

/// The close of a file may wait for its server, so the device must not close the old file.
#[test]
fn replaced_disk_is_closed_by_caller() {
    let (one, other) = (Scratch::new(SECTORS * 512), Scratch::new(SECTORS * 512));
    let mut fixture = Fixture::on(&one, IoEngine::Sync);
    let mut update = fixture.block.disk().handle().update(Some(other.path())).unwrap();
    assert!(matches!(
        Disk::open(other.path(), options(false)),
        Err(Error::InUse { .. })
    ));
    assert_eq!(
        fixture.block.disk().path(),
        one.path(),
        "the update is not applied"
    );
    fixture.block.update(&mut update).unwrap();
    assert_eq!(fixture.block.disk().path(), other.path());
    assert!(matches!(
        Disk::open(one.path(), options(false)),
        Err(Error::InUse { .. })
    ));
    drop(update);
    await_unlocked(|| Disk::open(one.path(), options(false)));
}
