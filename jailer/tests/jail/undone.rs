//! Failing steps and their undo: afterwards, jails and cgroups are as before.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;

use scratch::KillDaemon;

use crate::cgroups::{self, Parent};
use crate::fault::{Argument, inject};
use crate::fixture::{Host, in_namespaces, stderr, tree};

/// A system call that fails.
struct Fault {
    number: libc::c_long,
    argument: Argument,
    /// Part of the message.
    message: &'static str,
}

const fn fault(number: libc::c_long, argument: Argument, message: &'static str) -> Fault {
    Fault {
        number,
        argument,
        message,
    }
}

fn device(major: u32, minor: u32) -> Argument {
    Some((3, u32::try_from(libc::makedev(major, minor)).unwrap()))
}

fn flags(flags: libc::c_ulong) -> Argument {
    Some((3, u32::try_from(flags).unwrap()))
}

/// The steps of every jail, in their order.
fn faults() -> Vec<Fault> {
    vec![
        fault(
            libc::SYS_mkdirat,
            Some((2, 0o755)),
            "cannot create the directory ",
        ),
        fault(
            libc::SYS_mkdirat,
            Some((2, 0o700)),
            "/vm1/root: Operation not permitted",
        ),
        fault(libc::SYS_flock, None, "cannot lock "),
        fault(libc::SYS_fstatfs, None, "cannot query the file system of "),
        fault(libc::SYS_fchown, None, "cannot set the owner of "),
        fault(libc::SYS_setns, None, "cannot join the network namespace "),
        fault(libc::SYS_unshare, None, "cannot create a mount namespace"),
        fault(
            libc::SYS_mount,
            flags(libc::MS_SLAVE | libc::MS_REC),
            "cannot make a slave mount of /",
        ),
        fault(
            libc::SYS_mount,
            flags(libc::MS_BIND | libc::MS_REC),
            "cannot mount the jail ",
        ),
        fault(libc::SYS_chdir, None, "cannot enter the jail "),
        fault(
            libc::SYS_pivot_root,
            None,
            "cannot make the root of the process of the jail ",
        ),
        fault(
            libc::SYS_mknodat,
            device(10, 200),
            "dev/net/tun: Operation not permitted",
        ),
        fault(
            libc::SYS_mknodat,
            device(10, 232),
            "dev/kvm: Operation not permitted",
        ),
        fault(libc::SYS_renameat, None, "cannot write the PID file "),
        fault(
            libc::SYS_prlimit64,
            None,
            "cannot set the limit of --resource-limit no-file",
        ),
        fault(libc::SYS_setgroups, None, "cannot change to the group and user "),
        fault(libc::SYS_setresgid, None, "cannot change to the group and user "),
        fault(libc::SYS_setresuid, None, "cannot change to the group and user "),
    ]
}

/// Steps of a jail with children.
fn faults_of_children() -> Vec<Fault> {
    vec![
        fault(libc::SYS_pipe2, None, "cannot create a pipe"),
        fault(libc::SYS_clone, None, "cannot create a process "),
        fault(libc::SYS_renameat, None, "cannot write the PID file "),
        fault(libc::SYS_setresuid, None, "cannot change to the group and user "),
    ]
}

/// Runs the jailer with each fault. Base directory and cgroup must be the same afterwards.
fn check(host: &Host, options: &[&str], faults: Vec<Fault>) {
    let parent_name = Parent::new(Vec::new()).name.clone();
    let cgroup = cgroups::options(&parent_name);
    let mut options = options.to_vec();
    let mut cgroup_path = None;
    if let Some((mount, words)) = &cgroup {
        options.extend(words.iter().map(String::as_str));
        cgroup_path = Some(mount.join(&parent_name));
    }
    let before = tree(&host.base);
    for fault in faults {
        let mut command = host.command("vm1", &options);
        inject(&mut command, fault.number, fault.argument, libc::EPERM);
        let text = host.fail(&mut command);
        assert!(text.contains(fault.message), "{}: {text}", fault.message);
        assert!(
            text.contains("Operation not permitted") && text.lines().count() == 1,
            "{}: {text}",
            fault.message
        );
        assert_eq!(tree(&host.base), before, "{}", fault.message);
        if let Some(path) = &cgroup_path {
            assert!(!path.exists(), "{}: {}", fault.message, path.display());
        }
    }
}

#[test]
fn failed_step_leaves_nothing() {
    in_namespaces(|host| check(host, &["--netns", "/proc/self/ns/net"], faults()));
}

