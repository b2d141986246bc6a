//! Contents of a jail, and its process.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use scratch::KillOnDrop;

use crate::fixture::{GID, UID, in_namespaces, namespace, proc_file, proc_status, tree};

/// Returns the lines of [`tree`] for a jail of mayfly whose API socket exists.
fn expected_tree() -> Vec<String> {
    let owner = format!("{UID}:{GID}");
    let mut lines = vec![
        format!("dev directory 700 {owner}"),
        format!("dev/kvm device 600 {owner} 10:232"),
        format!("dev/net directory 700 {owner}"),
        format!("dev/net/tun device 600 {owner} 10:200"),
        format!("dev/urandom device 600 {owner} 1:9"),
        format!("mayfly file 755 {owner}"),
        "mayfly.pid file 644 0:0".to_owned(),
        format!("run directory 700 {owner}"),
        format!("run/api.sock socket 755 {owner}"),
    ];
    let misc = fs::read_to_string("/proc/misc").unwrap();
    let line = misc.lines().find(|line| line.ends_with(" userfaultfd"));
    if let Some(minor) = line.and_then(|line| line.split_whitespace().next()) {
        lines.push(format!("dev/userfaultfd device 600 {owner} 10:{minor}"));
    }
    lines.sort();
    lines
}

#[test]
fn jail_has_listed_files_only() {
    in_namespaces(|host| {
        let jailed = host.start("vm-1", &[]);
        assert_eq!(tree(&jailed.root), expected_tree());
        let above = tree(&host.base);
        assert_eq!(
            above[..3],
            [
                "mayfly directory 755 0:0".to_owned(),
                "mayfly/vm-1 directory 755 0:0".to_owned(),
                format!("mayfly/vm-1/root directory 700 {UID}:{GID}"),
            ]
        );
        assert_eq!(host.pid("vm-1"), jailed.pid());
    });
}

#[test]
fn existing_files_of_user_stay() {
    in_namespaces(|host| {
        let root = host.root("vm1");
        fs::create_dir_all(root.join("dev")).unwrap();
        fs::write(root.join("kernel"), "of the user").unwrap();
        fs::write(root.join("mayfly"), "an older program").unwrap();
        let jailed = host.start("vm1", &[]);
        let mut expected = expected_tree();
        expected.push("kernel file 644 0:0".into());
        expected.sort();
        assert_eq!(tree(&jailed.root), expected);
    });
}

/// Supplementary group of the jailer.
static INHERITED_GROUP: libc::gid_t = 77;

#[test]
fn process_is_confined() {
    in_namespaces(|host| {
        let mut command = host.command("vm1", &[]);
        // A descriptor and a variable that must not reach the VMM.
        let inherited = fs::File::open("/etc/passwd").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&inherited);
        let inherit = move || {
            // SAFETY: the group is valid for reads.
            unsafe { libc::setgroups(1, &raw const INHERITED_GROUP) };
            // SAFETY: the call takes no pointer; the descriptors belong to the process that will be the jailer.
            unsafe { libc::dup2(fd, 77) };
            Ok(())
        };
        // SAFETY: the closure runs between fork and exec and makes system calls only.
        unsafe { command.env("SECRET", "value").pre_exec(inherit) };
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = KillOnDrop(command.spawn().unwrap());
        host.await_socket("vm1");
        let pid = child.0.id();
        assert_eq!(proc_file(pid, "environ"), "");
        assert_eq!(proc_status(pid, "Uid"), format!("{UID} {UID} {UID} {UID}"));
        assert_eq!(proc_status(pid, "Gid"), format!("{GID} {GID} {GID} {GID}"));
        assert_eq!(proc_status(pid, "Groups"), "");
        assert_eq!(proc_status(pid, "CapEff"), "0000000000000000");
        assert_eq!(
            proc_status(pid, "Umask"),
            proc_status(std::process::id(), "Umask")
        );
        assert!(!Path::new(&format!("/proc/{pid}/fd/77")).exists());
        // The jail is the only mount.
        let mounts = proc_file(pid, "mountinfo");
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        assert!(mounts.contains("/mayfly/vm1/root / "), "{mounts}");
        assert_eq!(
            fs::read_link(format!("/proc/{pid}/cwd")).unwrap(),
            fs::read_link(format!("/proc/{pid}/root")).unwrap()
        );
        // Limits: the default of open files alone.
        let limits = proc_file(pid, "limits");
        let limit = |name: &str| {
            let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
            line[name.len()..]
                .split_whitespace()
                .take(2)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(limit("Max open files"), "2048 2048");
        assert_eq!(limit("Max file size"), "unlimited unlimited");
    });
}

#[test]
fn arguments_are_those_of_firecrackers_jailer() {
    in_namespaces(|host| {
        let jailed = host.start("vm1", &[]);
        let line = proc_file(jailed.pid(), "cmdline");
        let words: Vec<&str> = line.trim_end_matches('\0').split('\0').collect();
        let number = |index: usize| words[index].parse::<u64>().unwrap();
        assert_eq!(words[..4], ["/mayfly", "--id", "vm1", "--start-time-us"]);
        assert_eq!(
            [words[5], words[7]],
            ["--start-time-cpu-us", "--parent-cpu-time-us"]
        );
        assert!(number(4) > 0 && number(8) > 0, "{words:?}");
        assert!(number(6) < 1_000_000, "{words:?}");
        assert_eq!(words[9..], ["--api-sock", "/run/api.sock"]);
    });
}

