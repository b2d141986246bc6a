//! The same command lines for mayfly-jailer and for Firecracker's jailer 1.12.1, with Firecracker as the VMM: both jails are alike.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use scratch::{KillDaemon, KillOnDrop};

use crate::cgroups::{self, Parent};
use crate::fixture::{GID, Host, UID, in_namespaces, namespace, proc_file, proc_status, tree};

const RELEASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.cache/firecracker/1.12.1");

/// Returns the directory with Firecracker and its jailer.
fn release() -> Option<PathBuf> {
    let path = Path::new(RELEASE).canonicalize().ok();
    if path.is_none() {
        scratch::skip("Firecracker 1.12.1", "run `make setup` on x86_64");
    }
    path
}

/// Contents of a jail and its process, in a form that does not depend on PIDs and times.
#[derive(Debug, PartialEq, Eq)]
struct Observed {
    status: Option<i32>,
    tree: Vec<String>,
    arguments: Vec<String>,
    environment: String,
    identity: Vec<String>,
    limits: String,
    cgroup: String,
    mounts: Vec<String>,
    standard: Vec<bool>,
    namespaces: Vec<bool>,
    is_leader: bool,
}

/// Starts `jailer` with `options`, and observes its VMM.
fn observe(host: &Host, jailer: &Path, firecracker: &Path, options: &[&str]) -> Observed {
    // One path for both: it is part of the mounts.
    let base = host.base.join("jails");
    let _ = fs::remove_dir_all(&base);
    fs::create_dir(&base).unwrap();
    let (uid, gid) = (UID.to_string(), GID.to_string());
    let mut command = Command::new(jailer);
    command.args(["--id", "vm1", "--uid", &uid, "--gid", &gid, "--exec-file"]);
    command.arg(firecracker).arg("--chroot-base-dir").arg(&base);
    command
        .args(options)
        .args(["--", "--api-sock", "/run/api.sock"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = KillOnDrop(command.spawn().unwrap());
    let root = base.join("firecracker/vm1/root");
    let socket = root.join("run/api.sock");
    scratch::wait_until("the API socket", || UnixStream::connect(&socket).is_ok());
    let pid_file = root.join("firecracker.pid");
    scratch::wait_until("the PID file", || {
        fs::read_to_string(&pid_file).is_ok_and(|text| !text.is_empty())
    });
    let pid: u32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let has_left = ["--daemonize", "--new-pid-ns"]
        .iter()
        .any(|option| options.contains(option));
    let (status, _daemon) = if has_left {
        (scratch::wait_exit(&mut child.0).code(), Some(KillDaemon(pid)))
    } else {
        assert_eq!(pid, child.0.id());
        (None, None)
    };
    Observed {
        status,
        // The owner of the program differs: root in this release, the user in later ones.
        tree: tree(&root)
            .into_iter()
            .filter(|line| !line.starts_with("firecracker file"))
            .collect(),
        ..Observed::of_process(pid)
    }
}

impl Observed {
    /// Observes a process without its jail.
    fn of_process(pid: u32) -> Self {
        let line = proc_file(pid, "cmdline");
        let is_number = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
        let arguments = line.trim_end_matches('\0').split('\0');
        let stat = proc_file(pid, "stat");
        let session = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3);
        Self {
            status: None,
            tree: Vec::new(),
            arguments: arguments
                .map(|word| {
                    if is_number(word) {
                        "N".to_owned()
                    } else {
                        word.to_owned()
                    }
                })
                .collect(),
            environment: proc_file(pid, "environ"),
            identity: ["Uid", "Gid", "Groups", "CapEff", "CapPrm", "Umask", "NoNewPrivs"]
                .map(|name| proc_status(pid, name))
                .to_vec(),
            limits: proc_file(pid, "limits"),
            cgroup: proc_file(pid, "cgroup"),
            mounts: proc_file(pid, "mountinfo")
                .lines()
                .map(|line| line.split(' ').skip(4).collect::<Vec<_>>().join(" "))
                .collect(),
            standard: (0..3)
                .map(|fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap() == Path::new("/dev/null"))
                .collect(),
            namespaces: ["mnt", "net", "pid", "ipc", "uts", "user"]
                .map(|kind| namespace(&pid.to_string(), kind) == namespace("thread-self", kind))
                .to_vec(),
            is_leader: session == Some(&pid.to_string()),
        }
    }
}

#[test]
fn jails_are_those_of_firecrackers_jailer() {
    let Some(release) = release() else { return };
    in_namespaces(|host| {
        let (firecracker, theirs) = (release.join("firecracker"), release.join("jailer"));
        let ours = Path::new(env!("CARGO_BIN_EXE_mayfly-jailer"));
        let name = Parent::new(Vec::new()).name.clone();
        let cgroup = cgroups::options(&name);
        let cgroup: Vec<&str> = cgroup
            .iter()
            .flat_map(|(_, words)| words)
            .map(String::as_str)
            .collect();
        // The core files of version 2 are an extension.
        let cgroup = if cgroup.contains(&"2") { Vec::new() } else { cgroup };
        let _guard = Parent {
            name: name.clone(),
            hierarchies: cgroups::find_mount("cgroup", "pids").into_iter().collect(),
        };
        let limits = [
            "--resource-limit",
            "no-file=300",
            "--resource-limit",
            "fsize=1000000",
            "--netns",
            "/proc/self/ns/net",
        ];
        for options in [
            &[][..],
            &limits,
            &cgroup,
            &["--daemonize"],
            &["--new-pid-ns"],
            &["--daemonize", "--new-pid-ns"],
        ] {
            let expected = observe(host, &theirs, &firecracker, options);
            let found = observe(host, ours, &firecracker, options);
            assert_eq!(found, expected, "{options:?}");
        }
    });
}
