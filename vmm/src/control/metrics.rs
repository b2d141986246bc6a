//! What a VM has done, in numbers.

use std::fs;

use devices::virtio::{block, net};
use serde::Serialize;

use crate::memory::{self, ResidencyCounter};
use crate::timeline::{Lane, Timeline};
use crate::vcpu::exits::KINDS;
use crate::vm::Vm;

/// A phase of the start, or, with a length of zero, a moment of it.
#[derive(Clone, Debug, Serialize)]
pub struct StartPhase {
    /// What was done.
    pub name: &'static str,
    /// The vCPU on whose thread it was done; none for the main thread.
    pub vcpu: Option<u8>,
    /// Start in seconds since the process began to count.
    pub start: f64,
    /// Length in seconds.
    pub length: f64,
}

/// One vCPU.
#[derive(Clone, Debug, Serialize)]
pub struct VcpuMetrics {
    /// Number of the vCPU.
    pub id: usize,
    /// Exits from the guest by kind.
    pub exits: Vec<(&'static str, u64)>,
}

/// One drive.
#[derive(Clone, Debug, Serialize)]
pub struct DriveMetrics {
    /// Name of the drive.
    pub id: String,
    /// What it has done.
    pub metrics: block::BlockMetrics,
}

/// One network interface.
#[derive(Clone, Debug, Serialize)]
pub struct InterfaceMetrics {
    /// Name of the interface.
    pub id: String,
    /// What it has done.
    pub metrics: net::NetMetrics,
}

/// All of a VM. Empty before it is started.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VmMetrics {
    /// Phases of the start, in the order of their beginnings.
    pub phases: Vec<StartPhase>,
    /// vCPUs.
    pub vcpus: Vec<VcpuMetrics>,
    /// Drives.
    pub drives: Vec<DriveMetrics>,
    /// Network interfaces.
    pub interfaces: Vec<InterfaceMetrics>,
    /// Accesses to ports that no device claimed.
    pub unclaimed_ports: u64,
    /// Accesses to addresses that no device claimed.
    pub unclaimed_addresses: u64,
    /// Bytes of memory that the guest has.
    pub memory: u64,
    /// Bytes of it that are in the host's memory, or were a second ago; longer ago where counting them takes long.
    pub memory_touched: u64,
    /// Bytes of this process that are in the host's memory, the guest's included; none where there is no /proc.
    pub resident: Option<u64>,
}

impl VmMetrics {
    pub(super) fn of(vm: Option<&Vm>, timeline: &Timeline, touched: &ResidencyCounter) -> Self {
        let mut metrics = Self {
            resident: resident(),
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
            .map(|(id, counts)| VcpuMetrics {
                id,
                exits: KINDS.into_iter().zip(counts).collect(),
            })
            .collect();
        let drives = machine.drives().iter();
        metrics.drives = drives
            .map(|drive| DriveMetrics {
                id: drive.id.clone(),
                metrics: drive.with(|block| block.metrics()),
            })
            .collect();
        let interfaces = machine.interfaces().iter();
        metrics.interfaces = interfaces
            .map(|interface| InterfaceMetrics {
                id: interface.id.clone(),
                metrics: interface.with(|net| net.metrics()),
            })
            .collect();
        (metrics.unclaimed_ports, metrics.unclaimed_addresses) = machine.unclaimed();
        metrics.memory = machine.spec().config().memory.bytes();
        metrics.memory_touched = touched.of(machine.memory());
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

fn resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * memory::page_size())
}
