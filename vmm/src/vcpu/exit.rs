//! Exits from the guest: handling, counters, and the final exit.

use std::io;
use std::time::Instant;

use devices::{Bus, Counter, Latency, LatencyRecorder, Power, PowerEvent};
use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, KVM_SYSTEM_EVENT_SUSPEND};
use kvm_ioctls::VcpuExit;

use super::location::Location;
use super::park::NativeCpu;
use super::unclaimed::{Access, UnclaimedAccesses};
use crate::arch::{AddressSpace, Cpu, DebugCpu, DebugExit, ExitKind, IoAccess, NativeExit};
use crate::kvm;

/// Targets of the guest's accesses.
pub(crate) struct Targets<'a> {
    /// Memory-mapped registers.
    pub memory: &'a Bus,
    /// Power-off and reset.
    pub power: &'a Power,
    /// Record of accesses that no device claims.
    pub unclaimed: &'a UnclaimedAccesses,
}

impl Targets<'_> {
    fn read_memory(&self, address: u64, data: &mut [u8]) {
        if !self.memory.read(address, data) {
            self.record_memory(false, data.len(), address);
        }
    }

    fn write_memory(&self, address: u64, data: &[u8]) {
        if !self.memory.write(address, data) {
            self.record_memory(true, data.len(), address);
        }
    }

    fn record_memory(&self, is_write: bool, width: usize, address: u64) {
        let access = Access {
            space: AddressSpace::Memory,
            is_write,
            width: u8::try_from(width).unwrap_or(u8::MAX),
            address,
        };
        self.unclaimed.record(access, 1);
    }

    /// Handles an access to the I/O space, which devices have handled.
    fn finish_io(&self, io: IoAccess) -> ExitAction {
        if io.unclaimed > 0 {
            let access = Access {
                space: AddressSpace::Io,
                is_write: io.is_write,
                width: u8::try_from(io.width).unwrap_or(u8::MAX),
                address: io.address,
            };
            self.unclaimed.record(access, io.unclaimed);
        }
        if io.is_write {
            power_action(self.power)
        } else {
            ExitAction::Handled
        }
    }
}

/// Action after an exit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ExitAction {
    /// The guest is entered again.
    Handled,
    /// The guest requests its end.
    Power(PowerEvent),
    /// The processor has shut down.
    CpuShutdown,
    /// KVM_EXIT_INTERNAL_ERROR.
    InternalError,
    /// KVM_EXIT_FAIL_ENTRY, with the reason.
    FailedEntry(u64),
    /// KVM_EXIT_MEMORY_FAULT.
    MemoryFault,
    /// KVM_EXIT_DEBUG.
    Debug(DebugExit),
    /// Exit that this VMM does not enable, with its kind.
    Unknown(String),
}

/// Handles `exit`; `native` handles those that only this architecture has.
#[inline]
pub(crate) fn handle<'a>(
    exit: VcpuExit<'a>,
    targets: &Targets<'_>,
    native: impl FnOnce(VcpuExit<'a>) -> NativeExit<'a>,
) -> ExitAction {
    match exit {
        VcpuExit::MmioRead(address, data) => {
            targets.read_memory(address, data);
            ExitAction::Handled
        }
        VcpuExit::MmioWrite(address, data) => {
            targets.write_memory(address, data);
            power_action(targets.power)
        }
        VcpuExit::Intr => ExitAction::Handled,
        VcpuExit::SystemEvent(event, data) => match power_event(event) {
            Some(event) => ExitAction::Power(event),
            None => ExitAction::Unknown(format!("SystemEvent({event}, {data:?})")),
        },
        VcpuExit::InternalError => ExitAction::InternalError,
        VcpuExit::FailEntry(reason, _) => ExitAction::FailedEntry(reason),
        VcpuExit::MemoryFault { .. } => ExitAction::MemoryFault,
        VcpuExit::Debug(exit) => ExitAction::Debug(NativeCpu::debug_exit(&exit)),
        other => match native(other) {
            NativeExit::Io(io) => targets.finish_io(io),
            NativeExit::Handled => ExitAction::Handled,
            NativeExit::CpuShutdown => ExitAction::CpuShutdown,
            NativeExit::Unknown(exit) => ExitAction::Unknown(format!("{exit:?}")),
        },
    }
}

