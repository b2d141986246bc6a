//! Command lines and programs that cannot work.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::fixture::{in_namespaces, stderr};

fn jailer(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mayfly-jailer"));
    command.args(arguments).stdin(Stdio::null());
    command
}

#[test]
fn usage_error_has_status_1() {
    let output = scratch::run(&mut jailer(&["--id", "a_b"]));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        "mayfly-jailer: --id \"a_b\": expected 1 to 64 letters, digits and hyphens\n"
    );
}

#[test]
fn closed_pipe_is_no_signal() {
    for (arguments, status) in [(&["--help"][..], 0), (&["--id", "a_b"], 1)] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut command = jailer(arguments);
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        let ended = scratch::wait_exit(&mut command.spawn().unwrap());
        assert_eq!(ended.code(), Some(status), "{arguments:?}");
    }
}

#[test]
fn version_has_firecrackers_format() {
    let output = scratch::run(&mut jailer(&["--version"]));
    assert_eq!(
        (output.status.code(), output.stdout),
        (Some(0), b"Jailer v1.17.0\n\n".to_vec())
    );
}

#[test]
fn help_names_each_option() {
    let output = scratch::run(&mut jailer(&["--help"]));
    let text = String::from_utf8(output.stdout).unwrap();
    for option in [
        "--id",
        "--exec-file",
        "--uid",
        "--gid",
        "--chroot-base-dir",
        "--netns",
        "--daemonize",
        "--new-pid-ns",
        "--cgroup",
        "--cgroup-version",
        "--parent-cgroup",
        "--resource-limit",
        "--force",
        "--version",
    ] {
        assert!(
            text.contains(&format!("{option} ")) || text.contains(&format!("{option},")),
            "{option}"
        );
    }
    assert!(text.lines().all(|line| line.len() <= 130));
}

#[test]
fn missing_paths_are_named() {
    in_namespaces(|host| {
        let missing = host.base.join("missing");
        let shown = missing.to_str().unwrap();
        let text = host.fail(&mut host.command_for(&missing, "vm1", &[]));
        assert!(
            text.contains(&format!("cannot find the program {shown}: No such file")),
            "{text}"
        );
        let text = host.fail(&mut host.command("vm1", &["--netns", shown]));
        assert!(
            text.contains(&format!(
                "cannot join the network namespace {shown}: No such file"
            )),
            "{text}"
        );
        let text = host.fail(&mut host.command("vm1", &["--netns", "/etc/passwd"]));
        assert!(
            text.contains("cannot join the network namespace /etc/passwd: Invalid"),
            "{text}"
        );
        let mut command = jailer(&[
            "--id",
            "a",
            "--uid",
            "1",
            "--gid",
            "1",
            "--exec-file",
            "/bin/true",
        ]);
        let text = host.fail(command.args(["--chroot-base-dir", shown]));
        assert!(text.contains("cannot find the directory of all jails"), "{text}");
        assert!(
            text.contains("create it, or choose another --chroot-base-dir"),
            "{text}"
        );
        assert_eq!(fs::read_dir(&host.base).unwrap().count(), 0);
    });
}

#[test]
fn program_with_missing_interpreter_is_rejected() {
    in_namespaces(|host| {
        let directory = scratch::Directory::new();
        directory.write("script", "#!/bin/sh\n");
        fs::set_permissions(directory.path("script"), Permissions::from_mode(0o755)).unwrap();
        let text = host.fail(&mut host.command_for(&directory.path("script"), "vm1", &[]));
        assert!(
            text.contains("it requires /bin/sh, which is not in the jail; use a static executable"),
            "{text}"
        );
        // Dynamically linked.
        let text = host.fail(&mut host.command_for(Path::new("/bin/sh"), "vm1", &[]));
        assert!(text.contains("which is not in the jail"), "{text}");
        assert_eq!(fs::read_dir(&host.base).unwrap().count(), 0);
    });
}

#[test]
fn file_system_that_forbids_programs_or_devices_is_rejected() {
    in_namespaces(|host| {
        let base = std::ffi::CString::new(host.base.to_str().unwrap()).unwrap();
        for (flag, text) in [
            (libc::MS_NOEXEC, "noexec, which forbids programs"),
            (libc::MS_NODEV, "nodev, which forbids /dev/kvm"),
        ] {
            let (none, flags) = (std::ptr::null(), libc::MS_REMOUNT | flag);
            // SAFETY: the path is a C string for the length of the call, and the other pointers may be null.
            let result = unsafe { libc::mount(none, base.as_ptr(), none, flags, none.cast()) };
            assert_eq!(result, 0);
            let message = host.fail(&mut host.command("vm1", &[]));
            assert!(message.contains(text), "{message}");
            assert_eq!(fs::read_dir(&host.base).unwrap().count(), 0);
        }
    });
}

#[test]
fn user_without_rights_is_told_to_be_root() {
    in_namespaces(|host| {
        fs::set_permissions(&host.base, Permissions::from_mode(0o755)).unwrap();
        let mut command = jailer(&["--id", "a", "--uid", "1", "--gid", "1", "--exec-file"]);
        command.arg("/bin/true").uid(65534).gid(65534).current_dir("/");
        command.args(["--chroot-base-dir", "/"]);
        let output = scratch::run(&mut command);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1));
        assert!(text.contains("; run mayfly-jailer as root"), "{text}");
    });
}
