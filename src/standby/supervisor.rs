//! Event loop of the supervisor.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use api::http::{self, Handler, HttpLimits, Reply, Request, Server};
use api::process::LogControl as _;
use vmm::event_loop::{SignalFd, block_signals, not_ignored};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::args::Args;
use super::logging::ProcessLog;
use super::{peer, process, routes};

/// Signals that end the supervisor.
const SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Maximum number of events in one wait.
const BATCH: usize = 64;

/// Clients of the API at once.
const CONNECTIONS: usize = 64;

/// Failure of the supervisor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log cannot be configured.
    #[error("cannot configure the log: {0}")]
    Log(String),
    /// The API socket cannot be created.
    #[error(transparent)]
    Socket(http::Error),
    /// A system call failed.
    #[error("cannot {operation}")]
    System {
        /// Failed operation.
        operation: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Returns a conversion of the failure of `operation`.
fn failed(operation: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::System { operation, source }
}

/// Event source of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Server,
    Signals,
}

impl Source {
    fn data(self) -> u64 {
        match self {
            Self::Server => 0,
            Self::Signals => 1,
        }
    }

    fn from_data(data: u64) -> Option<Self> {
        [Self::Server, Self::Signals]
            .into_iter()
            .find(|source| source.data() == data)
    }
}

/// Supervises the instances until a signal. They go on afterwards.
///
/// # Errors
/// [`Error`]
pub fn supervise(args: &Args) -> Result<(), Error> {
    // Before any thread starts: threads inherit the mask.
    let signals = not_ignored(&SIGNALS);
    block_signals(&signals).map_err(failed("block signals"))?;
    let mut log = ProcessLog::new("standby");
    log.configure(&args.log).map_err(Error::Log)?;
    // Each client can start programs with the rights of this user.
    let server = process::create_private(|| {
        let limits = HttpLimits {
            connections: CONNECTIONS,
            ..HttpLimits::default()
        };
        Server::bind(&args.socket, limits)
    });
    let server = server.map_err(Error::Socket)?.only_for(peer::is_permitted);
    let signals = SignalFd::new(&signals).map_err(failed("create a signalfd"))?;
    Supervisor::new(server, signals)?.run()
}

/// The supervisor.
struct Supervisor {
    epoll: Epoll,
    server: Server,
    signals: SignalFd,
}

impl Supervisor {
    fn new(server: Server, signals: SignalFd) -> Result<Self, Error> {
        let epoll = Epoll::new().map_err(failed("create an epoll instance"))?;
        let supervisor = Self {
            epoll,
            server,
            signals,
        };
        supervisor.watch(Source::Server, supervisor.server.as_raw_fd())?;
        supervisor.watch(Source::Signals, supervisor.signals.as_raw_fd())?;
        Ok(supervisor)
    }

    fn watch(&self, source: Source, descriptor: RawFd) -> Result<(), Error> {
        let event = EpollEvent::new(EventSet::IN, source.data());
        let added = self.epoll.ctl(ControlOperation::Add, descriptor, event);
        added.map_err(failed("watch a descriptor"))
    }

    /// Handles events until a signal.
    fn run(mut self) -> Result<(), Error> {
        let mut events = [EpollEvent::default(); BATCH];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(failed("wait for events"))?,
            };
            for event in &events[..count] {
                match Source::from_data(event.data()) {
                    Some(Source::Server) => self.server.serve(&mut RequestHandler),
                    Some(Source::Signals) if self.signals.read().is_some() => return Ok(()),
                    _ => {}
                }
            }
        }
    }
}

/// Executes the requests of clients.
struct RequestHandler;

impl Handler for RequestHandler {
    fn handle(&mut self, request: &Request) -> Reply {
        Reply::Response(routes::execute(request))
    }

    fn cancel(&mut self) {}
}
