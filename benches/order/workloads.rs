//! Common operations of mayfly.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use crate::trace::{Executed, Traced};

/// Operation that runs traced and returns the executed addresses.
pub type Workload = fn(&Fixture) -> io::Result<Executed>;

const TIMEOUT: Duration = Duration::from_secs(60);

/// Traced program, and a directory for its files.
pub struct Fixture {
    program: PathBuf,
    directory: PathBuf,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Fixture {
    /// Creates the directory.
    ///
    /// # Errors
    /// Fails if it cannot be created.
    pub fn new(program: PathBuf) -> io::Result<Self> {
        let directory = env::temp_dir().join(format!("mayfly-order-{}", process::id()));
        fs::create_dir_all(&directory)?;
        Ok(Self { program, directory })
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    /// Starts mayfly with pipes for its input and output.
    fn start(&self, arguments: &[&str]) -> io::Result<Traced> {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Traced::start(command)
    }

    /// Sends a request to the API socket in this directory as soon as it accepts connections.
    fn request(&self, method: &str, path: &str, body: &str) -> io::Result<()> {
        let started_at = Instant::now();
        let mut stream = loop {
            match UnixStream::connect(self.path("socket")) {
                Ok(stream) => break stream,
                Err(error) if started_at.elapsed() > TIMEOUT => return Err(error),
                Err(_) => thread::yield_now(),
            }
        };
        let length = body.len();
        stream.write_all(
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")
                .as_bytes(),
        )?;
        let mut response = [0; 1024];
        let count = stream.read(&mut response)?;
        let response = String::from_utf8_lossy(&response[..count]);
        match response.starts_with("HTTP/1.1 20") {
            true => Ok(()),
            false => Err(io::Error::other(format!("{method} {path}: {response}"))),
        }
    }

    /// Boots `guest` through the API and waits for its first byte.
    fn boot_by_api(&self, guest: &str) -> io::Result<Traced> {
        let mut vm = self.start(&["--api-sock", &self.path("socket")])?;
        let image = self::guest(guest);
        self.request("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":64}"#)?;
        self.request(
            "PUT",
            "/boot-source",
            &format!(r#"{{"kernel_image_path":"{image}","boot_args":"console=ttyS0"}}"#),
        )?;
        self.request("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#)?;
        read(&mut vm, 1)?;
        Ok(vm)
    }
}

fn guest(name: &str) -> String {
    format!("{}/dist/guests/x86_64/{name}.elf", env!("CARGO_MANIFEST_DIR"))
}

fn read(vm: &mut Traced, count: usize) -> io::Result<()> {
    let output = vm.child.stdout.as_mut();
    output
        .ok_or_else(|| io::Error::other("no pipe"))?
        .read_exact(&mut vec![0; count])
}

/// Sends a byte and waits for the response.
fn exchange_byte(vm: &mut Traced) -> io::Result<()> {
    let input = vm.child.stdin.as_mut();
    input
        .ok_or_else(|| io::Error::other("no pipe"))?
        .write_all(b"x")?;
    read(vm, 1)
}

fn terminate(vm: Traced) -> io::Result<Executed> {
    let pid = libc::pid_t::try_from(vm.child.id()).map_err(io::Error::other)?;
    // SAFETY: the process is a child that has not been waited for.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    vm.executed()
}

/// Boots an image until it prints and exits.
pub fn boot(fixture: &Fixture) -> io::Result<Executed> {
    let mut vm = fixture.start(&["run", &guest("hello")])?;
    read(&mut vm, 1)?;
    vm.executed()
}

/// Restores a snapshot until the guest echoes a byte.
pub fn restore(fixture: &Fixture) -> io::Result<Executed> {
    let (snapshot, socket) = (fixture.path("snapshot"), fixture.path("socket"));
    let mut vm = fixture.start(&["run", &guest("echo"), "--memory", "64M", "--api-sock", &socket])?;
    exchange_byte(&mut vm)?;
    let mut command = Command::new(&fixture.program);
    scratch::run(command.args(["snapshot", &snapshot, "--api-sock", &socket]));
    terminate(vm)?;
    let mut vm = fixture.start(&["restore", &snapshot])?;
    exchange_byte(&mut vm)?;
    terminate(vm)
}

/// Configures, starts and queries a VM through the API.
pub fn serve(fixture: &Fixture) -> io::Result<Executed> {
    let mut vm = fixture.boot_by_api("echo")?;
    for path in ["/", "/version", "/machine-config", "/vm/config"] {
        fixture.request("GET", path, "")?;
    }
    exchange_byte(&mut vm)?;
    terminate(vm)
}

/// Creates a snapshot through the API.
pub fn create_snapshot(fixture: &Fixture) -> io::Result<Executed> {
    let vm = fixture.boot_by_api("echo")?;
    fixture.request("PATCH", "/vm", r#"{"state":"Paused"}"#)?;
    let body = format!(
        r#"{{"snapshot_path":"{}","mem_file_path":"{}"}}"#,
        fixture.path("state"),
        fixture.path("memory")
    );
    fixture.request("PUT", "/snapshot/create", &body)?;
    fixture.request("PATCH", "/vm", r#"{"state":"Resumed"}"#)?;
    terminate(vm)
}

/// Loads that snapshot through the API.
pub fn load_snapshot(fixture: &Fixture) -> io::Result<Executed> {
    let mut vm = fixture.start(&["--api-sock", &fixture.path("socket")])?;
    let body = format!(
        r#"{{"snapshot_path":"{}","mem_backend":{{"backend_type":"File","backend_path":"{}"}},"resume_vm":true}}"#,
        fixture.path("state"),
        fixture.path("memory")
    );
    fixture.request("PUT", "/snapshot/load", &body)?;
    exchange_byte(&mut vm)?;
    terminate(vm)
}

/// Runs a guest that writes to its drive and reads from it.
pub fn disk(fixture: &Fixture) -> io::Result<Executed> {
    let path = fixture.path("disk");
    fs::write(&path, vec![0; 16 << 20])?;
    let mut vm = fixture.start(&[
        "run",
        &guest("disk"),
        "--disk",
        Path::new(&path).to_str().unwrap_or_default(),
    ])?;
    read(&mut vm, 1)?;
    vm.executed()
}
