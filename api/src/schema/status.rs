//! Responses that describe what vCPUs and devices do.

use std::time::Duration;

use serde::Serialize;
use vmm::config;
use vmm::control;

use super::info::InstanceState;
use super::macros::{choice, schema};

choice! {
    /// Activity of a vCPU.
    VcpuActivity mirrors control::VcpuActivity {
        /// Executes the guest, or handles an exit.
        Running,
        /// Waits in a halt.
        Halted,
        /// The thread waits for a page, a disk or a lock.
        Waiting,
        /// The VM is paused.
        Paused,
        /// The thread has ended.
        Ended,
    }
}

choice! {
    /// Bit of a device status.
    StatusBit mirrors control::StatusBit {
        /// ACKNOWLEDGE
        Acknowledged,
        /// DRIVER
        Driver,
        /// FEATURES_OK
        FeaturesAccepted,
        /// DRIVER_OK
        DriverOk,
        /// DEVICE_NEEDS_RESET
        NeedsReset,
        /// FAILED
        Failed,
    }
}

choice! {
    /// Kind of a device.
    DeviceKind mirrors config::DeviceKind {
        /// Drive.
        Drive,
        /// Network interface.
        Interface,
    }
}

choice! {
    /// Address space of an access.
    AddressSpace {
        /// I/O ports.
        Port,
        /// Guest-physical memory.
        Memory,
    }
}

choice! {
    /// State of a vCPU between two instructions.
    ExecutionState {
        /// The guest runs.
        Running,
        /// The guest has halted.
        Halted,
        /// No other vCPU has started this one yet.
        NotStarted = "Not started",
    }
}

schema! {
    /// Response of `GET /vm/status`: that of `GET /`, and what vCPUs and devices do. The lists are empty before the start.
    #[derive(Serialize)]
    response VmStatus<'a> {
        /// Identifier of the VM.
        id: &'a str;
        /// State of the VM.
        state: InstanceState;
        /// Version of the program.
        vmm_version: &'a str;
        /// Name of the program.
        app_name: &'a str;
        /// vCPUs by number.
        vcpus: Vec<VcpuStatus>;
        /// Devices in the order of the guest.
        devices: Vec<DeviceStatus>;
        /// Other end of the serial port: stdio, unix:PATH, pty:PATH or file:PATH.
        console: String;
        /// For each vCPU, its last 8 different accesses to ports and addresses of no device, the last one first.
        unclaimed_accesses: Vec<UnclaimedAccess>;
        /// The last GET /vm/registers has found the guest halted with interrupts off, and the guest has accessed no device since.
        halted_with_interrupts_off: bool;
    }
    example "";
}

schema! {
    /// Status of a vCPU, without an interruption of it.
    #[derive(Serialize)]
    response VcpuStatus {
        /// Number of the vCPU.
        id: u8;
        /// Activity. Waiting: the thread waits for a page, a disk or a lock, or is halted on a host without /proc and without
        /// statistics of KVM.
        state: VcpuActivity;
        /// Time in microseconds for which a processor has executed the thread, with the guest; null if the thread does not run yet or
        /// has ended.
        cpu_time_us: Option<u64>;
        /// Time in microseconds since the first guest entry in this process, with pauses; null before it.
        age_us: Option<u64>;
        /// Time in microseconds, at least, since a processor has last executed the thread; null if one has since the last request, and
        /// for the first request.
        idle_us: Option<u64>;
        /// Number of halts by the statistics of KVM, which are open from the first exit after the first request on; null before, and
        /// where KVM does not count them (before Linux 5.14).
        halts: Option<u64>;
    }
    example "{id: 0, state: Halted, cpu_time_us: 3100, age_us: 61000000, idle_us: 12000000, halts: 7}";
}

schema! {
    /// Status of a device from the view of its driver.
    #[derive(Serialize)]
    response DeviceStatus {
        /// Kind of the device.
        kind: DeviceKind;
        /// Identifier, unique among the devices of the kind.
        id: String;
        /// First address of the registers, hexadecimal.
        address: String;
        /// Interrupt line.
        irq: u32;
        /// A driver operates the device.
        has_driver: bool;
        /// Bits of the device status; empty after a reset.
        status: Vec<StatusBit>;
        /// Negotiated features, by their names in the specification of virtio.
        features: Vec<String>;
    }
    example "{kind: Drive, id: rootfs, address: '0xc0001000', irq: 5, has_driver: false, status: [Acknowledged], features: []}";
}

