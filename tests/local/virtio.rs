//! Drives, and drives with a hostile guest.

use std::fs;

use crate::file;
use crate::guest::Guest;

const SECTOR: usize = 512;
/// Sectors of each disk; odd, so that the middle is not aligned.
const SECTORS: usize = 1001;
/// Bytes that the guest writes at each offset.
const LENGTH: usize = 4 * SECTOR;

/// Returns the offsets that the guest writes, in bytes.
fn offsets() -> [usize; 3] {
    [0, SECTORS / 2 * SECTOR, SECTORS * SECTOR - LENGTH]
}

/// Returns the bytes that the guest writes at `offset` (resources/guests/README.md).
fn pattern(offset: usize) -> Vec<u8> {
    let start = offset / SECTOR * 31;
    let byte = |index: usize| u8::try_from((start + index + (index >> 8)) % 256).unwrap();
    (0..LENGTH).map(byte).collect()
}

/// Creates the disk `name`, filled with `fill`.
fn create_disk(name: &str, fill: u8) -> String {
    let path = scratch::process_path(name);
    fs::write(&path, vec![fill; SECTORS * SECTOR]).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Returns the content of a disk of `fill` bytes after the guest has written its patterns.
fn written_disk(fill: u8) -> Vec<u8> {
    let mut content = vec![fill; SECTORS * SECTOR];
    for offset in offsets() {
        content[offset..offset + LENGTH].copy_from_slice(&pattern(offset));
    }
    content
}

/// Checks that the guest reports `description` for a disk with `options`, and writes and reads it.
fn check_drive(name: &str, options: &str, arguments: &str, description: &str) {
    let path = create_disk(name, 0xa5);
    let guest = file("/guests/disk.elf");
    let mut guest = Guest::start(&format!("{guest} --disk {path}{options} {arguments}"));
    guest.expect(&format!("{description}\nok disk {SECTORS} sectors\n"));
    guest.expect_exit(0);
    assert!(
        fs::read(&path).unwrap() == written_disk(0xa5),
        "{path} does not hold the guest's data"
    );
}

#[test]
fn drive_is_written_and_read() {
    check_drive("drive", "", "", "disk [drive0]");
}

#[test]
fn drive_works_by_interrupts() {
    check_drive("drive-irq", "", "-- irq=1", "disk [drive0]");
}

/// Other architectures have one interrupt controller.
#[cfg(target_arch = "x86_64")]
#[test]
fn drive_works_by_kernel_irqchip_interrupts() {
    check_drive("drive-kernel", "", "--irqchip kernel -- irq=1", "disk [drive0]");
}

#[test]
fn drive_works_by_io_uring() {
    check_drive("drive-async", ",engine=async", "", "disk [drive0]");
}

#[test]
fn drive_works_by_io_uring_and_interrupts() {
    check_drive(
        "drive-async-irq",
        ",engine=async,cache=writeback",
        "-- irq=1",
        "disk [drive0] flush",
    );
}

#[test]
fn writeback_drive_flushes() {
    check_drive("drive-flush", ",cache=writeback,id=root", "", "disk [root] flush");
}

#[test]
fn flush_of_large_disk_completes() {
    let disk = scratch::Temporary::with(&[1; 8 << 20]);
    let guest = file("/guests/slow.elf");
    let path = disk.path().display();
    let mut guest = Guest::start(&format!("{guest} --disk {path},cache=writeback -- flush=1"));
    guest.expect("end 0\n");
    guest.expect_exit(0);
}

#[test]
fn drive_path_may_hold_commas() {
    let path = create_disk("drive,with,,commas", 0xa5);
    let guest = file("/guests/disk.elf");
    let mut guest = Guest::start(&format!("{guest} --disk {},id=a,,b", path.replace(',', ",,")));
    guest.expect(&format!("disk [a,b]\nok disk {SECTORS} sectors\n"));
    guest.expect_exit(0);
    assert!(fs::read(&path).unwrap() == written_disk(0xa5));
}

#[test]
fn read_only_drive_stays_unchanged() {
    for engine in ["sync", "async"] {
        let path = create_disk(&format!("drive-ro-{engine}"), 0);
        fs::write(&path, written_disk(0x11)).unwrap();
        let guest = file("/guests/disk.elf");
        let mut guest = Guest::start(&format!("{guest} --disk {path},ro,engine={engine}"));
        guest.expect(&format!("disk [drive0] ro\nok disk {SECTORS} sectors\n"));
        guest.expect_exit(0);
        assert!(fs::read(&path).unwrap() == written_disk(0x11));
    }
}

#[test]
fn drives_keep_their_order() {
    let (first, second) = (create_disk("drive-first", 1), create_disk("drive-second", 2));
    let guest = file("/guests/disk.elf");
    let mut guest = Guest::start(&format!(
        "{guest} --disk {first},id=one --disk {second},id=two,engine=async -- irq=1"
    ));
    guest.expect("disk [one]\nok disk");
    guest.expect("disk [two]\nok disk");
    guest.expect_exit(0);
    for (path, fill) in [(first, 1), (second, 2)] {
        assert!(fs::read(&path).unwrap() == written_disk(fill), "{path}");
    }
}

/// Checks `count` read-only drives on one file.
fn check_drives(count: usize, arguments: &str) {
    let path = create_disk(&format!("drives-{count}"), 0);
    fs::write(&path, written_disk(0)).unwrap();
    let drives = format!("--disk {path},ro ").repeat(count);
    let mut guest = Guest::start(&format!("{} {drives}{arguments}", file("/guests/disk.elf")));
    for index in 0..count {
        guest.expect(&format!("disk [drive{index}] ro\nok disk {SECTORS} sectors\n"));
    }
    guest.expect_exit(0);
}

#[test]
fn maximum_drives_work() {
    check_drives(18, "");
}

/// The interrupt lines are on both 8259s.
#[test]
fn drives_interrupt_on_all_free_pic_lines() {
    check_drives(10, "-- irq=1");
}

#[test]
fn drives_survive_hostile_guest() {
    let (first, second) = (create_disk("hostile-sync", 3), create_disk("hostile-async", 4));
    let guest = file("/guests/hostile.elf");
    let mut guest = Guest::start(&format!(
        "{guest} --disk {first},cache=writeback --disk {second},engine=async"
    ));
    guest.expect("ok hostile 2 devices");
    guest.expect_exit(0);
    for (path, fill) in [(first, 3), (second, 4)] {
        assert!(
            fs::read(&path).unwrap() == vec![fill; SECTORS * SECTOR],
            "{path} was written to"
        );
    }
}
