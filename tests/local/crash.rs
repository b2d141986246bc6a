//! Reports and snapshots of crashes.

use std::fs;
use std::process::{Command, Output, Stdio};

use scratch::Directory;

use crate::guests::{file, program};

/// Exit statuses after a triple fault, and after an error of KVM.
#[cfg(target_arch = "x86_64")]
const TRIPLE_FAULT: i32 = 120;
const FAULT: i32 = 121;

/// Argument of `crash.elf` for an access that KVM cannot emulate.
const MMIO: [&str; 2] = ["--", "mmio=1"];

fn mayfly(arguments: &[&str]) -> Output {
    scratch::run(Command::new(program()).args(arguments).stdin(Stdio::null()))
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs the guest `name` with `options` to its crash. Returns the messages.
fn crash(name: &str, options: &[&str], arguments: &[&str], status: i32) -> String {
    let path = file(name);
    let output = mayfly(&[&["run", &path, "--memory", "16M"], options, arguments].concat());
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "crashing\n");
    text
}

/// Checks that the lines of `text` after the heading list `functions`, each with an address and an offset.
fn expect_backtrace(text: &str, heading: &str, functions: &[&str]) {
    let mut lines = text.lines().skip_while(|line| *line != heading).skip(1);
    for (index, function) in functions.iter().enumerate() {
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("no line for {function}: {text}"));
        let words: Vec<_> = line.split_whitespace().collect();
        let (number, place) = (format!("#{index}"), format!("{function}+0x"));
        assert_eq!(words[0], number, "{text}");
        assert!(
            words[1].starts_with("0x") && words[2].starts_with(&place),
            "{text}"
        );
    }
}

const BACKTRACE: &str = "mayfly: backtrace of vCPU 0 by frame pointers";

/// The functions of `crash.elf`, the innermost first. The entry code that calls the last one has another name on each architecture.
const FUNCTIONS: [&str; 4] = ["third", "second", "first", "guest"];

/// A processor of AMD keeps no registers of a triple fault.
#[cfg(target_arch = "x86_64")]
#[test]
fn triple_fault_is_reported_with_functions() {
    let text = crash("crash.elf", &[], &[], TRIPLE_FAULT);
    assert!(text.starts_with("mayfly: the guest stopped"), "{text}");
    if text.contains("the guest stopped at") {
        assert!(text.contains(" (third+0x"), "{text}");
        expect_backtrace(&text, BACKTRACE, &FUNCTIONS);
    }
}

#[test]
fn kvm_error_is_reported_with_functions() {
    let text = crash("crash.elf", &[], &MMIO, FAULT);
    assert!(
        text.contains(" (third+0x") && text.contains(") of vCPU 0, instruction bytes "),
        "{text}"
    );
    expect_backtrace(&text, BACKTRACE, &FUNCTIONS);
}

#[test]
fn backtrace_without_frame_pointers_is_marked() {
    let text = crash("crash-bare.elf", &[], &MMIO, FAULT);
    let heading = format!(
        "{BACKTRACE}, unreliable: third keeps no frame pointer; build the image with -fno-omit-frame-pointer"
    );
    expect_backtrace(&text, &heading, &["third"]);
}

#[test]
fn image_without_symbols_has_addresses_alone() {
    let directory = Directory::new();
    let stripped = directory.text("stripped.elf");
    let bytes = fs::read(file("crash.elf")).unwrap();
    // e_shoff, e_shnum: no sections.
    let mut bytes = bytes;
    bytes[40..48].fill(0);
    bytes[60..62].fill(0);
    fs::write(&stripped, bytes).unwrap();
    let output = mayfly(&["run", &stripped, "--", "mmio=1"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(FAULT), "{text}");
    let heading = format!("{BACKTRACE}, unreliable: no symbols were found\n  #0 0x");
    assert!(text.contains(&heading), "{text}");
    assert!(!text.contains("third"), "{text}");
}

/// Seccomp filters and Landlock are in force.
#[test]
fn crash_leaves_snapshot_that_repeats_it() {
    let directory = Directory::new();
    let path = directory.text("");
    let text = crash("crash.elf", &["--core-on-crash", &path], &MMIO, FAULT);
    let canonical = fs::canonicalize(&path).unwrap();
    let created = format!(
        "mayfly: snapshot of the crash created in {0}; run mayfly core {0} FILE for an ELF core of it\n",
        canonical.display()
    );
    assert!(text.starts_with(&created), "{text}");
    // Without the right to open the image, there are addresses alone.
    let output = mayfly(&["restore", &path]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(FAULT), "{text}");
    assert!(text.contains("unreliable: no symbols were found"), "{text}");
    let image = file("crash.elf");
    let parent = std::path::Path::new(&image).parent().unwrap().to_str().unwrap();
    let text = stderr(&mayfly(&["restore", &path, "--allow", parent]));
    expect_backtrace(&text, BACKTRACE, &FUNCTIONS);
    let text = stderr(&mayfly(&["restore", &path, "--allow", parent, "--untrusted"]));
    assert!(text.contains("unreliable: no symbols were found"), "{text}");
}

#[test]
fn missing_crash_directory_is_rejected_at_start() {
    let output = mayfly(&["run", &file("crash.elf"), "--core-on-crash", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        "mayfly: cannot create snapshots in /nonexistent; name a directory that exists and is writable (--core-on-crash DIR): \
         No such file or directory (os error 2)\n"
    );
}

/// A snapshot that cannot be written does not hide the crash.
#[test]
fn crash_is_reported_without_its_snapshot() {
    let directory = Directory::new();
    fs::create_dir(directory.path("state")).unwrap();
    let text = crash(
        "crash.elf",
        &["--core-on-crash", &directory.text("")],
        &MMIO,
        FAULT,
    );
    assert!(
        text.starts_with("mayfly: cannot create a snapshot of the crash: cannot write the state file: "),
        "{text}"
    );
    expect_backtrace(&text, BACKTRACE, &FUNCTIONS);
}
