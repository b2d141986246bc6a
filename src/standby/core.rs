//! The supervisor's state, on disk and in memory, and its event sources.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{self, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::args::Args;
use super::command::{JAIL_SOCKET, Programs, jail_root};
use super::config::Config;
use super::inspection::{self, Inspection, Inspector, Registration};
use super::journal::{self, Journal, Record, Subject};
use super::live::Running;
use super::metrics::Counters;
use super::net::tap::Scratch;
use super::networks::Networks;
use super::passed::PassedTaps;
use super::preparation::{self, Prepared};
use super::procfs;
use super::queue::WakeQueue;
use super::registry::{Key, Origin, Registry, State};
use super::shells::Shells;
use super::sys::{self, Slots};

/// Names in the state directory.
const LOCK: &str = "lock";
/// Directory of sockets, logs and process IDs.
pub const RUN: &str = "run";
/// Directory of the snapshots of suspended instances.
pub const SUSPENDED: &str = "suspended";

/// Part of the name of a directory whose removal has begun.
const REMOVED: &str = ".removed-";

/// Wait for the lock of a supervisor that was killed while it started a process.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Failure to open the state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(journal::Error),
    /// Another supervisor uses the state directory.
    #[error("cannot lock the state directory {}: another supervisor uses it; end it or choose another directory", .0.display())]
    Locked(PathBuf),
    /// The program of the instances is missing.
    #[error("cannot find {0}; install it beside mayfly-standby, or name it by --mayfly and --jailer")]
    Program(&'static str),
    /// An operation on the state directory failed.
    #[error("cannot {operation} the state directory {}", path.display())]
    Directory {
        /// Failed operation.
        operation: &'static str,
        /// Path of the directory.
        path: PathBuf,
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
}

/// Returns a conversion of the failure of `operation`.
pub fn failed(operation: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::System { operation, source }
}

/// Event source of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// API server.
    Server,
    /// Signals that end the supervisor.
    Signals,
    /// New files in the directory of sockets.
    Sockets,
    /// End of the inspection of a snapshot.
    Inspection,
    /// End of a preparation of files.
    Preparation,
    /// End of a compaction of the journal.
    Journal,
    /// End of a process.
    Process(Key),
    /// Response of a process.
    Exchange(Key),
    /// Frame for a sleeping instance.
    Frame(Key),
    /// End of the waiting shell with this number.
    Shell(Key),
    /// Reply of the shell in which an instance wakes.
    Reply(Key),
    /// Packet for a sleeper in the network with this number.
    Network(Key),
}

/// Bits of the generation of a key in the data of an event.
const GENERATION_BITS: u32 = 28;

impl Source {
    /// Returns the data of the source's events.
    pub fn data(self) -> u64 {
        let (kind, key) = match self {
            Self::Server => (0, None),
            Self::Signals => (1, None),
            Self::Sockets => (2, None),
            Self::Journal => (3, None),
            Self::Process(key) => (4, Some(key)),
            Self::Exchange(key) => (5, Some(key)),
            Self::Frame(key) => (6, Some(key)),
            Self::Network(key) => (7, Some(key)),
            Self::Shell(key) => (8, Some(key)),
            Self::Reply(key) => (9, Some(key)),
            Self::Inspection => (10, None),
            Self::Preparation => (11, None),
        };
        let key = key.map_or(0, |key| {
            let generation = u64::from(key.generation) & ((1 << GENERATION_BITS) - 1);
            u64::from(key.index) | generation << 32
        });
        key | kind << (32 + GENERATION_BITS)
    }

    /// Returns the source of events with `data`.
    pub fn from_data(data: u64) -> Option<Self> {
        let generation = (data >> 32) & ((1 << GENERATION_BITS) - 1);
        let key = Key {
            index: u32::try_from(data & u64::from(u32::MAX)).ok()?,
            generation: u32::try_from(generation).ok()?,
        };
        Some(match data >> (32 + GENERATION_BITS) {
            0 => Self::Server,
            1 => Self::Signals,
            2 => Self::Sockets,
            3 => Self::Journal,
            4 => Self::Process(key),
            5 => Self::Exchange(key),
            6 => Self::Frame(key),
            7 => Self::Network(key),
            8 => Self::Shell(key),
            9 => Self::Reply(key),
            10 => Self::Inspection,
            11 => Self::Preparation,
            _ => return None,
        })
    }
}

