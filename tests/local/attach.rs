//! Rejected drives and interfaces: each error names the remedy. mayfly opens KVM before the devices.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chroot};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use scratch::Requirement;

use crate::access::{KVM, bare_root, make_node};
use crate::guest::Guest;
use crate::guests::{file, program};
use crate::network::{create_tap, in_own_network};

/// `CAP_NET_ADMIN` of linux/capability.h.
const NET_ADMIN: libc::c_ulong = 12;

/// Returns `mayfly run` for a guest without devices, with `options` split at spaces.
fn run(options: &str) -> Command {
    let mut command = Command::new(program());
    command.arg("run").arg(file("hello.elf"));
    command.args(options.split(' ')).stdin(Stdio::null());
    command
}

/// Expects an error of `command` before the guest runs, in one line with all of `texts`.
fn expect_error(mut command: Command, texts: &[&str]) {
    let output = scratch::run(&mut command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {stderr}");
    assert!(
        output.stdout.is_empty() && stderr.lines().count() == 1,
        "{command:?}: {stderr}"
    );
    for text in texts {
        assert!(
            stderr.contains(text),
            "{command:?}: {text:?} is missing in {stderr}"
        );
    }
}

fn path_of(name: &str) -> String {
    scratch::process_path(name).to_str().unwrap().to_owned()
}

fn create_disk(name: &str, length: usize) -> String {
    let path = path_of(name);
    fs::write(&path, vec![0; length]).unwrap();
    path
}

#[test]
fn invalid_disk_is_rejected() {
    let fifo = path_of("fifo");
    scratch::make_fifo(Path::new(&fifo));
    for (path, text) in [
        (path_of("missing"), "it does not exist; create it"),
        (
            create_disk("empty", 0),
            "it is empty; set its size, for example with `truncate -s 1G`",
        ),
        (
            create_disk("odd", 300),
            "its 300 bytes are less than a sector of 512; use a raw image",
        ),
        (
            path_of(""),
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
fn shared_disk_is_rejected_for_writers() {
    let path = create_disk("shared", 1024);
    let text =
        "another drive of this VM uses it; name another file, or make all drives of it read-only or shared";
    let mixtures = [
        ("", ""),
        (",ro", ""),
        ("", ",ro"),
        ("", ",shared"),
        (",shared", ""),
    ];
    for (first, second) in mixtures {
        let command = run(&format!("--disk {path}{first} --disk {path}{second}"));
        expect_error(command, &["cannot use the disk of drive \"drive1\"", &path, text]);
    }
    for (first, second) in [(",ro", ",ro"), (",shared", ",shared"), (",shared", ",ro")] {
        let users = scratch::run(&mut run(&format!("--disk {path}{first} --disk {path}{second}")));
        assert!(users.status.success(), "{users:?}");
    }
}

#[test]
fn holder_of_disk_is_named() {
    let path = create_disk("held", 1024);
    let mut other = Guest::start(&format!("{} --disk {path}", file("end-hlt.elf")));
    other.expect("halting");
    let holder = format!("process {} (mayfly) uses it", other.id());
    expect_error(
        run(&format!("--disk {path},ro")),
        &["cannot use the disk of drive \"drive0\"", &path, &holder],
    );
    other.terminate();
}

#[test]
fn disk_lock_covers_hard_links() {
    let path = create_disk("named", 1024);
    let other = path_of("second-name");
    fs::hard_link(&path, &other).unwrap();
    let text =
        "another drive of this VM uses it; name another file, or make all drives of it read-only or shared";
    for (first, second) in [("", ""), (",ro", ""), ("", ",ro")] {
        let command = run(&format!("--disk {path}{first} --disk {other}{second}"));
        expect_error(
            command,
            &["cannot use the disk of drive \"drive1\"", &other, text],
        );
    }
}

#[test]
fn invalid_tap_is_rejected() {
    in_own_network(|| {
        create_tap("several", libc::IFF_MULTI_QUEUE, None);
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
fn foreign_descriptor_is_rejected() {
    let null = fs::File::open("/dev/null").unwrap();
    let mut command = run("--net fd:9");
    let duplicate = move || {
        // SAFETY: the call takes no pointer.
        match unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), 9) } {
            9 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure runs between fork and exec and makes system calls only.
    unsafe { command.pre_exec(duplicate) };
    expect_error(command, &["cannot use descriptor 9: it is not a tap"]);
}

#[test]
fn busy_tap_is_rejected() {
    in_own_network(|| {
        create_tap("tap0", 0, None);
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
fn unprivileged_tap_is_rejected() {
    in_own_network(|| {
        create_tap("theirs", 0, Some(12345));
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
            let drop_capability = || {
                // SAFETY: the call takes no pointer.
                match unsafe { libc::prctl(libc::PR_CAPBSET_DROP, NET_ADMIN, 0, 0, 0) } {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            };
            // SAFETY: the closure runs between fork and exec and makes system calls only.
            unsafe { command.pre_exec(drop_capability) };
            expect_error(command, &[text]);
        }
    });
}

/// Returns `mayfly run` with a tap as an unprivileged user, in the root `root`, which holds `/dev/kvm`.
fn run_in(root: &Path) -> Command {
    let root = root.to_owned();
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
    // SAFETY: the closure runs between fork and exec and makes system calls only.
    unsafe { command.pre_exec(enter) };
    command
}

#[test]
fn unusable_tun_device_is_reported() {
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
        if !scratch::require(Requirement::Root) {
            return;
        }
        let directory = bare_root();
        let root = directory.root();
        fs::create_dir_all(root.join("dev/net")).unwrap();
        make_node(&root.join("dev/kvm"), 0o666, KVM);
        if name == "forbidden-tun" {
            make_node(&root.join("dev/net/tun"), 0o600, (10, 200));
        }
        expect_error(run_in(root), &[text]);
    }
}

#[test]
fn missing_network_process_is_reported() {
    let path = path_of("unused.sock");
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
