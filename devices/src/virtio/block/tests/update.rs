use std::path::Path;

use super::{Bench, ENGINES, IOERR, OK, SECTORS, Scratch, config, pattern, terms};
use crate::virtio::block::disk::Error;
use crate::virtio::block::{Disk, IoEngine};
use crate::virtio::device::VirtioDevice;

/// Sectors that the driver is told of.
pub(super) fn capacity(bench: &Bench) -> u64 {
    let mut data = [0; 8];
    bench.block.read_config(0, &mut data);
    u64::from_le_bytes(data)
}

#[test]
fn another_size_is_announced() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut bench = Bench::on(&scratch, engine);
        scratch.set_len(2 * SECTORS * 512);
        assert_eq!(bench.read(SECTORS, 512).0, IOERR);
        bench.block.update(Some(scratch.path())).unwrap();
        assert_eq!((capacity(&bench), bench.line.take() > 0), (2 * SECTORS, true));
        assert_eq!(bench.signal.status() & 2, 2);
        assert_eq!(bench.read(SECTORS, 512), (OK, vec![0; 512]));

        let other = Scratch::empty();
        assert!(bench.block.update(Some(other.path())).is_err());
        assert_eq!(bench.read(0, 512), (OK, pattern(0, 512)));
        other.set_len(1024);
        bench.block.update(Some(other.path())).unwrap();
        assert_eq!(capacity(&bench), 2);
        assert_eq!(bench.read(0, 512), (OK, vec![0; 512]));
        // The first one is free again, the second one is taken.
        assert!(Disk::open(scratch.path(), terms(false)).is_ok());
        assert!(Disk::open(other.path(), terms(false)).is_err());
        // Of the first file nothing was changed by the way.
        assert_eq!(scratch.contents()[..512], pattern(0, 512));
    }
}

#[test]
fn the_size_is_read_again() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut bench = Bench::on(&scratch, IoEngine::Sync);
    scratch.set_len(2 * SECTORS * 512);
    // What counts is the file that is open, whatever is at its place.
    let moved = scratch.path().with_extension("moved");
    std::fs::rename(scratch.path(), &moved).unwrap();
    let updated = bench.block.update(None);
    std::fs::rename(&moved, scratch.path()).unwrap();
    updated.unwrap();
    assert_eq!((capacity(&bench), bench.line.take() > 0), (2 * SECTORS, true));
    scratch.set_len(0);
    assert!(matches!(bench.block.update(None), Err(Error::Empty(path)) if path == scratch.path()));
    assert_eq!((capacity(&bench), bench.line.take()), (2 * SECTORS, 0));
}

#[test]
fn what_cannot_be_a_disk_leaves_the_one_there_is() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let other = Scratch::new(SECTORS * 512);
        let odd = Scratch::new(700);
        let _writer = Disk::open(other.path(), terms(false)).unwrap();
        let mut bench = Bench::on(&scratch, engine);
        let mut refuses = |path: &Path| bench.block.update(Some(path)).unwrap_err();
        assert!(matches!(refuses(Path::new("/nowhere/disk")), Error::Missing(_)));
        assert!(matches!(refuses(Path::new("/")), Error::Folder(_)));
        assert!(matches!(refuses(Path::new("/dev/null")), Error::Kind(_)));
        assert!(matches!(refuses(odd.path()), Error::Size { size: 700, .. }));
        assert!(matches!(refuses(other.path()), Error::InUse(_)));
        assert_eq!((capacity(&bench), bench.line.take()), (SECTORS, 0));
        assert_eq!(bench.block.disk().path(), scratch.path());
        assert_eq!(bench.read(0, 512), (OK, pattern(0, 512)));
        assert!(matches!(
            Disk::open(scratch.path(), terms(true)),
            Err(Error::InUse(_))
        ));
    }
}

#[test]
fn an_empty_disk_fails_every_read_and_write_until_it_is_replaced() {
    for engine in ENGINES {
        let stub = Scratch::empty();
        let mut config = config(stub.path(), engine);
        config.allow_empty = true;
        let mut bench = Bench::new(&config);
        assert_eq!(capacity(&bench), 0);
        assert_eq!(bench.read(0, 512).0, IOERR);
        assert_eq!(bench.write(0, &[1; 512]), IOERR);
        assert_eq!(bench.segments(super::DISCARD, &[(0, 1, 0)]), IOERR);
        assert_eq!(bench.one(super::FLUSH, 0, &[]).0, OK);
        assert_eq!(stub.contents().len(), 0);
        let disk = Scratch::new(SECTORS * 512);
        bench.block.update(Some(disk.path())).unwrap();
        assert_eq!(capacity(&bench), SECTORS);
        assert_eq!(bench.read(1, 512), (OK, pattern(512, 512)));
        // And grows in its place.
        stub.set_len(1024);
        bench.block.update(Some(stub.path())).unwrap();
        assert_eq!(bench.read(1, 512), (OK, vec![0; 512]));
    }
}
