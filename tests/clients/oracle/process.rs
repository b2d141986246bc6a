//! A VMM process with an API socket in a directory of its own.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::{env, fs};

use serde_json::Value;

use scratch::{Directory, KillOnDrop, TIMEOUT};

/// The program under test, or the oracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmm {
    /// The release of `tests/clients/oracle.txt`.
    Firecracker,
    /// mayfly under the name `firecracker`.
    Mayfly,
}

/// Firecracker's binary on this machine, fetched by `make setup`.
const FETCHED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/.cache/firecracker/1.12.1/firecracker"
);

impl Vmm {
    /// Returns the program: `$FIRECRACKER` and `$MAYFLY` where they are set, as on the emulated host.
    pub fn program(self) -> PathBuf {
        let (variable, default): (_, OsString) = match self {
            Self::Firecracker => ("FIRECRACKER", FETCHED.into()),
            Self::Mayfly => ("MAYFLY", env!("CARGO_BIN_EXE_mayfly").into()),
        };
        env::var_os(variable).unwrap_or(default).into()
    }
}

/// Size of the disk image.
const DISK_SIZE: u64 = 1 << 20;

/// Creates a directory with the files that requests name by relative paths, and the program as `firecracker`.
pub fn create_directory(vmm: Vmm, kernel: &str) -> Directory {
    let directory = Directory::new();
    // As one name, since some messages contain it.
    symlink(vmm.program(), directory.path("firecracker")).unwrap();
    fs::copy(kernel, directory.path("kernel")).unwrap();
    for disk in ["disk", "other"] {
        let file = fs::File::create(directory.path(disk)).unwrap();
        file.set_len(DISK_SIZE).unwrap();
    }
    directory.write("empty", "");
    directory.write("text", "text\n");
    fs::create_dir(directory.path("directory")).unwrap();
    directory
}

/// A running process. Drop kills it and removes its directory.
pub struct Process {
    child: KillOnDrop,
    directory: Directory,
}

impl Process {
    /// Starts `vmm` with an API socket and waits until it accepts connections.
    pub fn start(vmm: Vmm, kernel: &str) -> Self {
        Self::start_in(create_directory(vmm, kernel))
    }

    /// Starts the program of `directory`.
    pub fn start_in(directory: Directory) -> Self {
        let mut command = Command::new("./firecracker");
        command
            .args(["--api-sock", "api.sock"])
            .current_dir(directory.root())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = KillOnDrop(command.spawn().unwrap());
        let process = Self { child, directory };
        scratch::wait_until("the API socket", || process.connect().is_some());
        process
    }

    fn connect(&self) -> Option<UnixStream> {
        let stream = UnixStream::connect(self.directory.path("api.sock")).ok()?;
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Some(stream)
    }

    /// Sends each of `parts` on one new connection and receives a response to it, until the VMM closes the connection.
    pub fn exchange(&self, parts: &[Vec<u8>]) -> Vec<Response> {
        let Some(mut stream) = self.connect() else {
            return Vec::new();
        };
        // The VMM may respond and close the connection before it has read all.
        let exchange = |part: &Vec<u8>| {
            let _ = stream.write_all(part);
            Response::receive(&mut stream)
        };
        parts.iter().map_while(exchange).collect()
    }

    /// Returns the version that `GET /version` states.
    pub fn version(&self) -> String {
        let responses = self.exchange(&[super::outcome::request("GET", "/version", None)]);
        let version: Value = serde_json::from_str(&responses[0].body).unwrap();
        version["firecracker_version"].to_string()
    }

    /// Sends `signal`, which the process ignores, or which ends it. Returns the effect.
    pub fn signal(&mut self, signal: libc::c_int) -> String {
        let pid = libc::pid_t::try_from(self.child.0.id()).unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let ignored = status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))
            .unwrap();
        let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
        if ignored & (1 << (signal - 1)) != 0 {
            return "ignored".to_owned();
        }
        // SAFETY: kill takes no pointer. The process is a child that has not been waited for.
        let result = unsafe { libc::kill(pid, signal) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        self.wait()
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> String {
        describe(scratch::wait_exit(&mut self.child.0))
    }
}

/// Returns the exit status or the signal.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => format!("{status}"),
    }
}

/// A received response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status line and headers, without the empty line.
    pub head: String,
    /// Body.
    pub body: String,
}

impl Response {
    /// Reads one response and no byte of the next. Returns none at the end of the connection.
    fn receive(stream: &mut UnixStream) -> Option<Self> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => bytes.push(byte[0]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    panic!("no response after {:?}", String::from_utf8_lossy(&bytes))
                }
                _ => return None,
            }
        }
        let head = String::from_utf8(bytes).unwrap();
        let head = head.trim_end_matches("\r\n").to_owned();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        let body = String::from_utf8(body).unwrap();
        Some(Self { head, body })
    }
}
