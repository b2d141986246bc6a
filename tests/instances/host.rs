//! A network namespace with snapshots and a supervisor.

use std::fs::{self, File};
use std::io;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use scratch::Requirement;
use serde_json::{Value, json};

use crate::guests::{file, program};
pub use crate::supervisor::Supervisor;

/// Address of the guest in its snapshots.
pub const GUEST: &str = "10.0.0.2";
/// Number of pages of a guest that does not end.
pub const MANY: u32 = 1_000_000_000;
/// Port of the guest that echoes a datagram with its counters.
pub const STATUS: u16 = 15;
/// Length of the payload of a datagram.
const PAYLOAD: usize = 4;
/// Bytes of the identity record in a response of [`STATUS`].
const RECORD: usize = 88;

/// Enters a network namespace with the tap tap0 at 10.0.0.1. Returns false if this host has none.
pub fn enter_namespace() -> bool {
    if !scratch::require(Requirement::NetworkNamespace) {
        return false;
    }
    // SAFETY: the call takes no pointer, and affects this thread and its children only.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    for command in [
        "ip link set lo up",
        "ip tuntap add tap0 mode tap",
        "ip addr add 10.0.0.1/24 dev tap0",
        "ip link set tap0 up",
    ] {
        run(command);
    }
    // Packets of IPv6 on their own would keep the guest awake.
    fs::write("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", "1").unwrap();
    // On a busy machine the guest may reply late: repeat ARP requests for a minute instead of three seconds.
    fs::write("/proc/sys/net/ipv4/neigh/tap0/mcast_solicit", "60").unwrap();
    true
}

/// Runs `command`, split at spaces, which must succeed. Returns its stdout.
pub fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = scratch::run(Command::new(words.next().unwrap()).args(words));
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Expects replies to `count` pings of `address`.
pub fn ping(address: &str, count: u32) {
    let printed = run(&format!("ping -c {count} -i 0.2 -W 60 {address}"));
    assert!(
        printed.contains(&format!("{count} packets transmitted, {count} received")),
        "{printed}"
    );
}

/// Numbers of served requests of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    pub pings: u32,
    pub datagrams: u32,
    pub pages: u32,
    /// Requests of these numbers that were sent.
    pub requests: u32,
}

/// Requests the numbers of the guest at `address`, and repeats the request until it responds.
pub fn served(address: &str) -> Served {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let (mut buffer, mut requests) = ([0; 256], 0);
    let length = scratch::wait_for("a response of the guest", || {
        requests += 1;
        socket.send_to(&[7; PAYLOAD], (address, STATUS)).ok()?;
        socket.recv(&mut buffer).ok()
    });
    let numbers: Vec<u32> = buffer[PAYLOAD + RECORD..length]
        .chunks(4)
        .map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()))
        .collect();
    Served {
        pings: numbers[0],
        datagrams: numbers[1],
        pages: numbers[2],
        requests,
    }
}

/// Creates a snapshot in `directory` of the guest `net` with more `options`, which ends after `pages` pages. The VM ends then.
pub fn create_snapshot(directory: &Path, options: &[&str], pages: u32) {
    let parent = directory.parent().unwrap();
    let (socket, output) = (parent.join("start.sock"), parent.join("start.log"));
    let mut command = Command::new(program());
    command
        .args(["run", &file("net.elf"), "--memory", "8M", "--net"])
        .arg("tap:tap0,id=net0,mac=02:00:00:00:00:07")
        .args(options)
        .arg("--api-sock")
        .arg(&socket)
        .args(["--", "ip=10.0.0.2", &format!("pages={pages}")])
        .stdin(Stdio::null())
        .stdout(File::create(&output).unwrap())
        .stderr(File::create(parent.join("start.err")).unwrap());
    let mut vm = command.spawn().unwrap();
    scratch::wait_until("the guest is ready", || {
        fs::read_to_string(&output).unwrap().contains(" at 10.0.0.2\n")
    });
    let mut command = Command::new(program());
    command
        .arg("snapshot")
        .arg(directory)
        .arg("--api-sock")
        .arg(&socket);
    let created = scratch::run(&mut command);
    assert!(created.status.success(), "{created:?}");
    end(&mut vm);
}

