use std::path::PathBuf;
use std::process::Command;

use super::{Bench, DISCARD, ENGINES, IoEngine, OK, SECTORS, Scratch, WRITE_ZEROES, config, pattern};
use crate::virtio::block::disk::Extent;
use crate::virtio::block::disk::inward;

#[test]
fn only_whole_blocks_are_discarded() {
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
            inward(Extent { offset, length }, 4096),
            expected,
            "{offset}+{length}"
        );
        assert_eq!(inward(Extent { offset, length }, 1), Extent { offset, length });
    }
}

/// A block device with sectors of 4096 bytes, on a file.
struct Loop {
    path: PathBuf,
    _file: Scratch,
}

impl Loop {
    /// None when this user or machine has no such devices.
    fn new() -> Option<Self> {
        let file = Scratch::new(1 << 20);
        let made = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", "4096"])
            .arg(file.path())
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        let path = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
        Some(Self { path, _file: file })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

#[test]
fn a_block_device_with_large_sectors_takes_small_ones() {
    for engine in ENGINES {
        let Some(device) = Loop::new() else { return };
        let mut bench = Bench::new(&config(&device.path, engine));
        assert_eq!(bench.block.disk().block, 4096);
        assert_eq!(bench.read(3, 1024), (OK, pattern(3 * 512, 1024)));
        assert_eq!(bench.write(9, &[7; 512]), OK);
        assert_eq!(bench.read(8, 1024).1[512..], [7; 512]);
        for unmap in [0, 1] {
            assert_eq!(
                bench.segments(WRITE_ZEROES, &[(17, 3, unmap), (24, 9, unmap)]),
                OK
            );
        }
        assert_eq!(bench.read(16, 512), (OK, pattern(16 * 512, 512)));
        assert_eq!(bench.read(17, 1536), (OK, vec![0; 1536]));
        assert_eq!(bench.read(20, 2048), (OK, pattern(20 * 512, 2048)));
        assert_eq!(bench.read(24, 9 * 512), (OK, vec![0; 9 * 512]));
        // Of 41 to 81, 48 to 79 are whole blocks; of 101 to 102 there is none.
        assert_eq!(bench.segments(DISCARD, &[(41, 40, 0), (101, 2, 0)]), OK);
        assert_eq!(bench.read(41, 7 * 512), (OK, pattern(41 * 512, 7 * 512)));
        assert_eq!(bench.read(48, 32 * 512), (OK, vec![0; 32 * 512]));
        assert_eq!(bench.read(80, 512), (OK, pattern(80 * 512, 512)));
        assert_eq!(bench.read(101, 512), (OK, pattern(101 * 512, 512)));
        assert_eq!(bench.block.metrics().errors, 0);
    }
}

#[test]
fn a_file_refuses_no_part_of_its_blocks() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut bench = Bench::on(&scratch, IoEngine::Sync);
    assert_eq!(bench.segments(DISCARD, &[(1, 9, 0)]), OK);
    assert_eq!(bench.read(0, 512), (OK, pattern(0, 512)));
    assert_eq!(bench.read(10, 512), (OK, pattern(5120, 512)));
}
