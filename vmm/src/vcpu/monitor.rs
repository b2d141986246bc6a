//! Observation of a vCPU by other threads, without a kick and without a lock.

use std::fs;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

use super::exit::ExitCounters;
use super::requests::ObserverRequests;
use super::unclaimed::UnclaimedAccesses;
use crate::kvm::statistics::HaltStatistics;
use crate::kvm::{Kick, Statistics};

/// Data that the vCPU thread shares with its observers. Its flags are relaxed: each is an observation by itself, and passes no other
/// data.
#[derive(Debug, Default)]
pub struct VcpuMonitor {
    /// Counters of exits.
    pub exits: ExitCounters,
    /// Last unclaimed accesses.
    pub unclaimed: UnclaimedAccesses,
    /// Time before the first guest entry.
    first_entry: OnceLock<Instant>,
    /// The thread calls KVM_RUN.
    is_inside: AtomicBool,
    /// The thread has ended.
    has_ended: AtomicBool,
    /// Requests to the thread.
    pub requests: ObserverRequests,
    /// Set by the thread on request; `None` without statistics.
    statistics: OnceLock<Option<Statistics>>,
}

/// Activity of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuActivity {
    /// The thread executes the guest or handles an exit, or waits for a processor of the host.
    Running,
    /// The guest waits in a halt for an interrupt, or the vCPU for its start by another one.
    Halted,
    /// The thread waits for a page, a disk or a lock. Without statistics and /proc, it may also be halted.
    Waiting,
    /// The VM is paused.
    Paused,
    /// The thread has ended.
    Ended,
}

/// Observation of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuObservation {
    /// Activity.
    pub activity: VcpuActivity,
    /// Time for which a processor has executed the thread, with the guest. `None` if the thread does not run yet or has ended.
    pub cpu_time: Option<Duration>,
    /// Time since the first guest entry; `None` before it.
    pub age: Option<Duration>,
    /// Number of halts; `None` before the thread has opened the statistics, and where KVM does not count them.
    pub halts: Option<u64>,
}

/// State of a thread in /proc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ThreadState {
    /// Runs, or waits for a processor.
    Runnable,
    /// Sleeps until an event or a signal.
    Asleep,
    /// Sleeps until an event.
    Uninterruptible,
}

/// Facts from which the activity follows.
#[derive(Clone, Copy, Debug)]
struct Facts {
    has_ended: bool,
    is_paused: bool,
    /// The processor time grows.
    is_executing: bool,
    is_inside: bool,
    is_halted: Option<bool>,
    /// `None` without /proc.
    thread: Option<ThreadState>,
    /// A fault handler serves guest memory, and the thread may wait for it inside KVM_RUN.
    is_served: bool,
}

impl VcpuMonitor {
    /// Observes the vCPU that `kick` kicks. Does not wait, and does not interrupt the vCPU. Takes no lock.
    pub(super) fn observe(&self, kick: &Kick, is_paused: bool, is_served: bool) -> VcpuObservation {
        self.request_statistics();
        let earlier = kick.cpu_time();
        let statistics = self.statistics.get().and_then(Option::as_ref);
        let statistics = statistics.map_or_else(HaltStatistics::default, Statistics::read);
        let is_inside = self.is_inside.load(Ordering::Relaxed);
        let thread = kick.thread().and_then(thread_state);
        // The clock of a thread that a processor executes has a resolution of nanoseconds.
        let cpu_time = kick.cpu_time();
        let facts = Facts {
            has_ended: self.has_ended.load(Ordering::Relaxed),
            is_paused,
            is_executing: cpu_time > earlier,
            is_inside,
            is_halted: statistics.is_halted,
            thread,
            is_served,
        };
        VcpuObservation {
            activity: facts.activity(),
            cpu_time,
            age: self.first_entry.get().map(Instant::elapsed),
            halts: statistics.halts,
        }
    }

    /// Requests the statistics from the thread. Returns false if it has tried to open them already.
    pub(super) fn request_statistics(&self) -> bool {
        let is_missing = self.statistics.get().is_none();
        if is_missing {
            self.requests.request_statistics();
        }
        is_missing
    }

    /// Records the time before the first guest entry. Only for the vCPU thread.
    pub(super) fn set_first_entry(&self, entry: Instant) {
        self.first_entry.get_or_init(|| entry);
    }

    /// Marks the calls of KVM_RUN. Only for the vCPU thread.
    pub(super) fn set_inside(&self, is_inside: bool) {
        self.is_inside.store(is_inside, Ordering::Relaxed);
    }

