//! Metrics of a VM.

use std::fs;
use std::time::Instant;

use devices::Latency;
use devices::serial::SerialMetrics;
use devices::virtio::TransportMetrics;
use devices::virtio::block::BlockMetrics;
use devices::virtio::net::NetMetrics;
use serde::Serialize;

use super::scale_to_zero::ScaleToZeroMetrics;
use crate::arch::InputMetrics;
use crate::machine::DeviceCounters;
use crate::memory::{self, ResidencyCounter};
use crate::persistence::SnapshotKind;
use crate::timeline::{Lane, Timeline};
use crate::vcpu::{KINDS, TIMED_KINDS};
use crate::vm::Vm;

/// Phase of the start or, with a length of zero, an event of it.
#[derive(Clone, Debug, Serialize)]
pub struct StartPhase {
    /// Name of the phase.
    pub name: &'static str,
    /// vCPU on whose thread the phase ran; `None` for the main thread.
    pub vcpu: Option<u8>,
    /// Start in seconds since the start of the process.
    pub start: f64,
    /// Length in seconds.
    pub length: f64,
}

/// Metrics of a vCPU.
#[derive(Clone, Debug, Serialize)]
pub struct VcpuMetrics {
    /// Number of the vCPU.
    pub id: usize,
    /// Exits from the guest by kind.
    pub exits: Vec<(&'static str, u64)>,
    /// Durations of the handling of the first kinds of exits, a sample.
    pub durations: [Latency; TIMED_KINDS],
    /// Final exits by a fault.
    pub failures: u64,
    /// Failed notifications of a pause to the clock of the guest.
    pub clock_failures: u64,
}

/// Metrics of a device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceMetrics {
    /// ID of the device, unique in its kind.
    pub id: String,
    /// Counters of the device.
    pub counters: DeviceCounters,
    /// Counters of its transport.
    pub transport: TransportMetrics,
}

/// Durations of the last successful operations in microseconds, at least 1; 0 without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OperationTimes {
    /// Pause.
    pub pause_us: u64,
    /// Resume.
    pub resume_us: u64,
    /// Creation of a full snapshot.
    pub create_full_us: u64,
    /// Creation of a diff snapshot.
    pub create_diff_us: u64,
    /// Load of a snapshot, with its resume.
    pub load_us: u64,
}

impl OperationTimes {
    /// Returns the time since `start` in microseconds, at least 1.
    pub fn elapsed_us(start: Instant) -> u64 {
        u64::try_from(start.elapsed().as_micros())
            .unwrap_or(u64::MAX)
            .max(1)
    }

    /// Returns the duration of the creation of a snapshot of `kind`.
    pub fn create_us(&mut self, kind: SnapshotKind) -> &mut u64 {
        match kind {
            SnapshotKind::Full => &mut self.create_full_us,
            SnapshotKind::Diff => &mut self.create_diff_us,
        }
    }
}

/// Metrics of a device of a known kind.
#[derive(Clone, Copy, Debug)]
pub struct KindMetrics<'a, M> {
    /// ID of the device.
    pub id: &'a str,
    /// Counters of the device.
    pub metrics: &'a M,
    /// Counters of its transport.
    pub transport: &'a TransportMetrics,
}

/// Metrics of a drive.
pub type DriveMetrics<'a> = KindMetrics<'a, BlockMetrics>;

/// Metrics of a network interface.
pub type InterfaceMetrics<'a> = KindMetrics<'a, NetMetrics>;

/// Metrics of a VM. Empty before the start.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VmMetrics {
    /// Phases of the start, sorted by their start.
    pub phases: Vec<StartPhase>,
    /// vCPUs.
    pub vcpus: Vec<VcpuMetrics>,
    /// Devices, in the order in which the guest counts them.
    pub devices: Vec<DeviceMetrics>,
    /// Serial port.
    pub serial: SerialMetrics,
    /// Device through which a user requests a shutdown.
    pub input: InputMetrics,
    /// Durations of the last operations.
    pub operations: OperationTimes,
    /// Suspends.
    pub scale_to_zero: ScaleToZeroMetrics,
    /// Accesses to the I/O space that no device claimed.
    pub unclaimed_io: u64,
    /// Accesses to memory that no device claimed.
    pub unclaimed_memory: u64,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Resident guest memory in bytes, at most one second old; older where counting takes long.
    pub memory_touched: u64,
    /// Resident memory of this process in bytes, guest memory included; `None` without /proc.
    pub resident: Option<u64>,
}

impl VmMetrics {
    /// Returns the metrics of the drives.
    pub fn drives(&self) -> Vec<DriveMetrics<'_>> {
        let drives = self.devices.iter().filter_map(|device| match &device.counters {
            DeviceCounters::Drive(metrics) => Some(DriveMetrics {
                id: &device.id,
                metrics,
                transport: &device.transport,
            }),
            DeviceCounters::Interface(_) => None,
        });
        drives.collect()
    }

    /// Returns the metrics of the network interfaces.
    pub fn interfaces(&self) -> Vec<InterfaceMetrics<'_>> {
        let interfaces = self.devices.iter().filter_map(|device| match &device.counters {
            DeviceCounters::Interface(metrics) => Some(InterfaceMetrics {
                id: &device.id,
                metrics,
                transport: &device.transport,
            }),
            DeviceCounters::Drive(_) => None,
        });
        interfaces.collect()
    }

    pub(super) fn collect(vm: Option<&Vm>, timeline: &Timeline, residency: &ResidencyCounter) -> Self {
        let mut metrics = Self {
            resident: resident_bytes(),
            ..Self::default()
        };
        let Some(machine) = vm.map(Vm::machine) else {
            return metrics;
        };
        machine.mark_first_output();
        metrics.phases = phases(timeline);
        metrics.vcpus = machine
            .exits()
            .enumerate()
            .map(|(id, counters)| VcpuMetrics {
                id,
                exits: KINDS.into_iter().zip(counters.counts()).collect(),
                durations: counters.durations(),
                failures: counters.failures(),
                clock_failures: counters.clock_failures(),
            })
            .collect();
        metrics.devices = machine
            .devices()
            .iter()
            .map(|device| DeviceMetrics {
                id: device.id().to_owned(),
                counters: device.counters(),
                transport: device.transport_metrics(),
            })
            .collect();
        metrics.serial = machine.serial_metrics();
        metrics.input = machine.input_metrics();
        (metrics.unclaimed_io, metrics.unclaimed_memory) = machine.unclaimed();
        metrics.memory = machine.spec().config().memory.bytes();
        metrics.memory_touched = residency.of(machine.memory());
        metrics
    }
}

fn phases(timeline: &Timeline) -> Vec<StartPhase> {
    let spans = timeline.spans().into_iter();
    spans
        .map(|span| StartPhase {
            name: span.name,
            vcpu: match span.lane {
                Lane::Main => None,
                Lane::Vcpu(id) => Some(id),
            },
            start: span.start.as_secs_f64(),
            length: span.length.as_secs_f64(),
        })
        .collect()
}

/// Returns the resident memory of this process in bytes, or `None` without /proc: field 2 of proc_pid_statm(5).
fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * memory::page_size())
}