/// State of the supervisor.
pub struct Core {
    /// Watches all descriptors.
    pub epoll: Epoll,
    /// Instances.
    pub registry: Registry,
    /// Registrations on disk.
    pub journal: Journal,
    /// Order of the wakes.
    pub queue: WakeQueue,
    /// Instances with a process.
    pub running: BTreeSet<Key>,
    /// Killed processes in the process table.
    pub killed: Vec<Running>,
    /// Instances whose directories a thread accesses.
    pub preparing: BTreeSet<Key>,
    /// Accesses that were given up, and have not ended.
    pub unresponsive: BTreeMap<Key, Inspection<Result<Prepared, String>>>,
    /// Instances whose processes are not asked yet if their guests run.
    pub ungreeted: BTreeSet<Key>,
    /// Descriptors for new processes.
    pub slots: Slots,
    /// Programs of the instances.
    pub programs: Programs,
    /// Events since the start.
    pub counters: Counters,
    /// Reports new sockets.
    pub sockets: File,
    /// Identifier of this boot of the host.
    pub boot_id: String,
    /// Absolute path of the state directory, which is the working directory.
    pub directory: PathBuf,
    /// Maximum memory of running instances in KiB.
    pub memory_limit_kib: Option<u64>,
    /// Maximum time of a wake, of a suspend, and of waits for them.
    pub timeout: Duration,
    /// Reads the snapshots of registrations.
    pub inspector: Inspector,
    /// Prepares the files of starts.
    pub preparer: Inspector,
    /// Registration whose snapshot is read.
    pub registration: Option<Registration>,
    /// Maximum number of instances.
    pub max_instances: usize,
    /// Directory of the cgroups of limited instances.
    pub cgroup: Option<PathBuf>,
    /// Taps that this process has inherited.
    pub passed: PassedTaps,
    /// Shared networks.
    pub networks: Networks,
    /// Number of the next network.
    pub next_network: u32,
    /// Processes that wait for their snapshots.
    pub shells: Shells,
    /// Buffer for a packet.
    pub scratch: Scratch,
    /// Last sampled instance.
    pub cursor: Option<Key>,
    /// Time of the last write of the journal to the disk.
    pub synced_at: Instant,
    /// Held until the end of this process.
    _lock: File,
}

impl Core {
    /// Opens the state directory of `args`, which becomes the working directory, and reads the journal. Call it before other
    /// descriptors are opened.
    ///
    /// # Errors
    /// [`Error`]
    pub fn open(args: &Args, mut slots: Option<Slots>) -> Result<Self, Error> {
        let slots = match slots.take() {
            Some(slots) => slots,
            None => Slots::reserve().map_err(failed("reserve descriptors"))?,
        };
        let programs = programs(args)?;
        let cgroup = args.cgroup.as_deref().map(path::absolute).transpose();
        let cgroup = cgroup.map_err(failed("find the directory of --cgroup"))?;
        let directory = enter(&args.state)?;
        let lock = lock(&directory)?;
        let boot_id = procfs::boot_id().map_err(failed("read /proc, which the supervisor requires"))?;
        let (mut registry, mut networks) = (Registry::default(), BTreeMap::new());
        let journal = Journal::open(Path::new("."), |record| match record.subject {
            Subject::Network => match record.value {
                Some(value) => drop(networks.insert(record.id, value)),
                None => drop(networks.remove(&record.id)),
            },
            Subject::Instance | Subject::Failure => apply(&mut registry, record),
        });
        let journal = journal.map_err(Error::Journal)?;
        let run = CString::new(RUN).unwrap_or_default();
        let sockets = sys::watch_directory(&run).map_err(failed("watch the directory of sockets"))?;
        let inspector = |max_threads| Inspector::new(max_threads).map_err(failed("create an eventfd"));
        let mut core = Self {
            epoll: Epoll::new().map_err(failed("create an epoll instance"))?,
            registry,
            journal,
            queue: WakeQueue::new(args.max_wakes as usize),
            running: BTreeSet::new(),
            killed: Vec::new(),
            preparing: BTreeSet::new(),
            unresponsive: BTreeMap::new(),
            ungreeted: BTreeSet::new(),
            slots,
            programs,
            counters: Counters::default(),
            sockets,
            boot_id,
            directory,
            memory_limit_kib: args.memory_limit.map(|bytes| bytes >> 10),
            timeout: Duration::from_secs(args.timeout.into()),
            inspector: inspector(inspection::MAX_THREADS)?,
            preparer: inspector(preparation::MAX_THREADS)?,
            registration: None,
            max_instances: args.max_instances as usize,
            cgroup,
            passed: PassedTaps::default(),
            networks: Networks::default(),
            shells: Shells::new(args.shells),
            next_network: 0,
            scratch: Scratch::default(),
            cursor: None,
            synced_at: Instant::now(),
            _lock: lock,
        };
        core.watch_sources()?;
        core.open_networks(networks);
        Ok(core)
    }

