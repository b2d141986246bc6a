//! urunc's environment: the root is an empty tmpfs that holds the binary, the image and four devices; there is no /proc and no
//! /sys, and the user is nobody. Takes root's rights.

use std::ffi::{CStr, CString};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io, thread};

use super::config_file::{URUNC_1, URUNC_2, URUNC_3};
use super::http::DONE;
use super::served::{ApiProcess, Directory};
use super::snapshot::{PAUSED, count, goes_on};
use crate::access::{KVM, make_node};
use crate::guests::{file, program};

const NOBODY: u32 = 65534;
/// Where everything is, until it is the root.
const DEVICES: [(&str, (u32, u32)); 4] = [
    ("null", (1, 3)),
    ("urandom", (1, 9)),
    ("kvm", KVM),
    ("net/tun", (10, 200)),
];

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Mounts with the file system's own `options`.
pub fn mount(source: &Path, target: &Path, kind: &CStr, flags: libc::c_ulong, options: &CStr) {
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
    check(result).unwrap_or_else(|error| panic!("cannot mount {}: {error}", target.display()));
}

/// Does `test` on a thread with mounts of its own, with the path of an empty tmpfs.
pub fn in_own_mounts(test: impl FnOnce(PathBuf) + Send) {
    let folder = Directory::new();
    let root = folder.path("root");
    fs::create_dir(&root).unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the call takes no pointer, and changes only this thread.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET) };
            check(result).unwrap_or_else(|error| panic!("this test takes root's rights: {error}"));
            let slash = Path::new("/");
            mount(slash, slash, c"", libc::MS_REC | libc::MS_PRIVATE, c"");
            mount(Path::new("tmpfs"), &root, c"tmpfs", 0, c"");
            test(root);
        });
        thread.join().unwrap();
    });
}

/// Fills `root`. The binary is a mount, as urunc makes it; and it could not be executed while another test has its copy open.
fn furnish(root: &Path, guest: &str) {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    for folder in ["dev/net", "tmp"] {
        fs::create_dir_all(root.join(folder)).unwrap();
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

/// The binary in `root`, which is then all there is, as nobody.
fn confined(root: &Path, flags: &[&str]) -> Command {
    let root = CString::new(root.to_str().unwrap()).unwrap();
    let mut command = Command::new("/firecracker");
    command.args(flags).env_clear();
    let enter = move || {
        // The root is pivoted for all that share the mounts, and the test shall go on in the old one.
        // SAFETY: the call takes no pointer.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        // SAFETY: `root` is a C string for the length of the call.
        check(unsafe { libc::chdir(root.as_ptr()) })?;
        // The new root goes on top of the old one, which is then unmounted from below it: no folder is needed for it.
        // SAFETY: both arguments are C strings for the length of the call.
        let result = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) };
        check(if result == 0 { 0 } else { -1 })?;
        // SAFETY: the argument is a C string for the length of the call.
        check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) })?;
        // SAFETY: no groups are read.
        check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
        // SAFETY: the call takes no pointer.
        check(unsafe { libc::setgid(NOBODY) })?;
        // SAFETY: the call takes no pointer.
        check(unsafe { libc::setuid(NOBODY) })
    };
    // SAFETY: what runs between fork and exec makes system calls only.
    unsafe { command.pre_exec(enter) };
    command
}

#[test]
fn a_file_is_enough() {
    for config in [URUNC_1, URUNC_2, URUNC_3] {
        in_own_mounts(|root| {
            furnish(&root, "hello.elf");
            let config = config.replace("KERNEL", "/kernel").replace("DISK", "/disk");
            fs::write(root.join("tmp/fc.json"), config).unwrap();
            let flags = ["--no-api", "--config-file", "/tmp/fc.json"];
            let mut served = ApiProcess::called(Directory::new(), &mut confined(&root, &flags));
            served.expect("hello from mayfly\n");
            served.ends_with(0);
        });
    }
}

#[test]
fn a_socket_is_enough() {
    in_own_mounts(|root| {
        furnish(&root, "ticker.elf");
        let served = ApiProcess::called(
            Directory::new(),
            &mut confined(&root, &["--api-sock", "/tmp/c.sock", "--no-seccomp"]),
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
            assert_eq!(client.ask(method, path, body).text, DONE, "{method} {path}");
        }
        for path in ["/", "/vm/config", "/metrics"] {
            assert_eq!(client.ask("GET", path, "").status(), 200, "{path}");
        }
        served.terminate();
        assert!(!root.join("tmp/c.sock").exists());
    });
}

/// Asks mayfly in `root` for all of it on one connection.
fn done(root: &Path, requests: &[(&str, &str, &str)]) {
    let mut client = super::served::connect(&root.join("tmp/c.sock"));
    for (method, path, body) in requests {
        let answer = client.ask(method, path, body);
        assert_eq!(answer.text, DONE, "{method} {path} {body}");
    }
}

/// A mayfly that is all there is, restored from /tmp/s and /tmp/m.
fn restored(root: &Path) -> ApiProcess {
    let flags = ["--api-sock", "/tmp/c.sock", "--no-seccomp"];
    let served = ApiProcess::called(Directory::new(), &mut confined(root, &flags));
    let load = r#"{"snapshot_path":"/tmp/s","mem_backend":{"backend_type":"File","backend_path":"/tmp/m"},"resume_vm":true}"#;
    done(root, &[("PUT", "/snapshot/load", load)]);
    served
}

/// Ends it, and lets the next one have its socket.
fn end(root: &Path, served: ApiProcess) -> String {
    let printed = served.kill();
    fs::remove_file(root.join("tmp/c.sock")).unwrap();
    printed
}

/// Pauses the guest and makes a snapshot.
fn freeze(root: &Path, kind: &str, state: &str, memory: &str) {
    let create = format!(
        r#"{{"snapshot_type":"{kind}","snapshot_path":"/tmp/{state}","mem_file_path":"/tmp/{memory}"}}"#
    );
    done(
        root,
        &[("PATCH", "/vm", PAUSED), ("PUT", "/snapshot/create", &create)],
    );
}

#[test]
fn snapshots_need_no_proc() {
    in_own_mounts(|root| {
        furnish(&root, "ticker.elf");
        let flags = ["--api-sock", "/tmp/c.sock", "--no-seccomp"];
        let mut served = ApiProcess::called(Directory::new(), &mut confined(&root, &flags));
        done(
            &root,
            &[
                ("PUT", "/boot-source", r#"{"kernel_image_path":"/kernel"}"#),
                ("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#),
            ],
        );
        served.expect("tick 3\n");
        let blocks = |name: &str| {
            let metadata = root.join("tmp").join(name).metadata().unwrap();
            metadata.blocks()
        };
        freeze(&root, "Full", "s", "m");
        let mut printed = end(&root, served);
        let whole = blocks("m");
        // A difference beside its base, one in its place, and a whole one of what was restored.
        for (kind, state, memory) in [("Diff", "d", "n"), ("Diff", "s", "m"), ("Full", "s", "m")] {
            let mut served = restored(&root);
            served.expect(&format!("tick {}\n", count(&printed) + 3));
            freeze(&root, kind, state, memory);
            let more = end(&root, served);
            if state == "s" {
                printed += &more;
                count(&printed);
            } else {
                assert!(blocks("n") > 0 && blocks("n") < whole, "{} {whole}", blocks("n"));
            }
        }
        let served = restored(&root);
        goes_on(served, printed);
    });
}
