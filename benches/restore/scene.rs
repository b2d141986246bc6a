//! The guests, their snapshots, and processes that have been asked for something.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Process, compile, connect, directory, mayfly, request};

/// What is compiled, and the folder of the snapshots, which goes with it.
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
    /// # Errors
    /// When there is no compiler, or no /dev/shm.
    pub fn new() -> io::Result<Self> {
        fs::create_dir_all(directory())?;
        let files = PathBuf::from(format!("/dev/shm/mayfly-restore-{}", std::process::id()));
        fs::create_dir_all(&files)?;
        let floor = compile("floor", &["-Wall", "-Wextra", "-Werror", "restore/floor.c"])?;
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

    /// An empty folder.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new_directory(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.files.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// A snapshot of the floor's guest with `mib` MiB.
    ///
    /// # Errors
    /// When the program fails.
    pub fn floor_snapshot(&self, mib: u32) -> io::Result<PathBuf> {
        let path = self.new_directory(&format!("floor-{mib}"))?;
        let mut command = Command::new(&self.floor);
        succeed(command.args(["make", &text(&path), &mib.to_string()]))?;
        Ok(path)
    }

    /// A snapshot of `guest` with `mib` MiB.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn snapshot(&self, guest: &str, mib: u32) -> io::Result<PathBuf> {
        let path = self.files.join(format!("{guest}-{mib}"));
        if path.exists() {
            return Ok(path);
        }
        let image = text(&directory().join(format!("{guest}.elf")));
        let mut live = ApiProcess::start(&["run", &image, "--memory", &format!("{mib}M")])?;
        // The writer and the toucher print when they are prodded; by its first byte each guest is known to run.
        live.process.prod()?;
        live.process.read(1)?;
        let mut command = Command::new(mayfly());
        succeed(command.args(["snapshot", &text(&path), "--api-sock", &text(&socket())]))?;
        Ok(path)
    }
}

fn socket() -> PathBuf {
    directory().join("s")
}

/// The path as an argument.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn succeed(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command:?}: {said}")))
}

/// A mayfly with a control socket, and the connection to it.
pub struct ApiProcess {
    /// The process.
    pub process: Process,
    stream: UnixStream,
}

impl ApiProcess {
    /// # Errors
    /// The kernel's.
    pub fn start(arguments: &[&str]) -> io::Result<Self> {
        let path = socket();
        let _ = fs::remove_file(&path);
        let socket = text(&path);
        let arguments = [arguments, &["--api-sock", &socket]].concat();
        let process = Process::start(&mayfly(), &arguments)?;
        let stream = connect(&path);
        Ok(Self { process, stream })
    }

    /// Sends a request and waits for no answer.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&mut self, method: &str, path: &str, body: &str) -> io::Result<()> {
        self.stream.write_all(request(method, path, body).as_bytes())
    }

    /// Has something done.
    ///
    /// # Errors
    /// When it is refused.
    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> io::Result<()> {
        self.send(method, path, body)?;
        let mut answer = [0; 4096];
        let length = self.stream.read(&mut answer)?;
        if answer[..length].starts_with(b"HTTP/1.1 20") {
            return Ok(());
        }
        Err(io::Error::other(
            String::from_utf8_lossy(&answer[..length]).into_owned(),
        ))
    }
}
