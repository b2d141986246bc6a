//! Status of a running VM, for the search of the fault of a silent guest.

use std::time::{Duration, Instant};

use devices::virtio::DriverState;

use crate::arch::MmioDeviceInfo;
use crate::config::DeviceKind;
use crate::machine::{AttachedDevice, Machine};
use crate::vcpu::{ExitCounters, KINDS, UnclaimedAccess, VcpuActivity, VcpuObservation, VcpuThread};
use crate::vm::Vm;

pub use crate::arch::CpuStatus;

/// Kinds of exits that a guest causes; a kick causes the others.
const GUEST_EXITS: [&str; 4] = ["io_in", "io_out", "mmio_read", "mmio_write"];

/// Status of a VM. Empty before the start.
#[derive(Clone, Debug, Default)]
pub struct VmStatus {
    /// vCPUs.
    pub vcpus: Vec<VcpuStatus>,
    /// Devices, in the order in which the guest counts them.
    pub devices: Vec<DeviceStatus>,
    /// Other end of the serial port, in the form of [`SerialTarget`](crate::config::SerialTarget), with the path of a pseudoterminal.
    pub console: String,
    /// The last inspection has found all vCPUs halted with interrupts off, and the guest has accessed no device since.
    pub is_dead: bool,
}

/// Status of a vCPU.
#[derive(Clone, Debug)]
pub struct VcpuStatus {
    /// Activity.
    pub activity: VcpuActivity,
    /// Time for which a processor has executed the vCPU thread, with the guest. `None` if the thread does not run yet or has ended.
    pub cpu_time: Option<Duration>,
    /// Time since the first guest entry in this process; `None` before it.
    pub age: Option<Duration>,
    /// Time since an earlier status for which no processor has executed the thread. `None` if one has, and without an earlier status.
    pub idle: Option<Duration>,
    /// Number of halts; `None` where it is not known.
    pub halts: Option<u64>,
    /// The last different unclaimed accesses, the last one first.
    pub unclaimed: Vec<UnclaimedAccess>,
}

/// Status of a device.
#[derive(Clone, Debug)]
pub struct DeviceStatus {
    /// Kind of the device.
    pub kind: DeviceKind,
    /// ID, unique among the devices of the kind.
    pub id: String,
    /// First address of the registers.
    pub address: u64,
    /// Interrupt line.
    pub irq: u32,
    /// State from the view of the driver.
    pub driver: DriverState,
}

/// Registers of the vCPUs.
#[derive(Clone, Debug, Default)]
pub struct VcpuInspection {
    /// Present execution of each vCPU; `None` for a vCPU that has ended, or whose thread waits for a disk or a page.
    pub vcpus: Vec<Option<CpuStatus>>,
    /// All vCPUs are halted with interrupts off, or not started. Only a non-maskable interrupt continues the guest.
    pub is_dead: bool,
}

/// Earlier observations of a VM.
#[derive(Debug, Default)]
pub(super) struct StatusHistory {
    vcpus: Vec<Idle>,
    /// Accesses of the guest to devices when an inspection has found it dead.
    dead_at: Option<u64>,
    has_warned: bool,
}

/// Processor time of a vCPU thread, and the time at which it was first observed.
#[derive(Clone, Copy, Debug)]
struct Idle {
    cpu_time: Option<Duration>,
    since: Instant,
}

impl StatusHistory {
    /// Returns the status of `vm`. Takes no lock, kicks no vCPU and waits for nothing.
    pub fn status(&mut self, vm: &Vm) -> VmStatus {
        let machine = vm.machine();
        let now = Instant::now();
        let observe = |vcpu: &VcpuThread| {
            let observation = vcpu.observe(vm.is_paused(), machine.is_served());
            (observation, vcpu.unclaimed())
        };
        let observed: Vec<_> = machine.vcpus().iter().map(observe).collect();
        let idle = self.update(observed.iter().map(|(observation, _)| *observation), now);
        let vcpus = observed.into_iter().zip(idle);
        VmStatus {
            vcpus: vcpus
                .map(|((observation, unclaimed), idle)| VcpuStatus {
                    activity: observation.activity,
                    cpu_time: observation.cpu_time,
                    age: observation.age,
                    idle,
                    halts: observation.halts,
                    unclaimed,
                })
                .collect(),
            devices: machine.devices().iter().map(device_status).collect(),
            console: String::new(),
            is_dead: self.dead_at == Some(guest_accesses(machine)),
        }
    }

    /// Inspects the vCPUs of `vm`, see [`Machine::inspect_vcpus`]. Warns once if the guest is dead.
    pub fn inspect(&mut self, vm: &Vm) -> VcpuInspection {
        let machine = vm.machine();
        let before = guest_accesses(machine);
        let vcpus = machine.inspect_vcpus();
        // A vCPU that was inspected first may have been woken by one that was inspected later.
        let is_dead = is_dead(&vcpus) && guest_accesses(machine) == before;
        self.dead_at = is_dead.then_some(before);
        if is_dead && !std::mem::replace(&mut self.has_warned, true) {
            log::warn!(
                "the guest has halted with interrupts off ({}); only a non-maskable interrupt continues it",
                describe_halts(&vcpus)
            );
        }
        VcpuInspection { vcpus, is_dead }
    }