    /// Marks the end of the thread.
    pub(super) fn set_ended(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
    }

    /// Opens the statistics of `vcpu` if an observer has requested them. Only for the vCPU thread.
    pub(super) fn open_statistics(&self, vcpu: &VcpuFd) {
        if self.requests.take_statistics() {
            self.statistics.get_or_init(|| Statistics::open(vcpu));
        }
    }
}

impl Facts {
    fn activity(self) -> VcpuActivity {
        let is_asleep = self.thread == Some(ThreadState::Asleep);
        match self.is_halted {
            _ if self.has_ended => VcpuActivity::Ended,
            _ if self.is_paused => VcpuActivity::Paused,
            _ if self.is_executing || self.thread == Some(ThreadState::Runnable) => VcpuActivity::Running,
            Some(true) if self.is_inside => VcpuActivity::Halted,
            None if self.is_inside && is_asleep && !self.is_served => VcpuActivity::Halted,
            _ => VcpuActivity::Waiting,
        }
    }
}

/// Returns the state of a thread of this process: field 3 of proc_pid_stat(5). `None` without /proc.
fn thread_state(thread: i32) -> Option<ThreadState> {
    let text = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?;
    parse_state(&text)
}

fn parse_state(stat: &str) -> Option<ThreadState> {
    // The name of the thread, in parentheses, may itself hold any character.
    let (_, fields) = stat.rsplit_once(") ")?;
    match fields.chars().next()? {
        'R' => Some(ThreadState::Runnable),
        'S' => Some(ThreadState::Asleep),
        _ => Some(ThreadState::Uninterruptible),
    }
}

#[cfg(test)]
mod tests {
    use super::{Facts, ThreadState, VcpuActivity, parse_state};

    /// A thread that sleeps inside KVM_RUN, on a host with /proc and without statistics.
    const ASLEEP: Facts = Facts {
        has_ended: false,
        is_paused: false,
        is_executing: false,
        is_inside: true,
        is_halted: None,
        thread: Some(ThreadState::Asleep),
        is_served: false,
    };

    #[test]
    fn activity_follows_from_facts() {
        let with = |change: fn(&mut Facts)| {
            let mut facts = ASLEEP;
            change(&mut facts);
            facts.activity()
        };
        assert_eq!(ASLEEP.activity(), VcpuActivity::Halted);
        assert_eq!(with(|facts| facts.is_halted = Some(true)), VcpuActivity::Halted);
        // A page fault inside KVM_RUN.
        assert_eq!(with(|facts| facts.is_halted = Some(false)), VcpuActivity::Waiting);
        assert_eq!(with(|facts| facts.is_served = true), VcpuActivity::Waiting);
        let uninterruptible = |facts: &mut Facts| facts.thread = Some(ThreadState::Uninterruptible);
        assert_eq!(with(uninterruptible), VcpuActivity::Waiting);
        assert_eq!(with(|facts| facts.is_inside = false), VcpuActivity::Waiting);
        assert_eq!(with(|facts| facts.thread = None), VcpuActivity::Waiting);
        assert_eq!(with(|facts| facts.is_executing = true), VcpuActivity::Running);
        let runnable = |facts: &mut Facts| facts.thread = Some(ThreadState::Runnable);
        assert_eq!(with(runnable), VcpuActivity::Running);
        assert_eq!(with(|facts| facts.is_paused = true), VcpuActivity::Paused);
        assert_eq!(with(|facts| facts.has_ended = true), VcpuActivity::Ended);
    }

    #[test]
    fn halted_vcpu_without_proc_needs_statistics() {
        let without_proc = Facts {
            thread: None,
            ..ASLEEP
        };
        assert_eq!(without_proc.activity(), VcpuActivity::Waiting);
        let counted = Facts {
            is_halted: Some(true),
            ..without_proc
        };
        assert_eq!(counted.activity(), VcpuActivity::Halted);
    }

    #[test]
    fn thread_state_follows_its_name() {
        assert_eq!(parse_state("7 (a) b) S 1 2"), Some(ThreadState::Asleep));
        assert_eq!(parse_state("7 (fc_vcpu 0) R 1"), Some(ThreadState::Runnable));
        assert_eq!(
            parse_state("7 (fc_vcpu 0) D 1"),
            Some(ThreadState::Uninterruptible)
        );
        assert_eq!(parse_state(""), None);
    }
}