/// Returns the request of a guest by firmware, such as PSCI on aarch64. KVM handles the other calls itself.
fn power_event(event: u32) -> Option<PowerEvent> {
    match event {
        // Without a device that wakes the guest, a suspended one would never continue.
        KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_SUSPEND => Some(PowerEvent::Off),
        KVM_SYSTEM_EVENT_RESET => Some(PowerEvent::Reset),
        _ => None,
    }
}

fn power_action(power: &Power) -> ExitAction {
    power.requested().map_or(ExitAction::Handled, ExitAction::Power)
}

/// Names of the kinds of exits, in the order of [`ExitKind`].
pub const KINDS: [&str; 7] = [
    "io_in",
    "io_out",
    "mmio_read",
    "mmio_write",
    "halt",
    "interrupt",
    "other",
];

/// Number of timed kinds: those with an access to a device, the first of [`KINDS`].
pub const TIMED_KINDS: usize = 4;

/// Sampling interval: the handling of one of this many exits of a kind is timed. Two clock reads cost as much as the handling of a
/// short access.
const SAMPLE: u64 = 64;

/// Counters of the exits of one vCPU. Only its own thread writes them.
#[derive(Debug, Default)]
pub struct ExitCounters {
    counts: [Counter; KINDS.len()],
    durations: [LatencyRecorder; TIMED_KINDS],
    failures: Counter,
    clock_failures: Counter,
}

/// Timed exit.
pub(super) struct ExitTimer {
    kind: usize,
    start: Instant,
}

impl ExitCounters {
    /// Returns the counts, in the order of [`KINDS`].
    pub fn counts(&self) -> [u64; KINDS.len()] {
        std::array::from_fn(|kind| self.counts[kind].get())
    }

    /// Returns the durations of the handling of the first [`TIMED_KINDS`] of [`KINDS`], a sample.
    pub fn durations(&self) -> [Latency; TIMED_KINDS] {
        self.durations.each_ref().map(LatencyRecorder::latency)
    }

    /// Returns the number of final exits by a fault.
    pub fn failures(&self) -> u64 {
        self.failures.get()
    }

    /// Returns the number of failed notifications of a pause to the clock of the guest.
    pub fn clock_failures(&self) -> u64 {
        self.clock_failures.get()
    }

    pub(super) fn count_clock_failure(&self) {
        self.clock_failures.add(1);
    }

    /// Counts `reason` if it is a fault.
    pub(super) fn count_stop(&self, reason: &StopReason) {
        let failed = !matches!(reason, StopReason::Power(_) | StopReason::Killed);
        self.failures.add(u64::from(failed));
    }

    /// Records the end of the handling of a timed exit.
    pub(super) fn stop_timer(&self, timer: &ExitTimer) {
        self.durations[timer.kind].record(timer.start.elapsed());
    }

    /// Counts `exit`. Returns a timer if its handling is timed.
    pub(super) fn count(&self, exit: &Result<VcpuExit<'_>, kvm_ioctls::Error>) -> Option<ExitTimer> {
        let kind = match exit {
            Ok(VcpuExit::MmioRead(..)) => ExitKind::MemoryRead,
            Ok(VcpuExit::MmioWrite(..)) => ExitKind::MemoryWrite,
            Ok(VcpuExit::Intr) | Err(_) => ExitKind::Interrupt,
            Ok(exit) => NativeCpu::exit_kind(exit),
        };
        let kind = kind as usize;
        let before = self.counts[kind].get();
        self.counts[kind].add(1);
        let is_timed = kind < TIMED_KINDS && before.is_multiple_of(SAMPLE);
        is_timed.then(|| ExitTimer {
            kind,
            start: Instant::now(),
        })
    }
}

/// Final exit of a vCPU.
#[derive(Debug)]
pub enum StopReason {
    /// The guest requested the end, by reset or power-off.
    Power(PowerEvent),
    /// The processor has shut down, because the guest cannot handle an exception: on x86 a triple fault.
    CpuShutdown {
        /// Location of the guest.
        at: Box<Location>,
    },
    /// A debugger requested the end.
    Killed,
    /// The guest cannot continue.
    Fault(VcpuError),
}

