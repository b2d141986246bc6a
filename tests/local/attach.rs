//! Drives and interfaces that cannot be: each is refused with the way out. KVM is asked before they are.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chroot};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::access::{KVM, bare_root, make_node};
use crate::guest::Guest;
use crate::guests::{file, program};
use crate::network::{in_own_network, output_of};

/// `CAP_NET_ADMIN` of linux/capability.h.
const NET_ADMIN: libc::c_ulong = 12;

/// `mayfly run` of a guest that needs no device, with `options`, separated by blanks.
fn run(options: &str) -> Command {
    let mut command = Command::new(program());
    command.arg("run").arg(file("hello.elf"));
    command.args(options.split(' ')).stdin(Stdio::null());
    command
}

/// `command` is refused before the guest runs, in one line that has all of `texts`.
fn expect_error(mut command: Command, texts: &[&str]) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
    assert!(
        output.stdout.is_empty() && said.lines().count() == 1,
        "{command:?}: {said}"
    );
    for text in texts {
        assert!(said.contains(text), "{command:?}: {said} does not say {text:?}");
    }
}

fn place(name: &str) -> String {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("attach");
    fs::create_dir_all(&folder).unwrap();
    folder.join(name).to_str().unwrap().to_owned()
}

fn disk(name: &str, length: usize) -> String {
    let path = place(name);
    fs::write(&path, vec![0; length]).unwrap();
    path
}

#[test]
fn a_disk_must_be_one() {
    let fifo = place("fifo");
    let _ = fs::remove_file(&fifo);
    scratch::make_fifo(Path::new(&fifo));
    for (path, text) in [
        (place("missing"), "it does not exist; create it"),
        (
            disk("empty", 0),
            "it is empty; set its size, for example with `truncate -s 1G`",
        ),
        (
            disk("odd", 700),
            "its size of 700 bytes is not a multiple of 512; use a raw image",
        ),
        (
            place(""),
            "it is a directory; use a raw image file or a block device",
        ),
        (fifo, "it is neither a file nor a block device"),
    ] {
        for options in ["", ",ro", ",engine=async"] {
            let command = run(&format!("--disk {path}{options}"));
            expect_error(
                command,
                &[
                    "cannot use the disk of drive \"drive0\"",
                    path.trim_end_matches('/'),
                    text,
                ],
            );
        }
    }
}

#[test]
fn a_disk_has_one_writer() {
    let path = disk("shared", 1024);
    let text = "another drive or VM uses it; only read-only drives can share a disk";
    for (first, second) in [("", ""), (",ro", ""), ("", ",ro")] {
        let command = run(&format!("--disk {path}{first} --disk {path}{second}"));
        expect_error(command, &["cannot use the disk of drive \"drive1\"", &path, text]);
    }
    let readers = run(&format!("--disk {path},ro --disk {path},ro"))
        .output()
        .unwrap();
    assert!(readers.status.success(), "{readers:?}");

    let mut other = Guest::start(&format!("{} --disk {path}", file("end-hlt.elf")));
    other.expect("halting");
    expect_error(
        run(&format!("--disk {path}")),
        &["cannot use the disk of drive \"drive0\"", &path, text],
    );
    other.terminate();
}

#[test]
fn a_disk_is_one_by_whatever_name() {
    let path = disk("named", 1024);
    let other = place("named-otherwise");
    let _ = fs::remove_file(&other);
    fs::hard_link(&path, &other).unwrap();
    let text = "another drive or VM uses it; only read-only drives can share a disk";
    for (first, second) in [("", ""), (",ro", ""), ("", ",ro")] {
        let command = run(&format!("--disk {path}{first} --disk {other}{second}"));
        expect_error(
            command,
            &["cannot use the disk of drive \"drive1\"", &other, text],
        );
    }
}

#[test]
fn a_tap_must_be_one() {
    in_own_network(|| {
        output_of("ip tuntap add several mode tap multi_queue");
        for (net, text) in [
            (
                "tap:none",
                "cannot open tap interface none: it does not exist; create it with `ip tuntap add none mode tap user $USER`",
            ),
            (
                "tap:several",
                "cannot open tap interface several: it has several queues, and the device supports one; recreate it with `ip tuntap del",
            ),
            (
                "tap:lo",
                "cannot open tap interface lo: it is not a tap; create one with `ip tuntap add",
            ),
            ("tap:sixteen-letters-", "is not an interface name: 1 to 15 bytes"),
            ("tap:a/b", "is not an interface name"),
            ("fd:99", "cannot use descriptor 99: it is not a tap"),
        ] {
            let command = run(&format!("--net {net}"));
            expect_error(command, &["cannot attach network interface \"net0\"", text]);
        }
    });
}

