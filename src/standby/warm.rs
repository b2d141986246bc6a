//! Start of shells, and wakes in them.

use std::ffi::CString;
use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::config::Config;
use super::core::{Core, RUN, Source};
use super::live::Running;
use super::metrics::Failure;
use super::registry::{Key, Origin};
use super::shells::{Shell, is_possible};
use super::sys::{self, Program};
use crate::message::Request;

/// Pause after a shell that has ended before its request.
const PAUSE: Duration = Duration::from_secs(1);

/// Number in the arguments of a shell from which descriptors are counted: those of the message replace them.
const FIRST_NUMBER: RawFd = 1000;

impl Core {
    /// Starts one missing shell, while no instance wakes.
    pub fn fill_shells(&mut self) {
        if self.queue.active() > 0 || self.queue.waiting() > 0 || Instant::now() < self.shells.not_before {
            return;
        }
        let Some(snapshot) = self.shells.missing().cloned() else {
            return;
        };
        let number = self.shells.next;
        self.shells.next += 1;
        match self.start_shell(&snapshot, number) {
            Ok(shell) => self.shells.ready.entry(snapshot).or_default().push_back(shell),
            Err(error) => {
                log::warn!(
                    "standby: cannot start a shell for {}: {error}",
                    snapshot.display()
                );
                let _ = fs::remove_file(record(number));
                self.counters.fail(Failure::Shell);
                self.shells.not_before = Instant::now() + PAUSE;
            }
        }
    }

