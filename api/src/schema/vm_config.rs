//! What a client is shown.

use serde::Serialize;
use vmm::config::VmConfig;

use super::{BootSource, Drive, MachineConfiguration, NetworkInterface};

/// Answer of `GET /`.
#[derive(Clone, Debug, Serialize)]
pub struct InstanceInfo<'a> {
    /// Name of the VM.
    pub id: &'a str,
    /// `Not started`, `Running` or `Paused`.
    pub state: &'static str,
    /// Version of the program.
    pub vmm_version: &'a str,
    /// Name of the program.
    pub app_name: &'a str,
}

/// Answer of `GET /version`.
#[derive(Clone, Debug, Serialize)]
pub struct Version<'a> {
    /// Version of the program.
    pub firecracker_version: &'a str,
}

/// Nothing, where Firecracker may have something.
type Nothing = Option<()>;

/// Answer of `GET /vm/config`: what a configuration file would have.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmConfiguration {
    balloon: Nothing,
    boot_source: Option<BootSource>,
    cpu_config: Nothing,
    drives: Vec<Drive>,
    entropy: Nothing,
    logger: Nothing,
    machine_config: MachineConfiguration,
    memory_hotplug: Nothing,
    metrics: Nothing,
    mmds_config: Nothing,
    network_interfaces: Vec<NetworkInterface>,
    pmem: [(); 0],
    vsock: Nothing,
}

impl VmConfiguration {
    /// What `config` is in such a file; `has_kernel` says whether its image is meant.
    pub fn of(config: &VmConfig, has_kernel: bool) -> Self {
        Self {
            balloon: None,
            boot_source: has_kernel.then(|| BootSource {
                kernel_image_path: config.kernel.clone(),
                initrd_path: config.initrd.clone(),
                boot_args: Some(config.cmdline.clone()),
            }),
            cpu_config: None,
            drives: config.drives().map(Drive::of).collect(),
            entropy: None,
            logger: None,
            machine_config: MachineConfiguration::of(config),
            memory_hotplug: None,
            metrics: None,
            mmds_config: None,
            network_interfaces: config.interfaces().map(NetworkInterface::of).collect(),
            pmem: [],
            vsock: None,
        }
    }
}
