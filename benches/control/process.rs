//! Measured process and the connection to it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{env, fs, mem};

/// Returns the directory of compiled programs and sockets. Its path is short, because socket addresses are
/// limited.
pub fn directory() -> PathBuf {
    env::temp_dir().join(format!("mayfly-control-{}", std::process::id()))
}

pub fn mayfly() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/mayfly")
}

pub fn guest(name: &str) -> String {
    format!("{}/dist/guests/x86_64/{name}.elf", env!("CARGO_MANIFEST_DIR"))
}

/// Compiles a static program `name` from sources in `benches`.
///
/// # Errors
/// Fails if there is no compiler, or it fails.
pub fn compile(name: &str, arguments: &[&str]) -> io::Result<PathBuf> {
    let program = directory().join(name);
    let benches = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-static", "-O2", "-o"])
        .arg(&program)
        .args(arguments);
    let output = scratch::run(compiler.current_dir(benches));
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("{compiler:?} failed: {stderr}")));
    }
    Ok(program)
}

/// Process that is killed on drop.
pub struct Process(pub Child);

impl Process {
    /// Starts `program` with pipes for its input and output.
    ///
    /// # Errors
    /// Fails if the process cannot be started.
    pub fn start(program: &Path, arguments: &[&str]) -> io::Result<Self> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command.spawn().map(Self)
    }

    /// Reads `count` bytes from the output of the process.
    ///
    /// # Errors
    /// Fails if the process exits first.
    pub fn read(&mut self, count: usize) -> io::Result<()> {
        let output = self
            .0
            .stdout
            .as_mut()
            .ok_or_else(|| io::Error::other("no pipe"))?;
        output.read_exact(&mut vec![0; count])
    }

    /// Sends a byte to the input of the process.
    ///
    /// # Errors
    /// Fails if the process has exited.
    pub fn send_byte(&mut self) -> io::Result<()> {
        let input = self.0.stdin.as_mut().ok_or_else(|| io::Error::other("no pipe"))?;
        input.write_all(b".")
    }

    /// Returns the private memory of the process in KiB, without its guest's memory of `memory` bytes. The
    /// kernel's placement of pages there depends on the guest, not on the socket. Clean pages belong to the page cache, and the kernel
    /// maps more or fewer of them at each page fault.
    ///
    /// # Errors
    /// Fails if /proc is missing.
    pub fn private_kib(&self, memory: u64) -> io::Result<i64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps", self.0.id()))?;
        let mut mappings: Vec<(u64, u64, i64)> = Vec::new();
        for line in text.lines() {
            let mut columns = line.split_whitespace();
            let first = columns.next().unwrap_or_default();
            let number = columns.next().and_then(|column| column.parse::<i64>().ok());
            if let Some((start, end)) = range(first) {
                mappings.push((start, end, 0));
            } else if first == "Private_Dirty:"
                && let Some(mapping) = mappings.last_mut()
            {
                mapping.2 += number.unwrap_or(0);
            }
        }
        // The largest mapping ends with the guest's memory.
        let largest = mappings.iter().max_by_key(|(start, end, _)| end - start);
        let end = largest.map_or(0, |(_, end, _)| *end);
        let guest = end.saturating_sub(memory)..end;
        let own = mappings.iter().filter(|(start, _, _)| !guest.contains(start));
        Ok(own.map(|(_, _, private)| private).sum())
    }
}

/// Parses the addresses in the first line of a mapping.
fn range(word: &str) -> Option<(u64, u64)> {
    let (start, end) = word.split_once('-')?;
    Some((
        u64::from_str_radix(start, 16).ok()?,
        u64::from_str_radix(end, 16).ok()?,
    ))
}

impl Drop for Process {
    fn drop(&mut self) {
        scratch::kill(&mut self.0);
    }
}

/// Connects as soon as the socket accepts connections. Polls without sleep, for precision.
pub fn connect(socket: &Path) -> UnixStream {
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            return stream;
        }
    }
}

/// Returns the text of a request.
pub fn request_text(method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Sends a PUT request, whose response must have status 204.
///
/// # Errors
/// Fails if the request is rejected.
pub fn put(stream: &mut UnixStream, path: &str, body: &str) -> io::Result<()> {
    stream.write_all(request_text("PUT", path, body).as_bytes())?;
    let mut response = [0; 1024];
    let length = stream.read(&mut response)?;
    if response[..length].starts_with(b"HTTP/1.1 204 ") {
        return Ok(());
    }
    Err(io::Error::other(
        String::from_utf8_lossy(&response[..length]).into_owned(),
    ))
}

/// Pins the process `id` to the first processor; 0 is this thread.
///
/// # Errors
/// Fails if the kernel rejects the affinity.
pub fn pin(id: u32) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the set has room for the first processor.
    unsafe { libc::CPU_SET(0, &mut set) };
    let id = libc::pid_t::try_from(id).map_err(io::Error::other)?;
    // SAFETY: `set` is valid for reads of its size.
    match unsafe { libc::sched_setaffinity(id, size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
