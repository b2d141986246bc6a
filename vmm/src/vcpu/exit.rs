//! Exits from the guest: handling, counters, and the final exit.

use std::io;
use std::time::Instant;

use devices::{Bus, Counter, Latency, LatencyRecorder, Power, PowerEvent};
use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, KVM_SYSTEM_EVENT_SUSPEND};
use kvm_ioctls::VcpuExit;

use super::unclaimed::{Access, UnclaimedAccesses};
use crate::kvm::{self, run_page::PortWidth};

/// Targets of the guest's accesses.
pub(crate) struct Targets<'a> {
    /// Ports.
    pub ports: &'a Bus,
    /// Memory-mapped registers.
    pub memory: &'a Bus,
    /// Power-off and reset.
    pub power: &'a Power,
    /// Record of accesses that none of them claims.
    pub unclaimed: &'a UnclaimedAccesses,
}

impl Targets<'_> {
    /// Writes the units of `data` to `port`.
    fn write_port(&self, port: u16, data: &[u8], width: usize) {
        let mut unclaimed = 0;
        for unit in data.chunks(width) {
            unclaimed += u64::from(!self.ports.write(port.into(), unit));
        }
        self.record(unclaimed, true, true, width, port.into());
    }

    /// Reads the units of `data` from `port`.
    fn read_port(&self, port: u16, data: &mut [u8], width: usize) {
        let mut unclaimed = 0;
        for unit in data.chunks_mut(width) {
            unclaimed += u64::from(!self.ports.read(port.into(), unit));
        }
        self.record(unclaimed, true, false, width, port.into());
    }

    fn read_memory(&self, address: u64, data: &mut [u8]) {
        let unclaimed = !self.memory.read(address, data);
        self.record(unclaimed.into(), false, false, data.len(), address);
    }

    fn write_memory(&self, address: u64, data: &[u8]) {
        let unclaimed = !self.memory.write(address, data);
        self.record(unclaimed.into(), false, true, data.len(), address);
    }

    /// Records `number` unclaimed accesses, if there are any.
    fn record(&self, number: u64, is_port: bool, is_write: bool, width: usize, address: u64) {
        if number > 0 {
            let access = Access {
                is_port,
                is_write,
                width: u8::try_from(width).unwrap_or(u8::MAX),
                address,
            };
            self.unclaimed.record(access, number);
        }
    }
}

/// Action after an exit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ExitAction {
    /// The guest is entered again.
    Handled,
    /// A local APIC broadcasts the end of a level-triggered interrupt.
    EndOfInterrupt(u8),
    /// The guest requests its end.
    Power(PowerEvent),
    /// Triple fault.
    TripleFault,
    /// KVM_EXIT_INTERNAL_ERROR.
    InternalError,
    /// KVM_EXIT_FAIL_ENTRY, with the reason.
    FailedEntry(u64),
    /// KVM_EXIT_MEMORY_FAULT.
    MemoryFault,
    /// Exit that this VMM does not enable, with its kind.
    Unknown(String),
}

