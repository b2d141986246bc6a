//! Supervisor of the instances of one snapshot, which its journal registers.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use api::client::Client;
use serde_json::{Value, json};

use crate::process::{Process, guest, mayfly};

/// Address of the guest in its snapshot.
pub const GUEST: &str = "10.0.0.2";
/// Address of the host in the network of the instances.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);
/// Length of the prefix of the network.
const PREFIX: u8 = 9;
/// Maximum wait for a supervisor or a state.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Interval of attempts.
const INTERVAL: Duration = Duration::from_millis(1);

/// Returns the address of instance `number`.
pub fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(GATEWAY) + 0xff + number)
}

/// Returns the identifier of instance `number`.
pub fn id(number: u32) -> String {
    format!("function-{number:06}")
}

/// Returns a configuration of instance `number` in the shared network.
pub fn in_network(snapshot: &Path, number: u32, scale_to_zero: &Value) -> Value {
    json!({
        "snapshot_path": snapshot,
        "network_interfaces": [{
            "iface_id": "net0", "network_id": "many", "ip": address(number),
            "guest_ip": GUEST, "mac": "02:00:00:00:00:01",
        }],
        "scale_to_zero": scale_to_zero,
    })
}

/// Journal of a state directory.
#[derive(Default)]
pub struct Journal(String);

impl Journal {
    /// Creates a journal with the shared network.
    pub fn with_network(max_taps: u32) -> Self {
        let mut journal = Self::default();
        let network = json!({
            "host_dev_name": "many",
            "gateways": [{"ip": GATEWAY, "prefix_length": PREFIX}],
            "max_taps": max_taps,
        });
        journal.add(&json!({"set": "network", "id": "many", "config": network}));
        journal
    }

    /// Adds instance `number`.
    pub fn register(&mut self, number: u32, config: &Value) {
        self.add(&json!({"set": "instance", "id": id(number), "config": config}));
    }

    fn add(&mut self, record: &Value) {
        let line = record.to_string();
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{:08x} {line}", checksum(line.as_bytes()));
    }
}

/// CRC-32 of IEEE 802.3, as in the journal.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

/// A supervisor. Its end kills the processes of its instances, and removes its directory.
pub struct Supervisor {
    process: Option<Process>,
    client: Client,
    directory: PathBuf,
}

impl Supervisor {
    /// Starts a supervisor with a new state directory, which has `journal`, and waits for its first response.
    ///
    /// # Errors
    /// Fails if it does not respond.
    pub fn start(directory: PathBuf, journal: &Journal, options: &[&str]) -> io::Result<Self> {
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("state"))?;
        fs::write(directory.join("state/journal"), &journal.0)?;
        let mut supervisor = Self {
            process: None,
            client: Client::new(directory.join("sock"), TIMEOUT),
            directory,
        };
        supervisor.restart(options)?;
        Ok(supervisor)
    }

    /// Kills the supervisor if it runs, and starts it. Returns the time until its first response.
    ///
    /// # Errors
    /// Fails if it does not respond.
    pub fn restart(&mut self, options: &[&str]) -> io::Result<Duration> {
        self.process = None;
        let log = File::create(self.directory.join("log"))?;
        let mut command = Command::new(mayfly().with_file_name("mayfly-standby"));
        command
            .arg("--api-sock")
            .arg(self.directory.join("sock"))
            .arg("--state-dir")
            .arg(self.directory.join("state"))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let start = Instant::now();
        self.process = Some(Process(command.spawn()?));
        while let Err(error) = self.request("GET", "/", None) {
            if start.elapsed() > TIMEOUT {
                return Err(io::Error::other(format!("{error}: {}", self.log())));
            }
            thread::sleep(INTERVAL);
        }
        Ok(start.elapsed())
    }

    /// Returns its messages.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Returns its process ID.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, |process| process.0.id())
    }

    /// Sends a request, and returns the body of the response.
    ///
    /// # Errors
    /// Fails if the request is rejected.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Value> {
        request(&self.client, method, path, body)
    }

    /// Returns a client of its API.
    pub fn client(&self) -> Client {
        Client::new(self.directory.join("sock"), TIMEOUT)
    }

    /// Returns the value of a metric with its labels.
    ///
    /// # Errors
    /// Fails if the supervisor does not respond.
    pub fn metric(&self, name: &str) -> io::Result<f64> {
        metric(&self.client, name)
    }

    /// Waits until an instance is in `state`, and returns it.
    ///
    /// # Errors
    /// Fails if it does not reach the state in time, or is failed.
    pub fn await_state(&self, id: &str, state: &str) -> io::Result<Value> {
        let start = Instant::now();
        loop {
            let instance = self.request("GET", &format!("/instances/{id}"), None)?;
            if instance["state"] == state {
                return Ok(instance);
            }
            if instance["state"] == "failed" || start.elapsed() > TIMEOUT {
                return Err(io::Error::other(format!("{id} is not {state}: {instance}")));
            }
            thread::sleep(INTERVAL);
        }
    }

    /// Suspends an instance that wakes or runs. Returns the time from the request until its process has ended.
    ///
    /// # Errors
    /// Fails if it is not suspended.
    pub fn suspend(&self, id: &str) -> io::Result<Duration> {
        let instance = self.await_state(id, "running")?;
        let process = open_process(&instance["pid"])?;
        let start = Instant::now();
        let body = json!({"state": "suspend"});
        self.request("PUT", &format!("/instances/{id}/state"), Some(&body))?;
        await_end(&process)?;
        let time = start.elapsed();
        self.await_state(id, "suspended")?;
        Ok(time)
    }
}

