//! The environment of urunc: the root is a tmpfs with only the binary, the image and four devices, without /proc and /sys,
//! and the user is unprivileged. The tests require root.

use std::ffi::{CStr, CString};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io, thread};

use super::config_file::{URUNC_1, URUNC_2, URUNC_3};
use super::http::NO_CONTENT;
use super::served::{ApiProcess, Directory, PAUSED, count_ticks, expect_progress};
use crate::access::{KVM, make_node};
use crate::guests::{file, program};
use crate::network::check;

const UNPRIVILEGED: u32 = 65534;
/// Device nodes in /dev: path and device number.
const DEVICES: [(&str, (u32, u32)); 4] = [
    ("null", (1, 3)),
    ("urandom", (1, 9)),
    ("kvm", KVM),
    ("net/tun", (10, 200)),
];

/// Mounts `source` at `target` with `options` of the file system.
pub fn mount(source: &Path, target: &Path, kind: &CStr, flags: libc::c_ulong, options: &CStr) {
    let mounted = try_mount(source, target, kind, flags, options);
    mounted.unwrap_or_else(|error| panic!("cannot mount {}: {error}", target.display()));
}

/// Changes the flags of the file system at `target`.
pub fn remount(target: &Path, flags: libc::c_ulong) -> io::Result<()> {
    try_mount(Path::new(""), target, c"", libc::MS_REMOUNT | flags, c"")
}

fn try_mount(
    source: &Path,
    target: &Path,
    kind: &CStr,
    flags: libc::c_ulong,
    options: &CStr,
) -> io::Result<()> {
    let name = |path: &Path| CString::new(path.to_str().unwrap()).unwrap();
    let (from, to) = (name(source), name(target));
    // SAFETY: all pointers are C strings for the length of the call.
    let result = unsafe {
        libc::mount(
            from.as_ptr(),
            to.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    check(result)
}

/// Runs `test` on a thread in a new mount namespace, if the host permits it, with the path of an empty tmpfs.
#[track_caller]
#[allow(clippy::disallowed_methods, reason = "each wait of `test` has a limit")]
pub fn in_own_mounts(test: impl FnOnce(PathBuf) + Send) {
    if !scratch::require(scratch::Requirement::MountNamespace) {
        return;
    }
    let directory = Directory::new();
    let root = directory.path("root");
    fs::create_dir(&root).unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the call takes no pointer and affects this thread only.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET) };
            check(result).unwrap();
            let slash = Path::new("/");
            mount(slash, slash, c"", libc::MS_REC | libc::MS_PRIVATE, c"");
            mount(Path::new("tmpfs"), &root, c"tmpfs", 0, c"");
            test(root);
        });
        thread.join().unwrap();
    });
}

/// Fills `root`. The binary is a bind mount, as in urunc; exec of a copy could fail with ETXTBSY while another test forks.
fn populate_root(root: &Path, guest: &str) {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    for directory in ["dev/net", "tmp"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let binary = root.join("firecracker");
    fs::write(&binary, "").unwrap();
    mount(Path::new(&program()), &binary, c"", libc::MS_BIND, c"");
    fs::copy(file(guest), root.join("kernel")).unwrap();
    for disk in ["disk", "disk-2"] {
        fs::write(root.join(disk), [0; 4096]).unwrap();
        fs::set_permissions(root.join(disk), fs::Permissions::from_mode(0o666)).unwrap();
    }
    for (name, device) in DEVICES {
        make_node(&root.join("dev").join(name), 0o666, device);
    }
}

/// Returns a command for the binary with `root` as its root, as an unprivileged user.
fn confined_command(root: &Path, flags: &[&str]) -> Command {
    let root = CString::new(root.to_str().unwrap()).unwrap();
    let mut command = Command::new("/firecracker");
    command.args(flags).env_clear();
    let enter = move || {
        // pivot_root affects the whole mount namespace, and the test continues in the old root.
        // SAFETY: the call takes no pointer.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        // SAFETY: `root` is a C string for the length of the call.
        check(unsafe { libc::chdir(root.as_ptr()) })?;
        // pivot_root(".", ".") stacks the old root on the new one, and umount2 detaches it: no extra directory (pivot_root(2)).
        // SAFETY: both arguments are C strings for the length of the call.
        let result = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) };
        check(if result == 0 { 0 } else { -1 })?;
        // SAFETY: the argument is a C string for the length of the call.
        check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) })?;
        // SAFETY: with a size of 0 the kernel reads no groups.
        check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
        // SAFETY: the call takes no pointer.
        check(unsafe { libc::setgid(UNPRIVILEGED) })?;
        // SAFETY: the call takes no pointer.
        check(unsafe { libc::setuid(UNPRIVILEGED) })
    };
    // SAFETY: the closure runs between fork and exec and makes system calls only.
    unsafe { command.pre_exec(enter) };
    command
}