/// Handles `exit`. `width` is the width of a port access: a string instruction transfers several units in one exit.
pub(crate) fn handle(exit: VcpuExit<'_>, width: &PortWidth, targets: &Targets<'_>) -> ExitAction {
    match exit {
        VcpuExit::IoOut(port, data) => {
            targets.write_port(port, data, width.get());
            power_action(targets.power)
        }
        VcpuExit::IoIn(port, data) => {
            targets.read_port(port, data, width.get());
            ExitAction::Handled
        }
        VcpuExit::MmioRead(address, data) => {
            targets.read_memory(address, data);
            ExitAction::Handled
        }
        VcpuExit::MmioWrite(address, data) => {
            targets.write_memory(address, data);
            power_action(targets.power)
        }
        // These exits require only another KVM_RUN: a halted vCPU waits in the kernel.
        VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::Intr => ExitAction::Handled,
        VcpuExit::IoapicEoi(vector) => ExitAction::EndOfInterrupt(vector),
        VcpuExit::SystemEvent(event, data) => match power_event(event) {
            Some(event) => ExitAction::Power(event),
            None => ExitAction::Unknown(format!("SystemEvent({event}, {data:?})")),
        },
        VcpuExit::Shutdown => ExitAction::TripleFault,
        VcpuExit::InternalError => ExitAction::InternalError,
        VcpuExit::FailEntry(reason, _) => ExitAction::FailedEntry(reason),
        VcpuExit::MemoryFault { .. } => ExitAction::MemoryFault,
        other => ExitAction::Unknown(format!("{other:?}")),
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

/// Kind of an exit, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
enum Kind {
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Halt,
    Interrupt,
    Other,
}

/// Names of the kinds of exits, in the order of the counters.
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
        let failed = !matches!(reason, StopReason::Power(_));
        self.failures.add(u64::from(failed));
    }

    /// Records the end of the handling of a timed exit.
    pub(super) fn stop_timer(&self, timer: &ExitTimer) {
        self.durations[timer.kind].record(timer.start.elapsed());
    }

    /// Counts `exit`. Returns a timer if its handling is timed.
    pub(super) fn count(&self, exit: &Result<VcpuExit<'_>, kvm_ioctls::Error>) -> Option<ExitTimer> {
        let kind = match exit {
            Ok(VcpuExit::IoIn(..)) => Kind::IoIn,
            Ok(VcpuExit::IoOut(..)) => Kind::IoOut,
            Ok(VcpuExit::MmioRead(..)) => Kind::MmioRead,
            Ok(VcpuExit::MmioWrite(..)) => Kind::MmioWrite,
            Ok(VcpuExit::Hlt) => Kind::Halt,
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) | Err(_) => Kind::Interrupt,
            Ok(_) => Kind::Other,
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
    /// Triple fault: the guest faulted during the delivery of a double fault.
    TripleFault {
        /// Instruction pointer.
        ip: u64,
    },
    /// The guest cannot continue.
    Fault(VcpuError),
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
        at: Location,
        /// Way out.
        hint: &'static str,
    },
    /// KVM_EXIT_FAIL_ENTRY.
    #[error(
        "cannot enter the guest at {at}: the processor rejects its state, reason {reason:#x}; another boot protocol may help"
    )]
    Entry {
        /// Location of the guest.
        at: Location,
        /// `hardware_entry_failure_reason`.
        reason: u64,
    },
    /// KVM_EXIT_MEMORY_FAULT, or EFAULT.
    #[error(
        "cannot access guest memory at {at}: the image or memory file may have been changed or truncated while the guest ran"
    )]
    Memory {
        /// Location of the guest.
        at: Location,
    },
    /// `KVM_RUN` failed.
    #[error("cannot run the guest at {at}: KVM_RUN failed")]
    Run {
        /// Location of the guest.
        at: Location,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Exit of an unsupported kind.
    #[error("cannot handle the exit at {at}: {exit} is unsupported")]
    Exit {
        /// Location of the guest.
        at: Location,
        /// Kind of the exit.
        exit: String,
    },
}

