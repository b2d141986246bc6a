use std::path::{Path, PathBuf};
use std::process::Command;

use scratch::{Requirement, require};

use super::{DISCARD, ENGINES, Fixture, IoEngine, OK, SECTORS, Scratch, WRITE_ZEROES, config, pattern};
use crate::virtio::block::extent::{Extent, Pieces, shrink_to_blocks};

#[test]
fn discard_shrinks_to_complete_blocks() {
    let cases = [
        ((0, 8192), (0, 8192)),
        ((512, 8192), (4096, 4096)),
        ((512, 3584), (4096, 0)),
        ((512, 1024), (4096, 0)),
        ((4096, 4608), (4096, 4096)),
        ((7680, 9216), (8192, 8192)),
    ];
    for ((offset, length), (start, count)) in cases {
        let expected = Extent {
            offset: start,
            length: count,
        };
        assert_eq!(
            shrink_to_blocks(Extent { offset, length }, 4096),
            expected,
            "{offset}+{length}"
        );
        assert_eq!(
            shrink_to_blocks(Extent { offset, length }, 1),
            Extent { offset, length }
        );
    }
}

/// A loop device with sectors of 4096 bytes.
struct LoopDevice {
    path: PathBuf,
    _file: Scratch,
}

impl LoopDevice {
    fn new() -> Self {
        let file = Scratch::new(1 << 20);
        let mut command = Command::new("losetup");
        command
            .args(["--find", "--show", "--sector-size", "4096"])
            .arg(file.path());
        let output = scratch::run(&mut command);
        assert!(output.status.success(), "{output:?}");
        let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        Self { path, _file: file }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let mut detach = Command::new("losetup");
        let child = detach.arg("--detach").arg(&self.path).spawn();
        let _ = child.map(|mut child| scratch::wait_exit(&mut child));
    }
}

#[test]
fn large_sector_device_supports_small_requests() {
    if !require(Requirement::LoopDevice) {
        return;
    }
    for engine in ENGINES {
        let device = LoopDevice::new();
        let mut fixture = Fixture::new(&config(&device.path, engine));
        assert_eq!(fixture.block.disk().file.block_size, 4096);
        assert_eq!(fixture.read(3, 1024), (OK, pattern(3 * 512, 1024)));
        assert_eq!(fixture.write(9, &[7; 512]), OK);
        assert_eq!(fixture.read(8, 1024).1[512..], [7; 512]);
        for unmap in [0, 1] {
            assert_eq!(
                fixture.run_segments(WRITE_ZEROES, &[(17, 3, unmap), (24, 9, unmap)]),
                OK
            );
        }
        assert_eq!(fixture.read(16, 512), (OK, pattern(16 * 512, 512)));
        assert_eq!(fixture.read(17, 1536), (OK, vec![0; 1536]));
        assert_eq!(fixture.read(20, 2048), (OK, pattern(20 * 512, 2048)));
        assert_eq!(fixture.read(24, 9 * 512), (OK, vec![0; 9 * 512]));
        // Complete blocks: sectors 48 to 79 of 41 to 80, and none of 101 to 102.
        assert_eq!(fixture.run_segments(DISCARD, &[(41, 40, 0), (101, 2, 0)]), OK);
        assert_eq!(fixture.read(41, 7 * 512), (OK, pattern(41 * 512, 7 * 512)));
        assert_eq!(fixture.read(48, 32 * 512), (OK, vec![0; 32 * 512]));
        assert_eq!(fixture.read(80, 512), (OK, pattern(80 * 512, 512)));
        assert_eq!(fixture.read(101, 512), (OK, pattern(101 * 512, 512)));
        assert_eq!(fixture.block.metrics().errors, 0);
    }
}

#[test]
fn file_discards_partial_blocks() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut fixture = Fixture::on(&scratch, IoEngine::Sync);
    assert_eq!(fixture.run_segments(DISCARD, &[(1, 9, 0)]), OK);
    assert_eq!(fixture.read(0, 512), (OK, pattern(0, 512)));
    assert_eq!(fixture.read(10, 512), (OK, pattern(5120, 512)));
}

/// Returns the extents of a discard of `length` bytes.
fn pieces_of(pieces: Pieces, offset: u64, length: u64) -> Vec<(u64, u64)> {
    let extents = Extent { offset, length }.pieces(pieces);
    extents.map(|extent| (extent.offset, extent.length)).collect()
}

#[test]
fn pieces_are_complete_units() {
    const MIB: u64 = 1 << 20;
    let cases = [
        // Small units: pieces of 1 MiB.
        (
            Pieces::of_units(4096, 0),
            vec![(0, MIB), (MIB, MIB), (2 * MIB, MIB)],
        ),
        (Pieces::of_units(2 * MIB, 0), vec![(0, 2 * MIB), (2 * MIB, MIB)]),
        (Pieces::of_units(2 * MIB, MIB), vec![(0, MIB), (MIB, 2 * MIB)]),
        // Six units of 192 KiB.
        (
            Pieces::of_units(192 << 10, 0),
            vec![(0, 1152 << 10), (1152 << 10, 1152 << 10), (2304 << 10, 768 << 10)],
        ),
        // Unknown or absurd.
        (Pieces::of_units(0, 7), vec![(0, MIB), (MIB, MIB), (2 * MIB, MIB)]),
        (
            Pieces::of_units(u64::MAX, 7),
            vec![(0, MIB), (MIB, MIB), (2 * MIB, MIB)],
        ),
    ];
    for (pieces, expected) in cases {
        assert_eq!(pieces_of(pieces, 0, 3 * MIB), expected, "{pieces:?}");
    }
    let last = pieces_of(Pieces::of_units(1 << 30, 0), u64::MAX - 512, 512);
    assert_eq!(last, [(u64::MAX - 512, 512)]);
}

#[test]
fn discard_granularity_comes_from_sysfs() {
    let directory = scratch::Directory::new();
    let disk = Path::new(directory.text("").as_str()).join("sda");
    let partition = disk.join("sda1");
    std::fs::create_dir_all(disk.join("queue")).unwrap();
    std::fs::create_dir_all(&partition).unwrap();
    assert_eq!(Pieces::of_device(&disk), Pieces::CHUNKS);
    std::fs::write(disk.join("queue/discard_granularity"), "4194304\n").unwrap();
    std::fs::write(disk.join("discard_alignment"), "0\n").unwrap();
    std::fs::write(partition.join("discard_alignment"), "1048576\n").unwrap();
    assert_eq!(Pieces::of_device(&disk), Pieces::of_units(4 << 20, 0));
    assert_eq!(Pieces::of_device(&partition), Pieces::of_units(4 << 20, 1 << 20));
}