schema! {
    /// Accesses of one kind to a port or address of no device.
    #[derive(Serialize)]
    response UnclaimedAccess {
        /// Number of the vCPU.
        vcpu_id: u8;
        /// Address space.
        space: AddressSpace;
        /// Port or guest-physical address, hexadecimal.
        address: String;
        /// Width in bytes.
        width: u8;
        /// A write, not a read.
        is_write: bool;
        /// Number of accesses.
        count: u64;
    }
    example "{vcpu_id: 0, space: Port, address: '0xcf8', width: 4, is_write: true, count: 256}";
}

schema! {
    /// Response of `GET /vm/registers`. The list is empty before the start.
    #[derive(Serialize)]
    response VmRegisters {
        /// vCPUs by number.
        vcpus: Vec<VcpuRegisters>;
        /// All started vCPUs are halted with interrupts off. Only a non-maskable interrupt continues the guest.
        halted_with_interrupts_off: bool;
    }
    example "";
}

schema! {
    /// Registers of a vCPU. All but the number are null if it has ended, or if its thread has not replied within 20 ms, because it
    /// waits for a page, a disk or a processor.
    #[derive(Serialize)]
    response VcpuRegisters {
        /// Number of the vCPU.
        id: u8;
        /// State of the vCPU.
        state: Option<ExecutionState>;
        /// The guest accepts interrupts.
        accepts_interrupts: Option<bool>;
        /// Instruction pointer, hexadecimal. After a halt, the address of the next instruction.
        instruction_pointer: Option<String>;
    }
    example "{id: 0, state: Halted, accepts_interrupts: false, instruction_pointer: '0x100012'}";
}

impl<'a> VmStatus<'a> {
    /// Converts from the status of the VMM, with the identity of the instance.
    pub fn new(
        id: &'a str,
        (app_name, vmm_version): (&'a str, &'a str),
        state: InstanceState,
        status: control::VmStatus,
    ) -> Self {
        let control::VmStatus {
            vcpus,
            devices,
            console,
            is_dead,
        } = status;
        let unclaimed = (0..).zip(&vcpus);
        let unclaimed =
            unclaimed.flat_map(|(id, vcpu)| vcpu.unclaimed.iter().map(move |access| (id, access)));
        Self {
            id,
            state,
            vmm_version,
            app_name,
            unclaimed_accesses: unclaimed
                .map(|(id, access)| UnclaimedAccess::new(id, access))
                .collect(),
            vcpus: (0..)
                .zip(vcpus)
                .map(|(id, vcpu)| VcpuStatus::new(id, &vcpu))
                .collect(),
            devices: devices.into_iter().map(DeviceStatus::new).collect(),
            console,
            halted_with_interrupts_off: is_dead,
        }
    }
}

impl VcpuStatus {
    fn new(id: u8, status: &control::VcpuStatus) -> Self {
        Self {
            id,
            state: status.activity.into(),
            cpu_time_us: status.cpu_time.map(microseconds),
            age_us: status.age.map(microseconds),
            idle_us: status.idle.map(microseconds),
            halts: status.halts,
        }
    }
}

impl DeviceStatus {
    fn new(status: control::DeviceStatus) -> Self {
        let control::DeviceStatus {
            kind,
            id,
            address,
            irq,
            driver,
        } = status;
        Self {
            kind: kind.into(),
            id,
            address: hexadecimal(address),
            irq,
            has_driver: driver.has_driver(),
            status: driver.status().map(StatusBit::from).collect(),
            features: driver.features(),
        }
    }
}

impl UnclaimedAccess {
    fn new(vcpu_id: u8, entry: &control::UnclaimedAccess) -> Self {
        let access = entry.access;
        Self {
            vcpu_id,
            space: match access.space {
                control::AddressSpace::Io => AddressSpace::Port,
                control::AddressSpace::Memory => AddressSpace::Memory,
            },
            address: hexadecimal(access.address),
            width: access.width,
            is_write: access.is_write,
            count: entry.count,
        }
    }
}

