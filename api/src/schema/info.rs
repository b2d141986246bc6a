//! Responses that describe the instance and the VM.

use serde::Serialize;
use vmm::config::{DeviceConfig, VmConfig};
use vmm::control;

use super::boot::BootSource;
use super::drive::Drive;
use super::machine::MachineConfiguration;
use super::macros::{choice, schema};
use super::network::NetworkInterface;

choice! {
    /// State of an instance.
    InstanceState mirrors control::InstanceState {
        /// Before the start.
        NotStarted = "Not started",
        /// The guest runs.
        Running,
        /// The guest does not run.
        Paused,
    }
}

schema! {
    /// Response of `GET /`.
    #[derive(Serialize)]
    response InstanceInfo<'a> {
        /// Identifier of the VM.
        id: &'a str;
        /// State of the VM.
        state: InstanceState;
        /// Version of the program.
        vmm_version: &'a str;
        /// Name of the program.
        app_name: &'a str;
    }
    example "{id: anonymous-instance, state: Running, vmm_version: 0.1.0, app_name: mayfly}";
}

schema! {
    /// Response of `GET /version`.
    #[derive(Serialize)]
    response Version<'a> {
        /// Version of the program.
        firecracker_version: &'a str;
    }
    example "{firecracker_version: 0.1.0}";
}

/// Null, where Firecracker may have an object.
type Nothing = Option<()>;

schema! {
    /// Response of `GET /vm/config`, in the format of a configuration file.
    #[derive(Serialize)]
    response VmConfiguration {
        /// Null.
        balloon: Nothing;
        /// Image, initrd and command line; null before they are set.
        boot_source as "boot-source": Option<BootSource>;
        /// Null.
        cpu_config as "cpu-config": Nothing;
        /// Drives in the order of the guest.
        drives: Vec<Drive>;
        /// Null.
        entropy: Nothing;
        /// Null.
        logger: Nothing;
        /// vCPUs and memory.
        machine_config as "machine-config": MachineConfiguration;
        /// Null.
        memory_hotplug as "memory-hotplug": Nothing;
        /// Null.
        metrics: Nothing;
        /// Null.
        mmds_config as "mmds-config": Nothing;
        /// Network interfaces in the order of the guest.
        network_interfaces as "network-interfaces": Vec<NetworkInterface>;
        /// Empty.
        pmem: [(); 0];
        /// Null.
        vsock: Nothing;
    }
    example "";
}

impl VmConfiguration {
    /// Converts from the configuration of the VMM. `has_kernel` is false before the image is set.
    pub fn from_config(config: &VmConfig, has_kernel: bool) -> Self {
        let VmConfig {
            kernel,
            initrd,
            cmdline,
            devices,
            // In `MachineConfiguration`.
            vcpus: _,
            smt: _,
            memory: _,
            track_dirty_pages: _,
            huge_pages: _,
            cpu_features: _,
            protocol,
            // Not settings of the API.
            irqchip: _,
            layout: _,
            memory_map: _,
            gic: _,
            acpi: _,
            mptable: _,
            device_arguments: _,
        } = config;
        let (mut drives, mut network_interfaces) = (Vec::new(), Vec::new());
        for device in devices {
            match device {
                DeviceConfig::Drive(drive) => drives.push(Drive::from_config(drive)),
                DeviceConfig::Interface(net) => network_interfaces.push(NetworkInterface::from_config(net)),
            }
        }
        Self {
            balloon: None,
            boot_source: has_kernel.then(|| BootSource {
                kernel_image_path: kernel.clone(),
                initrd_path: initrd.clone(),
                boot_args: Some(cmdline.clone()),
                kernel_protocol: protocol.map(Into::into),
            }),
            cpu_config: None,
            drives,
            entropy: None,
            logger: None,
            machine_config: MachineConfiguration::from_config(config),
            memory_hotplug: None,
            metrics: None,
            mmds_config: None,
            network_interfaces,
            pmem: [],
            vsock: None,
        }
    }
}
