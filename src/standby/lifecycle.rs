//! Lifecycle of an instance: wake, run, suspend, fail.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use super::cgroup;
use super::command::{Start, command};
use super::config::Config;
use super::core::{Core, Source};
use super::exchange::{Exchange, Outcome, Purpose};
use super::links::Links;
use super::live::{Live, Running, WakeFrames};
use super::memory::Room;
use super::metrics::Failure;
use super::preparation::Prepared;
use super::registry::{Entry, Key, Origin, State};
use super::sys::{self, Program, StartError};

/// Memory in KiB that is expected of a process, until it has run once.
pub const EXPECTED_KIB: u64 = 8 << 10;

/// Reason without memory.
const NO_MEMORY: &str = "cannot wake the instance: running instances use the memory that --memory-limit permits, or that the host has, \
    and none is idle; raise the limit, or suspend instances";

/// Cause of a wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A frame to the instance.
    Frame,
    /// A request of a client.
    Request,
    /// The process has rejected the snapshot, and `on_crash` names another origin.
    Refusal,
}

impl Core {
    /// Prepares the instances of the journal: finds those that run, and lets the others sleep.
    ///
    /// # Errors
    /// Fails if the run directory cannot be read.
    pub fn settle(&mut self) -> io::Result<()> {
        let all = self.registry.page(None, usize::MAX, None);
        for key in &all {
            if let Some(Ok(config)) = self
                .shells
                .is_used()
                .then(|| self.registry.get(*key).map(Entry::parse))
                .flatten()
            {
                self.shells.add(&config);
            }
            let config = self
                .registry
                .get(*key)
                .filter(|entry| entry.has_links)
                .map(Entry::parse);
            if let Some(Err(reason)) = config.map(|config| self.join_networks(*key, &config?)) {
                self.fail(*key, Failure::Tap, &reason);
            }
        }
        self.find_running()?;
        self.reclaim_taps();
        self.remove_leftover();
        for key in all {
            self.fall_asleep(key);
        }
        Ok(())
    }

