//! `mayfly shell`: a process that has made its VM, and waits for a snapshot to load into it.
//!
//! ```text
//! mayfly shell SOCKET                          mayfly restore --shell SOCKET DIR
//!   create VM, memory slots, vCPUs
//!   bind the socket
//!   wait  <------------------------------------ arguments, open files, stdin, stdout, stderr
//!   read the state file, check its shape
//!   take over stdin, stdout and stderr
//!   map the memory file under the live slots
//!   restore, run the guest
//!   exit status ------------------------------> exit status
//! ```
//! A shell holds no file of a client before its request, and serves one VM. It ends when its client ends, unless the request is detached:
//! instances go on without their supervisor.
//!
//! | module | contents |
//! |---|---|
//! | `message` | messages between shell and client |
//! | `client` | `mayfly restore --shell` |

mod client;
mod message;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::http::{self, Socket};
use devices::ThreadRole;
use vmm::arch::{Native, Platform};
use vmm::config::VmConfig;
use vmm::control::{self, Control, LoadSnapshotError, OpenSnapshot, PassedFiles, STATE_NAME};
use vmm::event_loop::{ExitReason, SignalFd, release_startup_memory};
use vmm::timeline::Timeline;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::cli::args::{self, Command, RestoreArgs, ShellArgs, ShellSocket};
use crate::cli::hints::{self, OptionSet};
use crate::filters::{self, FileRules, Isolation};
use crate::logging::print_message;
use crate::measurement;
use crate::process;
use crate::session::{self, SessionSetup, StartError};
use message::{Reply, Request};

pub use client::{Error as ClientError, restore};