    /// Watches the descriptors that are always open.
    fn watch_sources(&self) -> Result<(), Error> {
        for (source, descriptor, operation) in [
            (Source::Sockets, self.sockets.as_raw_fd(), "watch sockets"),
            (
                Source::Journal,
                self.journal.done().as_raw_fd(),
                "watch the journal",
            ),
            (
                Source::Inspection,
                self.inspector.signal().as_raw_fd(),
                "watch inspections",
            ),
            (
                Source::Preparation,
                self.preparer.signal().as_raw_fd(),
                "watch preparations",
            ),
        ] {
            self.watch(source, descriptor).map_err(failed(operation))?;
        }
        Ok(())
    }

    /// Watches `descriptor` for input.
    ///
    /// # Errors
    /// Fails at a limit of the kernel.
    pub fn watch(&self, source: Source, descriptor: RawFd) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, source.data());
        self.epoll.ctl(ControlOperation::Add, descriptor, event)
    }

    /// Ends the watch of `descriptor`, which stays open.
    pub fn unwatch(&self, descriptor: RawFd) {
        // Fails only if it is not watched.
        let _ = self
            .epoll
            .ctl(ControlOperation::Delete, descriptor, EpollEvent::default());
    }

    /// Returns the path of a file of the instance `id` in the run directory, relative to the working directory: longer ones do not
    /// fit into the address of a socket.
    pub fn run_path(id: &str, suffix: &str) -> PathBuf {
        Path::new(RUN).join(format!("{id}.{suffix}"))
    }

    /// Creates an empty file for appended lines.
    ///
    /// # Errors
    /// Fails for example on a full disk.
    pub fn create_file(path: &Path) -> io::Result<File> {
        // A new file: a process that is still there writes to the old one.
        let _ = fs::remove_file(path);
        OpenOptions::new()
            .create_new(true)
            .append(true)
            .mode(0o600)
            .open(path)
    }

    /// Returns the path of the API socket of an instance.
    pub fn socket(&self, id: &str, config: &Config) -> PathBuf {
        match &config.jail {
            Some(jail) => jail_root(jail, &self.programs, id).join(JAIL_SOCKET),
            None => Self::run_path(id, "sock"),
        }
    }

    /// Returns the directory of the snapshots of the suspended instance `id`.
    pub fn suspend_directory(&self, id: &str, config: &Config) -> PathBuf {
        match (&config.suspend_to, &config.jail) {
            (Some(path), _) => path.clone(),
            (None, Some(jail)) => jail_root(jail, &self.programs, id).join(SUSPENDED),
            (None, None) => self.directory.join(SUSPENDED).join(id),
        }
    }

    /// Writes a change to the journal.
    ///
    /// # Errors
    /// A text with the cause, for example a full disk.
    pub fn write(&mut self, subject: Subject, id: &str, value: Option<Value>) -> Result<(), String> {
        let id = id.to_owned();
        let appended = self.journal.append(&Record { subject, id, value });
        appended.map_err(|error| vmm::ErrorChain(&error).to_string())
    }

    /// Notes in the journal that an instance is failed, or that its next wake has another origin; or that neither is true.
    pub fn write_failure(&mut self, key: Key) {
        let Some(entry) = self.registry.get_mut(key) else {
            return;
        };
        let is_failed = entry.state == State::Failed;
        let value = (is_failed || entry.origin != Origin::Latest).then(
            || json!({"failed": is_failed, "reason": entry.reason, "origin": origin_name(entry.origin)}),
        );
        if value.is_none() && !entry.has_failure {
            return;
        }
        entry.has_failure = value.is_some();
        let id = entry.id.clone();
        if let Err(reason) = self.write(Subject::Failure, &id, value) {
            log::error!("standby: the failure of {id} is not noted: {reason}");
        }
    }
}

fn origin_name(origin: Origin) -> &'static str {
    match origin {
        Origin::Latest => "latest",
        Origin::Registered => "registered",
        Origin::Boot => "boot",
    }
}

/// Applies a record of the journal.
fn apply(registry: &mut Registry, record: Record) {
    let key = registry.find(&record.id);
    match (record.subject, record.value) {
        (Subject::Instance, Some(value)) => {
            if let Some(key) = key {
                registry.remove(key);
            }
            let added = Config::from_value(value)
                .and_then(|(config, text)| registry.add(&record.id, &config, text, "registered"));
            if let Err(reason) = added {
                log::error!("standby: {} is not registered any more: {reason}", record.id);
            }
        }
        (Subject::Instance, None) => {
            if let Some(key) = key {
                registry.remove(key);
            }
        }
        (Subject::Failure, value) => {
            let Some(key) = key else { return };
            let value = value.unwrap_or_default();
            let is_failed = value["failed"] == true;
            let state = if is_failed {
                State::Failed
            } else {
                State::Suspended
            };
            registry.set(key, state, value["reason"].as_str().unwrap_or_default());
            if let Some(entry) = registry.get_mut(key) {
                let origins = [Origin::Latest, Origin::Registered, Origin::Boot];
                let known = origins
                    .into_iter()
                    .find(|origin| value["origin"] == origin_name(*origin));
                entry.origin = known.unwrap_or_default();
                entry.has_failure = !value.is_null();
            }
        }
        (Subject::Network, _) => {}
    }
}

