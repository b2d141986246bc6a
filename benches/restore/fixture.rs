//! Compiled guests, their snapshots, and mayfly processes with an API socket.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Process, compile, connect, directory, mayfly, request_text};

/// Compiled programs and a directory for snapshots, which is removed on drop.
pub struct Fixture {
    /// The floor program.
    pub floor: PathBuf,
    files: PathBuf,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.files);
    }
}

impl Fixture {
    /// Compiles the programs and creates the directory.
    ///
    /// # Errors
    /// Fails if there is no compiler, or no /dev/shm.
    pub fn new() -> io::Result<Self> {
        fs::create_dir_all(directory())?;
        let files = PathBuf::from(format!("/dev/shm/mayfly-restore-{}", std::process::id()));
        fs::create_dir_all(&files)?;
        let floor = compile(
            "floor",
            &["-Wall", "-Wextra", "-Werror", "-pthread", "restore/floor.c"],
        )?;
        for guest in ["chatter", "writer", "toucher"] {
            let options = ["-nostdlib", "-no-pie", "-Wl,-T,../resources/guests/link.ld"];
            let source = format!("restore/{guest}.S");
            let quiet = "-Wl,--build-id=none,-z,noexecstack,-z,max-page-size=4096";
            compile(
                &format!("{guest}.elf"),
                &[&options[..], &[quiet, &source]].concat(),
            )?;
        }
        Ok(Self { floor, files })
    }

    /// Creates an empty directory.
    ///
    /// # Errors
    /// Fails if the directory cannot be created.
    pub fn new_directory(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.files.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Creates a snapshot of the floor's guest with `mib` MiB.
    ///
    /// # Errors
    /// Fails if the program fails.
    pub fn floor_snapshot(&self, mib: u32) -> io::Result<PathBuf> {
        let path = self.new_directory(&format!("floor-{mib}"))?;
        let mut command = Command::new(&self.floor);
        run_ok(command.args(["make", &text(&path), &mib.to_string()]))?;
        Ok(path)
    }

    /// Creates a snapshot of `guest` with `mib` MiB, unless it exists.
    ///
    /// # Errors
    /// Fails if it cannot be created.
    pub fn snapshot(&self, guest: &str, mib: u32) -> io::Result<PathBuf> {
        let path = self.files.join(format!("{guest}-{mib}"));
        if path.exists() {
            return Ok(path);
        }
        let image = text(&directory().join(format!("{guest}.elf")));
        let mut vm = ApiProcess::start(&["run", &image, "--memory", &format!("{mib}M")])?;
        // The writer and the toucher print only after an input byte. The first output byte of each guest
        // proves that it runs.
        vm.process.send_byte()?;
        vm.process.read(1)?;
        let mut command = Command::new(mayfly());
        run_ok(command.args(["snapshot", &text(&path), "--api-sock", &text(&socket())]))?;
        Ok(path)
    }
}

/// Returns the path of the socket of a process.
pub fn socket() -> PathBuf {
    directory().join("s")
}

/// Returns the path as an argument.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn run_ok(command: &mut Command) -> io::Result<()> {
    let output = scratch::run(command);
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command:?} failed: {stderr}")))
}

/// mayfly process with an API socket, and the connection to it.
pub struct ApiProcess {
    /// The process.
    pub process: Process,
    stream: UnixStream,
}

impl ApiProcess {
    /// Starts mayfly and connects to its API socket.
    ///
    /// # Errors
    /// Fails if the process cannot be started.
    pub fn start(arguments: &[&str]) -> io::Result<Self> {
        let path = socket();
        let _ = fs::remove_file(&path);
        let socket = text(&path);
        let arguments = [arguments, &["--api-sock", &socket]].concat();
        let process = Process::start(&mayfly(), &arguments)?;
        let stream = connect(&path);
        Ok(Self { process, stream })
    }

    /// Starts the `floor`, which waits for a request to load `snapshot`, and connects to its socket.
    ///
    /// # Errors
    /// Fails if the process cannot be started.
    pub fn wait(floor: &Path, snapshot: &str) -> io::Result<Self> {
        let path = socket();
        let _ = fs::remove_file(&path);
        let process = Process::start(floor, &["wait", snapshot, &text(&path)])?;
        let stream = connect(&path);
        Ok(Self { process, stream })
    }

    /// Sends a request without waiting for the response.
    ///
    /// # Errors
    /// Fails if the connection fails.
    pub fn send(&mut self, method: &str, path: &str, body: &str) -> io::Result<()> {
        self.stream.write_all(request_text(method, path, body).as_bytes())
    }

    /// Sends a request and waits for its response.
    ///
    /// # Errors
    /// Fails if the request is rejected.
    pub fn request(&mut self, method: &str, path: &str, body: &str) -> io::Result<()> {
        self.send(method, path, body)?;
        let mut response = [0; 4096];
        let length = self.stream.read(&mut response)?;
        if response[..length].starts_with(b"HTTP/1.1 20") {
            return Ok(());
        }
        Err(io::Error::other(
            String::from_utf8_lossy(&response[..length]).into_owned(),
        ))
    }
}
