//! The command line without KVM: help, versions, and one wrong input of each kind with its message and exit status.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn mayfly(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mayfly"))
        .args(arguments)
        .output()
        .unwrap()
}

/// What mayfly says when it refuses `arguments` with `status`: one line, on stderr only.
fn refusal(arguments: &[&str], status: i32) -> String {
    let output = mayfly(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty());
    assert_eq!(said.lines().count(), 1, "{said}");
    said.strip_prefix("mayfly: ").unwrap().trim_end().to_owned()
}

fn place(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli");
    fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

fn file(name: &str, content: &[u8]) -> String {
    let path = place(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The 64-bit program that these tests are, which is an ELF image of this architecture, if no bootable one.
fn program() -> Vec<u8> {
    fs::read(std::env::current_exe().unwrap()).unwrap()
}

#[test]
fn help_teaches_and_succeeds() {
    for (arguments, text) in [
        (
            &["--help"][..],
            "usage: mayfly run KERNEL [OPTION ...] [-- GUEST ARGUMENTS]",
        ),
        (&["run", "--help"], "exit status:"),
        (
            &["help", "inspect"],
            "mayfly inspect - say what booting an image would do",
        ),
        (&["demo", "-h"], "Needs nothing but /dev/kvm"),
        (
            &["--version"],
            concat!("mayfly ", env!("CARGO_PKG_VERSION"), "\n"),
        ),
    ] {
        let output = mayfly(arguments);
        assert!(output.status.success() && output.stderr.is_empty());
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains(text), "{arguments:?} prints {help}");
        assert!(help.lines().all(|line| line.len() <= 120), "{help}");
    }
}

#[test]
fn words_that_make_no_sense_are_named() {
    for (arguments, text) in [
        (&[][..], "no command: try mayfly --help"),
        (&["boot"], "there is no command \"boot\": try mayfly --help"),
        (
            &["run"],
            "mayfly run needs the path of an image: mayfly run KERNEL",
        ),
        (
            &["run", "a", "b"],
            "\"b\" is one word too many; what is meant for the guest comes after a lone --",
        ),
        (
            &["run", "a", "--fast"],
            "invalid option '--fast': try mayfly run --help",
        ),
        (
            &["run", "a", "--memory", "lots"],
            "--memory \"lots\": \"lots\" is no size",
        ),
        (
            &["run", "a", "--memory", "-1"],
            "--memory \"-1\": \"-1\" is no size",
        ),
        (
            &["run", "a", "--cpus", "two"],
            "--cpus \"two\": a number is needed",
        ),
        (
            &["run", "a", "--protocol", "efi"],
            "--protocol \"efi\": \"efi\" is no boot protocol",
        ),
        (
            &["run", "a", "--irqchip", "off"],
            "--irqchip \"off\": \"off\" is no interrupt controller",
        ),
    ] {
        let said = refusal(arguments, 2);
        assert!(said.starts_with(text), "{arguments:?}: {said}");
    }
}

#[test]
fn devices_that_make_no_sense_are_named() {
    for (option, value, text) in [
        (
            "--disk",
            ",ro",
            "--disk \",ro\": there is nothing before the first comma",
        ),
        (
            "--disk",
            "d,rw",
            "--disk \"d,rw\": there is no option \"rw\": there are ro,",
        ),
        (
            "--disk",
            "d,cache=none",
            "--disk \"d,cache=none\": cache=\"none\": it is unsafe or writeback",
        ),
        (
            "--disk",
            "d,engine=aio",
            "--disk \"d,engine=aio\": engine=\"aio\": it is sync or async",
        ),
        (
            "--net",
            "tap0",
            "--net \"tap0\": --net=\"tap0\": it is tap:NAME, fd:NUMBER, unix:PATH or user",
        ),
        (
            "--net",
            "fd:1",
            "--net \"fd:1\": fd=\"fd:1\": it is a descriptor above 2",
        ),
        (
            "--net",
            "user,mac=1",
            "--net \"user,mac=1\": mac=\"1\": it is six bytes such as 02:00:00:00:00:01",
        ),
        (
            "--net",
            "user,mtu=9",
            "--net \"user,mtu=9\": mtu=\"9\": it is a number from 68 to 65535",
        ),
    ] {
        let said = refusal(&["run", "a", option, value], 2);
        assert!(said.starts_with(text), "{option} {value}: {said}");
    }
}

#[test]
fn machines_that_cannot_be_are_refused() {
    let image = file("machines.elf", &program());
    for (option, value, text) in [
        (
            "--memory",
            "0",
            "cannot use 0B of guest memory: a VM has at least 1M",
        ),
        (
            "--memory",
            "512K",
            "cannot use 512K of guest memory: a VM has at least 1M",
        ),
        (
            "--memory",
            "1000T",
            "cannot use 1000T of guest memory: this host has ",
        ),
        ("--cpus", "0", "cannot create 0 vCPUs: a VM has 1 to 32"),
        ("--cpus", "33", "cannot create 33 vCPUs: a VM has 1 to 32"),
    ] {
        let said = refusal(&["run", &image, option, value], 1);
        assert!(
            said.starts_with(&format!("cannot make this machine: {text}")),
            "{said}"
        );
    }
}

#[test]
fn interfaces_that_share_are_refused() {
    let image = file("interfaces.elf", &program());
    for (net, text) in [
        (
            "user,mac=02:00:00:00:00:01",
            "cannot attach two network interfaces with the MAC address 02:00:00:00:00:01: change the address of one",
        ),
        (
            "fd:5",
            "cannot attach two network interfaces to descriptor 5: give each its own tap",
        ),
    ] {
        let said = refusal(&["run", &image, "--net", net, "--net", net], 1);
        assert_eq!(said, format!("cannot make this machine: {text}"));
    }
    let mut arguments = vec!["run", &image];
    arguments.extend(["--disk", "d"].repeat(19));
    assert_eq!(
        refusal(&arguments, 1),
        "cannot make this machine: cannot attach 19 devices: a VM has at most 18 drives and network interfaces; remove some"
    );
}

#[test]
fn files_that_are_no_images_say_what_they_are() {
    let fifo = place("fifo");
    let _ = fs::remove_file(&fifo);
    scratch::make_fifo(&fifo);
    let mut other = program();
    other[18] = 243; // EM_RISCV
    for (path, text) in [
        (place("missing").to_str().unwrap().to_owned(), "no such file"),
        (place("").to_str().unwrap().to_owned(), "directory"),
        (fifo.to_str().unwrap().to_owned(), "FIFO"),
        ("/dev/null".into(), "device"),
        (file("empty", b""), "empty"),
        (
            file("text", b"hello, world\n"),
            "as an image of a kernel or unikernel",
        ),
        (file("script", b"#!/bin/sh\n"), "script"),
        (file("packed", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0]), "gzip"),
        (file("other", &other), "RISC-V"),
        (file("cut", &program()[..40]), "truncated"),
    ] {
        for command in ["run", "inspect"] {
            let said = refusal(&[command, &path], 1);
            assert!(
                said.contains(&path) && said.contains(text),
                "{said} does not say {text:?}"
            );
        }
    }
}

#[test]
fn an_initrd_must_be_a_file() {
    let image = file("initrd.elf", &program());
    for (path, text) in [("/nowhere", "no such file"), ("/", "directory")] {
        let said = refusal(&["run", &image, "--initrd", path], 1);
        assert!(said.contains(path) && said.contains(text), "{said}");
    }
}

#[test]
fn formats_of_snapshots_have_versions() {
    let said = |arguments: &[&str]| {
        let output = mayfly(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(said(&["--snapshot-version"]), "v1.0.0\n");
    let mut bytes = b"mayflyst".to_vec();
    bytes.extend(9_u32.to_le_bytes());
    bytes.resize(48, 0);
    assert_eq!(
        said(&["--describe-snapshot", &file("state-9", &bytes)]),
        "v9.0.0\n"
    );
    let other = file("no-state", &[7; 48]);
    let why = refusal(&["--describe-snapshot", &other], 1);
    assert!(
        why.contains(&other) && why.contains("not a state file of mayfly"),
        "{why}"
    );
    let why = refusal(&["--describe-snapshot", "/nowhere/state"], 1);
    assert!(why.contains("/nowhere/state"), "{why}");
    refusal(&["--describe-snapshot"], 153);
}