/// Finds the programs of the instances.
fn programs(args: &Args) -> Result<Programs, Error> {
    let find = |given: &Option<PathBuf>, name: &'static str| {
        let beside = crate::process::executed_paths().map(|path| path.with_file_name(name));
        let mut paths = given.iter().cloned().chain(beside);
        let found = match given {
            Some(path) => Some(path.clone()),
            None => paths.find(|path| path.exists()),
        };
        found.and_then(|path| path::absolute(path).ok())
    };
    let mayfly = find(&args.mayfly, "mayfly").filter(|path| path.exists());
    Ok(Programs {
        mayfly: mayfly.ok_or(Error::Program("mayfly"))?,
        // Required by the first jailed instance.
        jailer: find(&args.jailer, "mayfly-jailer").unwrap_or_else(|| "/usr/bin/mayfly-jailer".into()),
    })
}

/// Creates the state directory, and makes it the working directory. Returns its absolute path.
fn enter(state: &Path) -> Result<PathBuf, Error> {
    let failed = |operation| {
        move |source| Error::Directory {
            operation,
            path: state.to_owned(),
            source,
        }
    };
    let create = |path: &Path| match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    };
    create(state).map_err(failed("create"))?;
    let directory = path::absolute(state).map_err(failed("find"))?;
    std::env::set_current_dir(&directory).map_err(failed("enter"))?;
    for name in [RUN, SUSPENDED] {
        create(Path::new(name)).map_err(failed("write to"))?;
    }
    Ok(directory)
}

/// Locks the state directory.
fn lock(directory: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    let file = options
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(LOCK);
    let file = file.map_err(|source| Error::Directory {
        operation: "write to",
        path: directory.to_owned(),
        source,
    })?;
    let end = Instant::now() + LOCK_TIMEOUT;
    while sys::lock(&file).is_err() {
        if Instant::now() >= end {
            return Err(Error::Locked(directory.to_owned()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(file)
}

/// Removes the snapshots of a deleted instance, which may take long, on a thread. A later instance may have their directory at once.
pub fn remove_snapshots(directory: &Path) {
    // Identifiers have no dot. A removal that a killed supervisor has left may have the first names.
    let free = (0..1000).find_map(|number| {
        let mut name = directory.file_name()?.to_owned();
        name.push(format!("{REMOVED}{number}"));
        let new = directory.with_file_name(name);
        (!new.exists()).then_some(new)
    });
    let renamed = free.filter(|new| fs::rename(directory, new).is_ok());
    remove(renamed.unwrap_or_else(|| directory.to_owned()));
}

/// Completes the removals of an earlier supervisor.
pub fn finish_removals() {
    for file in fs::read_dir(SUSPENDED).into_iter().flatten().flatten() {
        if file.file_name().to_string_lossy().contains(REMOVED) {
            remove(file.path());
        }
    }
}

/// Removes a directory on a thread.
fn remove(directory: PathBuf) {
    let spawned = thread::Builder::new().name("remove".into()).spawn(move || {
        if let Err(error) = fs::remove_dir_all(&directory)
            && error.kind() != ErrorKind::NotFound
        {
            log::warn!("standby: cannot remove {}: {error}", directory.display());
        }
    });
    if let Err(error) = spawned {
        log::warn!("standby: cannot remove the snapshots of an instance: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Key, Source, remove_snapshots};

    #[test]
    fn directory_of_removed_snapshots_is_free_at_once() {
        let directory = scratch::Directory::new();
        // Left by a supervisor that was killed.
        fs::create_dir(directory.path("web.removed-0")).unwrap();
        fs::create_dir(directory.path("web")).unwrap();
        directory.write("web/state", "");
        remove_snapshots(&directory.path("web"));
        assert!(!directory.path("web").exists());
        scratch::wait_until("the snapshots are removed", || {
            directory.names() == ["web.removed-0"]
        });
        remove_snapshots(&directory.path("missing"));
    }

    #[test]
    fn sources_survive_the_data_of_an_event() {
        let key = Key {
            index: u32::MAX,
            generation: (1 << 28) - 1,
        };
        for source in [
            Source::Server,
            Source::Signals,
            Source::Sockets,
            Source::Journal,
            Source::Process(key),
            Source::Exchange(Key {
                index: 0,
                generation: 1,
            }),
            Source::Frame(key),
            Source::Network(key),
            Source::Shell(key),
            Source::Reply(key),
            Source::Inspection,
            Source::Preparation,
        ] {
            assert_eq!(Source::from_data(source.data()), Some(source));
        }
        assert_eq!(Source::from_data(u64::MAX), None);
    }
}