impl VmRegisters {
    /// Converts from the registers of the VMM.
    pub fn new(inspection: &control::VcpuInspection) -> Self {
        let vcpus = (0..).zip(&inspection.vcpus);
        Self {
            vcpus: vcpus
                .map(|(id, status)| VcpuRegisters::new(id, *status))
                .collect(),
            halted_with_interrupts_off: inspection.is_dead,
        }
    }
}

impl VcpuRegisters {
    fn new(id: u8, status: Option<control::CpuStatus>) -> Self {
        let state = |status: control::CpuStatus| match (status.is_started, status.is_halted) {
            (false, _) => ExecutionState::NotStarted,
            (true, true) => ExecutionState::Halted,
            (true, false) => ExecutionState::Running,
        };
        Self {
            id,
            state: status.map(state),
            accepts_interrupts: status.map(|status| status.accepts_interrupts),
            instruction_pointer: status.map(|status| hexadecimal(status.ip)),
        }
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Returns an address as text: JSON numbers of some clients have 53 bits.
fn hexadecimal(address: u64) -> String {
    format!("{address:#x}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use vmm::control;

    use super::{InstanceState, VmRegisters, VmStatus};

    #[test]
    fn status_lists_vcpus_and_their_accesses() {
        let access = |address| control::UnclaimedAccess {
            access: control::Access {
                space: control::AddressSpace::Io,
                is_write: false,
                width: 4,
                address,
            },
            count: 3,
            last: 9,
        };
        let vcpu = |cpu_time, unclaimed| control::VcpuStatus {
            activity: control::VcpuActivity::Halted,
            cpu_time,
            age: Some(Duration::from_millis(9)),
            idle: cpu_time,
            halts: None,
            unclaimed,
        };
        let status = control::VmStatus {
            vcpus: vec![
                vcpu(Some(Duration::from_millis(2)), vec![access(0xcfc), access(0xcf8)]),
                vcpu(None, vec![]),
            ],
            devices: vec![],
            console: "pty:/dev/pts/1".into(),
            is_dead: true,
        };
        let status = VmStatus::new("a", ("mayfly", "1"), InstanceState::Running, status);
        let halted = |id, time: Option<u64>| {
            json!({
                "id": id, "state": "Halted", "cpu_time_us": time, "age_us": 9000, "idle_us": time, "halts": null,
            })
        };
        let read = |address| {
            json!({
                "vcpu_id": 0, "space": "Port", "address": address, "width": 4, "is_write": false, "count": 3,
            })
        };
        assert_eq!(
            serde_json::to_value(&status).unwrap(),
            json!({
                "id": "a", "state": "Running", "vmm_version": "1", "app_name": "mayfly",
                "vcpus": [halted(0, Some(2000)), halted(1, None)],
                "devices": [],
                "console": "pty:/dev/pts/1",
                "unclaimed_accesses": [read("0xcfc"), read("0xcf8")],
                "halted_with_interrupts_off": true,
            })
        );
    }

    #[test]
    fn registers_of_waiting_vcpu_are_null() {
        let status = control::CpuStatus {
            is_halted: true,
            is_started: true,
            accepts_interrupts: false,
            ip: u64::MAX,
        };
        let unstarted = control::CpuStatus {
            is_started: false,
            ..status
        };
        let running = control::CpuStatus {
            is_halted: false,
            ..status
        };
        let registers = VmRegisters::new(&control::VcpuInspection {
            vcpus: vec![Some(status), Some(unstarted), Some(running), None],
            is_dead: false,
        });
        let registers = serde_json::to_value(&registers).unwrap();
        let states = ["Halted", "Not started", "Running"];
        for (index, state) in states.iter().enumerate() {
            assert_eq!(registers["vcpus"][index]["state"], *state);
        }
        assert_eq!(registers["vcpus"][0]["instruction_pointer"], "0xffffffffffffffff");
        assert_eq!(
            registers["vcpus"][3],
            json!({"id": 3, "state": null, "accepts_interrupts": null, "instruction_pointer": null})
        );
    }
}