#[test]
fn resource_limits_are_set() {
    in_namespaces(|host| {
        let options = [
            "--resource-limit",
            "no-file=300",
            "--resource-limit",
            "fsize=1048576",
        ];
        let jailed = host.start("vm1", &options);
        let limits = proc_file(jailed.pid(), "limits");
        let has = |name: &str, value: &str| {
            let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
            assert_eq!(line.matches(value).count(), 2, "{limits}");
        };
        has("Max open files", "300 ");
        has("Max file size", "1048576 ");
    });
}

#[test]
fn network_namespace_is_joined() {
    if !scratch::require(scratch::Requirement::NetworkNamespace) {
        return;
    }
    in_namespaces(|host| {
        // A process holds the namespace.
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sleep", "600"]);
        let holder = KillOnDrop(holder.spawn().unwrap());
        let pid = holder.0.id().to_string();
        let own = namespace("thread-self", "net");
        scratch::wait_until("the namespace", || namespace(&pid, "net") != own);
        let path = format!("/proc/{pid}/ns/net");
        let jailed = host.start("vm1", &["--netns", &path]);
        let jailed = jailed.pid().to_string();
        assert_eq!(namespace(&jailed, "net"), namespace(&pid, "net"));
        assert_ne!(namespace(&jailed, "mnt"), namespace("thread-self", "mnt"));
        assert_eq!(namespace(&jailed, "pid"), namespace("thread-self", "pid"));
    });
}

/// Returns the targets of the standard descriptors.
fn standard_descriptors(pid: u32) -> [PathBuf; 3] {
    [0, 1, 2].map(|fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap())
}

#[test]
fn daemon_has_session_without_terminal() {
    in_namespaces(|host| {
        let daemon = host.start_in_background("vm1", &["--daemonize"]);
        // /proc/PID/stat: PID, name, state, parent, process group, session.
        let stat = proc_file(daemon.0, "stat");
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let session: u32 = fields[3].parse().unwrap();
        assert_ne!(session, daemon.0, "a session leader could acquire a terminal");
        // SAFETY: the call takes no pointer.
        let own = unsafe { libc::getsid(0) };
        assert_ne!(i32::try_from(session).unwrap(), own);
        assert_eq!(fields[2], fields[3]);
        assert_eq!(
            standard_descriptors(daemon.0),
            ["/dev/null"; 3].map(PathBuf::from)
        );
        assert_eq!(namespace(&daemon.0.to_string(), "pid"), namespace("self", "pid"));
    });
}

#[test]
fn vmm_is_first_process_of_namespace() {
    in_namespaces(|host| {
        for (id, options) in [
            ("vm1", &["--new-pid-ns"][..]),
            ("vm2", &["--new-pid-ns", "--daemonize"]),
        ] {
            let daemon = host.start_in_background(id, options);
            assert!(proc_status(daemon.0, "NSpid").ends_with(" 1"), "{id}");
            let of_vmm = namespace(&daemon.0.to_string(), "pid");
            assert_ne!(of_vmm, namespace("self", "pid"), "{id}");
        }
    });
}

#[test]
fn closed_standard_descriptors_are_replaced() {
    in_namespaces(|host| {
        let mut command = host.command("vm1", &[]);
        let close = || {
            for fd in 0..3 {
                // SAFETY: the call takes no pointer. The process executes another program next.
                unsafe { libc::close(fd) };
            }
            Ok(())
        };
        // SAFETY: the closure runs between fork and exec and makes system calls only.
        unsafe { command.pre_exec(close) };
        let child = KillOnDrop(command.spawn().unwrap());
        host.await_socket("vm1");
        assert_eq!(
            standard_descriptors(child.0.id()),
            ["/dev/null"; 3].map(PathBuf::from)
        );
    });
}

#[test]
fn api_answers_from_jail() {
    in_namespaces(|host| {
        let jailed = host.start("vm1", &[]);
        let mut stream = UnixStream::connect(jailed.root.join("run/api.sock")).unwrap();
        stream.set_read_timeout(Some(scratch::TIMEOUT)).unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let mut answer = [0; 1024];
        let count = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]);
        assert!(
            answer.contains("200") && answer.contains("\"id\":\"vm1\""),
            "{answer}"
        );
    });
}

#[test]
fn passed_descriptor_and_plain_arguments_reach_the_vmm() {
    const NUMBER: i32 = 77;
    in_namespaces(|host| {
        let file = fs::File::open("/dev/zero").unwrap();
        // Inherited by each process of this test; the jailer closes what is not passed.
        // SAFETY: the call takes no pointer, and no object owns the number.
        let duplicate = unsafe { libc::dup2(file.as_raw_fd(), NUMBER) };
        assert_eq!(duplicate, NUMBER);
        let number = NUMBER.to_string();
        let jailed = host.start("vm-1", &["--pass-fd", &number, "--plain-arguments"]);
        let pid = jailed.child.0.id();
        assert_eq!(proc_file(pid, "cmdline"), "/mayfly\0--api-sock\0/run/api.sock\0");
        let target = fs::read_link(format!("/proc/{pid}/fd/{NUMBER}")).unwrap();
        assert_eq!(target, Path::new("/dev/zero"));
        let jailed = host.start("vm-2", &[]);
        assert!(fs::read_link(format!("/proc/{}/fd/{NUMBER}", jailed.child.0.id())).is_err());
        assert!(proc_file(jailed.child.0.id(), "cmdline").contains("\0--id\0vm-2\0--start-time-us\0"));
        // SAFETY: the call takes no pointer, and no object owns the number.
        unsafe { libc::close(NUMBER) };
    });
}