/// Instruction of the guest at an exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Number of the vCPU.
    pub vcpu: u8,
    /// Instruction pointer.
    pub ip: u64,
    /// Bytes of the instruction, as many as could be read.
    pub bytes: Vec<u8>,
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "address {:#x} of vCPU {}", self.ip, self.vcpu)?;
        if !self.bytes.is_empty() {
            f.write_str(", instruction bytes")?;
        }
        self.bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use devices::{Bus, BusBuilder, BusDevice, Power, PowerEvent};
    use kvm_ioctls::VcpuExit;

    use super::{
        Access, ExitAction, ExitCounters, KINDS, PortWidth, StopReason, Targets, UnclaimedAccesses, handle,
    };

    #[derive(Default)]
    struct Log(Vec<Vec<u8>>);

    impl BusDevice for Log {
        fn read(&mut self, _: u64, data: &mut [u8]) {
            data.fill(u8::try_from(self.0.len()).unwrap());
            self.0.push(data.to_vec());
        }

        fn write(&mut self, _: u64, data: &[u8]) {
            self.0.push(data.to_vec());
        }
    }

    /// Runs `test` with a logging device at port 0x10. Returns the accesses.
    fn logged(test: impl FnOnce(&Targets<'_>)) -> Vec<Vec<u8>> {
        let log = Arc::new(Mutex::new(Log::default()));
        let mut ports = BusBuilder::new();
        ports.claim("log", 0x10, 8, log.clone()).unwrap();
        let power = Power::new();
        test(&Targets {
            ports: &ports.build(),
            memory: &Bus::default(),
            power: &power,
            unclaimed: &UnclaimedAccesses::default(),
        });
        devices::lock(&log).0.clone()
    }

    #[test]
    fn string_instruction_is_split_by_width() {
        let log = logged(|targets| {
            let width = PortWidth::fixed(2);
            handle(VcpuExit::IoOut(0x10, &[1, 2, 3, 4]), &width, targets);
            let mut data = [0; 4];
            handle(VcpuExit::IoIn(0x10, &mut data), &width, targets);
            assert_eq!(data, [2, 2, 3, 3]);
        });
        assert_eq!(log[..2], [vec![1, 2], vec![3, 4]]);
    }

    #[test]
    fn unclaimed_accesses_are_recorded() {
        logged(|targets| {
            let width = PortWidth::fixed(2);
            handle(VcpuExit::IoOut(0x10, &[0; 4]), &width, targets);
            handle(VcpuExit::IoOut(0x18, &[0; 4]), &width, targets);
            handle(VcpuExit::IoIn(0x18, &mut [0; 2]), &width, targets);
            handle(VcpuExit::MmioRead(0x10, &mut [0; 8]), &width, targets);
            handle(VcpuExit::MmioWrite(0x10, &[0]), &width, targets);
            let of = |is_port, is_write, width, address| Access {
                is_port,
                is_write,
                width,
                address,
            };
            let list = targets.unclaimed.list();
            let list: Vec<_> = list.iter().map(|entry| (entry.access, entry.count)).collect();
            let expected = [
                (of(false, true, 1, 0x10), 1),
                (of(false, false, 8, 0x10), 1),
                (of(true, false, 2, 0x18), 1),
                (of(true, true, 2, 0x18), 2),
            ];
            assert_eq!(list, expected);
        });
    }

    #[test]
    fn power_event_follows_write() {
        logged(|targets| {
            let write = || handle(VcpuExit::IoOut(0x10, &[1]), &PortWidth::fixed(1), targets);
            assert_eq!(write(), ExitAction::Handled);
            targets.power.request(PowerEvent::Exit(3));
            assert_eq!(write(), ExitAction::Power(PowerEvent::Exit(3)));
        });
    }

    #[test]
    fn system_events_are_power_events() {
        logged(|targets| {
            let event = |kind| handle(VcpuExit::SystemEvent(kind, &[0]), &PortWidth::fixed(1), targets);
            assert_eq!(event(1), ExitAction::Power(PowerEvent::Off));
            assert_eq!(event(2), ExitAction::Power(PowerEvent::Reset));
            assert_eq!(event(5), ExitAction::Power(PowerEvent::Off));
            assert_eq!(event(3), ExitAction::Unknown("SystemEvent(3, [0])".into()));
        });
    }

    #[test]
    fn unknown_exit_is_named() {
        logged(|targets| {
            let action = handle(VcpuExit::Nmi, &PortWidth::fixed(1), targets);
            assert_eq!(action, ExitAction::Unknown("Nmi".into()));
        });
    }

    #[test]
    fn one_in_64_accesses_is_timed() {
        let exits = ExitCounters::default();
        for _ in 0..65 {
            let timer = exits.count(&Ok(VcpuExit::MmioWrite(1, &[0])));
            timer.iter().for_each(|timer| exits.stop_timer(timer));
            assert!(exits.count(&Ok(VcpuExit::Hlt)).is_none());
        }
        let timed = exits.durations().map(|duration| duration.timed);
        assert_eq!(timed, [0, 0, 0, 2]);
    }

    #[test]
    fn faults_are_failures() {
        let exits = ExitCounters::default();
        exits.count_stop(&StopReason::Power(PowerEvent::Reset));
        assert_eq!(exits.failures(), 0);
        exits.count_stop(&StopReason::TripleFault { ip: 0 });
        assert_eq!(exits.failures(), 1);
    }

    #[test]
    fn exits_are_counted_by_kind() {
        let exits = ExitCounters::default();
        for exit in [
            VcpuExit::IoOut(1, &[0]),
            VcpuExit::Hlt,
            VcpuExit::Hlt,
            VcpuExit::Shutdown,
        ] {
            exits.count(&Ok(exit));
        }
        exits.count(&Err(kvm_ioctls::Error::new(libc::EINTR)));
        let named: Vec<_> = KINDS
            .into_iter()
            .zip(exits.counts())
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(
            named,
            [("io_out", 1), ("halt", 2), ("interrupt", 1), ("other", 1)]
        );
    }
}
