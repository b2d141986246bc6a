//! Breakpoints at two addresses of one place in memory. Not all hosts stop at an instruction in memory; all have its bytes there.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use scratch::Directory;
use vmm::debugger::probe;

use super::IN_MEMORY;
use super::client::{Gdb, symbol};
use crate::api::served::ApiProcess;
use crate::guests::{file, program};
use crate::profile::wait_vcpu_time;

/// Starts `crash.elf`, which loops in `third`.
fn start() -> ApiProcess {
    let directory = Directory::new();
    let mut command = Command::new(program());
    command.args(["run", &file("crash.elf"), "--memory", "16M"]);
    command.args(["--api-sock", &directory.text("api.sock")]);
    let mut process = ApiProcess::spawn(directory, command.args(["--", "wait=1"]));
    process.expect("crashing\n");
    // It prints before the loop.
    wait_vcpu_time(process.id(), Duration::from_millis(50));
    process
}

/// Attaches, once an earlier debugger has detached.
fn attach(process: &ApiProcess, abilities: &str) -> Gdb {
    scratch::wait_for("the end of the earlier session", || {
        Gdb::try_attach(&process.socket(), abilities)
    })
}

/// Maps the memory of the guest a second time. Returns the second address of `place`.
fn add_alias(gdb: &mut Gdb, place: u64) -> u64 {
    let image = file("crash.elf");
    if cfg!(target_arch = "x86_64") {
        // The first entry of the upper half of the PML4.
        let table = symbol(&image, "pml4");
        let lower = gdb.word(table);
        gdb.set_word(table + 8 * 256, lower);
        return place | 0xffff_8000_0000_0000;
    }
    // A table of the first level, with an entry for each GiB.
    let (table, gib) = (symbol(&image, "translation_table"), place >> 30);
    let entry = gdb.word(table + 8 * gib);
    gdb.set_word(table + 8 * 100, entry);
    100 << 30 | place & 0x3fff_ffff
}

/// Memory of the process at a place of the guest, which the debugger shows without its breakpoints.
struct RawMemory {
    file: File,
    offset: u64,
}

impl RawMemory {
    /// Finds the memory of `place` by the code behind it. No breakpoint is set.
    fn find(process: &ApiProcess, gdb: &mut Gdb, place: u64) -> Self {
        const SKIPPED: u64 = 8;
        let code: Vec<u8> = (1..5)
            .flat_map(|word| gdb.word(place + word * SKIPPED).to_le_bytes())
            .collect();
        let file = File::open(format!("/proc/{}/mem", process.id())).unwrap();
        let maps = fs::read_to_string(format!("/proc/{}/maps", process.id())).unwrap();
        let found = maps.lines().find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
            // Guest memory, or the part of it that is mapped from the image.
            let mut bytes = vec![0; usize::try_from(end - start).ok()?.min(32 << 20)];
            let is_read = rest.starts_with("rw") && file.read_exact_at(&mut bytes, start).is_ok();
            let mut windows = bytes.windows(code.len());
            let index = windows.position(|window| is_read && window == code)?;
            Some(start + index as u64 - SKIPPED)
        });
        let offset = found.expect("guest memory in the process");
        Self { file, offset }
    }

    fn word(&self) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, self.offset).unwrap();
        u64::from_le_bytes(bytes)
    }
}

/// Runs the guest until its loop has made progress, and stops it.
fn expect_progress(gdb: &mut Gdb, process: &ApiProcess) {
    let rounds = symbol(&file("crash.elf"), "rounds");
    let before = gdb.word(rounds);
    gdb.send("vCont;c");
    wait_vcpu_time(process.id(), Duration::from_millis(50));
    gdb.send_raw(&[3]);
    let stop = gdb.receive();
    assert!(stop.starts_with("T02"), "the breakpoint is left: {stop}");
    assert!(gdb.word(rounds) > before);
}

#[test]
fn breakpoints_at_both_addresses_of_a_place_leave_its_bytes() {
    let process = start();
    let mut gdb = attach(&process, IN_MEMORY);
    let ip = gdb.ip();
    let alias = add_alias(&mut gdb, ip);
    let original = gdb.word(ip);
    assert_eq!(gdb.word(alias), original);
    let raw = RawMemory::find(&process, &mut gdb, ip);
    assert_eq!(raw.word(), original);
    for [first, second] in [[ip, alias], [alias, ip]] {
        for place in [ip, alias] {
            assert_eq!(gdb.set_breakpoint(place), "OK");
        }
        assert_eq!((gdb.word(ip), gdb.word(alias)), (original, original));
        let instruction = raw.word();
        assert_ne!(instruction, original);
        gdb.remove_breakpoint(first);
        assert_eq!(raw.word(), instruction, "the other one is left");
        assert_eq!((gdb.word(ip), gdb.word(alias)), (original, original));
        gdb.remove_breakpoint(second);
        assert_eq!(raw.word(), original);
        // The loop executes the place again.
        expect_progress(&mut gdb, &process);
    }
    // A debugger that breaks off with both.
    for place in [ip, alias] {
        assert_eq!(gdb.set_breakpoint(place), "OK");
    }
    drop(gdb);
    let mut gdb = attach(&process, IN_MEMORY);
    assert_eq!((gdb.word(ip), gdb.word(alias)), (original, original));
    expect_progress(&mut gdb, &process);
    drop(gdb);
    process.terminate();
}

/// An instruction in memory stops the guest at each address of its place. A debug register has one address.
#[test]
fn breakpoints_stop_at_both_addresses() {
    let has_memory = probe().unwrap().has_software_breakpoints;
    let process = start();
    let mut gdb = match has_memory {
        true => attach(&process, IN_MEMORY),
        false => attach(&process, r#"{"hardware_breakpoints":true}"#),
    };
    let ip = gdb.ip();
    let alias = add_alias(&mut gdb, ip);
    let set = if has_memory { vec![ip] } else { vec![ip, alias] };
    for place in &set {
        assert_eq!(gdb.set_breakpoint(*place), "OK");
    }
    let pointer = if cfg!(target_arch = "x86_64") { "rip" } else { "pc" };
    for place in [ip, alias, ip] {
        gdb.set_register(pointer, place);
        let stop = gdb.resume();
        assert!(stop.contains("swbreak"), "{place:#x}: {stop}");
        assert_eq!(gdb.ip(), place);
    }
    set.iter().for_each(|place| gdb.remove_breakpoint(*place));
    expect_progress(&mut gdb, &process);
    drop(gdb);
    process.terminate();
}