#[test]
fn a_descriptor_of_something_else_is_no_tap() {
    let null = fs::File::open("/dev/null").unwrap();
    let mut command = run("--net fd:9");
    let give = move || {
        // SAFETY: the call takes no pointer.
        match unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), 9) } {
            9 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: what runs between fork and exec makes system calls only.
    unsafe { command.pre_exec(give) };
    expect_error(command, &["cannot use descriptor 9: it is not a tap"]);
}

#[test]
fn a_tap_has_one_user() {
    in_own_network(|| {
        output_of("ip tuntap add tap0 mode tap");
        let text = "cannot open tap interface tap0: another process uses it; stop that process, or create another interface";
        expect_error(
            run("--net tap:tap0 --net tap:tap0"),
            &["cannot attach network interface \"net1\"", text],
        );
        let mut other = Guest::start(&format!("{} --net tap:tap0", file("end-hlt.elf")));
        other.expect("halting");
        expect_error(
            run("--net tap:tap0"),
            &["cannot attach network interface \"net0\"", text],
        );
        other.terminate();
    });
}

#[test]
fn a_tap_takes_rights() {
    in_own_network(|| {
        output_of("ip tuntap add theirs mode tap user 12345");
        for (net, text) in [
            (
                "tap:theirs",
                "cannot open tap interface theirs: it belongs to another user; recreate it with `ip tuntap del theirs",
            ),
            (
                "tap:none",
                "cannot open tap interface none: it does not exist; create it with `ip tuntap add none",
            ),
        ] {
            let mut command = run(&format!("--net {net}"));
            let drop_right = || {
                // SAFETY: the call takes no pointer.
                match unsafe { libc::prctl(libc::PR_CAPBSET_DROP, NET_ADMIN, 0, 0, 0) } {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            };
            // SAFETY: what runs between fork and exec makes system calls only.
            unsafe { command.pre_exec(drop_right) };
            expect_error(command, &[text]);
        }
    });
}

/// `mayfly run` with a tap, by a user without rights in the folder `root`, which has KVM.
fn run_in(root: PathBuf) -> Command {
    fs::copy(file("hello.elf"), root.join("hello.elf")).unwrap();
    fs::set_permissions(root.join("hello.elf"), fs::Permissions::from_mode(0o644)).unwrap();
    let mut command = Command::new("/mayfly");
    command
        .args(["run", "/hello.elf", "--net", "tap:tap0"])
        .stdin(Stdio::null());
    let enter = move || {
        chroot(&root)?;
        std::env::set_current_dir("/")?;
        // SAFETY: setuid takes no pointer.
        match unsafe { libc::setuid(65534) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: what runs between fork and exec makes system calls only.
    unsafe { command.pre_exec(enter) };
    command
}

#[test]
fn the_device_of_taps_is_missing_or_forbidden() {
    for (name, text) in [
        (
            "no-tun",
            "cannot open /dev/net/tun: it does not exist; load its module with `modprobe tun`",
        ),
        (
            "forbidden-tun",
            "cannot open /dev/net/tun: permission denied; allow access with `chmod 666 /dev/net/tun`",
        ),
    ] {
        let root = bare_root(name);
        fs::create_dir_all(root.join("dev/net")).unwrap();
        make_node(&root.join("dev/kvm"), 0o666, KVM);
        if name == "forbidden-tun" {
            make_node(&root.join("dev/net/tun"), 0o600, (10, 200));
        }
        expect_error(run_in(root), &[text]);
    }
}

#[test]
fn somebody_must_serve_the_network() {
    let path = place("nobody.sock");
    expect_error(
        run(&format!("--net unix:{path}")),
        &[
            "cannot attach network interface \"net0\"",
            &path,
            "start the network process first, for example `passt --socket",
        ],
    );
    let mut command = run("--net user");
    command.env("PATH", "/nowhere");
    expect_error(
        command,
        &[
            "cannot start passt: it is not installed; install it with `apt install passt`, or use a tap interface",
        ],
    );
}
