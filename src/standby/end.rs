//! The end of the process of an instance, and the state after it.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use super::cgroup;
use super::config::OnCrash;
use super::core::Core;
use super::lifecycle::Cause;
use super::live::{Running, WakeFrames};
use super::metrics::Failure;
use super::procfs::Stat;
use super::registry::{Entry, Key, Origin, State};
use super::sys::{self, Exit};

/// Exit status of a process whose guest is suspended.
const SUSPENDED: u8 = 123;
/// Exit status of a process that has not loaded a snapshot because a drive has changed since.
const DRIVE_CHANGED: u8 = 119;

/// Maximum length of the last line of stderr in a reason, in bytes.
const MAX_REASON: u64 = 1024;

impl Core {
    /// Kills a process that no instance has any more. It stays in the process table until [`reap_killed`](Self::reap_killed).
    pub fn end_process(&mut self, running: Running) {
        // Fails only if it has ended.
        let _ = sys::signal(running.process.as_fd(), libc::SIGKILL);
        // Another instance may have its key next.
        self.unwatch(running.process.as_raw_fd());
        self.killed.push(running);
    }

    /// Removes killed processes that have ended from the process table.
    pub fn reap_killed(&mut self) {
        self.killed.retain(|running| {
            let has_ended = sys::has_ended(running.process.as_fd());
            if has_ended {
                sys::reap_child(running.process.as_fd());
            }
            !has_ended
        });
    }

    /// Handles the end of a process.
    pub fn finish_process(&mut self, key: Key) {
        // Events come in any order: a shell that has ended may have refused its request, and a process then takes its place.
        self.finish_request(key);
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        let own = entry.live.as_ref().filter(|live| live.found.is_none());
        let running = own.and_then(|live| live.running.as_ref());
        if running.is_some_and(|running| !sys::has_ended(running.process.as_fd())) {
            // The event was that of the shell.
            return;
        }
        let Some(live) = &entry.live else { return };
        let mut exit = live.running.as_ref().map_or(Exit::Unknown, end_of);
        if exit == Exit::Unknown && live.found.is_some() {
            match self.unknown_end(key) {
                Some(known) => exit = known,
                None => return,
            }
        }
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        let Some(live) = entry.live.take() else { return };
        let (mut state, id) = (entry.state, entry.id.clone());
        if live.found.is_some() && state == State::Waking {
            // Its guest may have run under the earlier supervisor.
            state = State::Running;
        }
        entry.memory_kib = u32::try_from(live.memory_kib).unwrap_or(u32::MAX);
        self.running.remove(&key);
        self.queue.end(key);
        let log = Self::run_path(&id, "log");
        let line = last_line(&log).unwrap_or_default();
        for suffix in ["pid", "sock", "log"] {
            let _ = fs::remove_file(Self::run_path(&id, suffix));
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup::remove(cgroup, &id);
        }
        let line = if live.is_late {
            "its guest did not run in time (--timeout)"
        } else {
            &line
        };
        self.release_taps(key);
        self.note_end(key, state, exit, line);
        self.fall_asleep(key);
        if live.wakes_again {
            self.wake(key, Cause::Request, WakeFrames::default());
        } else if is_refused(state, exit) && !live.suspends_next && self.is_suspended(key) {
            // Its client waits for it.
            self.wake(key, Cause::Refusal, live.frames);
        } else if state == State::Waking && exit != Exit::Status(0) {
            self.counters.drop_frames(live.frames.len());
        }
        self.start_waiting();
    }

    fn is_suspended(&self, key: Key) -> bool {
        let entry = self.registry.get(key);
        entry.is_some_and(|entry| entry.state == State::Suspended)
    }

    /// Sets the state after the end of a process. An instance that is suspended then must [fall asleep](Self::fall_asleep).
    pub fn note_end(&mut self, key: Key, state: State, exit: Exit, line: &str) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        match outcome(entry, state, exit, line) {
            Outcome::Suspended(reason, origin) => {
                entry.origin = origin;
                if exit == Exit::Status(SUSPENDED) {
                    self.counters.suspends += 1;
                } else if is_refused(state, exit) {
                    log::warn!("standby: {}: {reason}", entry.id);
                    self.counters.fail(Failure::Load);
                } else if exit != Exit::Unknown {
                    self.counters.fail(Failure::Guest);
                }
                self.registry.set(key, State::Suspended, &reason);
                self.write_failure(key);
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

/// Returns true if a process has ended in `state` because it rejects the snapshot.
fn is_refused(state: State, exit: Exit) -> bool {
    state == State::Waking && exit == Exit::Status(DRIVE_CHANGED)
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
        Exit::Lost => "the process of an earlier supervisor has ended without a suspend".into(),
        Exit::Unknown => String::new(),
    };
    let (stateful, on_crash) =
        config.map_or((true, OnCrash::Fail), |config| (config.stateful, config.on_crash));
    if state == State::Waking && exit != Exit::Status(0) {
        let reason = with_line(format!("cannot wake the instance: {end}"));
        return match on_crash {
            OnCrash::Boot if is_refused(state, exit) => boots(&reason),
            // The registered snapshot may be older than the drive, too.
            OnCrash::Discard if is_refused(state, exit) && entry.origin == Origin::Latest => {
                discards(&reason)
            }
            _ => Outcome::Failed(Failure::Load, reason),
        };
    }
    // With status 0, the guest has run and ended before its process responded.
    let reason = with_line(end);
    match on_crash {
        _ if !stateful && exit == Exit::Status(0) => Outcome::Suspended(
            "the guest has ended; the next wake starts from its snapshot".into(),
            Origin::Latest,
        ),
        OnCrash::Boot => boots(&reason),
        OnCrash::Discard => discards(&reason),
        OnCrash::Fail => Outcome::Failed(Failure::Guest, reason),
    }
}

fn boots(reason: &str) -> Outcome {
    Outcome::Suspended(format!("{reason}; the next wake boots"), Origin::Boot)
}

fn discards(reason: &str) -> Outcome {
    let reason = format!("{reason}; the next wake starts from the registered snapshot");
    Outcome::Suspended(reason, Origin::Registered)
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