    fn start_shell(&mut self, snapshot: &Path, number: u32) -> io::Result<Shell> {
        let (stream, theirs) = UnixStream::pair()?;
        let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::other);
        let program = text(self.programs.mayfly.as_os_str().as_bytes())?;
        let socket = format!("fd:{}", self.slots.number(0));
        let arguments = [
            program.clone(),
            c"shell".to_owned(),
            text(socket.as_bytes())?,
            c"--for".to_owned(),
            text(snapshot.as_os_str().as_bytes())?,
        ];
        let identity = Self::create_file(&record(number))?;
        let null = fs::File::open("/dev/null")?;
        let started = self.slots.start(&Program {
            path: &program,
            arguments: &arguments,
            stderr: null.as_fd(),
            inherited: &[theirs.as_fd()],
            identity: identity.as_fd(),
            cgroup: None,
        });
        let child = started.map_err(io::Error::other)?;
        let key = Key {
            index: number,
            generation: 0,
        };
        let running = Running {
            pid: child.pid,
            process: child.process,
        };
        let watched = self
            .watch(Source::Shell(key), running.process.as_raw_fd())
            .and_then(|()| stream.set_nonblocking(true));
        let shell = Shell {
            number,
            running,
            stream,
        };
        match watched {
            Ok(()) => Ok(shell),
            Err(error) => {
                self.end_shell(shell);
                Err(error)
            }
        }
    }

    /// Ends a shell that is used no more.
    pub fn end_shell(&mut self, shell: Shell) {
        let _ = fs::remove_file(record(shell.number));
        self.end_process(shell.running);
    }

    /// Handles the end of a shell that waits.
    pub fn finish_shell(&mut self, number: u32) {
        for shells in self.shells.ready.values_mut() {
            if let Some(index) = shells.iter().position(|shell| shell.number == number) {
                if let Some(shell) = shells.remove(index) {
                    let exit = sys::reap(shell.running.process.as_fd());
                    log::warn!(
                        "standby: shell {} has ended before its request: {exit:?}",
                        shell.running.pid
                    );
                }
                let _ = fs::remove_file(record(number));
                self.counters.fail(Failure::Shell);
                self.shells.not_before = Instant::now() + PAUSE;
                return;
            }
        }
    }

    /// Wakes an instance in a shell. Returns its process, or nothing without a shell.
    pub fn start_in_shell(&mut self, key: Key, config: &Config) -> Option<(Running, UnixStream)> {
        let entry = self.registry.get(key)?;
        if !is_possible(config) || entry.origin == Origin::Boot {
            return None;
        }
        let shell = self.shells.ready.get_mut(&config.snapshot)?.pop_front()?;
        self.unwatch(shell.running.process.as_raw_fd());
        match self.send(key, config, &shell) {
            Ok(()) => {
                self.counters.shell_wakes += 1;
                Some((shell.running, shell.stream))
            }
            Err(error) => {
                log::warn!("standby: shell {} is not used: {error}", shell.running.pid);
                self.counters.fail(Failure::Shell);
                self.end_shell(shell);
                None
            }
        }
    }

    /// Records the shell as the process of an instance, then sends the request.
    fn send(&mut self, key: Key, config: &Config, shell: &Shell) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let entry = self.registry.get(key).ok_or("the instance is deleted")?;
        let id = entry.id.clone();
        let prepared = self.prepare_files(key, config).map_err(|(_, reason)| reason)?;
        let (suspend_to, prepared) = prepared;
        let line = fs::read_to_string(record(shell.number)).map_err(text)?;
        let head = self.record(entry, &prepared);
        let new = Self::run_path(&id, "new");
        let mut file = Self::create_file(&new).map_err(text)?;
        write!(file, "{head}{line}").map_err(text)?;
        // Before the request: a supervisor that is killed now leaves a shell that ends.
        fs::rename(&new, Self::run_path(&id, "pid")).map_err(text)?;
        let _ = fs::remove_file(record(shell.number));
        let stderr = Self::create_file(&Self::run_path(&id, "log")).map_err(text)?;
        let (null, directory) = (open("/dev/null")?, open(".")?);
        let frames = entry.frame_files().map_err(text)?;
        let mut numbers = FIRST_NUMBER..;
        let mut descriptors: Vec<(RawFd, RawFd)> = Vec::new();
        let mut taps = Vec::new();
        for ((interface, tap), number) in entry.links.taps().zip(&mut numbers) {
            taps.push((interface, number));
            descriptors.push((number, tap.as_raw_fd()));
        }
        let frames = frames.iter().zip(numbers).map(|((interface, file), number)| {
            descriptors.push((number, file.as_raw_fd()));
            (*interface, number)
        });
        let frames = frames.collect();
        let arguments = self.arguments(config, entry, (suspend_to, &prepared), taps, frames)?;
        let mut stream = shell.stream.try_clone().map_err(text)?;
        let request = Request {
            // Without the names of program and command.
            arguments: arguments.into_iter().skip(2).collect(),
            standard: [null.as_raw_fd(), null.as_raw_fd(), stderr.as_raw_fd()],
            directory: directory.as_raw_fd(),
            files: Vec::new(),
            descriptors,
            is_detached: true,
        };
        request
            .send(&mut stream)
            .map_err(|error| vmm::ErrorChain(&error).to_string())
    }

    /// Reads the reply of the shell in which an instance wakes. A refusal starts a process without a shell.
    pub fn finish_request(&mut self, key: Key) {
        let Some(live) = self.registry.get_mut(key).and_then(|entry| entry.live.as_mut()) else {
            return;
        };
        let Some(stream) = &mut live.shell else { return };
        let mut reply = [0; 4096];
        match stream.read(&mut reply) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Ok(length @ 1..) if reply[..length].starts_with(b"{\"refused\"") => {
                let reason = String::from_utf8_lossy(&reply[..length]).trim_end().to_owned();
                log::warn!("standby: a shell refuses its request, which a process repeats: {reason}");
                self.counters.fail(Failure::Shell);
                self.replace_shell(key);
            }
            // The end of the process has the reason.
            _ => live.shell = None,
        }
    }
}

fn open(path: &str) -> Result<OwnedFd, String> {
    fs::File::open(path)
        .map(OwnedFd::from)
        .map_err(|error| format!("cannot open {path}: {error}"))
}

/// Returns the path of the record of a shell.
fn record(number: u32) -> PathBuf {
    Path::new(RUN).join(format!("{number}.shell"))
}
