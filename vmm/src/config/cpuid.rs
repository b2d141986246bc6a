//! Processor features of x86_64 machines that a guest gets by request alone.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Group of processor features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuidGroup {
    /// VMX, SVM and encrypted virtual machines.
    Virtualization,
    /// Performance counters.
    Pmu,
    /// Traces and records of branches.
    Trace,
    /// Enclaves.
    Sgx,
    /// Monitoring and allocation of caches and memory bandwidth.
    ResourceControl,
    /// Transactional memory.
    Tsx,
}

impl CpuidGroup {
    /// All groups.
    pub const ALL: [Self; 6] = [
        Self::Virtualization,
        Self::Pmu,
        Self::Trace,
        Self::Sgx,
        Self::ResourceControl,
        Self::Tsx,
    ];

    /// Returns the name of the group in options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Virtualization => "virtualization",
            Self::Pmu => "pmu",
            Self::Trace => "trace",
            Self::Sgx => "sgx",
            Self::ResourceControl => "resource-control",
            Self::Tsx => "tsx",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Set of [`CpuidGroup`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidGroups(u8);

impl CpuidGroups {
    /// Adds `group`.
    pub const fn insert(&mut self, group: CpuidGroup) {
        self.0 |= group.bit();
    }

    /// Returns true if the set has `group`.
    pub const fn contains(self, group: CpuidGroup) -> bool {
        self.0 & group.bit() != 0
    }

    /// Returns true if the set has no group.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the groups of the set.
    pub fn iter(self) -> impl Iterator<Item = CpuidGroup> {
        CpuidGroup::ALL
            .into_iter()
            .filter(move |group| self.contains(*group))
    }
}

impl FromIterator<CpuidGroup> for CpuidGroups {
    fn from_iter<I: IntoIterator<Item = CpuidGroup>>(groups: I) -> Self {
        let mut set = Self::default();
        groups.into_iter().for_each(|group| set.insert(group));
        set
    }
}

impl fmt::Display for CpuidGroup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::{CpuidGroup, CpuidGroups};

    #[test]
    fn set_contains_what_was_inserted() {
        for group in CpuidGroup::ALL {
            let mut set = CpuidGroups::default();
            assert!(set.is_empty());
            set.insert(group);
            assert!(!set.is_empty());
            for other in CpuidGroup::ALL {
                assert_eq!(set.contains(other), other == group);
            }
            assert_eq!(set.iter().collect::<Vec<_>>(), [group]);
        }
        let all: CpuidGroups = CpuidGroup::ALL.into_iter().collect();
        assert_eq!(all.iter().collect::<Vec<_>>(), CpuidGroup::ALL);
    }
}
