//! Drives, and devices whose guest is hostile.

use std::fs;
use std::path::Path;

use crate::file;
use crate::guest::Guest;

const SECTOR: usize = 512;
/// Sectors of each disk here; an odd number, so that the middle is nothing special.
const SECTORS: usize = 1001;
/// Bytes that the guest writes in each place.
const LENGTH: usize = 4 * SECTOR;

/// Where the guest writes, in bytes.
fn places() -> [usize; 3] {
    [0, SECTORS / 2 * SECTOR, SECTORS * SECTOR - LENGTH]
}

/// What it writes to `place`, as the README of the guests has it.
fn pattern(place: usize) -> Vec<u8> {
    let start = place / SECTOR * 31;
    let byte = |index: usize| u8::try_from((start + index + (index >> 8)) % 256).unwrap();
    (0..LENGTH).map(byte).collect()
}

/// The disk `name`, with `fill` in all of its bytes.
fn disk(name: &str, fill: u8) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, vec![fill; SECTORS * SECTOR]).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A disk that is `fill` but for the pattern where the guest has it.
fn written(fill: u8) -> Vec<u8> {
    let mut content = vec![fill; SECTORS * SECTOR];
    for place in places() {
        content[place..place + LENGTH].copy_from_slice(&pattern(place));
    }
    content
}

/// The guest works on a disk with `options`, and says `about` of it.
fn writes(name: &str, options: &str, arguments: &str, about: &str) {
    let path = disk(name, 0xa5);
    let guest = file("/guests/disk.elf");
    let mut guest = Guest::start(&format!("{guest} --disk {path}{options} {arguments}"));
    guest.expect(&format!("{about}\nok disk {SECTORS} sectors\n"));
    guest.ends_with(0);
    assert!(
        fs::read(&path).unwrap() == written(0xa5),
        "the file {path} is not what the guest wrote"
    );
}

#[test]
fn a_drive_is_written_and_read() {
    writes("drive", "", "", "disk [drive0]");
}

#[test]
fn a_drive_works_by_interrupts() {
    writes("drive-irq", "", "-- irq=1", "disk [drive0]");
}

#[test]
fn a_drive_works_by_interrupts_of_the_irqchip_of_the_kernel() {
    writes("drive-kernel", "", "--irqchip kernel -- irq=1", "disk [drive0]");
}

#[test]
fn a_drive_works_by_io_uring() {
    writes("drive-async", ",engine=async", "", "disk [drive0]");
}

#[test]
fn a_drive_works_by_io_uring_and_interrupts() {
    writes(
        "drive-async-irq",
        ",engine=async,cache=writeback",
        "-- irq=1",
        "disk [drive0] flush",
    );
}

#[test]
fn a_drive_flushes() {
    writes("drive-flush", ",cache=writeback,id=root", "", "disk [root] flush");
}

#[test]
fn a_drive_has_commas_in_its_path() {
    let path = disk("drive,with,,commas", 0xa5);
    let guest = file("/guests/disk.elf");
    let mut guest = Guest::start(&format!("{guest} --disk {},id=a,,b", path.replace(',', ",,")));
    guest.expect(&format!("disk [a,b]\nok disk {SECTORS} sectors\n"));
    guest.ends_with(0);
    assert!(fs::read(&path).unwrap() == written(0xa5));
}

#[test]
fn a_read_only_drive_is_left_alone() {
    for engine in ["sync", "async"] {
        let path = disk(&format!("drive-ro-{engine}"), 0);
        fs::write(&path, written(0x11)).unwrap();
        let guest = file("/guests/disk.elf");
        let mut guest = Guest::start(&format!("{guest} --disk {path},ro,engine={engine}"));
        guest.expect(&format!("disk [drive0] ro\nok disk {SECTORS} sectors\n"));
        guest.ends_with(0);
        assert!(fs::read(&path).unwrap() == written(0x11));
    }
}

#[test]
fn drives_come_in_their_order() {
    let (first, second) = (disk("drive-first", 1), disk("drive-second", 2));
    let guest = file("/guests/disk.elf");
    let mut guest = Guest::start(&format!(
        "{guest} --disk {first},id=one --disk {second},id=two,engine=async -- irq=1"
    ));
    guest.expect("disk [one]\nok disk");
    guest.expect("disk [two]\nok disk");
    guest.ends_with(0);
    for (path, fill) in [(first, 1), (second, 2)] {
        assert!(fs::read(&path).unwrap() == written(fill), "{path}");
    }
}

/// `count` drives on one file, which the guest may only read.
fn many(count: usize, arguments: &str) {
    let path = disk(&format!("drives-{count}"), 0);
    fs::write(&path, written(0)).unwrap();
    let drives = format!("--disk {path},ro ").repeat(count);
    let mut guest = Guest::start(&format!("{} {drives}{arguments}", file("/guests/disk.elf")));
    for index in 0..count {
        guest.expect(&format!("disk [drive{index}] ro\nok disk {SECTORS} sectors\n"));
    }
    guest.ends_with(0);
}

#[test]
fn as_many_drives_work_as_there_can_be() {
    many(18, "");
}

/// Both 8259s have some.
#[test]
fn as_many_drives_interrupt_as_the_pic_has_lines_for() {
    many(10, "-- irq=1");
}

#[test]
fn drives_survive_a_hostile_guest() {
    let (first, second) = (disk("hostile-sync", 3), disk("hostile-async", 4));
    let guest = file("/guests/hostile.elf");
    let mut guest = Guest::start(&format!(
        "{guest} --disk {first},cache=writeback --disk {second},engine=async"
    ));
    guest.expect("ok hostile 2 devices");
    guest.ends_with(0);
    for (path, fill) in [(first, 3), (second, 4)] {
        assert!(
            fs::read(&path).unwrap() == vec![fill; SECTORS * SECTOR],
            "{path} was written to"
        );
    }
}