#[test]
fn config_file_boots_in_bare_root() {
    for config in [URUNC_1, URUNC_2, URUNC_3] {
        in_own_mounts(|root| {
            populate_root(&root, "hello.elf");
            let config = config.replace("KERNEL", "/kernel").replace("DISK", "/disk");
            fs::write(root.join("tmp/fc.json"), config).unwrap();
            let flags = ["--no-api", "--config-file", "/tmp/fc.json"];
            let mut process = ApiProcess::spawn(Directory::new(), &mut confined_command(&root, &flags));
            process.expect("hello from mayfly\n");
            process.expect_exit(0);
        });
    }
}

#[test]
fn socket_works_in_bare_root() {
    in_own_mounts(|root| {
        populate_root(&root, "ticker.elf");
        let process = ApiProcess::spawn(
            Directory::new(),
            &mut confined_command(&root, &["--api-sock", "/tmp/c.sock", "--no-seccomp"]),
        );
        let mut client = super::served::connect(&root.join("tmp/c.sock"));
        for (method, path, body) in [
            ("PUT", "/boot-source", r#"{"kernel_image_path":"/kernel"}"#),
            (
                "PUT",
                "/drives/rootfs",
                r#"{"drive_id":"rootfs","is_root_device":true,"path_on_host":"/disk"}"#,
            ),
            ("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#),
            ("PATCH", "/vm", r#"{"state":"Paused"}"#),
            ("PATCH", "/vm", r#"{"state":"Resumed"}"#),
        ] {
            assert_eq!(
                client.request(method, path, body).text,
                NO_CONTENT,
                "{method} {path}"
            );
        }
        for path in ["/", "/vm/config", "/vm/status", "/vm/registers", "/metrics"] {
            assert_eq!(client.request("GET", path, "").status(), 200, "{path}");
        }
        process.terminate();
        assert!(!root.join("tmp/c.sock").exists());
    });
}

/// Sends `requests` to mayfly in `root` on one connection and expects 204 responses.
fn expect_no_content(root: &Path, requests: &[(&str, &str, &str)]) {
    let mut client = super::served::connect(&root.join("tmp/c.sock"));
    for (method, path, body) in requests {
        let response = client.request(method, path, body);
        assert_eq!(response.text, NO_CONTENT, "{method} {path} {body}");
    }
}

/// Starts mayfly in `root` and loads the snapshot in /tmp/s and /tmp/m.
fn load_in_root(root: &Path) -> ApiProcess {
    let flags = ["--api-sock", "/tmp/c.sock", "--no-seccomp"];
    let process = ApiProcess::spawn(Directory::new(), &mut confined_command(root, &flags));
    let load = r#"{"snapshot_path":"/tmp/s","mem_backend":{"backend_type":"File","backend_path":"/tmp/m"},"resume_vm":true}"#;
    expect_no_content(root, &[("PUT", "/snapshot/load", load)]);
    process
}

/// Kills mayfly and removes its socket. Returns the guest's output.
fn kill_in_root(root: &Path, process: ApiProcess) -> String {
    let printed = process.kill();
    fs::remove_file(root.join("tmp/c.sock")).unwrap();
    printed
}

/// Pauses the guest and creates a snapshot.
fn pause_and_create_in_root(root: &Path, kind: &str, state: &str, memory: &str) {
    let create = format!(
        r#"{{"snapshot_type":"{kind}","snapshot_path":"/tmp/{state}","mem_file_path":"/tmp/{memory}"}}"#
    );
    expect_no_content(
        root,
        &[("PATCH", "/vm", PAUSED), ("PUT", "/snapshot/create", &create)],
    );
}

#[test]
fn snapshots_work_without_proc() {
    in_own_mounts(|root| {
        populate_root(&root, "ticker.elf");
        let flags = [
            "--api-sock",
            "/tmp/c.sock",
            "--no-seccomp",
            "--log-path",
            "/tmp/log",
            "--level",
            "Info",
        ];
        let mut process = ApiProcess::spawn(Directory::new(), &mut confined_command(&root, &flags));
        expect_no_content(
            &root,
            &[
                ("PUT", "/boot-source", r#"{"kernel_image_path":"/kernel"}"#),
                ("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#),
            ],
        );
        process.expect("tick 3\n");
        let blocks = |name: &str| {
            let metadata = root.join("tmp").join(name).metadata().unwrap();
            metadata.blocks()
        };
        pause_and_create_in_root(&root, "Full", "s", "m");
        let mut printed = kill_in_root(&root, process);
        let log = fs::read_to_string(root.join("tmp/log")).unwrap();
        let expected = "the snapshot reads all pages of the guest: cannot open /proc/self/pagemap";
        assert!(log.contains(expected), "{log}");
        let full = blocks("m");
        // A diff snapshot in new files, one in the files of its base, and a full snapshot of a restored guest.
        for (kind, state, memory) in [("Diff", "d", "n"), ("Diff", "s", "m"), ("Full", "s", "m")] {
            let mut process = load_in_root(&root);
            process.expect(&format!("tick {}\n", count_ticks(&printed) + 3));
            pause_and_create_in_root(&root, kind, state, memory);
            let more = kill_in_root(&root, process);
            if state == "s" {
                printed += &more;
                count_ticks(&printed);
            } else {
                assert!(blocks("n") > 0 && blocks("n") < full, "{} {full}", blocks("n"));
            }
        }
        let process = load_in_root(&root);
        expect_progress(process, printed);
    });
}
