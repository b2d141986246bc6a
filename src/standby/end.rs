//! The end of the process of an instance, and the state after it.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::AsFd;
use std::path::Path;

use super::cgroup;
use super::config::OnCrash;
use super::core::Core;
use super::lifecycle::Cause;
use super::live::Running;
use super::metrics::Failure;
use super::procfs::Stat;
use super::registry::{Entry, Key, Origin, State};
use super::sys::{self, Exit};

/// Exit status of a process whose guest is suspended.
const SUSPENDED: u8 = 123;

/// Maximum length of the last line of stderr in a reason, in bytes.
const MAX_REASON: u64 = 1024;

impl Core {
    /// Handles the end of a process.
    pub fn finish_process(&mut self, key: Key) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        let Some(live) = entry.live.take() else { return };
        let (state, id) = (entry.state, entry.id.clone());
        entry.memory_kib = u32::try_from(live.memory_kib).unwrap_or(u32::MAX);
        self.running.remove(&key);
        let exit = live.running.as_ref().map_or(Exit::Unknown, end_of);
        if state == State::Waking {
            self.queue.end();
        }
        let log = Self::run_path(&id, "log");
        let line = last_line(&log).unwrap_or_default();
        for suffix in ["pid", "sock", "log"] {
            let _ = fs::remove_file(Self::run_path(&id, suffix));
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup::remove(cgroup, &id);
        }
        let line = if live.is_late {
            "its guest did not run within 30 s"
        } else {
            &line
        };
        self.release_taps(key);
        self.note_end(key, state, exit, line);
        if live.wakes_again {
            self.wake(key, Cause::Request, None);
        }
        self.start_waiting();
    }

    /// Sets the state after the end of a process.
    fn note_end(&mut self, key: Key, state: State, exit: Exit, line: &str) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        match outcome(entry, state, exit, line) {
            Outcome::Suspended(reason, origin) => {
                entry.origin = origin;
                if exit == Exit::Status(SUSPENDED) {
                    self.counters.suspends += 1;
                } else if exit != Exit::Unknown {
                    self.counters.fail(Failure::Guest);
                }
                self.registry.set(key, State::Suspended, &reason);
                self.write_failure(key);
                self.fall_asleep(key);
            }
            Outcome::Failed(failure, reason) => self.fail(key, failure, &reason),
        }
    }
}

/// Returns the end of a process. Its parent, if it is another process, may leave its status unread.
fn end_of(running: &Running) -> Exit {
    let exit = sys::reap(running.process.as_fd());
    if exit != Exit::Unknown {
        return exit;
    }
    let stat = Stat::of(running.pid).filter(|stat| stat.is_zombie);
    // Otherwise the line may be that of a later process with this number.
    let is_unread = sys::signal(running.process.as_fd(), 0).is_ok();
    let status = stat.and_then(|stat| stat.status).filter(|_| is_unread);
    status.map_or(Exit::Unknown, Exit::from_status)
}

/// State after the end of a process.
enum Outcome {
    Suspended(String, Origin),
    Failed(Failure, String),
}

/// Returns the state after the end of a process in `state`, whose last message is `line`.
fn outcome(entry: &Entry, state: State, exit: Exit, line: &str) -> Outcome {
    let config = entry.parse();
    let with_line = |text: String| match line {
        "" => text,
        line => format!("{text}: {line}"),
    };
    if exit == Exit::Status(SUSPENDED) {
        let reason = match state {
            State::Suspending => "the guest is suspended at a request",
            _ => "the guest was idle",
        };
        return Outcome::Suspended(reason.into(), Origin::Latest);
    }
    if exit == Exit::Unknown {
        let reason =
            "the process of an earlier supervisor has ended; the kernel does not report its exit status";
        return Outcome::Suspended(reason.into(), Origin::Latest);
    }
    let end = match exit {
        Exit::Signal(signal) => format!("signal {signal} has ended the process"),
        Exit::Status(status) => format!("the process has ended with status {status}"),
        Exit::Unknown => String::new(),
    };
    // With status 0, the guest has run and ended before its process responded.
    if state == State::Waking && exit != Exit::Status(0) {
        return Outcome::Failed(
            Failure::Load,
            with_line(format!("cannot wake the instance: {end}")),
        );
    }
    let reason = with_line(end);
    match config.map(|config| (config.stateful, config.on_crash)) {
        Ok((false, _)) if exit == Exit::Status(0) => Outcome::Suspended(
            "the guest has ended; the next wake starts from its snapshot".into(),
            Origin::Latest,
        ),
        Ok((_, OnCrash::Boot)) => Outcome::Suspended(format!("{reason}; the next wake boots"), Origin::Boot),
        Ok((_, OnCrash::Discard)) => {
            let reason = format!("{reason}; the next wake starts from the registered snapshot");
            Outcome::Suspended(reason, Origin::Registered)
        }
        _ => Outcome::Failed(Failure::Guest, reason),
    }
}

/// Returns the last line of the file at `path`.
fn last_line(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_REASON)))?;
    let mut bytes = Vec::new();
    file.take(MAX_REASON).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    let line = line.strip_prefix("mayfly: ").unwrap_or(line);
    Ok(crate::printable::printable(line))
}
