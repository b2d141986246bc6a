//! The command line without KVM: help, versions, and one invalid input of each kind with its message and exit status.

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn mayfly(arguments: &[impl AsRef<OsStr>]) -> Output {
    scratch::run(Command::new(env!("CARGO_BIN_EXE_mayfly")).args(arguments))
}

/// Runs mayfly, expects `status` and one line on stderr only, and returns that line.
fn expect_error(arguments: &[impl AsRef<OsStr> + Debug], status: i32) -> String {
    let output = mayfly(arguments);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {message}");
    assert!(output.stdout.is_empty());
    assert_eq!(message.lines().count(), 1, "{message}");
    message.strip_prefix("mayfly: ").unwrap().trim_end().to_owned()
}

fn path(name: &str) -> PathBuf {
    scratch::process_path(name)
}

fn file(name: &str, content: &[u8]) -> String {
    let path = path(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Returns the program of these tests: a 64-bit ELF file of this architecture, though not a bootable one.
fn program() -> Vec<u8> {
    fs::read(std::env::current_exe().unwrap()).unwrap()
}

#[test]
fn help_succeeds_and_fits_the_terminal() {
    for (arguments, text) in [
        (&["--help"][..], "run KERNEL [OPTION ...] [-- GUEST ARGUMENTS]"),
        (&["run", "--help"], "2     usage error"),
        (
            &["help", "inspect"],
            "mayfly inspect - show format, segments and boot protocols of an image",
        ),
        (&["demo", "-h"], "Needs nothing but /dev/kvm"),
        (&["help", "restore"], "load a snapshot and resume the VM"),
        (&["help", "snapshot"], "mayfly snapshot-merge DIR DIFF"),
        (&["help", "firecracker"], "153   usage error"),
        (&["help", "ctl"], "text format of Prometheus"),
        (&["help", "core"], "gdb IMAGE FILE"),
        (&["core", "--help"], "gdb IMAGE FILE"),
        (&["help", "doctor"], "mayfly cannot run a guest"),
        (&["doctor", "--help"], "Landlock"),
        (&["help", "version"], "snapshot_format"),
        (&["version"], concat!("mayfly ", env!("CARGO_PKG_VERSION"), "\n")),
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
fn usage_error_names_the_argument() {
    for (arguments, text) in [
        (&[][..] as &[&str], "missing command; run mayfly --help"),
        (&["boot"], "\"boot\" is not a command; run mayfly --help"),
        (&["run"], "missing the path of an image; run mayfly run KERNEL"),
        (
            &["run", "a", "b"],
            "\"b\" is an unexpected argument; guest arguments follow a lone --",
        ),
        (
            &["run", "a", "--fast"],
            "invalid option '--fast'; run mayfly run --help",
        ),
        (
            &["run", "a", "--memory", "lots"],
            "--memory \"lots\": \"lots\" is not a size",
        ),
        (
            &["run", "a", "--memory", "-1"],
            "--memory \"-1\": \"-1\" is not a size",
        ),
        (
            &["run", "a", "--cpus", "two"],
            "--cpus \"two\": expected a number",
        ),
        (
            &["run", "a", "--protocol", "efi"],
            "--protocol \"efi\": \"efi\" is no boot protocol",
        ),
        (
            &["run", "a", "--irqchip", "off"],
            "--irqchip \"off\": \"off\" is not an interrupt controller mode",
        ),
    ] {
        let message = expect_error(arguments, 2);
        assert!(message.starts_with(text), "{arguments:?}: {message}");
    }
}

#[test]
fn value_that_is_not_utf8_is_a_usage_error() {
    let name = OsStr::from_bytes(b"/no/\xff");
    let with = |prefix: &str, suffix: &str| {
        let mut value = OsString::from(prefix);
        value.push(name);
        value.push(suffix);
        value
    };
    for (command, option, value) in [
        ("run", "--disk", with("", ",ro")),
        ("run", "--net", with("unix:", "")),
        ("run", "--serial", with("file:", ".txt")),
        ("run", "--gdb", with("", "")),
        ("run", "--initrd", with("", "")),
        ("restore", "--disk", with("root=", "")),
        ("restore", "--net", with("eth0=unix:", "")),
        ("restore", "--serial", with("unix:", "")),
    ] {
        let arguments = [OsStr::new(command), OsStr::new("a"), OsStr::new(option), &value];
        let message = expect_error(&arguments, 2);
        let expected = format!("{option} {value:?} is not UTF-8; rename the file if it names one");
        assert_eq!(message, expected, "{command}");
    }
    assert_eq!(
        expect_error(&[OsStr::new("run"), name], 2),
        "KERNEL \"/no/\\xFF\" is not UTF-8; rename the file if it names one"
    );
}

#[test]
fn invalid_device_is_named() {
    for (option, value, text) in [
        (
            "--disk",
            ",ro",
            "--disk \",ro\": the value before the first comma is missing",
        ),
        (
            "--disk",
            "d,rw",
            "--disk \"d,rw\": option \"rw\" does not exist; use ro,",
        ),
        (
            "--disk",
            "d,cache=none",
            "--disk \"d,cache=none\": cache=\"none\" is invalid; use unsafe or writeback",
        ),
        (
            "--disk",
            "d,engine=aio",
            "--disk \"d,engine=aio\": engine=\"aio\" is invalid; use sync or async",
        ),
        (
            "--net",
            "tap0",
            "--net \"tap0\": \"tap0\" is invalid; use tap:NAME, fd:NUMBER, unix:PATH or user",
        ),
        (
            "--net",
            "fd:1",
            "--net \"fd:1\": \"fd:1\" is invalid; use fd:NUMBER with a descriptor above 2",
        ),
        (
            "--net",
            "user,mac=1",
            "--net \"user,mac=1\": mac=\"1\" is invalid; use six bytes such as 02:00:00:00:00:01",
        ),
        (
            "--net",
            "user,mtu=9",
            "--net \"user,mtu=9\": mtu=\"9\" is invalid; use a number from 68 to 65535",
        ),
        (
            "--net",
            "user,address=10.0.0.2/32",
            "--net \"user,address=10.0.0.2/32\": address=\"10.0.0.2/32\" is invalid; use a unicast IPv4 address other than loopback, and a prefix",
        ),
        (
            "--net",
            "user,tcp=80:1,tcp=80:2",
            "--net \"user,tcp=80:1,tcp=80:2\": cannot forward TCP 0.0.0.0:80 to guest port 1 and TCP 0.0.0.0:80 to guest port 2",
        ),
        (
            "--net",
            "user,",
            "--net \"user,\": the option after a comma is missing; remove the comma",
        ),
    ] {
        let message = expect_error(&["run", "a", option, value], 2);
        assert!(message.starts_with(text), "{option} {value}: {message}");
    }
}

#[test]
fn invalid_machine_is_rejected_with_its_option() {
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
        let message = expect_error(&["run", &image, option, value], 1);
        assert!(
            message.starts_with(&format!("cannot configure the machine: {text}"))
                && message.contains(&format!("({option} ")),
            "{message}"
        );
    }
}

#[test]
fn shared_address_tap_or_port_is_rejected() {
    let image = file("interfaces.elf", &program());
    for (net, text, option) in [
        (
            "user,mac=02:00:00:00:00:01",
            "cannot attach two network interfaces with the MAC address 02:00:00:00:00:01: change the address of one",
            "--net BACKEND,mac=ADDRESS",
        ),
        (
            "fd:5",
            "cannot attach two network interfaces to descriptor 5: give each its own tap",
            "--net fd:NUMBER",
        ),
        (
            "user,tcp=18082:80",
            "cannot forward TCP 0.0.0.0:18082 to guest port 80 and TCP 0.0.0.0:18082 to guest port 80 for two network interfaces: both \
             listen at this port; change one port",
            "--net user,tcp=PORT,udp=PORT",
        ),
    ] {
        let message = expect_error(&["run", &image, "--net", net, "--net", net], 1);
        assert_eq!(
            message,
            format!("cannot configure the machine: {text} ({option})")
        );
    }
    let mut arguments = vec!["run", &image];
    arguments.extend(["--disk", "d"].repeat(19));
    assert_eq!(
        expect_error(&arguments, 1),
        "cannot configure the machine: cannot attach 19 devices: a VM has at most 18 drives and network interfaces; remove some (--disk, --net)"
    );
}

#[test]
fn file_that_is_no_image_is_identified() {
    let fifo = path("fifo");
    let _ = fs::remove_file(&fifo);
    scratch::make_fifo(&fifo);
    let mut other = program();
    other[18] = 243; // EM_RISCV
    for (path, text) in [
        (path("missing").to_str().unwrap().to_owned(), "no such file"),
        (path("").to_str().unwrap().to_owned(), "directory"),
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
            let message = expect_error(&[command, &path], 1);
            assert!(
                message.contains(&path) && message.contains(text),
                "{message} does not contain {text:?}"
            );
        }
    }
}

#[test]
fn inspect_describes_image_for_multiboot_2() {
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    // Executable for x86_64, version 1; then entry, offsets of both tables, flags, and sizes and counts of the tables.
    for field in [2, 62, 1, 0] {
        image.extend(u16::to_le_bytes(field));
    }
    for field in [0x10_0200_u64, 64, 0] {
        image.extend(field.to_le_bytes());
    }
    for field in [0, 0, 64, 56, 1, 0, 0, 0_u16] {
        image.extend(field.to_le_bytes());
    }
    // PT_LOAD of all of the file, readable and executable.
    for field in [5 << 32 | 1_u64, 0, 0x10_0000, 0x10_0000, 0x210, 0x210, 0x1000] {
        image.extend(field.to_le_bytes());
    }
    image.resize(0x200, 0x90);
    let (magic, length) = (0xe852_50d6_u32, 16_u32);
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(length);
    for field in [magic, 0, length, checksum] {
        image.extend(field.to_le_bytes());
    }
    let path = file("multiboot2.elf", &image);
    let output = mayfly(&["inspect", &path]);
    let text = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "multiboot  no: the multiboot header at byte 0x200 has version 2",
        "mayfly run fails without --protocol",
        "force one of: linux",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    assert!(output.status.success());
}

#[test]
fn initrd_that_is_no_file_is_rejected() {
    let image = file("initrd.elf", &program());
    for (path, text) in [("/nowhere", "no such file"), ("/", "directory")] {
        let message = expect_error(&["run", &image, "--initrd", path], 1);
        assert!(message.contains(path) && message.contains(text), "{message}");
    }
}

#[test]
fn snapshot_format_version_is_printed() {
    let stdout = |arguments: &[&str]| {
        let output = mayfly(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(stdout(&["--snapshot-version"]), "v1.0.0\n");
    let mut bytes = b"mayflyst".to_vec();
    bytes.extend(9_u32.to_le_bytes());
    bytes.resize(48, 0);
    assert_eq!(
        stdout(&["--describe-snapshot", &file("state-9", &bytes)]),
        "v9.0.0\n"
    );
    let other = file("no-state", &[7; 48]);
    let message = expect_error(&["--describe-snapshot", &other], 1);
    assert!(
        message.contains(&other) && message.contains("not a state file of mayfly"),
        "{message}"
    );
    let message = expect_error(&["--describe-snapshot", "/nowhere/state"], 1);
    assert!(message.contains("/nowhere/state"), "{message}");
    expect_error(&["--describe-snapshot"], 153);
}

#[test]
fn public_address_of_debugger_is_rejected_with_its_option() {
    let image = file("debugger.elf", &program());
    let message = expect_error(&["run", &image, "--gdb", "0.0.0.0:0"], 1);
    let expected = "cannot listen for gdb at 0.0.0.0:0: hosts that reach this address would control the VM; use 127.0.0.1 or a Unix \
                    socket, or permit it (--gdb-public)";
    assert_eq!(message, expected);
}

/// Returns the CRC-64/XZ of `bytes`.
fn checksum<'a>(bytes: impl Iterator<Item = &'a u8>) -> u64 {
    !bytes.fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u64::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xC96C_5795_D787_0F42 * (crc & 1))
        })
    })
}

