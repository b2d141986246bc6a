//! Settings of aarch64 machines.

use std::fmt;
use std::str::FromStr;

use super::cpuid::{CpuidGroup, CpuidGroups};

/// Guest-physical address space of an aarch64 machine: images are linked for one or the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryMap {
    /// Firecracker's: memory from 0x8000_0000, 16550 serial port.
    Fc,
    /// That of QEMU's machine `virt`: memory from 0x4000_0000, PL011 serial port.
    Virt,
}

impl fmt::Display for MemoryMap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Fc => "fc",
            Self::Virt => "virt",
        })
    }
}

impl FromStr for MemoryMap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fc" => Ok(Self::Fc),
            "virt" => Ok(Self::Virt),
            other => Err(format!("{other:?} is not a memory map: use fc or virt")),
        }
    }
}

/// Version of the generic interrupt controller (GIC) of an aarch64 machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicVersion {
    /// GICv2, for at most 8 vCPUs.
    V2,
    /// GICv3.
    V3,
}

impl fmt::Display for GicVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::V2 => "GICv2",
            Self::V3 => "GICv3",
        })
    }
}

impl FromStr for GicVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "2" => Ok(Self::V2),
            "3" => Ok(Self::V3),
            other => Err(format!("{other:?} is not a GIC version: use 2 or 3")),
        }
    }
}

/// Vector lengths of SVE: bit N stands for N + 1 times 128 bits. KVM API, `KVM_REG_ARM64_SVE_VLS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorLengths(pub [u64; 8]);

/// Processor features that a guest gets by request alone. On aarch64 their state takes time and space in each snapshot, and fewer hosts
/// can load it. On x86_64 most guests have no use for them, and an attacker has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuFeatures {
    /// Scalable Vector Extension.
    pub sve: bool,
    /// Pointer authentication.
    pub pauth: bool,
    /// Vector lengths of SVE; none selects all that the host supports.
    pub vector_lengths: Option<VectorLengths>,
    /// Groups of features of x86_64.
    pub cpuid_groups: CpuidGroups,
}

impl CpuFeatures {
    /// Removes the features that a guest gets by the request of a trusted user alone.
    pub fn distrust(&mut self) {
        self.cpuid_groups = CpuidGroups::default();
    }
}

impl fmt::Display for CpuFeatures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arm = [(self.sve, "sve"), (self.pauth, "pauth")];
        let arm = arm.into_iter().filter(|(is_requested, _)| *is_requested);
        let names = arm.map(|(_, name)| name);
        let names: Vec<_> = names
            .chain(self.cpuid_groups.iter().map(CpuidGroup::name))
            .collect();
        match names.is_empty() {
            true => formatter.pad("none"),
            false => formatter.pad(&names.join(",")),
        }
    }
}

impl FromStr for CpuFeatures {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut features = Self::default();
        for name in text.split(',') {
            let feature = match name {
                "sve" => &mut features.sve,
                "pauth" => &mut features.pauth,
                other => {
                    let mut groups = CpuidGroup::ALL.into_iter();
                    let Some(group) = groups.find(|group| group.name() == other) else {
                        return Err(unknown_feature(other));
                    };
                    features.cpuid_groups.insert(group);
                    continue;
                }
            };
            *feature = true;
        }
        Ok(features)
    }
}

fn unknown_feature(name: &str) -> String {
    let x86_64 = CpuidGroup::ALL.map(CpuidGroup::name).join(", ");
    format!("{name:?} is not a processor feature: use sve or pauth on aarch64; {x86_64} on x86_64")
}

#[cfg(test)]
mod tests {
    use super::{CpuFeatures, GicVersion, MemoryMap};

    #[test]
    fn processor_features_parse() {
        for text in [
            "sve",
            "pauth",
            "sve,pauth",
            "virtualization",
            "pmu",
            "trace",
            "sgx",
            "resource-control",
            "tsx",
            "virtualization,tsx",
        ] {
            assert_eq!(text.parse::<CpuFeatures>().unwrap().to_string(), text);
        }
        assert_eq!("pauth,sve".parse::<CpuFeatures>(), "sve,pauth".parse());
        assert_eq!(CpuFeatures::default().to_string(), "none");
        let mut distrusted: CpuFeatures = "sve,pmu,tsx".parse().unwrap();
        distrusted.distrust();
        assert_eq!(distrusted.to_string(), "sve");
        for (text, name) in [("", ""), ("sve,", ""), ("sve, pauth", " pauth"), ("vmx", "vmx")] {
            let error = text.parse::<CpuFeatures>().unwrap_err();
            assert_eq!(
                error,
                format!(
                    "{name:?} is not a processor feature: use sve or pauth on aarch64; virtualization, pmu, trace, sgx, \
                     resource-control, tsx on x86_64"
                )
            );
        }
    }

    #[test]
    fn names_parse() {
        for map in [MemoryMap::Fc, MemoryMap::Virt] {
            assert_eq!(map.to_string().parse(), Ok(map));
        }
        assert_eq!("2".parse(), Ok(GicVersion::V2));
        assert_eq!("3".parse(), Ok(GicVersion::V3));
        let error = "4".parse::<GicVersion>().unwrap_err();
        assert_eq!(error, "\"4\" is not a GIC version: use 2 or 3");
        let error = "Virt".parse::<MemoryMap>().unwrap_err();
        assert_eq!(error, "\"Virt\" is not a memory map: use fc or virt");
    }
}
