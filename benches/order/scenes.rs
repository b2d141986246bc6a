//! What mayfly mostly does.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use crate::trace::{Executed, Traced};

/// One of them.
pub type Scene = fn(&Fixture) -> io::Result<Executed>;

const TIMEOUT: Duration = Duration::from_secs(60);

/// The program, and a folder for its files.
pub struct Fixture {
    program: PathBuf,
    folder: PathBuf,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Fixture {
    /// # Errors
    /// The kernel's.
    pub fn new(program: PathBuf) -> io::Result<Self> {
        let folder = env::temp_dir().join(format!("mayfly-order-{}", process::id()));
        fs::create_dir_all(&folder)?;
        Ok(Self { program, folder })
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// Starts mayfly with pipes for its input and output.
    fn start(&self, arguments: &[&str]) -> io::Result<Traced> {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Traced::start(command)
    }

    /// Asks the one that listens in this folder, as soon as it does.
    fn ask(&self, method: &str, path: &str, body: &str) -> io::Result<()> {
        let begin = Instant::now();
        let mut stream = loop {
            match UnixStream::connect(self.path("socket")) {
                Ok(stream) => break stream,
                Err(error) if begin.elapsed() > TIMEOUT => return Err(error),
                Err(_) => thread::yield_now(),
            }
        };
        let length = body.len();
        stream.write_all(
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")
                .as_bytes(),
        )?;
        let mut answer = [0; 1024];
        let count = stream.read(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer[..count]);
        match answer.starts_with("HTTP/1.1 20") {
            true => Ok(()),
            false => Err(io::Error::other(format!("{method} {path}: {answer}"))),
        }
    }

    /// Has `guest` boot by the API, and answer.
    fn boot_by_api(&self, guest: &str) -> io::Result<Traced> {
        let mut vm = self.start(&["--api-sock", &self.path("socket")])?;
        let image = self::guest(guest);
        self.ask("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":64}"#)?;
        self.ask(
            "PUT",
            "/boot-source",
            &format!(r#"{{"kernel_image_path":"{image}","boot_args":"console=ttyS0"}}"#),
        )?;
        self.ask("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#)?;
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

/// Sends a byte, and waits for what comes of it.
fn exchange_byte(vm: &mut Traced) -> io::Result<()> {
    let input = vm.child.stdin.as_mut();
    input
        .ok_or_else(|| io::Error::other("no pipe"))?
        .write_all(b"x")?;
    read(vm, 1)
}

fn end(vm: Traced) -> io::Result<Executed> {
    let pid = libc::pid_t::try_from(vm.child.id()).map_err(io::Error::other)?;
    // SAFETY: the process is a child that nobody has waited for.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    vm.executed()
}

/// An image is booted, prints and ends.
pub fn boot(stage: &Fixture) -> io::Result<Executed> {
    let mut vm = stage.start(&["run", &guest("hello")])?;
    read(&mut vm, 1)?;
    vm.executed()
}

/// A snapshot is restored and answers.
pub fn restore(stage: &Fixture) -> io::Result<Executed> {
    let (snapshot, socket) = (stage.path("snapshot"), stage.path("socket"));
    let mut vm = stage.start(&["run", &guest("echo"), "--memory", "64M", "--api-sock", &socket])?;
    exchange_byte(&mut vm)?;
    let mut command = Command::new(&stage.program);
    command
        .args(["snapshot", &snapshot, "--api-sock", &socket])
        .status()?;
    end(vm)?;
    let mut vm = stage.start(&["restore", &snapshot])?;
    exchange_byte(&mut vm)?;
    end(vm)
}

/// A VM is set up, started and asked how it is, by the API.
pub fn serve(stage: &Fixture) -> io::Result<Executed> {
    let mut vm = stage.boot_by_api("echo")?;
    for path in ["/", "/version", "/machine-config", "/vm/config"] {
        stage.ask("GET", path, "")?;
    }
    exchange_byte(&mut vm)?;
    end(vm)
}

/// A snapshot is made by the API.
pub fn freeze(stage: &Fixture) -> io::Result<Executed> {
    let vm = stage.boot_by_api("echo")?;
    stage.ask("PATCH", "/vm", r#"{"state":"Paused"}"#)?;
    let body = format!(
        r#"{{"snapshot_path":"{}","mem_file_path":"{}"}}"#,
        stage.path("state"),
        stage.path("memory")
    );
    stage.ask("PUT", "/snapshot/create", &body)?;
    stage.ask("PATCH", "/vm", r#"{"state":"Resumed"}"#)?;
    end(vm)
}

/// It is loaded by the API.
pub fn load(stage: &Fixture) -> io::Result<Executed> {
    let mut vm = stage.start(&["--api-sock", &stage.path("socket")])?;
    let body = format!(
        r#"{{"snapshot_path":"{}","mem_backend":{{"backend_type":"File","backend_path":"{}"}},"resume_vm":true}}"#,
        stage.path("state"),
        stage.path("memory")
    );
    stage.ask("PUT", "/snapshot/load", &body)?;
    exchange_byte(&mut vm)?;
    end(vm)
}

/// A guest writes to its drive, and reads from it.
pub fn disk(stage: &Fixture) -> io::Result<Executed> {
    let path = stage.path("disk");
    fs::write(&path, vec![0; 16 << 20])?;
    let mut vm = stage.start(&[
        "run",
        &guest("disk"),
        "--disk",
        Path::new(&path).to_str().unwrap_or_default(),
    ])?;
    read(&mut vm, 1)?;
    vm.executed()
}
