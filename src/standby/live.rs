//! Wake and process of an instance that is not asleep.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::exchange::Exchange;

/// Process of an instance.
#[derive(Debug)]
pub struct Running {
    /// Process ID.
    pub pid: libc::pid_t,
    /// Descriptor of the process, readable at its end.
    pub process: OwnedFd,
}

/// Process of an earlier supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Generation of the snapshots of the instance when the process started; none in a record of an earlier version.
    pub generation: Option<Box<str>>,
}

/// Wake and process of an instance.
#[derive(Debug)]
pub struct Live {
    /// Beginning of the wake.
    pub woken_at: Instant,
    /// The process, once it is started.
    pub running: Option<Running>,
    /// Connection to the shell that the process was, until its reply.
    pub shell: Option<UnixStream>,
    /// Request to the API of the process.
    pub exchange: Option<Exchange>,
    /// End of the wait for the API of the process.
    pub deadline: Option<Instant>,
    /// The process is one of an earlier supervisor.
    pub found: Option<Found>,
    /// Frames that have woken the instance, with the identifier of their interface.
    pub frames: Option<(Box<str>, OwnedFd)>,
    /// The wait for its guest is over, and the process is killed.
    pub is_late: bool,
    /// Wake it again at the end of the process.
    pub wakes_again: bool,
    /// Suspend it once it runs.
    pub suspends_next: bool,
    /// Processor time at the last sample in ticks.
    pub cpu_ticks: u64,
    /// Last sample at which the guest had used the processor.
    pub active_at: Instant,
    /// Memory at the last sample in KiB.
    pub memory_kib: u64,
}

impl Live {
    /// Begins a wake. `memory_kib` is the expected memory.
    pub fn new(memory_kib: u64, frames: Option<(Box<str>, OwnedFd)>) -> Self {
        let now = Instant::now();
        Self {
            woken_at: now,
            running: None,
            shell: None,
            exchange: None,
            deadline: None,
            found: None,
            frames,
            is_late: false,
            wakes_again: false,
            suspends_next: false,
            cpu_ticks: 0,
            active_at: now,
            memory_kib,
        }
    }
}