#[test]
fn failed_step_leaves_files_of_user() {
    in_namespaces(|host| {
        let root = host.root("vm1");
        fs::create_dir_all(root.join("dev")).unwrap();
        fs::create_dir_all(root.join("run")).unwrap();
        fs::write(root.join("kernel"), "of the user").unwrap();
        fs::write(root.join("mayfly"), "an older program").unwrap();
        chown(root.join("dev"), Some(7), Some(8)).unwrap();
        fs::set_permissions(root.join("run"), Permissions::from_mode(0o1711)).unwrap();
        fs::set_permissions(&root, Permissions::from_mode(0o750)).unwrap();
        // The directories exist.
        let faults = faults().into_iter();
        let faults = faults.filter(|fault| fault.number != libc::SYS_mkdirat);
        check(host, &["--netns", "/proc/self/ns/net"], faults.collect());
        assert_eq!(fs::read_to_string(root.join("kernel")).unwrap(), "of the user");
    });
}

#[test]
fn failure_of_child_is_reported_and_undone() {
    in_namespaces(|host| {
        let mut daemon = faults_of_children();
        daemon.push(fault(libc::SYS_setsid, None, "cannot begin a session"));
        daemon.push(fault(
            libc::SYS_dup3,
            None,
            "cannot redirect stdin, stdout and stderr",
        ));
        check(host, &["--daemonize"], daemon);
        check(host, &["--new-pid-ns"], faults_of_children());
        let mut both = faults_of_children();
        let flags = u32::try_from(libc::CLONE_NEWPID | libc::SIGCHLD).unwrap();
        both.push(fault(
            libc::SYS_clone,
            Some((0, flags)),
            "cannot create a process in a new PID namespace",
        ));
        check(host, &["--daemonize", "--new-pid-ns"], both);
    });
}

/// The checks cannot find everything: the parent undoes the steps that the child has no rights for any more.
#[test]
fn failed_exec_of_child_is_undone() {
    in_namespaces(|host| {
        let mut head = fs::read(crate::fixture::mayfly().unwrap()).unwrap();
        head.truncate(4096);
        // No type of ELF that the kernel executes.
        head[16] = 99;
        let directory = scratch::Directory::new();
        directory.write("program", head);
        let program = directory.path("program");
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        for option in ["--daemonize", "--new-pid-ns"] {
            let text = host.fail(&mut host.command_for(&program, "vm1", &[option]));
            assert!(
                text.contains("cannot execute in the jail /program: Exec format error"),
                "{text}"
            );
            assert_eq!(fs::read_dir(&host.base).unwrap().count(), 0);
        }
    });
}

#[test]
fn jail_without_urandom_starts_with_warning() {
    in_namespaces(|host| {
        let mut command = host.command("vm1", &["--daemonize"]);
        inject(&mut command, libc::SYS_mknodat, device(1, 9), libc::EPERM);
        let output = scratch::run(&mut command);
        assert!(output.status.success());
        let daemon = KillDaemon(host.pid("vm1"));
        let text = stderr(&output);
        assert!(
            text.starts_with("mayfly-jailer: warning: cannot create the device "),
            "{text}"
        );
        drop(daemon);
    });
}

/// At each step, the next descriptor may be one too many. The VMM has limits of its own.
#[test]
fn missing_descriptors_fail_with_message() {
    in_namespaces(|host| {
        for (failures, count) in (3..40).enumerate() {
            let mut command = host.command("vm1", &["--daemonize"]);
            // The hard limit stays: the jailer may lack the right to raise it.
            let limit = libc::rlimit {
                rlim_cur: count,
                rlim_max: 4096,
            };
            let set = move || {
                // SAFETY: `limit` is valid for reads.
                match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            };
            // SAFETY: the closure runs between fork and exec and makes one system call.
            unsafe { command.pre_exec(set) };
            let output = scratch::run(&mut command);
            let text = stderr(&output);
            if output.status.success() {
                drop(KillDaemon(host.pid("vm1")));
                assert!(failures > 3, "{failures} failures");
                return;
            }
            assert!(
                text.contains("Too many open files") && text.contains("raise the limit of open files"),
                "{count}: {text}"
            );
            assert_eq!(text.lines().count(), 1, "{text}");
            assert_eq!(tree(&host.base), [""; 0], "{count}: {text}");
        }
        panic!("the jailer needs 40 descriptors");
    });
}

#[test]
fn full_file_system_leaves_nothing() {
    in_namespaces(|host| {
        let base = std::ffi::CString::new(host.base.to_str().unwrap()).unwrap();
        let (none, options) = (std::ptr::null(), c"size=64k".as_ptr());
        // SAFETY: the strings are C strings for the length of the call, and the other pointers may be null.
        let result = unsafe { libc::mount(none, base.as_ptr(), none, libc::MS_REMOUNT, options.cast()) };
        assert_eq!(result, 0);
        let text = host.fail(&mut host.command("vm1", &[]));
        assert!(
            text.contains("cannot copy the program to ")
                && text.contains("No space left on device")
                && text.contains("; free space on this file system"),
            "{text}"
        );
        assert_eq!(tree(&host.base), [""; 0]);
    });
}