/// Returns a state file with `from` replaced by `to`, of the same length, and a valid checksum.
fn forge_state(name: &str, from: &[u8], to: &[u8]) -> String {
    let source = "vmm/src/arch/x86_64/testdata/2c9d1da.state";
    let mut bytes = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(source)).unwrap();
    let found = bytes.windows(from.len()).position(|window| window == from);
    let start = found.unwrap();
    bytes[start..start + from.len()].copy_from_slice(to);
    let sum = checksum(bytes[..40].iter().chain(&bytes[48..]));
    bytes[40..48].copy_from_slice(&sum.to_le_bytes());
    file(name, &bytes)
}

/// The sequence `ESC ] 0 ; t BEL` sets the title of a terminal. A line feed in a value would add a line.
#[test]
fn hostile_text_does_not_reach_terminal() {
    for (from, to, shown) in [
        (
            &b"blocks.elf"[..],
            &b"\x1b]0;t\x07\nabc"[..],
            "\\u{1b}]0;t\\u{7}\\nabc",
        ),
        (
            b"AuthenticAMD",
            b"\x1b]0;t\x07\nabcde",
            "\\u{1b}]0;t\\u{7}\\nabcde",
        ),
    ] {
        let output = mayfly(&["snapshot-info", &forge_state("forged.state", from, to)]);
        let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{printed}");
        assert!(printed.contains(shown), "{printed:?}");
        assert!(
            !printed.replace('\n', "").contains(char::is_control),
            "{printed:?}"
        );
    }
    let missing = "/missing/\x1b]0;t\x07\n.elf";
    for command in ["run", "inspect", "snapshot-info"] {
        let message = expect_error(&[command, missing], 1);
        assert!(message.contains("]0;t"), "{message:?}");
        assert!(!message.contains(char::is_control), "{message:?}");
    }
}

