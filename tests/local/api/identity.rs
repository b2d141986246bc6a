//! Identity records of clones, as the guest `generation.elf` finds them.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::served::{ApiProcess, Directory, RESUMED, create_snapshot, load_snapshot, pause_and_create};
use super::uffd::{FaultHandler, load_with_handler};
use crate::guests::file;

/// Guest-physical address of the record, which is also its offset in a memory file.
const RECORD: u64 = 0xf_f000;
const RESUME: &str = r#","resume_vm":true"#;

/// Waits for the report of the guest with `counter`. Returns generation ID and randomness in hexadecimal.
fn read_random(process: &mut ApiProcess, counter: u32) -> String {
    process.expect(&format!("identity {counter} "));
    let line = process.read_line();
    let (random, interrupts) = line.split_once(" interrupts ").unwrap();
    // One at each load.
    assert_eq!(interrupts, counter.to_string());
    random.to_owned()
}

/// Boots the guest, and creates a snapshot in the files `state` and `memory`. Returns ID and randomness too.
fn create_source() -> (Directory, String) {
    let directory = Directory::new();
    let mut process = ApiProcess::start();
    let kernel = file("generation.elf");
    let boot = format!(r#"{{"kernel_image_path":"{kernel}","boot_args":"ioapic=1"}}"#);
    process.expect_no_content("PUT", "/boot-source", &boot);
    process.run_action("InstanceStart");
    let random = read_random(&mut process, 0);
    pause_and_create(&process, &directory, "Full", "state", "memory");
    process.kill();
    (directory, random)
}

/// Returns counter, ID and randomness in the memory file at `name`.
fn read_record(directory: &Directory, name: &str) -> (u64, String) {
    let mut bytes = [0; 96];
    let memory = File::open(directory.path(name)).unwrap();
    memory.read_exact_at(&mut bytes, RECORD).unwrap();
    assert_eq!(&bytes[..8], b"MAYFLYID");
    let words: Vec<u64> = bytes[8..]
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    // The guest prints words.
    let hex = |words: &[u64]| {
        words
            .iter()
            .map(|word| format!("{word:016x}"))
            .collect::<String>()
    };
    (words[0], format!("{} {}", hex(&words[1..3]), hex(&words[3..])))
}

#[test]
fn clones_of_one_snapshot_have_identities_of_their_own() {
    let (directory, booted) = create_source();
    assert_eq!(read_record(&directory, "memory"), (0, booted.clone()));
    let mut seen = vec![booted];
    for _ in 0..3 {
        let mut clone = load_snapshot(&directory, "state", "memory", RESUME);
        let handler = FaultHandler::start(&directory, "memory");
        let mut served = load_with_handler(&directory, "state", RESUME);
        for clone in [&mut clone, &mut served] {
            let random = read_random(clone, 1);
            assert!(!seen.contains(&random), "{random} repeats");
            seen.push(random);
        }
        clone.kill();
        served.kill();
        handler.join();
    }
}

#[test]
fn snapshots_of_clone_hold_its_identity() {
    for fields in ["", r#","track_dirty_pages":true"#] {
        let (directory, booted) = create_source();
        let handler = FaultHandler::start(&directory, "memory");
        let fields = format!("{fields}{RESUME}");
        let clone = load_snapshot(&directory, "state", "memory", &fields);
        let served = load_with_handler(&directory, "state", &fields);
        for mut clone in [clone, served] {
            let random = read_random(&mut clone, 1);
            assert_ne!(random, booted);
            // It is the only copy of the page.
            pause_and_create(&clone, &directory, "Diff", "diff-state", "diff");
            assert_eq!(read_record(&directory, "diff"), (1, random.clone()));
            let created = create_snapshot(&clone, &directory, "Full", "state-2", "memory-2");
            assert_eq!(created.status(), 204, "{}", created.text);
            assert_eq!(read_record(&directory, "memory-2"), (1, random.clone()));
            clone.kill();
            let mut next = load_snapshot(&directory, "state-2", "memory-2", RESUME);
            assert_ne!(read_random(&mut next, 2), random);
            next.kill();
        }
        handler.join();
    }
}

/// Its snapshot holds the record of the source, and the clone of that snapshot gets another one.
#[test]
fn unresumed_clone_writes_no_record() {
    let (directory, booted) = create_source();
    let clone = load_snapshot(&directory, "state", "memory", "");
    let created = create_snapshot(&clone, &directory, "Full", "state-2", "memory-2");
    assert_eq!(created.status(), 204, "{}", created.text);
    assert_eq!(read_record(&directory, "memory-2"), (0, booted.clone()));
    clone.kill();
    let mut next = load_snapshot(&directory, "state-2", "memory-2", "");
    next.expect_no_content("PATCH", "/vm", RESUMED);
    next.expect("identity 2 ");
    assert!(!next.read_line().starts_with(&booted));
    next.kill();
}