    /// Updates the processor times. Returns the time for which each has not changed.
    fn update(
        &mut self,
        observations: impl Iterator<Item = VcpuObservation>,
        now: Instant,
    ) -> Vec<Option<Duration>> {
        let new: Vec<_> = observations
            .map(|observation| Idle {
                cpu_time: observation.cpu_time,
                since: now,
            })
            .collect();
        // The vCPUs of a VM are always the same.
        self.vcpus.resize(
            new.len(),
            Idle {
                cpu_time: None,
                since: now,
            },
        );
        let pairs = self.vcpus.iter_mut().zip(new);
        pairs
            .map(|(known, new)| {
                if new.cpu_time.is_none() || known.cpu_time != new.cpu_time {
                    *known = new;
                    return None;
                }
                Some(now.saturating_duration_since(known.since))
            })
            .collect()
    }
}

/// Returns true if no vCPU can continue without a non-maskable interrupt: another vCPU cannot wake one either.
fn is_dead(vcpus: &[Option<CpuStatus>]) -> bool {
    let stays = |status: &Option<CpuStatus>| {
        status.is_some_and(|status| !status.is_started || status.is_halted && !status.accepts_interrupts)
    };
    let is_halted = |status: &Option<CpuStatus>| status.is_some_and(|status| status.is_started);
    vcpus.iter().all(stays) && vcpus.iter().any(is_halted)
}

fn describe_halts(vcpus: &[Option<CpuStatus>]) -> String {
    let halted = vcpus.iter().enumerate().filter_map(|(id, status)| {
        let status = status.filter(|status| status.is_started)?;
        Some(format!("vCPU {id} before address {:#x}", status.ip))
    });
    halted.collect::<Vec<_>>().join(", ")
}

fn device_status(device: &AttachedDevice) -> DeviceStatus {
    let MmioDeviceInfo { base, gsi, .. } = *device.info();
    DeviceStatus {
        kind: device.kind(),
        id: device.id().to_owned(),
        address: base,
        irq: gsi,
        driver: device.driver_state(),
    }
}

/// Returns the number of exits by accesses of the guest.
fn guest_accesses(machine: &Machine) -> u64 {
    let of = |counters: &ExitCounters| -> u64 {
        let named = KINDS.into_iter().zip(counters.counts());
        named
            .filter(|(name, _)| GUEST_EXITS.contains(name))
            .map(|(_, count)| count)
            .sum()
    };
    machine.exits().map(of).sum()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{CpuStatus, StatusHistory, VcpuActivity, VcpuObservation, describe_halts, is_dead};

    /// A vCPU that waits for an interrupt.
    const IDLE: CpuStatus = CpuStatus {
        is_halted: true,
        is_started: true,
        accepts_interrupts: true,
        ip: 0x1234,
    };
    const DEAD: CpuStatus = CpuStatus {
        accepts_interrupts: false,
        ..IDLE
    };
    const SPINNING: CpuStatus = CpuStatus {
        is_halted: false,
        ..DEAD
    };
    const UNSTARTED: CpuStatus = CpuStatus {
        is_started: false,
        ..SPINNING
    };

    #[test]
    fn dead_guest_has_only_halted_vcpus_with_interrupts_off() {
        assert!(is_dead(&[Some(DEAD)]));
        assert!(is_dead(&[Some(DEAD), Some(UNSTARTED), Some(DEAD)]));
        for other in [Some(IDLE), Some(SPINNING), None] {
            assert!(!is_dead(&[other]));
            // It may wake the other vCPU.
            assert!(!is_dead(&[Some(DEAD), other]), "{other:?}");
        }
        assert!(!is_dead(&[Some(UNSTARTED)]) && !is_dead(&[]));
        let text = describe_halts(&[Some(DEAD), Some(UNSTARTED)]);
        assert_eq!(text, "vCPU 0 before address 0x1234");
    }

    #[test]
    fn idle_time_counts_from_first_observation_of_cpu_time() {
        let mut history = StatusHistory::default();
        let start = Instant::now();
        let mut idle = |seconds, times: [Option<u64>; 2]| {
            let observations = times.map(|time| VcpuObservation {
                activity: VcpuActivity::Halted,
                cpu_time: time.map(Duration::from_millis),
                age: None,
                halts: None,
            });
            let idle = history.update(observations.into_iter(), start + Duration::from_secs(seconds));
            idle.into_iter()
                .map(|idle| idle.map(|idle| idle.as_secs()))
                .collect::<Vec<_>>()
        };
        assert_eq!(idle(0, [Some(5), None]), [None, None]);
        assert_eq!(idle(2, [Some(5), None]), [Some(2), None]);
        assert_eq!(idle(3, [Some(6), Some(0)]), [None, None]);
        assert_eq!(idle(4, [Some(6), Some(0)]), [Some(1), Some(1)]);
        assert_eq!(idle(9, [Some(6), None]), [Some(6), None]);
    }
}