/// Sends a request, and returns the body of the response.
///
/// # Errors
/// Fails if the request is rejected.
pub fn request(client: &Client, method: &str, path: &str, body: Option<&Value>) -> io::Result<Value> {
    let body = body.map(|body| body.to_string().into_bytes());
    let response = client.request(method, path, body.as_deref());
    let response = response.map_err(|error| io::Error::other(error.to_string()))?;
    let text = String::from_utf8_lossy(&response.body).into_owned();
    match response.status {
        200..=299 => Ok(serde_json::from_str(&text).unwrap_or(Value::String(text))),
        status => Err(io::Error::other(format!("{method} {path}: {status} {text}"))),
    }
}

/// Returns the value of a metric with its labels.
///
/// # Errors
/// Fails if the supervisor does not respond.
pub fn metric(client: &Client, name: &str) -> io::Result<f64> {
    let text = request(client, "GET", "/metrics", None)?;
    let mut lines = text.as_str().unwrap_or_default().lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.ok_or_else(|| io::Error::other(format!("the supervisor has no metric {name}")))
}

/// Returns a descriptor of the process with the ID `pid`.
///
/// # Errors
/// Fails if there is no such process.
pub fn open_process(pid: &Value) -> io::Result<OwnedFd> {
    let pid = pid
        .as_i64()
        .ok_or_else(|| io::Error::other("the instance has no process"))?;
    // SAFETY: the call takes no pointer.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor has just been created; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Waits until a process has ended.
///
/// # Errors
/// Fails if it does not end in time.
pub fn await_end(process: &OwnedFd) -> io::Result<()> {
    let mut event = libc::pollfd {
        fd: process.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let limit = i32::try_from(TIMEOUT.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the kernel reads and writes one `pollfd`.
    match unsafe { libc::poll(&raw mut event, 1, limit) } {
        1 => Ok(()),
        0 => Err(ErrorKind::TimedOut.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Instances go on without it.
        self.process = None;
        let records = fs::read_dir(self.directory.join("state/run"));
        for entry in records.into_iter().flatten().flatten() {
            let record = fs::read_to_string(entry.path()).unwrap_or_default();
            // The first line of a record of an instance is its boot; a shell ends by itself.
            let identity = record.lines().nth(1).and_then(identity);
            let present = |pid| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if let Some((pid, start)) = identity
                && self::identity(&present(pid)) == Some((pid, start))
            {
                // SAFETY: the call takes no pointer.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Returns process ID and start time of a line of `/proc/PID/stat`.
fn identity(line: &str) -> Option<(i32, u64)> {
    let (head, rest) = line.rsplit_once(") ")?;
    let pid = head.split(' ').next()?.parse().ok()?;
    Some((pid, rest.split(' ').nth(19)?.parse().ok()?))
}

/// Creates a snapshot in `directory`, of the guest `net` at [`GUEST`] with `mib` MiB.
///
/// # Errors
/// Fails if the guest does not start.
pub fn create_snapshot(directory: &Path, mib: u32) -> io::Result<PathBuf> {
    let path = directory.join("snapshot");
    let socket = directory.join("start.sock").to_string_lossy().into_owned();
    run("ip tuntap add tap0 mode tap")?;
    let (memory, image, address) = (format!("{mib}M"), guest("net"), format!("ip={GUEST}"));
    let net = "tap:tap0,id=net0,mac=02:00:00:00:00:01";
    // The guest must serve as long as the benchmark needs it.
    let arguments = [
        "run",
        &image,
        "--memory",
        &memory,
        "--net",
        net,
        "--api-sock",
        &socket,
        "--",
        &address,
        "pages=1000000000",
    ];
    let mut vm = Process::start(&mayfly(), &arguments)?;
    vm.read("net 02:00:00:00:00:01 at 10.0.0.2\n".len())?;
    run(&format!(
        "{} snapshot {} --api-sock {socket}",
        mayfly().display(),
        path.display()
    ))?;
    Ok(path)
}

/// Runs `command`, split at spaces.
///
/// # Errors
/// Fails if it fails, with its stderr.
pub fn run(command: &str) -> io::Result<()> {
    let mut words = command.split(' ');
    let output = scratch::run(Command::new(words.next().unwrap_or_default()).args(words));
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}

/// Returns the value of `name` in /proc/meminfo in bytes.
///
/// # Errors
/// Fails without the value.
pub fn host_memory(name: &str) -> io::Result<i64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        let number = value.split_whitespace().next()?.parse::<i64>();
        number.ok().filter(|_| key == name)
    });
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other(format!("/proc/meminfo has no {name}")))
}