/// Maximum wait for the rest of a request after its client has connected.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Failure of a shell.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The shape cannot be read from a snapshot.
    #[error("cannot read the shape of the VM from a snapshot")]
    Shape(#[source] LoadSnapshotError),
    /// The seccomp filters cannot be used.
    #[error(transparent)]
    Filters(filters::Error),
    /// The VM cannot be created.
    #[error(transparent)]
    Prepare(control::Error),
    /// The socket cannot be created.
    #[error("cannot wait for a client")]
    Socket(#[source] http::Error),
    /// The inherited descriptor is no socket.
    #[error("cannot use descriptor {number} as a socket; name one that the parent has connected")]
    Descriptor {
        /// Number of the descriptor.
        number: RawFd,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {operation}")]
    System {
        /// Failed operation.
        operation: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Signals cannot be blocked.
    #[error(transparent)]
    Session(session::Error),
}

/// Makes a VM, waits for the request of a client, and runs the VM to its end. Returns the exit status.
///
/// # Errors
/// [`Error`] before the request.
pub fn shell(args: &ShellArgs, started_at: Instant) -> Result<u8, Error> {
    let files = FileRules {
        has_clients: true,
        ..FileRules::default()
    };
    filters::set_up(&args.isolation, files).map_err(Error::Filters)?;
    // Before any thread starts: threads inherit the mask.
    let signals = session::block_signals().map_err(Error::Session)?;
    let timeline = Arc::new(Timeline::new(started_at, true));
    let mut control = session::new_control(&timeline);
    control.prepare_load(shape(args)?).map_err(Error::Prepare)?;
    process::map_code();
    // Last: a client that finds the socket does not wait for the VM.
    let mut waiter = Waiter::new(&args.socket, &signals)?;
    // The wait may be long.
    release_startup_memory();
    ThreadRole::Start.enter().map_err(|source| Error::System {
        operation: "restrict the system calls of the process",
        source,
    })?;
    let home = process::working_directory().map_err(|source| Error::System {
        operation: "open the working directory",
        source,
    })?;
    let accepted = loop {
        match waiter.wait()? {
            Event::Signal(signal) => {
                // Removes the file of the socket.
                drop(waiter);
                return Ok(process::exit_by_signal(signal));
            }
            Event::Request(stream) => match accept(stream, &control) {
                Ok(accepted) => break accepted,
                Err(Some(refused)) => {
                    waiter.give_back(refused);
                    process::enter_directory(home.as_fd()).map_err(|source| Error::System {
                        operation: "return to the working directory",
                        source,
                    })?;
                }
                Err(None) if waiter.is_inherited() => return Ok(process::SUCCESS),
                Err(None) => {}
            },
        }
    };
    Ok(run(accepted, control, timeline, waiter))
}

/// Returns the configuration with the shape of the VM.
fn shape(args: &ShellArgs) -> Result<VmConfig, Error> {
    let mut config = match &args.snapshot {
        Some(directory) => {
            let resolved = control::resolve_generation(directory).map_err(LoadSnapshotError::Generation);
            let described = resolved.and_then(|path| control::describe_snapshot(&path.join(STATE_NAME)));
            described.map_err(Error::Shape)?.1
        }
        None => VmConfig {
            layout: Native::DEFAULT_LAYOUT,
            ..VmConfig::new(PathBuf::new())
        },
    };
    config.devices.clear();
    // A load decides it.
    config.track_dirty_pages = false;
    config.memory = args.memory.unwrap_or(config.memory);
    config.vcpus = args.vcpus.unwrap_or(config.vcpus);
    Ok(config)
}

/// A request that the shell executes.
struct Accepted {
    stream: UnixStream,
    /// The VM goes on when its client ends.
    is_detached: bool,
    restore: Box<RestoreArgs>,
    snapshot: OpenSnapshot,
    standard: [OwnedFd; 3],
    directory: OwnedFd,
}

/// Receives the request of a client. Refuses it if the snapshot does not fit, and returns the connection; the shell is unchanged then.
/// Returns no connection if the client has ended.
fn accept(mut stream: UnixStream, control: &Control) -> Result<Accepted, Option<UnixStream>> {
    let (request, restore, snapshot) = match receive(&mut stream, control) {
        Ok(received) => received,
        Err(None) => return Err(None),
        Err(Some(reason)) => {
            let is_sent = Reply::Refused(reason).send(&mut stream).is_ok();
            return Err(is_sent.then_some(stream));
        }
    };
    Ok(Accepted {
        stream,
        is_detached: request.is_detached,
        restore,
        snapshot,
        standard: request.standard,
        directory: request.directory,
    })
}

type Received = (Request, Box<RestoreArgs>, OpenSnapshot);

/// Receives and checks a request. Returns the reason to refuse it, or none if the client has ended.
fn receive(stream: &mut UnixStream, control: &Control) -> Result<Received, Option<String>> {
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    let mut request = match Request::receive(stream, deadline, || control.expect_load()) {
        Ok(request) => request,
        Err(message::Error::Ended) => return Err(None),
        // The rest of such a message is no request: the connection ends.
        Err(error @ (message::Error::Long | message::Error::Socket { .. })) => {
            let _ = Reply::Refused(hints::describe(&error, OptionSet::None)).send(stream);
            return Err(None);
        }
        Err(error) => return Err(Some(hints::describe(&error, OptionSet::None))),
    };
    let arguments = request.arguments.iter().map(Into::into);
    let command = args::parse("mayfly".as_ref(), ["restore".into()].into_iter().chain(arguments));
    let restore = match command {
        Ok(Command::Restore(restore)) if restore.session.isolation != Isolation::default() => {
            return Err(Some(
                "the isolation is that of the shell; pass its options to mayfly shell".into(),
            ));
        }
        Ok(Command::Restore(restore)) => restore,
        Ok(_) => return Err(Some("the arguments are not those of mayfly restore".into())),
        Err(error) => return Err(Some(error.to_string())),
    };
    let files = std::mem::take(&mut request.files).into_iter();
    let files = files.map(|(path, file)| (path, File::from(file))).collect();
    let passed = PassedFiles::new(files, std::mem::take(&mut request.descriptors));
    // Relative paths are those of the client.
    let opened = process::enter_directory(request.directory.as_fd())
        .map_err(|source| format!("cannot enter the working directory of the client: {source}"))
        .and_then(|()| {
            let opened = control.open_snapshot(restore.params.clone(), passed);
            opened.map_err(|error| hints::describe(&error, OptionSet::Restore))
        });
    match opened {
        Ok(snapshot) => Ok((request, restore, snapshot)),
        Err(reason) => Err(Some(reason)),
    }
}

/// Runs the VM to its end, and sends the exit status to the client. Returns it.
fn run(accepted: Accepted, control: Control, timeline: Arc<Timeline>, waiter: Waiter) -> u8 {
    let mut stream = accepted.stream;
    let adopted = process::adopt(&accepted.standard);
    // Closed once the guest runs: the kernel takes longer for them than for some steps of the load.
    let unneeded = (waiter, accepted.standard, accepted.directory);
    let ended = adopted
        .map_err(|source| session::Error::System {
            operation: "take over the descriptors of the client",
            source,
        })
        .and_then(|()| {
            let inputs = || measurement::snapshot_files(&accepted.restore.params);
            SessionSetup::prepare_with(accepted.restore.session, &inputs, timeline)
        })
        .and_then(|setup| {
            let client = (!accepted.is_detached).then(|| stream.as_fd());
            setup.wait(Duration::ZERO, control, client, |control| {
                let loaded = control.load_open_snapshot(accepted.snapshot);
                drop(unneeded);
                loaded.map(drop).map_err(StartError::Load)
            })
        });
    let finished = match ended {
        Ok(finished) => finished,
        Err(error) => {
            print_message(&hints::describe(error.inner(), OptionSet::Restore));
            let _ = Reply::Status(error.status()).send(&mut stream);
            return error.status();
        }
    };
    if let ExitReason::Signal(signal) = finished.reason {
        // Before the signal ends this process.
        let _ = Reply::Signal(signal).send(&mut stream);
    }
    let status = finished.status(OptionSet::Restore);
    let _ = Reply::Status(status).send(&mut stream);
    status
}

/// Event of a waiting shell.
enum Event {
    /// A client has connected or, on an inherited socket, has sent bytes.
    Request(UnixStream),
    /// A signal ends the shell.
    Signal(libc::c_int),
}

/// Origin of requests.
enum Source {
    Listener(Socket),
    /// `None` while a request on it is received.
    Inherited(Option<UnixStream>),
}

/// Waits for requests and signals.
struct Waiter {
    source: Source,
    signals: SignalFd,
    epoll: Epoll,
}

impl Waiter {
    fn new(socket: &ShellSocket, signals: &[libc::c_int]) -> Result<Self, Error> {
        let failed = |operation| move |source| Error::System { operation, source };
        let source = match socket {
            ShellSocket::Path(path) => {
                // A client runs a VM with the rights of this user.
                let bound = process::create_private(|| Socket::bind(path));
                Source::Listener(bound.map_err(Error::Socket)?)
            }
            ShellSocket::Descriptor(number) => Source::Inherited(Some(inherited(*number)?)),
        };
        let signals = SignalFd::new(signals).map_err(failed("create a signalfd"))?;
        let epoll = Epoll::new().map_err(failed("create an epoll instance"))?;
        let descriptor = match &source {
            Source::Listener(socket) => Some(socket.as_raw_fd()),
            Source::Inherited(stream) => stream.as_ref().map(AsRawFd::as_raw_fd),
        };
        for descriptor in descriptor.into_iter().chain([signals.as_raw_fd()]) {
            let event = EpollEvent::new(EventSet::IN, 0);
            let added = epoll.ctl(ControlOperation::Add, descriptor, event);
            added.map_err(failed("wait for clients"))?;
        }
        Ok(Self {
            source,
            signals,
            epoll,
        })
    }

    /// Waits for an event.
    fn wait(&mut self) -> Result<Event, Error> {
        let failed = |source| Error::System {
            operation: "wait for clients",
            source,
        };
        loop {
            match self.epoll.wait(-1, &mut [EpollEvent::default()]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            }
            if let Some(signal) = self.signals.read() {
                return Ok(Event::Signal(signal));
            }
            match &mut self.source {
                Source::Inherited(stream) => {
                    if let Some(stream) = stream.take() {
                        return Ok(Event::Request(stream));
                    }
                }
                Source::Listener(socket) => match socket.accept() {
                    Ok(stream) => return Ok(Event::Request(stream)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // The client has ended.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => return Err(failed(error)),
                },
            }
        }
    }

    fn is_inherited(&self) -> bool {
        matches!(self.source, Source::Inherited(_))
    }

    /// Takes back the connection of a refused request. A peer of the inherited socket can repeat it.
    fn give_back(&mut self, stream: UnixStream) {
        if let Source::Inherited(inherited) = &mut self.source {
            *inherited = Some(stream);
        }
    }
}

/// Returns the connected socket that this process has inherited as `number`.
fn inherited(number: RawFd) -> Result<UnixStream, Error> {
    let failed = |source| Error::Descriptor { number, source };
    let stream = UnixStream::from(process::duplicate(number).map_err(failed)?);
    stream.peer_addr().map_err(failed)?;
    // Many parents make both ends non-blocking, a property that they share.
    stream.set_nonblocking(false).map_err(failed)?;
    Ok(stream)
}
