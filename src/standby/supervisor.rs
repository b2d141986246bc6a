//! Event loop of the supervisor.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use api::http::{self, Handler, HttpLimits, Reply, Request, Server};
use api::process::LogControl as _;
use vmm::event_loop::{SignalFd, block_signals, not_ignored};
use vmm_sys_util::epoll::EpollEvent;

use super::args::Args;
use super::core::{self, Core, Source, failed};
use super::passed::{self, PassedTaps};
use super::routes;
use super::sys::{self, Slots};
use crate::logging::ProcessLog;
use crate::process;

/// Signals that end the supervisor.
const SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Maximum number of events in one wait.
const BATCH: usize = 64;
/// Header `Server` of the responses.
const SERVER: &str = "mayfly-standby";
/// Clients of the API at once.
const CONNECTIONS: usize = 64;
/// Interval of samples and limits of time, while there is a process.
const TICK: Duration = Duration::from_millis(100);
/// Maximum time until a process is asked if its guest runs, if its socket is not reported.
const WAKE_TICK: Duration = Duration::from_millis(4);
/// Interval of writes to the disk.
const SYNC: Duration = Duration::from_secs(1);
/// Size of `struct inotify_event` without its name.
const INOTIFY_EVENT: usize = 16;

/// Failure of the supervisor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log cannot be configured.
    #[error("cannot configure the log: {0}")]
    Log(String),
    /// The API socket cannot be created.
    #[error(transparent)]
    Socket(http::Error),
    /// The state cannot be opened, or a system call failed.
    #[error(transparent)]
    Core(#[from] core::Error),
    /// An inherited descriptor cannot be used.
    #[error(transparent)]
    Passed(#[from] passed::Error),
}

/// Supervises the instances until a signal. They go on afterwards.
///
/// # Errors
/// [`Error`]
pub fn supervise(args: &Args) -> Result<(), Error> {
    // Before others are opened, which could have their numbers.
    let socket = std::path::absolute(&args.socket).map_err(failed("find the API socket"))?;
    let passed = take_taps(args)?;
    let listener = take_listener(&socket)?;
    let slots = Slots::reserve().map_err(failed("reserve descriptors"))?;
    // Before any thread starts: threads inherit the mask.
    let signals = not_ignored(&SIGNALS);
    block_signals(&signals).map_err(failed("block signals"))?;
    // Before the working directory changes.
    let mut log = ProcessLog::new("standby");
    log.configure(&args.log).map_err(Error::Log)?;
    let mut core = Core::open(args, Some(slots))?;
    core.passed = passed;
    core.settle().map_err(failed("find the running instances"))?;
    let signals = SignalFd::new(&signals).map_err(failed("create a signalfd"))?;
    // Last: a client that finds the socket does not wait for the journal.
    let server = serve(listener, &socket).map_err(Error::Socket)?;
    let mut supervisor = Supervisor {
        core,
        server,
        signals,
        ticked_at: Instant::now(),
    };
    supervisor.prepare()?;
    supervisor.run()
}

/// Serves the API on `listener`, or on a new socket at `path`. Each client can start programs with the rights of this user.
fn serve(listener: Option<UnixListener>, path: &Path) -> Result<Server, http::Error> {
    let limits = HttpLimits {
        connections: CONNECTIONS,
        ..HttpLimits::default()
    };
    let server = match listener {
        Some(listener) => Server::from_listener(listener, limits),
        None => process::create_private(|| Server::bind(path, limits)),
    }?;
    Ok(server.only_for(sys::is_permitted).named(SERVER))
}

/// Takes the taps of the arguments and those of systemd.
fn take_taps(args: &Args) -> Result<PassedTaps, Error> {
    let mut numbers = args.taps.clone();
    numbers.extend(numbers_of_systemd(passed::TAP));
    Ok(PassedTaps::take(&numbers)?)
}

/// Takes the API socket at `path` from systemd, if it passes one.
fn take_listener(path: &Path) -> Result<Option<UnixListener>, Error> {
    let numbers = numbers_of_systemd(passed::API);
    let listener = numbers.first().map(|number| passed::take_listener(*number, path));
    Ok(listener.transpose()?)
}

/// Returns the numbers of the descriptors with `name` that systemd passes.
fn numbers_of_systemd(name: &str) -> Vec<RawFd> {
    let variables = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(|name| std::env::var(name).ok());
    let [pid, count, names] = &variables;
    let variables = [pid.as_deref(), count.as_deref(), names.as_deref()];
    passed::numbers_of_systemd(std::process::id(), variables, name)
}

/// The supervisor.
struct Supervisor {
    core: Core,
    server: Server,
    signals: SignalFd,
    ticked_at: Instant,
}

impl Supervisor {
    fn prepare(&mut self) -> Result<(), Error> {
        let core = &mut self.core;
        core.watch(Source::Server, self.server.as_raw_fd())
            .map_err(failed("watch the API socket"))?;
        core.watch(Source::Signals, self.signals.as_raw_fd())
            .map_err(failed("watch signals"))?;
        Ok(())
    }

    /// Handles events until a signal.
    fn run(mut self) -> Result<(), Error> {
        let mut events = [EpollEvent::default(); BATCH];
        loop {
            let timeout = self.timeout();
            let count = match self.core.epoll.wait(timeout, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(failed("wait for events"))?,
            };
            if timeout < 0 {
                // A tick right after the wait would delay the process of the wake that ends it, and has nothing to do yet.
                self.ticked_at = Instant::now();
            }
            for event in &events[..count] {
                match Source::from_data(event.data()) {
                    Some(Source::Server) => self.server.serve(&mut RequestHandler(&mut self.core)),
                    Some(Source::Signals) if self.signals.read().is_some() => {
                        self.core.journal.sync();
                        return Ok(());
                    }
                    Some(source) => self.handle(source),
                    None => {}
                }
            }
            self.core.wake_by_networks();
            if count == 0 {
                self.core.greet_waking();
            }
            if self.ticked_at.elapsed() >= TICK {
                self.tick();
            }
        }
    }

    /// Returns the timeout of a wait in milliseconds. A supervisor whose instances all sleep has none.
    fn timeout(&self) -> i32 {
        let core = &self.core;
        let left = TICK.saturating_sub(self.ticked_at.elapsed());
        let timeout = if !core.ungreeted.is_empty() {
            left.min(WAKE_TICK)
        } else if core.running.is_empty()
            && core.queue.waiting() == 0
            && core.killed.is_empty()
            && core.preparing.is_empty()
            && core.registration.is_none()
            && !core.journal.is_dirty()
            && !core.shells.is_missing()
        {
            return -1;
        } else {
            left
        };
        i32::try_from(timeout.as_millis() + 1).unwrap_or(1)
    }

    /// Ends a registration whose snapshot has been read, or is not read in time.
    fn finish_registration(&mut self) {
        let core = &mut self.core;
        if let Some(result) = core.finish_registration() {
            let response = routes::respond(core, result);
            self.server.respond(&response, &mut RequestHandler(core));
        }
    }

    fn tick(&mut self) {
        self.ticked_at = Instant::now();
        self.finish_registration();
        let core = &mut self.core;
        core.sample();
        core.reap_killed();
        core.check_deadlines();
        core.check_suspends();
        core.repeat_preparations();
        // While events leave no idle moment.
        core.greet_waking();
        core.start_waiting();
        core.fill_shells();
        if core.synced_at.elapsed() >= SYNC {
            core.synced_at = Instant::now();
            core.journal.sync();
        }
    }

    fn handle(&mut self, source: Source) {
        let core = &mut self.core;
        match source {
            Source::Sockets => self.greet_new(),
            Source::Inspection => self.finish_registration(),
            Source::Preparation => core.finish_preparations(),
            Source::Journal => core.journal.finish_compaction(),
            Source::Process(key) => core.finish_process(key),
            Source::Exchange(key) => core.finish_exchange(key),
            Source::Frame(key) => core.read_frames(key),
            Source::Network(key) => core.read_network(key.index),
            Source::Shell(key) => core.finish_shell(key.index),
            Source::Reply(key) => core.finish_request(key),
            Source::Server | Source::Signals => {}
        }
    }

    /// Asks the processes whose sockets are new.
    fn greet_new(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = self.core.sockets.read(&mut buffer) {
            for name in names(&buffer[..length]) {
                let path = Path::new(OsStr::from_bytes(name));
                let is_socket = path.extension().is_some_and(|extension| extension == "sock");
                let id = path.file_stem().and_then(OsStr::to_str).filter(|_| is_socket);
                if let Some(key) = id.and_then(|id| self.core.registry.find(id)) {
                    self.core.greet(key);
                }
            }
        }
    }
}

/// Returns the names in events of inotify(7).
fn names(mut events: &[u8]) -> Vec<&[u8]> {
    let mut names = Vec::new();
    // `len` is the last field before the name.
    while let Some(length) = events.get(INOTIFY_EVENT - 4..INOTIFY_EVENT) {
        let length = u32::from_ne_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let Some(name) = events.get(INOTIFY_EVENT..INOTIFY_EVENT + length) else {
            break;
        };
        names.push(name.split(|byte| *byte == 0).next().unwrap_or_default());
        events = &events[INOTIFY_EVENT + length..];
    }
    names
}

/// Executes the requests of clients.
struct RequestHandler<'a>(&'a mut Core);

impl Handler for RequestHandler<'_> {
    fn handle(&mut self, request: &Request) -> Reply {
        routes::execute(self.0, request)
    }

    /// A registration ends without its client: it cannot be stopped, and the next one waits for it.
    fn cancel(&mut self) {}
}