impl StopReason {
    /// Returns the location of a crash, if the guest has run.
    pub fn location(&self) -> Option<&Location> {
        match self {
            Self::CpuShutdown { at } => Some(at),
            Self::Fault(error) => error.location(),
            Self::Power(_) | Self::Killed => None,
        }
    }

    /// As [`location`](Self::location), to add symbols.
    pub fn location_mut(&mut self) -> Option<&mut Location> {
        match self {
            Self::CpuShutdown { at }
            | Self::Fault(
                VcpuError::Internal { at, .. }
                | VcpuError::Entry { at, .. }
                | VcpuError::Memory { at }
                | VcpuError::Run { at, .. }
                | VcpuError::Exit { at, .. },
            ) => Some(at),
            Self::Fault(_) | Self::Power(_) | Self::Killed => None,
        }
    }
}

/// Reason why a vCPU cannot run the guest.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The vCPU cannot be prepared.
    #[error("cannot prepare vCPU {id}")]
    Prepare {
        /// Number of the vCPU.
        id: u8,
        /// Failed call.
        #[source]
        source: kvm::Error,
    },
    /// The thread cannot be restricted.
    #[error("cannot restrict the system calls and rights of the thread of vCPU {id}")]
    Restrict {
        /// Number of the vCPU.
        id: u8,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The timer of the samples cannot be started.
    #[error(
        "cannot sample vCPU {id}: its thread gets no timer; raise the limit of pending signals (ulimit -i), or run without a profile"
    )]
    Sample {
        /// Number of the vCPU.
        id: u8,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The thread cannot be started.
    #[error("cannot start the thread of vCPU {id}")]
    Thread {
        /// Number of the vCPU.
        id: u8,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// KVM_EXIT_INTERNAL_ERROR.
    #[error("cannot run the guest at {at}: KVM reports internal error {suberror}; {hint}")]
    Internal {
        /// `KVM_INTERNAL_ERROR_*`
        suberror: u32,
        /// Location of the guest.
        at: Box<Location>,
        /// Way out.
        hint: &'static str,
    },
    /// KVM_EXIT_FAIL_ENTRY.
    #[error(
        "cannot enter the guest at {at}: the processor rejects its state, reason {reason:#x}; another boot protocol may help"
    )]
    Entry {
        /// Location of the guest.
        at: Box<Location>,
        /// `hardware_entry_failure_reason`.
        reason: u64,
    },
    /// KVM_EXIT_MEMORY_FAULT, or EFAULT.
    #[error(
        "cannot access guest memory at {at}: the image or memory file may have been changed or truncated while the guest ran"
    )]
    Memory {
        /// Location of the guest.
        at: Box<Location>,
    },
    /// `KVM_RUN` failed.
    #[error("cannot run the guest at {at}: KVM_RUN failed")]
    Run {
        /// Location of the guest.
        at: Box<Location>,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Exit of an unsupported kind.
    #[error("cannot handle the exit at {at}: {exit} is unsupported")]
    Exit {
        /// Location of the guest.
        at: Box<Location>,
        /// Kind of the exit.
        exit: String,
    },
}