#[test]
fn doctor_names_each_check_and_its_status() {
    let output = mayfly(&["doctor", "--json"]);
    assert!(output.stderr.is_empty());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(i32::from(report["can_run"] != true)));
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    let names: Vec<&str> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| check["name"].as_str().unwrap())
        .collect();
    for name in [
        "kvm",
        "tun",
        "io_uring",
        "userfaultfd",
        "landlock",
        "seccomp",
        "cgroups",
    ] {
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
    let message = expect_error(&["doctor", "--fast"], 2);
    assert_eq!(message, "invalid option '--fast'; run mayfly doctor --help");
}

#[test]
fn usage_error_of_standby_is_printed_once() {
    for (arguments, text) in [
        (
            &["standby", "--fast"][..],
            "invalid option '--fast'; run mayfly standby --help",
        ),
        (
            &["standby", "--api-sock"],
            "missing argument for option '--api-sock'; run mayfly standby --help",
        ),
    ] {
        assert_eq!(expect_error(arguments, 2), text);
    }
}

#[test]
fn missing_program_of_a_command_is_named() {
    let directory = scratch::Directory::new();
    let alone = directory.path("mayfly");
    // Another process copies it: a child of another test may inherit a file that this process writes, and the kernel executes no such
    // file (ETXTBSY).
    let copied = scratch::run(Command::new("cp").arg(env!("CARGO_BIN_EXE_mayfly")).arg(&alone));
    assert!(copied.status.success(), "{copied:?}");
    for (arguments, program) in [
        (&["doctor"][..], "mayfly-tools"),
        (&["help", "doctor"], "mayfly-tools"),
        (&["ctl", "status"], "mayfly-tools"),
        (&["help", "ctl"], "mayfly-tools"),
        (&["standby"], "mayfly-standby"),
        (&["help", "standby"], "mayfly-standby"),
    ] {
        let output = scratch::run(Command::new(&alone).args(arguments).env("PATH", "/nonexistent"));
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            format!(
                "mayfly: cannot execute {program}; install it in the directory of mayfly, or in a directory of PATH: No such file or \
                 directory (os error 2)\n"
            )
        );
    }
    let tools = directory.write("mayfly-tools", "");
    let output = scratch::run(Command::new(&alone).arg("doctor"));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!("mayfly: cannot execute {tools:?}; install mayfly again: Permission denied (os error 13)\n")
    );
}

#[test]
fn versions_are_those_of_the_other_commands() {
    let output = mayfly(&["version", "--json"]);
    assert!(output.status.success() && output.stderr.is_empty());
    let versions: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(versions["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(versions["architecture"], std::env::consts::ARCH);
    let format = String::from_utf8(mayfly(&["--snapshot-version"]).stdout).unwrap();
    assert_eq!(
        format!("v{}\n", versions["snapshot_format"].as_str().unwrap()),
        format
    );
    let directory = scratch::Directory::new();
    let firecracker = directory.path("firecracker");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_mayfly"), &firecracker).unwrap();
    let output = scratch::run(Command::new(firecracker).arg("--version"));
    let line = format!(
        "Firecracker v{}\n\n",
        versions["firecracker_api"].as_str().unwrap()
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), line);
    // Tests of a build with a commit have it in their environment.
    let commit = option_env!("MAYFLY_COMMIT");
    assert_eq!(versions["commit"].as_str(), commit);
}
