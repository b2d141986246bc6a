//! vCPUs and memory of the machine.

use serde::{Deserialize, Serialize};
use vmm::config::{CpuFeatures, MAX_VCPUS, MemorySize, VmConfig};
use vmm::control::MachineConfig;

use super::field::{Off, Rule};
use super::macros::{choice, schema};

/// Binary logarithm of a MiB in bytes.
const MIB: u32 = 20;

choice! {
    /// Huge pages for guest memory.
    #[derive(Default)]
    HugePages {
        /// No huge pages.
        #[default]
        None,
        /// Transparent huge pages, at the choice of the kernel.
        Transparent,
    }
}

schema! {
    /// vCPUs and memory of the machine.
    #[derive(Deserialize, Serialize)]
    body MachineConfiguration {
        /// Number of vCPUs.
        vcpu_count: u8 => Rule::Range(1, MAX_VCPUS as u64), update Option<u8>;
        /// Guest memory in MiB, at most the memory and swap of the host.
        mem_size_mib: u64 => Rule::Range(1, u64::MAX >> MIB), update Option<u64>;
        /// Each two vCPUs are threads of one core in the topology that the guest reads. The number of vCPUs must be 1 or even then.
        smt: Option<bool> = false, update Option<bool>;
        /// Old name of smt, which takes precedence. Deprecated.
        #[serde(skip_serializing)]
        ht_enabled: Option<bool> = false, update Option<bool>;
        /// Each Diff holds the pages that were written since the last snapshot, not all that were ever touched.
        track_dirty_pages: Option<bool> = false, update Option<bool>;
        /// Transparent huge pages for guest memory.
        huge_pages: Option<HugePages> = HugePages::default() => Rule::Unsupported(
            Off::Text(HugePages::WORDS),
            "mayfly does not use hugetlbfs; choose None or Transparent",
        ), update Option<HugePages>;
        /// Processor features that the guest gets by request alone, separated by commas: sve, pauth on aarch64; virtualization, pmu, trace, sgx,
        /// resource-control, tsx on x86_64. Firecracker has no such field.
        #[serde(skip_serializing_if = "Option::is_none")]
        cpu_features: Option<String>, update Option<String>;
        /// Unsupported: CPU templates. Deprecated.
        #[serde(skip_serializing)]
        cpu_template: Option<String> => Rule::Unsupported(
            Off::Text(&["None"]),
            "CPU templates are not part of mayfly, whose guests have the processor of the host",
        ), update Option<String>;
    }
    example "{vcpu_count: 2, mem_size_mib: 256, smt: false, track_dirty_pages: false, huge_pages: 'None'}";
    /// Change of the machine. At least one field is required.
    update MachineConfigurationUpdate;
    example "{mem_size_mib: 512, vcpu_count: 4}";
}

impl MachineConfiguration {
    /// Converts from the configuration of the VMM.
    pub fn from_config(config: &VmConfig) -> Self {
        let MachineConfig {
            vcpus,
            smt,
            memory,
            track_dirty_pages,
            huge_pages,
            cpu_features,
        } = machine_config(config);
        Self {
            vcpu_count: u8::try_from(vcpus).unwrap_or(u8::MAX),
            mem_size_mib: memory.bytes() >> MIB,
            smt: Some(smt),
            ht_enabled: None,
            track_dirty_pages: Some(track_dirty_pages),
            huge_pages: Some(if huge_pages {
                HugePages::Transparent
            } else {
                HugePages::None
            }),
            cpu_features: (cpu_features != CpuFeatures::default()).then(|| cpu_features.to_string()),
            cpu_template: None,
        }
    }

    /// Converts to the configuration of the VMM.
    ///
    /// # Errors
    /// Reason for the rejection of `cpu_features`.
    pub fn into_config(self) -> Result<MachineConfig, String> {
        let Self {
            vcpu_count,
            mem_size_mib,
            smt,
            ht_enabled,
            track_dirty_pages,
            huge_pages,
            cpu_features,
            cpu_template: _,
        } = self;
        Ok(MachineConfig {
            vcpus: vcpu_count.into(),
            smt: smt.or(ht_enabled).unwrap_or_default(),
            memory: memory_size(mem_size_mib),
            track_dirty_pages: track_dirty_pages.unwrap_or_default(),
            huge_pages: is_transparent(huge_pages.unwrap_or_default()),
            cpu_features: parse_features(cpu_features.as_deref())?.unwrap_or_default(),
        })
    }
}

impl MachineConfigurationUpdate {
    /// Returns true without any change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Applies the changes to the machine of `config`.
    ///
    /// # Errors
    /// Reason for the rejection of `cpu_features`.
    pub fn apply(self, config: &VmConfig) -> Result<MachineConfig, String> {
        let Self {
            vcpu_count,
            mem_size_mib,
            smt,
            ht_enabled,
            track_dirty_pages,
            huge_pages,
            cpu_features,
            cpu_template: _,
        } = self;
        let present = machine_config(config);
        Ok(MachineConfig {
            vcpus: vcpu_count.map_or(present.vcpus, u32::from),
            smt: smt.or(ht_enabled).unwrap_or(present.smt),
            memory: mem_size_mib.map_or(present.memory, memory_size),
            track_dirty_pages: track_dirty_pages.unwrap_or(present.track_dirty_pages),
            huge_pages: huge_pages.map_or(present.huge_pages, is_transparent),
            cpu_features: parse_features(cpu_features.as_deref())?.unwrap_or(present.cpu_features),
        })
    }
}

/// Selects the part of `config` that `/machine-config` sets.
fn machine_config(config: &VmConfig) -> MachineConfig {
    MachineConfig {
        vcpus: config.vcpus,
        smt: config.smt,
        memory: config.memory,
        track_dirty_pages: config.track_dirty_pages,
        huge_pages: config.huge_pages,
        cpu_features: config.cpu_features,
    }
}

/// Parses names of processor features, as `--cpu-features` has them.
fn parse_features(names: Option<&str>) -> Result<Option<CpuFeatures>, String> {
    let parsed = names.map(str::parse).transpose();
    parsed.map_err(|reason| format!("cpu_features: {reason}"))
}

fn is_transparent(pages: HugePages) -> bool {
    match pages {
        HugePages::None => false,
        HugePages::Transparent => true,
    }
}

fn memory_size(mib: u64) -> MemorySize {
    MemorySize::from_bytes(mib.saturating_mul(1 << MIB))
}
