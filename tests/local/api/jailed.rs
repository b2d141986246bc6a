//! VMs in jails of mayfly-jailer, as clients of Firecracker's jailer start them. `jailer/tests` has the details of a jail.

mod features;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::chroot::in_own_mounts;
use super::http::NO_CONTENT;
use super::replay::{START, send_as_go};
use super::served::{ApiProcess, Directory, connect, create_fifo};
use crate::guests::{file, jailer, program};

/// User and group of the VMM.
const UNPRIVILEGED: u32 = 65534;

/// Directory of jails, in a file system of its own.
struct Jails(PathBuf);

impl Jails {
    fn in_base(base: PathBuf) -> Self {
        fs::set_permissions(&base, Permissions::from_mode(0o755)).unwrap();
        Self(base)
    }

    /// Returns the root of the jail `id`.
    fn root(&self, id: &str) -> PathBuf {
        self.0.join("mayfly").join(id).join("root")
    }

    /// Copies the guest `name` to the file system of the jails, outside of them.
    fn guest(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::copy(file(name), &path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        path
    }

    /// Returns the command of a client: its options of the jailer, then those of the VMM.
    fn command(&self, options: &[&str], of_vmm: &[&str]) -> Command {
        self.command_as(UNPRIVILEGED, options, of_vmm)
    }

    /// Returns the command of a client, with `user` as user and group of the VMM.
    fn command_as(&self, user: u32, options: &[&str], of_vmm: &[&str]) -> Command {
        let mut command = Command::new(jailer());
        let user = user.to_string();
        command.args(["--uid", &user, "--gid", &user, "--exec-file"]);
        command.arg(program()).arg("--chroot-base-dir").arg(&self.0);
        command.args(options).arg("--").args(of_vmm);
        command
    }
}

/// Creates `name` in the jail as a link to `source`, as the SDK does, which requires one file system.
fn link_into(jail: &Path, source: &Path, name: &str) {
    fs::hard_link(source, jail.join(name)).unwrap();
}

/// The cpuset of version 1 that the SDK always asks for, if the host has this hierarchy. Drop removes it.
struct Cpuset {
    path: PathBuf,
    options: Vec<String>,
}

impl Cpuset {
    fn new() -> Self {
        let hierarchy = Path::new("/sys/fs/cgroup/cpuset");
        let parent = format!("mayfly-sdk-{}", std::process::id());
        let read = |name: &str| fs::read_to_string(hierarchy.join(name));
        let (Ok(mems), Ok(cpus)) = (read("cpuset.mems"), read("cpuset.cpus")) else {
            return Self {
                path: PathBuf::new(),
                options: Vec::new(),
            };
        };
        let options = [
            "--cgroup".to_owned(),
            format!("cpuset.mems={}", mems.trim()),
            "--cgroup".to_owned(),
            format!("cpuset.cpus={}", cpus.trim()),
            "--parent-cgroup".to_owned(),
            parent.clone(),
        ];
        Self {
            path: hierarchy.join(parent),
            options: options.to_vec(),
        }
    }
}

impl Drop for Cpuset {
    fn drop(&mut self) {
        if self.options.is_empty() {
            return;
        }
        let group = self.path.join("sdk-1");
        scratch::wait_until("the end of the cgroup", || {
            fs::remove_dir(&group).is_ok() || !group.exists()
        });
        let _ = fs::remove_dir(&self.path);
    }
}

/// firecracker-go-sdk with a `JailerConfig`: the jailer, a wait for the socket, links in the jail, then names without a directory.
#[test]
fn go_sdk_starts_jailed_vm() {
    in_own_mounts(|base| {
        let jails = Jails::in_base(base);
        let kernel = jails.guest("ticker.elf");
        let disk = jails.0.join("root.img");
        fs::write(&disk, [0; 4096]).unwrap();
        chown(&disk, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
        let cpuset = Cpuset::new();
        let mut options = vec!["--id", "sdk-1", "--netns", "/proc/self/ns/net"];
        options.extend(cpuset.options.iter().map(String::as_str));
        let mut command = jails.command(
            &options,
            &["--no-seccomp", "--api-sock", "/run/firecracker.socket"],
        );
        let mut process = ApiProcess::spawn(Directory::new(), &mut command);
        let root = jails.root("sdk-1");
        let mut client = connect(&root.join("run/firecracker.socket"));
        link_into(&root, &kernel, "vmlinux");
        link_into(&root, &disk, "root.img");
        let fifos = Directory::new_in(&jails.0);
        let log = PathBuf::from(create_fifo(&fifos, "log"));
        chown(&log, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
        link_into(&root, &log, "log");
        for (path, body) in [
            ("/logger", r#"{"level":"Info","log_path":"log"}"#),
            (
                "/machine-config",
                r#"{"mem_size_mib":64,"smt":false,"vcpu_count":1}"#,
            ),
            (
                "/boot-source",
                r#"{"boot_args":"","kernel_image_path":"vmlinux"}"#,
            ),
            (
                "/drives/root",
                r#"{"drive_id":"root","is_read_only":false,"is_root_device":true,"path_on_host":"root.img"}"#,
            ),
            ("/actions", START),
        ] {
            send_as_go(&mut client, "PUT", path, body, NO_CONTENT);
        }
        process.expect("tick 3\n");
        assert_eq!(client.request("GET", "/", "").json()["id"], "sdk-1");
        if !cpuset.options.is_empty() {
            let tasks = fs::read_to_string(cpuset.path.join("sdk-1/cgroup.procs")).unwrap();
            assert_eq!(tasks.trim(), process.id().to_string());
        }
        let pid = fs::read_to_string(root.join("mayfly.pid")).unwrap();
        assert_eq!(pid, process.id().to_string());
        process.terminate();
        // The SDK removes it, and tolerates its absence.
        assert!(!root.join("run/firecracker.socket").exists());
    });
}

/// A snapshot in the jail, loaded in another one.
#[test]
fn snapshot_moves_between_jails() {
    in_own_mounts(|base| {
        let jails = Jails::in_base(base);
        let kernel = jails.guest("ticker.elf");
        let start = |id: &str| {
            let socket = ["--api-sock", "/run/firecracker.socket"];
            let mut command = jails.command(&["--id", id], &socket);
            let process = ApiProcess::spawn(Directory::new(), &mut command);
            let client = connect(&jails.root(id).join("run/firecracker.socket"));
            (process, client)
        };
        let (mut process, mut client) = start("first");
        link_into(&jails.root("first"), &kernel, "kernel");
        for (method, path, body) in [
            ("PUT", "/boot-source", r#"{"kernel_image_path":"kernel"}"#),
            ("PUT", "/actions", START),
        ] {
            send_as_go(&mut client, method, path, body, NO_CONTENT);
        }
        process.expect("tick 3\n");
        let create = r#"{"snapshot_type":"Full","snapshot_path":"state","mem_file_path":"memory"}"#;
        for (method, path, body) in [
            ("PATCH", "/vm", super::served::PAUSED),
            ("PUT", "/snapshot/create", create),
        ] {
            send_as_go(&mut client, method, path, body, NO_CONTENT);
        }
        drop(process.kill());
        let (mut process, mut client) = start("second");
        for name in ["state", "memory"] {
            link_into(&jails.root("second"), &jails.root("first").join(name), name);
        }
        let load = r#"{"snapshot_path":"state","mem_backend":{"backend_type":"File","backend_path":"memory"},"resume_vm":true}"#;
        send_as_go(&mut client, "PUT", "/snapshot/load", load, NO_CONTENT);
        process.expect("tick ");
        process.terminate();
    });
}

/// The jail is the directory of the snapshot, which its user may write.
#[test]
fn jailed_crash_leaves_snapshot() {
    in_own_mounts(|base| {
        let jails = Jails::in_base(base);
        let kernel = jails.guest("crash.elf");
        let flags = ["--api-sock", "/run/firecracker.socket", "--core-on-crash", "/"];
        let mut command = jails.command(&["--id", "crash"], &flags);
        let process = ApiProcess::spawn(Directory::new(), &mut command);
        let root = jails.root("crash");
        let mut client = connect(&root.join("run/firecracker.socket"));
        link_into(&root, &kernel, "kernel");
        let boot = r#"{"kernel_image_path":"kernel","boot_args":"mmio=1"}"#;
        send_as_go(&mut client, "PUT", "/boot-source", boot, NO_CONTENT);
        send_as_go(&mut client, "PUT", "/actions", START, NO_CONTENT);
        let (_, stderr) = process.expect_exit(1);
        assert!(
            stderr.starts_with("mayfly: snapshot of the crash created in /; run "),
            "{stderr}"
        );
        assert!(
            stderr.contains("#0 0x") && stderr.contains(" third+0x"),
            "{stderr}"
        );
        let core = Directory::new();
        let made = [root.to_str().unwrap(), &core.text("core")];
        let output = scratch::run(Command::new(program()).arg("core").args(made));
        assert!(output.status.success(), "{output:?}");
    });
}

/// kata in Go, jailed: a daemon with a configuration file that is in the jail before.
#[test]
fn kata_starts_jailed_daemon() {
    in_own_mounts(|base| {
        let jails = Jails::in_base(base);
        let kernel = jails.guest("ticker.elf");
        let root = jails.root("kata-1");
        fs::create_dir_all(&root).unwrap();
        link_into(&root, &kernel, "vmlinux");
        let config = r#"{"boot-source":{"kernel_image_path":"vmlinux"},"machine-config":{"vcpu_count":1,"mem_size_mib":64},"drives":[]}"#;
        fs::write(root.join("fcConfig.json"), config).unwrap();
        let options = ["--id", "kata-1", "--daemonize", "--new-pid-ns"];
        let output = scratch::run(&mut jails.command(&options, &["--config-file", "/fcConfig.json"]));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && output.stdout.is_empty() && stderr.is_empty(),
            "{stderr}"
        );
        let pid = fs::read_to_string(root.join("mayfly.pid")).unwrap();
        let _daemon = scratch::KillDaemon(pid.parse().unwrap());
        let mut client = connect(&root.join("run/firecracker.socket"));
        scratch::wait_until("the start of the guest", || {
            client.request("GET", "/", "").json()["state"] == "Running"
        });
        // kata looks for vCPU threads by name, to move them into a cgroup. A thread names itself as soon as it runs.
        scratch::wait_until("the name of the vCPU thread", || {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            let mut names =
                threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")).unwrap());
            names.any(|name| name == "fc_vcpu 0\n")
        });
    });
}