    /// Handles frames for a sleeping instance.
    pub fn read_frames(&mut self, key: Key) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        if entry.state != State::Suspended {
            return;
        }
        match entry.links.read(&mut self.scratch) {
            Ok(None) => {}
            Ok(Some((id, frames))) => self.wake(key, Cause::Frame, WakeFrames::of(&id, frames)),
            Err(error) => {
                self.unwatch_frames(key);
                self.fail(
                    key,
                    Failure::Tap,
                    &format!("cannot read frames of the tap: {error}; set it up, then wake the instance"),
                );
            }
        }
    }

    fn unwatch_frames(&self, key: Key) {
        let descriptors = self
            .registry
            .get(key)
            .into_iter()
            .flat_map(|entry| entry.links.descriptors());
        descriptors.for_each(|descriptor| self.unwatch(descriptor));
    }

    /// Opens the taps of a sleeping instance, and waits for frames. Without them, the instance is failed.
    pub fn fall_asleep(&mut self, key: Key) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        // Networks read for the others.
        if entry.state != State::Suspended || !entry.has_taps {
            return;
        }
        let opened = entry.parse().and_then(|config| match entry.links.is_open() {
            true => Ok(config),
            false => Links::open(&config, &self.passed).map(|links| {
                entry.links = links;
                config
            }),
        });
        let watched = match opened {
            Ok(config) if config.is_woken_by_frames() => self.watch_frames(key),
            Ok(_) => Ok(()),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = watched {
            self.fail(key, Failure::Tap, &reason);
        }
    }

    fn watch_frames(&self, key: Key) -> Result<(), String> {
        let Some(entry) = self.registry.get(key) else {
            return Ok(());
        };
        for descriptor in entry.links.descriptors() {
            let watched = self.watch(Source::Frame(key), descriptor);
            watched.map_err(|error| format!("cannot wait for frames: {error}"))?;
        }
        Ok(())
    }

    /// Sets the state failed. Only a request wakes the instance then.
    pub fn fail(&mut self, key: Key, failure: Failure, reason: &str) {
        self.counters.fail(failure);
        self.registry.set(key, State::Failed, reason);
        self.write_failure(key);
        if let Some(entry) = self.registry.get(key) {
            log::error!("standby: {} is failed: {reason}", entry.id);
        }
    }

    /// Wakes an instance, at once or in its turn. `frames` are the frames that it gets first.
    pub fn wake(&mut self, key: Key, cause: Cause, frames: WakeFrames) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        match entry.state {
            State::Suspended | State::Failed => {}
            State::Suspending => return self.cancel_suspend(key),
            State::Waking | State::Running => {
                let is_ending = self.is_ending(key);
                if let Some(live) = self.registry.get_mut(key).and_then(|entry| entry.live.as_mut()) {
                    live.suspends_next = false;
                    // The packet that wakes it is not reported again.
                    live.wakes_again |= is_ending;
                }
                return;
            }
        }
        self.unwatch_frames(key);
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        let expected = match entry.memory_kib {
            0 => EXPECTED_KIB,
            known => u64::from(known),
        };
        entry.live = Some(Box::new(Live::new(expected, frames)));
        entry.wakes = entry.wakes.saturating_add(1);
        let reason = match cause {
            Cause::Frame => {
                self.counters.wakes_by_frame += 1;
                "a frame has arrived"
            }
            Cause::Request => {
                self.counters.wakes_by_request += 1;
                "a client has requested it"
            }
            Cause::Refusal => "a drive has changed since the snapshot, so that on_crash applies",
        };
        self.registry.set(key, State::Waking, reason);
        self.begin_wake(key);
        self.start_waiting();
    }

    /// Starts the processes of the next wakes, as far as the limits permit.
    pub fn start_waiting(&mut self) {
        while let Some(key) = self.queue.begin() {
            match self.room_for(key) {
                Room::Free => {}
                Room::Later => {
                    self.registry
                        .set_reason(key, "waits for memory: an idle instance is suspended first");
                    self.queue.put_back(key);
                    return;
                }
                Room::None => {
                    self.queue.end(key);
                    self.give_up(key, Failure::Memory, NO_MEMORY);
                    continue;
                }
            }
            match self.start(key) {
                Ok(()) => {}
                Err((Failure::Start, reason)) if self.is_wait_over(key) => {
                    self.queue.end(key);
                    self.give_up(key, Failure::Start, &reason);
                }
                // Processes and descriptors get free: the next tick repeats it.
                Err((Failure::Start, reason)) => {
                    self.registry.set_reason(key, &reason);
                    self.queue.put_back(key);
                    return;
                }
                Err((failure, reason)) => {
                    self.queue.end(key);
                    self.drop_live(key);
                    self.fail(key, failure, &reason);
                }
            }
        }
    }

    fn is_wait_over(&self, key: Key) -> bool {
        let live = self.registry.get(key).and_then(|entry| entry.live.as_ref());
        live.is_some_and(|live| live.woken_at.elapsed() > self.timeout)
    }

    /// Ends a wake without a process. The next frame wakes the instance again.
    pub fn give_up(&mut self, key: Key, failure: Failure, reason: &str) {
        self.counters.fail(failure);
        self.drop_live(key);
        self.registry.set(key, State::Suspended, reason);
        self.fall_asleep(key);
    }

    /// Ends a wake without a process, and drops its frames.
    fn drop_live(&mut self, key: Key) {
        self.running.remove(&key);
        self.release_taps(key);
        if let Some(Ok(config)) = self
            .registry
            .get(key)
            .filter(|entry| entry.has_links)
            .map(Entry::parse)
        {
            self.abandon_packets(&config);
        }
        if let Some(live) = self.registry.get_mut(key).and_then(|entry| entry.live.take()) {
            self.counters.drop_frames(live.frames.len());
        }
    }

    /// Drops the first frames of an instance that boots: its guest has neither the addresses nor the connections of the snapshot yet.
    fn drop_frames_of_boot(&mut self, key: Key) {
        let entry = self.registry.get_mut(key);
        let Some(entry) = entry.filter(|entry| entry.origin == Origin::Boot) else {
            return;
        };
        if let Some(live) = &mut entry.live {
            let frames = std::mem::take(&mut live.frames);
            self.counters.drop_frames(frames.len());
        }
    }

    /// Starts the process of an instance.
    fn start(&mut self, key: Key) -> Result<(), (Failure, String)> {
        let Some(entry) = self.registry.get(key) else {
            return Ok(());
        };
        let load = |reason| (Failure::Load, reason);
        let config = entry.parse().map_err(load)?;
        // Without a tap, the wake waits for one as for a process.
        self.assign_taps(key, &config)
            .map_err(|reason| (Failure::Start, reason))?;
        self.drop_frames_of_boot(key);
        if let Some((running, stream)) = self.start_in_shell(key, &config) {
            // Unwatched, a refusal ends at the deadline.
            let _ = self.watch(Source::Reply(key), stream.as_raw_fd());
            return self.note_started(key, running, Some(stream));
        }
        self.start_process(key, &config)
    }

    /// Starts a process without a shell.
    fn start_process(&mut self, key: Key, config: &Config) -> Result<(), (Failure, String)> {
        let Some(entry) = self.registry.get(key) else {
            return Ok(());
        };
        let child = self.spawn(entry.id.clone(), key, config)?;
        let running = Running {
            pid: child.pid,
            process: child.process,
        };
        self.note_started(key, running, None)
    }

    /// Notes the process of a wake, which was a shell if there is a connection.
    fn note_started(
        &mut self,
        key: Key,
        running: Running,
        shell: Option<UnixStream>,
    ) -> Result<(), (Failure, String)> {
        if let Err(error) = self.watch(Source::Process(key), running.process.as_raw_fd()) {
            // Unwatched, its end would stay unknown.
            self.end_process(running);
            return Err((Failure::Start, format!("cannot watch the process: {error}")));
        }
        let deadline = Instant::now() + self.timeout;
        if let Some(live) = self.registry.get_mut(key).and_then(|entry| entry.live.as_mut()) {
            live.shell = shell;
            live.deadline = Some(deadline);
            live.running = Some(running);
            self.running.insert(key);
            self.ungreeted.insert(key);
        }
        Ok(())
    }

    /// Starts a process in the place of a shell that has refused its request.
    pub fn replace_shell(&mut self, key: Key) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        let parsed = entry.parse();
        let Some(live) = &mut entry.live else { return };
        live.shell = None;
        if let Some(running) = live.running.take() {
            self.end_process(running);
        }
        self.running.remove(&key);
        self.ungreeted.remove(&key);
        let started = parsed
            .map_err(|reason| (Failure::Load, reason))
            .and_then(|config| self.start_process(key, &config));
        match started {
            Ok(()) => {}
            // As a wake that finds no shell.
            Err((Failure::Start, reason)) if !self.is_wait_over(key) => {
                self.registry.set_reason(key, &reason);
                self.queue.put_back(key);
            }
            Err((failure, reason)) => {
                self.queue.end(key);
                self.give_up(key, failure, &reason);
            }
        }
    }

    /// Returns program and arguments of a process.
    fn command_of(
        &self,
        config: &Config,
        entry: &Entry,
        (suspend_to, prepared): (PathBuf, &Prepared),
        taps: Vec<(&str, RawFd)>,
        frames: Vec<(&str, RawFd)>,
    ) -> Result<(CString, Vec<CString>), String> {
        let start = Start {
            id: &entry.id,
            origin: entry.origin,
            source: source(config, entry.origin, &suspend_to, prepared),
            suspend_to,
            socket: self.socket(&entry.id, config),
            taps,
            frames,
        };
        command(&self.programs, config, &start)
    }

    /// Returns the arguments of a process for a shell, with the name of the program.
    ///
    /// # Errors
    /// Fails for a path that is not UTF-8.
    pub fn arguments(
        &self,
        config: &Config,
        entry: &Entry,
        (suspend_to, prepared): (PathBuf, &Prepared),
        taps: Vec<(&str, RawFd)>,
        frames: Vec<(&str, RawFd)>,
    ) -> Result<Vec<String>, String> {
        let (_, arguments) = self.command_of(config, entry, (suspend_to, prepared), taps, frames)?;
        let arguments = arguments.into_iter().map(CString::into_string);
        arguments
            .collect::<Result<_, _>>()
            .map_err(|error| format!("cannot send an argument to a shell: {error}"))
    }

    fn spawn(&mut self, id: Box<str>, key: Key, config: &Config) -> Result<sys::Child, (Failure, String)> {
        let load = |reason: String| (Failure::Load, reason);
        let system = |operation: &str| {
            let operation = operation.to_owned();
            move |error: io::Error| (Failure::Start, format!("cannot {operation}: {error}"))
        };
        let (suspend_to, prepared) = self.prepare_files(key, config)?;
        let mut identity = Self::create_file(&Self::run_path(&id, "pid"))
            .map_err(system("create the file of the process ID"))?;
        let record = self.registry.get(key).map(|entry| self.record(entry, &prepared));
        identity
            .write_all(record.unwrap_or_default().as_bytes())
            .map_err(system("write the file of the process ID"))?;
        let stderr = Self::create_file(&Self::run_path(&id, "log"))
            .map_err(system("create the log of the process"))?;
        let cgroup = match (&config.jail, &self.cgroup) {
            (None, Some(directory)) => cgroup::create(directory, &id, config.limits).map_err(load)?,
            _ => None,
        };
        let Some(entry) = self.registry.get(key) else {
            return Err(load("the instance is deleted".into()));
        };
        let frames = entry.frame_files().map_err(system("keep the first frames"))?;
        let (ids, mut inherited): (Vec<_>, Vec<_>) = entry.links.taps().unzip();
        let slots = &self.slots;
        let taps = ids.into_iter().enumerate();
        let taps: Vec<_> = taps.map(|(index, id)| (id, slots.number(index))).collect();
        let first = frames.iter().map(|(id, file)| {
            inherited.push(file.as_fd());
            (*id, slots.number(inherited.len() - 1))
        });
        let first = first.collect();
        let command = self.command_of(config, entry, (suspend_to, &prepared), taps, first);
        let (path, arguments) = command.map_err(load)?;
        let started = self.slots.start(&Program {
            path: &path,
            arguments: &arguments,
            stderr: stderr.as_fd(),
            inherited: &inherited,
            identity: identity.as_fd(),
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
        });
        started.map_err(|error| {
            let _ = fs::remove_file(Self::run_path(&id, "pid"));
            let failure = match &error {
                StartError::Full(_) => Failure::Start,
                StartError::Child(..) => Failure::Load,
            };
            (failure, error.to_string())
        })
    }

    /// Asks the process whose socket is new to respond once its guest runs.
    pub fn greet(&mut self, key: Key) {
        let Some(entry) = self.registry.get(key) else {
            self.ungreeted.remove(&key);
            return;
        };
        let is_waiting = entry.live.as_ref().is_some_and(|live| live.exchange.is_none());
        // An error leaves the wake to the next attempt or its deadline.
        if entry.state != State::Waking || !is_waiting || self.request(key, Purpose::Ready).is_ok() {
            self.ungreeted.remove(&key);
        }
    }

    /// Sends a request to the process of an instance.
    fn request(&mut self, key: Key, purpose: Purpose) -> Result<(), String> {
        let entry = self.registry.get(key).ok_or("the instance is deleted")?;
        let socket = self.socket(&entry.id, &entry.parse()?);
        let exchange = Exchange::begin(&socket, purpose)
            .map_err(|error| format!("cannot reach the process at {}: {error}", socket.display()))?;
        let watched = self.watch(Source::Exchange(key), exchange.as_raw_fd());
        watched.map_err(|error| format!("cannot wait for the process: {error}"))?;
        if let Some(live) = self.registry.get_mut(key).and_then(|entry| entry.live.as_mut()) {
            live.exchange = Some(exchange);
        }
        Ok(())
    }

    /// Handles the response of a process.
    pub fn finish_exchange(&mut self, key: Key) {
        let deadline = Instant::now() + self.timeout;
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        let state = entry.state;
        let Some(live) = &mut entry.live else { return };
        let Some(exchange) = &mut live.exchange else {
            return;
        };
        let Some(outcome) = exchange.receive() else { return };
        let purpose = exchange.purpose;
        live.exchange = None;
        match (state, purpose, outcome) {
            // Without a response, the process has ended before its guest runs; else it is asked again.
            (State::Waking, Purpose::Ready, Outcome::Closed) => {}
            // Each response shows that its event loop runs, and with it the guest.
            (State::Waking, Purpose::Ready, _) => self.note_running(key),
            (State::Suspending, Purpose::Suspend, Outcome::Rejected(reason)) => {
                self.counters.fail(Failure::Suspend);
                self.note_resumed(key, &format!("cannot suspend the guest: {reason}"));
            }
            // The process ends with the suspend, at the latest at the deadline.
            (State::Suspending, Purpose::Suspend, _) => live.deadline = Some(deadline),
            (State::Suspending, Purpose::Cancel, Outcome::Accepted(_)) => self.note_cancelled(key),
            // Either its snapshot is complete, and the end of the process wakes the instance again; or its guest runs already.
            (State::Suspending, Purpose::Cancel, Outcome::Rejected(_)) => {
                live.is_cancel_rejected = true;
                self.check_suspend(key);
            }
            (State::Suspending, Purpose::State, Outcome::Accepted(body)) if is_awake(&body) => {
                self.note_cancelled(key);
            }
            _ => {}
        }
    }

    /// Notes that the guest runs on after a suspend in progress.
    fn note_resumed(&mut self, key: Key, reason: &str) {
        self.registry.set(key, State::Running, reason);
        if let Some(live) = self.registry.get_mut(key).and_then(|entry| entry.live.as_mut()) {
            live.deadline = None;
            live.wakes_again = false;
            live.is_cancel_rejected = false;
        }
    }

    /// Notes that the guest runs on after a cancelled suspend. A client may have requested another one meanwhile.
    fn note_cancelled(&mut self, key: Key) {
        let live = self.registry.get(key).and_then(|entry| entry.live.as_ref());
        let suspends = live.is_some_and(|live| !live.wakes_again);
        self.note_resumed(key, "the suspend is cancelled");
        if suspends {
            self.suspend(key);
        }
    }

    /// Asks a process that has rejected to cancel its suspend if the guest runs. Without a response, its end or the deadline follows.
    fn check_suspend(&mut self, key: Key) {
        let live = self.registry.get(key).and_then(|entry| entry.live.as_ref());
        if live.is_some_and(|live| live.is_cancel_rejected && live.exchange.is_none()) {
            let _ = self.request(key, Purpose::State);
        }
    }

    /// Asks all processes that have rejected to cancel their suspends.
    pub fn check_suspends(&mut self) {
        if self.registry.count(State::Suspending) > 0 {
            for key in self.running.iter().copied().collect::<Vec<_>>() {
                self.check_suspend(key);
            }
        }
    }

    /// Notes that the guest of a wake runs.
    fn note_running(&mut self, key: Key) {
        self.queue.end(key);
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        entry.origin = Origin::Latest;
        let Some(live) = &mut entry.live else { return };
        live.deadline = None;
        live.active_at = Instant::now();
        let (time, suspends) = (live.woken_at.elapsed(), live.suspends_next);
        let is_found = live.found.is_some();
        live.suspends_next = false;
        entry.links.announce();
        live.frames = WakeFrames::default();
        if is_found {
            let reason = "the process of an earlier supervisor was found, and its guest runs";
            self.registry.set(key, State::Running, reason);
        } else {
            self.counters.wake_times.add(time);
            self.registry.set(key, State::Running, "the guest runs");
        }
        self.write_failure(key);
        if suspends {
            self.suspend(key);
        }
        self.start_waiting();
    }

    /// Suspends an instance.
    pub fn suspend(&mut self, key: Key) {
        let deadline = Instant::now() + self.timeout;
        let is_ending = self.is_ending(key);
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        match entry.state {
            State::Waking if is_ending => {
                if let Some(live) = &mut entry.live {
                    live.wakes_again = false;
                }
            }
            State::Waking => {
                if let Some(live) = entry.live.as_mut().filter(|live| live.running.is_some()) {
                    live.suspends_next = true;
                } else if self.queue.remove(key) || self.preparing.remove(&key) {
                    self.drop_live(key);
                    self.registry
                        .set(key, State::Suspended, "a client has requested it");
                    self.fall_asleep(key);
                }
            }
            State::Running => match self.request(key, Purpose::Suspend) {
                Ok(()) => {
                    self.registry
                        .set(key, State::Suspending, "a client has requested it");
                    if let Some(live) = self.registry.get_mut(key).and_then(|entry| entry.live.as_mut()) {
                        live.deadline = Some(deadline);
                        live.wakes_again = false;
                        live.is_cancel_rejected = false;
                    }
                }
                Err(reason) => {
                    self.counters.fail(Failure::Suspend);
                    self.registry.set(key, State::Running, &reason);
                }
            },
            State::Suspending => {
                if let Some(live) = &mut entry.live {
                    live.wakes_again = false;
                }
            }
            State::Suspended | State::Failed => {}
        }
    }

    /// Cancels a suspend, or wakes the instance again at its end.
    fn cancel_suspend(&mut self, key: Key) {
        let live = self.registry.get_mut(key).and_then(|entry| entry.live.as_mut());
        let Some(live) = live else { return };
        live.wakes_again = true;
        let purpose = live.exchange.as_ref().map(|exchange| exchange.purpose);
        let is_requested = live.is_cancel_rejected || purpose == Some(Purpose::Cancel);
        if !is_requested {
            // Without the request, the instance is woken at the end of its process.
            let _ = self.request(key, Purpose::Cancel);
        }
    }

    /// Ends waits whose time is over.
    pub fn check_deadlines(&mut self) {
        let now = Instant::now();
        let is_over = |key: &&Key| {
            let live = self.registry.get(**key).and_then(|entry| entry.live.as_ref());
            live.and_then(|live| live.deadline)
                .is_some_and(|deadline| deadline <= now)
        };
        for key in self.running.iter().filter(is_over).copied().collect::<Vec<_>>() {
            let Some(entry) = self.registry.get_mut(key) else {
                continue;
            };
            let state = entry.state;
            let Some(live) = &mut entry.live else { continue };
            live.deadline = None;
            live.exchange = None;
            match (state, &live.running) {
                // It may run since long, and write a snapshot: an end would lose its state.
                (State::Waking, _) if live.found.is_some() => {
                    self.counters.fail(Failure::Timeout);
                    let reason =
                        "the process of an earlier supervisor was found; it has not responded in time";
                    self.registry.set(key, State::Running, reason);
                }
                // Its end has a reason, by `outcome`.
                (State::Waking, Some(running)) => {
                    live.is_late = true;
                    self.counters.fail(Failure::Timeout);
                    let _ = sys::signal(running.process.as_fd(), libc::SIGKILL);
                }
                // `wakes_again` stays: the process may still end by this suspend.
                (State::Suspending, _) => {
                    live.is_cancel_rejected = false;
                    self.counters.fail(Failure::Timeout);
                    let reason = "cannot suspend the guest: the process has not ended in time (--timeout)";
                    self.registry.set(key, State::Running, reason);
                }
                _ => {}
            }
        }
    }

    /// Asks the processes of wakes that are not asked yet: a socket in a jail is not reported, and another one may not accept connections
    /// when it is.
    pub fn greet_waking(&mut self) {
        for key in self.ungreeted.iter().copied().collect::<Vec<_>>() {
            self.greet(key);
        }
    }
}

/// Returns true if the response to [`Purpose::State`] is that of a process without a suspend in progress.
fn is_awake(body: &Value) -> bool {
    let state = body["state"].as_str();
    state.is_some_and(|state| !matches!(state, "Suspending" | "Suspended"))
}

/// Returns the directory of the snapshot from which an instance wakes.
fn source(config: &Config, origin: Origin, suspend_to: &Path, prepared: &Prepared) -> PathBuf {
    if config.stateful && origin == Origin::Latest && prepared.has_snapshot {
        suspend_to.to_owned()
    } else {
        config.snapshot.clone()
    }
}