fn end(child: &mut Child) {
    child.kill().unwrap();
    scratch::wait_exit(child);
}

/// Returns the supervisor beside the program under test.
pub fn supervisor_program() -> PathBuf {
    let path = Path::new(&program()).with_file_name("mayfly-standby");
    assert!(path.exists(), "{} is missing; run `make build`", path.display());
    path
}

/// Returns the description of an instance on tap0 with `more`.
pub fn on_tap(more: Value) -> Value {
    let mut body = json!({
        "network_interfaces": [{"iface_id": "net0", "host_dev_name": "tap0", "ip": GUEST}],
        "scale_to_zero": {"cooldown_time_ms": 100},
    });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

impl Supervisor {
    /// Starts a supervisor with `options` and a snapshot of the guest `net`.
    pub fn start(options: &[&str]) -> Self {
        let directory = scratch::Directory::new();
        create_snapshot(&directory.path("snapshot"), &[], MANY);
        Self::start_in(directory, options)
    }

    /// Starts a supervisor with `options` in `directory`, which has a snapshot.
    pub fn start_in(directory: scratch::Directory, options: &[&str]) -> Self {
        let mayfly = program().into_string().unwrap();
        let options = [options, &["--mayfly", &mayfly]].concat();
        Self::launch(supervisor_program(), directory, &options)
    }

    /// Returns the process ID of the instance's process, if it has one.
    pub fn pid_of(&self, id: &str) -> Option<i32> {
        self.get(id)["pid"].as_i64().map(|pid| pid.try_into().unwrap())
    }

    /// Kills the process of an instance.
    pub fn kill_process(&self, id: &str) {
        if let Some(pid) = self.pid_of(id) {
            signal(pid, libc::SIGKILL);
        }
    }

    /// Returns the name of the last generation of an instance, if it has one.
    pub fn generation(&self, id: &str) -> Option<String> {
        let link = self.directory.path(&format!("state/suspended/{id}/current"));
        let target = fs::read_link(link).ok()?;
        Some(target.to_str().unwrap().to_owned())
    }

    /// Suspends an instance. A frame of the host cancels a suspend.
    pub fn suspend(&self, id: &str) {
        scratch::wait_until(&format!("{id} is suspended"), || {
            let state = self.get(id)["state"].clone();
            if state == "running" {
                self.set(id, "suspend");
            }
            state == "suspended"
        });
    }

    /// Returns the number of failures with `cause`.
    pub fn failures(&self, cause: &str) -> u64 {
        self.metric(&format!("mayfly_standby_failures_total{{cause=\"{cause}\"}}"))
    }
}

/// Signals a process that this test has started.
pub fn signal(pid: i32, signal: libc::c_int) {
    // SAFETY: the call takes no pointer.
    unsafe { libc::kill(pid, signal) };
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.kill();
        // Instances go on without it.
        let records = fs::read_dir(self.directory.path("state/run"));
        for entry in records.into_iter().flatten().flatten() {
            let record = fs::read_to_string(entry.path()).unwrap_or_default();
            let Some((pid, start)) = record.lines().nth(1).and_then(identity) else {
                continue;
            };
            let present = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Another process may have the number by now.
            if identity(&present) == Some((pid, start)) {
                signal(pid, libc::SIGKILL);
            }
        }
    }
}

/// Returns process ID and start time of a line of `/proc/PID/stat`.
fn identity(line: &str) -> Option<(i32, u64)> {
    let (head, rest) = line.rsplit_once(") ")?;
    let pid = head.split(' ').next()?.parse().ok()?;
    Some((pid, rest.split(' ').nth(19)?.parse().ok()?))
}
