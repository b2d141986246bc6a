//! The size and kind of a machine.

use serde::{Deserialize, Serialize};
use vmm::config::{MAX_VCPUS, MemorySize, VmConfig};
use vmm::control::MachineConfig;

use super::{Field, Off, Schema};

/// Bits of a number of bytes that is a number of MiB.
const MIB: u32 = 20;

/// Pages larger than the processor's smallest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum HugePages {
    /// None are asked for.
    #[default]
    None,
    /// The kernel is asked to use them where it can.
    Transparent,
}

/// A machine: `PUT` and the answer of `GET`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct MachineConfiguration {
    /// Number of vCPUs, 1 to 32.
    pub vcpu_count: u8,
    /// Guest memory in MiB.
    pub mem_size_mib: u64,
    /// Whether two vCPUs are one core.
    #[serde(alias = "ht_enabled")]
    pub smt: Option<bool>,
    /// Whether it is to be known which pages change. It always is, at no cost, so that this changes nothing.
    pub track_dirty_pages: Option<bool>,
    /// Whether there are to be huge pages.
    pub huge_pages: Option<HugePages>,
    /// What the guest sees of the processor.
    #[serde(skip_serializing)]
    pub cpu_template: Option<String>,
}

/// Changes of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct MachineConfigurationUpdate {
    /// Number of vCPUs, 1 to 32.
    pub vcpu_count: Option<u8>,
    /// Guest memory in MiB.
    pub mem_size_mib: Option<u64>,
    /// Whether two vCPUs are one core.
    #[serde(alias = "ht_enabled")]
    pub smt: Option<bool>,
    /// Whether it is to be known which pages change. It always is, at no cost, so that this changes nothing.
    pub track_dirty_pages: Option<bool>,
    /// Whether there are to be huge pages.
    pub huge_pages: Option<HugePages>,
    /// What the guest sees of the processor.
    pub cpu_template: Option<String>,
}

const SMT: &str = "each vCPU of mayfly is a core";

const FIELDS: &[Field] = &[
    Field::range("vcpu_count", 1, MAX_VCPUS as u64),
    Field::range("mem_size_mib", 1, u64::MAX >> MIB),
    Field::unsupported("smt", Off::False, SMT),
    Field::unsupported("ht_enabled", Off::False, SMT),
    Field::any("track_dirty_pages"),
    Field::unsupported(
        "huge_pages",
        Off::Text(&["None", "Transparent"]),
        "mayfly takes no pages from hugetlbfs; choose None or Transparent",
    ),
    Field::unsupported(
        "cpu_template",
        Off::Text(&["None"]),
        "CPU templates are not part of mayfly, whose guests see the processor of the host",
    ),
];

impl Schema for MachineConfiguration {
    const NAME: &'static str = "MachineConfiguration";
    const FIELDS: &'static [Field] = FIELDS;
}

impl Schema for MachineConfigurationUpdate {
    const NAME: &'static str = "MachineConfigurationUpdate";
    const FIELDS: &'static [Field] = FIELDS;
}

impl MachineConfiguration {
    /// The machine of `config`.
    pub fn of(config: &VmConfig) -> Self {
        Self {
            vcpu_count: u8::try_from(config.vcpus).unwrap_or(u8::MAX),
            mem_size_mib: config.memory.bytes() >> MIB,
            smt: Some(false),
            track_dirty_pages: Some(config.track_dirty_pages),
            huge_pages: Some(if config.huge_pages {
                HugePages::Transparent
            } else {
                HugePages::None
            }),
            cpu_template: None,
        }
    }

    /// What the VMM is to make.
    pub fn config(&self) -> MachineConfig {
        MachineConfig {
            vcpus: self.vcpu_count.into(),
            memory: memory(self.mem_size_mib),
            track_dirty_pages: self.track_dirty_pages.unwrap_or(false),
            huge_pages: self.huge_pages == Some(HugePages::Transparent),
        }
    }
}

impl MachineConfigurationUpdate {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// `config` with the changes.
    pub fn apply(&self, config: &VmConfig) -> MachineConfig {
        MachineConfig {
            vcpus: self.vcpu_count.map_or(config.vcpus, u32::from),
            memory: self.mem_size_mib.map_or(config.memory, memory),
            track_dirty_pages: self.track_dirty_pages.unwrap_or(config.track_dirty_pages),
            huge_pages: self
                .huge_pages
                .map_or(config.huge_pages, |pages| pages == HugePages::Transparent),
        }
    }
}

fn memory(mib: u64) -> MemorySize {
    MemorySize::from_bytes(mib.saturating_mul(1 << MIB))
}