impl VcpuError {
    /// Returns the location of the guest, if it has run.
    pub fn location(&self) -> Option<&Location> {
        match self {
            Self::Internal { at, .. }
            | Self::Entry { at, .. }
            | Self::Memory { at }
            | Self::Run { at, .. }
            | Self::Exit { at, .. } => Some(at),
            Self::Prepare { .. } | Self::Restrict { .. } | Self::Sample { .. } | Self::Thread { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::{Bus, Power, PowerEvent};
    use kvm_ioctls::VcpuExit;

    use super::{Access, ExitAction, ExitCounters, KINDS, StopReason, Targets, UnclaimedAccesses, handle};
    use crate::arch::{AddressSpace, IoAccess, NativeExit};

    /// Runs `test` with a memory bus without devices.
    fn with_targets(test: impl FnOnce(&Targets<'_>)) {
        test(&Targets {
            memory: &Bus::default(),
            power: &Power::new(),
            unclaimed: &UnclaimedAccesses::default(),
        });
    }

    fn io(is_write: bool, unclaimed: u64) -> NativeExit<'static> {
        NativeExit::Io(IoAccess {
            address: 0x18,
            width: 2,
            is_write,
            unclaimed,
        })
    }

    #[test]
    fn unclaimed_accesses_are_recorded() {
        with_targets(|targets| {
            for (is_write, unclaimed) in [(true, 0), (true, 2), (false, 1), (false, 0)] {
                handle(VcpuExit::Nmi, targets, |_| io(is_write, unclaimed));
            }
            handle(
                VcpuExit::MmioRead(0x10, &mut [0; 8]),
                targets,
                NativeExit::Unknown,
            );
            handle(VcpuExit::MmioWrite(0x10, &[0]), targets, NativeExit::Unknown);
            let of = |space, is_write, width, address| Access {
                space,
                is_write,
                width,
                address,
            };
            let list = targets.unclaimed.list();
            let list: Vec<_> = list.iter().map(|entry| (entry.access, entry.count)).collect();
            let expected = [
                (of(AddressSpace::Memory, true, 1, 0x10), 1),
                (of(AddressSpace::Memory, false, 8, 0x10), 1),
                (of(AddressSpace::Io, false, 2, 0x18), 1),
                (of(AddressSpace::Io, true, 2, 0x18), 2),
            ];
            assert_eq!(list, expected);
        });
    }

    #[test]
    fn power_event_follows_write() {
        with_targets(|targets| {
            let access = |is_write| handle(VcpuExit::Nmi, targets, |_| io(is_write, 0));
            assert_eq!(access(true), ExitAction::Handled);
            targets.power.request(PowerEvent::Exit(3));
            assert_eq!(access(false), ExitAction::Handled);
            assert_eq!(access(true), ExitAction::Power(PowerEvent::Exit(3)));
            let write = handle(VcpuExit::MmioWrite(0x10, &[0]), targets, NativeExit::Unknown);
            assert_eq!(write, ExitAction::Power(PowerEvent::Exit(3)));
        });
    }

    #[test]
    fn system_events_are_power_events() {
        with_targets(|targets| {
            let event = |kind| handle(VcpuExit::SystemEvent(kind, &[0]), targets, NativeExit::Unknown);
            assert_eq!(event(1), ExitAction::Power(PowerEvent::Off));
            assert_eq!(event(2), ExitAction::Power(PowerEvent::Reset));
            assert_eq!(event(5), ExitAction::Power(PowerEvent::Off));
            assert_eq!(event(3), ExitAction::Unknown("SystemEvent(3, [0])".into()));
        });
    }

    #[test]
    fn unknown_exit_is_named() {
        with_targets(|targets| {
            let action = handle(VcpuExit::Nmi, targets, NativeExit::Unknown);
            assert_eq!(action, ExitAction::Unknown("Nmi".into()));
        });
    }

    #[test]
    fn one_in_64_accesses_is_timed() {
        let exits = ExitCounters::default();
        for _ in 0..65 {
            let timer = exits.count(&Ok(VcpuExit::MmioWrite(1, &[0])));
            timer.iter().for_each(|timer| exits.stop_timer(timer));
            assert!(exits.count(&Ok(VcpuExit::Intr)).is_none());
        }
        let timed = exits.durations().map(|duration| duration.timed);
        assert_eq!(timed, [0, 0, 0, 2]);
    }

    #[test]
    fn faults_are_failures() {
        let exits = ExitCounters::default();
        exits.count_stop(&StopReason::Power(PowerEvent::Reset));
        assert_eq!(exits.failures(), 0);
        exits.count_stop(&StopReason::CpuShutdown { at: Box::default() });
        assert_eq!(exits.failures(), 1);
    }

    #[test]
    fn exits_are_counted_by_kind() {
        let exits = ExitCounters::default();
        for exit in [
            VcpuExit::MmioWrite(1, &[0]),
            VcpuExit::Intr,
            VcpuExit::InternalError,
        ] {
            exits.count(&Ok(exit));
        }
        exits.count(&Err(kvm_ioctls::Error::new(libc::EINTR)));
        let named: Vec<_> = KINDS
            .into_iter()
            .zip(exits.counts())
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(named, [("mmio_write", 1), ("interrupt", 2), ("other", 1)]);
    }
}
