//! Model-specific registers. Intel SDM volume 4; Documentation/virt/kvm/x86/msr.rst for those from 0x4b56_4d00.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use snapshot::persist::Error;

use super::super::feature_groups::is_masked_msr;
use super::super::limits;
use super::error::{invalid, kernel_error, unsupported};
use crate::config::CpuidGroups;

const TSC: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3b;
const TSC_DEADLINE: u32 = 0x6e0;
/// Restored last, in this order: some kernels change the TSC with `IA32_TSC_ADJUST`, and KVM compares the deadline with the
/// TSC.
const LAST: [u32; 3] = [TSC_ADJUST, TSC, TSC_DEADLINE];

/// MTRRs, which `KVM_GET_MSR_INDEX_LIST` omits: default type, eight variable ranges, eleven fixed ranges.
const MTRRS: [u32; 28] = [
    0x2ff, 0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d,
    0x20e, 0x20f, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];

/// `MSR_KVM_WALL_CLOCK_NEW` and `MSR_KVM_WALL_CLOCK`. On a write KVM stores the time in guest memory, at an address that the
/// guest uses for other data by now.
const WALL_CLOCKS: [u32; 2] = [0x4b56_4d00, 0x11];
/// MSRs of Hyper-V, which CPUID does not announce. A write allocates several pages for the vCPU in KVM.
const HYPER_V: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_01ff;

/// Maximum number of MSRs, more than any kernel lists.
const MAX_MSRS: usize = 1024;

/// Checks the number of `msrs`.
///
/// # Errors
/// [`Error::Invalid`]
pub fn check(msrs: &[(u32, u64)]) -> Result<(), Error> {
    match msrs.len() {
        0..=MAX_MSRS => Ok(()),
        count => Err(invalid(format!(
            "{count} model-specific registers exceed {MAX_MSRS}"
        ))),
    }
}

/// Reads all MSRs of `vcpu`, which has the features of `groups`, in the order of the restore.
///
/// # Errors
/// [`Error::Kernel`]
pub fn save(vcpu: &VcpuFd, kvm: &Kvm, groups: CpuidGroups) -> Result<Vec<(u32, u64)>, Error> {
    let mut values = Vec::new();
    let listed = list(kvm, groups).map_err(kernel_error("KVM_GET_MSR_INDEX_LIST"))?;
    for indices in listed.chunks(KVM_MAX_MSR_ENTRIES) {
        read(vcpu, indices, &mut values)?;
    }
    Ok(values)
}

/// Returns the MSRs to save on this host for a vCPU with the features of `groups`, in the order of the restore.
///
/// # Errors
/// Fails if `KVM_GET_MSR_INDEX_LIST` fails.
pub fn list(kvm: &Kvm, groups: CpuidGroups) -> Result<Vec<u32>, kvm_ioctls::Error> {
    Ok(restore_order(kvm.get_msr_index_list()?.as_slice(), groups))
}

/// Removes MSRs of features that a vCPU with `groups` lacks, if they have the value of the reset: KVM reads as 0 those that it lists and
/// that a vCPU lacks.
pub fn drop_unused(msrs: &mut Vec<(u32, u64)>, groups: CpuidGroups) {
    msrs.retain(|(index, value)| *value != 0 || !is_masked_msr(*index, groups));
}

/// Returns the MSRs to save: those of `listed` that are safe to restore and that a vCPU with `groups` needs, and those that kernels do not
/// list, each once.
fn restore_order(listed: &[u32], groups: CpuidGroups) -> Vec<u32> {
    let kept = |index: &u32| {
        !LAST.contains(index)
            && !MTRRS.contains(index)
            && !WALL_CLOCKS.contains(index)
            && !HYPER_V.contains(index)
            && !is_masked_msr(*index, groups)
    };
    let middle = listed.iter().copied().filter(kept);
    middle.chain(MTRRS).chain(LAST).collect()
}

/// Appends index and value of the readable `indices`. The kernel also lists MSRs that this vCPU lacks.
fn read(vcpu: &VcpuFd, mut indices: &[u32], values: &mut Vec<(u32, u64)>) -> Result<(), Error> {
    while !indices.is_empty() {
        let mut msrs = entries(indices.iter().map(|index| (*index, 0)))?;
        let done = vcpu.get_msrs(&mut msrs).map_err(kernel_error("KVM_GET_MSRS"))?;
        let read = msrs.as_slice().iter().take(done);
        values.extend(read.map(|entry| (entry.index, entry.data)));
        // KVM API, KVM_GET_MSRS: the call stops at the first MSR that it cannot read.
        indices = indices.get(done + 1..).unwrap_or_default();
    }
    Ok(())
}

/// Returns the position of the deadline of the local APIC timer in `msrs`, or the end.
pub fn deadline_position(msrs: &[(u32, u64)]) -> usize {
    let deadline = msrs.iter().rposition(|(index, _)| *index == TSC_DEADLINE);
    deadline.unwrap_or(msrs.len())
}

/// Restores `msrs` in their order. With `mask`, an MSR that KVM rejects keeps its value at reset.
///
/// # Errors
/// [`Error::Unsupported`] for an MSR that KVM rejects, unless it has the value already: several are read-only.
pub fn restore(vcpu: &VcpuFd, msrs: &[(u32, u64)], mask: bool) -> Result<(), Error> {
    msrs.chunks(KVM_MAX_MSR_ENTRIES)
        .try_for_each(|msrs| write(vcpu, msrs, mask))
}

fn write(vcpu: &VcpuFd, mut msrs: &[(u32, u64)], mask: bool) -> Result<(), Error> {
    while !msrs.is_empty() {
        let done = vcpu
            .set_msrs(&entries(msrs.iter().copied())?)
            .map_err(kernel_error("KVM_SET_MSRS"))?;
        // KVM API, KVM_SET_MSRS: the call stops at the first MSR that it rejects.
        let Some(((index, value), rest)) = msrs.get(done..).and_then(<[_]>::split_first) else {
            break;
        };
        let mut found = Vec::new();
        read(vcpu, &[*index], &mut found)?;
        if found != [(*index, *value)] {
            let name = limits::msr_name(*index);
            if !mask {
                return Err(unsupported(format!(
                    "KVM rejects {value:#x} for {name}; load the snapshot on a host that accepts it, or remove it"
                )));
            }
            log::warn!("the guest loses a value: KVM rejects {value:#x} for {name}");
        }
        msrs = rest;
    }
    Ok(())
}

fn entries(msrs: impl Iterator<Item = (u32, u64)>) -> Result<Msrs, Error> {
    let entry = |(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries: Vec<_> = msrs.map(entry).collect();
    Msrs::from_entries(&entries).map_err(|_| {
        invalid(format!(
            "{} model-specific registers exceed one call",
            entries.len()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::{MAX_MSRS, TSC, TSC_ADJUST, TSC_DEADLINE, check, drop_unused, restore_order};
    use crate::config::{CpuidGroup, CpuidGroups};

    fn order(listed: &[u32]) -> Vec<u32> {
        restore_order(listed, CpuidGroups::default())
    }

    #[test]
    fn msrs_of_missing_features_are_omitted() {
        let listed = [0x174, 0x186, 0x480, 0xc001_0200];
        let counted = order(&listed);
        assert_eq!(counted[0], 0x174);
        for index in &listed[1..] {
            assert!(!counted.contains(index), "{index:#x}");
        }
        let pmu = [CpuidGroup::Pmu].into_iter().collect();
        assert_eq!(restore_order(&listed, pmu)[..3], [0x174, 0x186, 0xc001_0200]);
        // Only their reset value has no meaning.
        let mut saved = vec![(0x174, 0), (0x186, 0), (0x187, 1), (0x480, 0)];
        drop_unused(&mut saved, pmu);
        assert_eq!(saved, [(0x174, 0), (0x186, 0), (0x187, 1)]);
        drop_unused(&mut saved, CpuidGroups::default());
        assert_eq!(saved, [(0x174, 0), (0x187, 1)]);
    }

    #[test]
    fn order_ends_with_tsc_without_duplicates() {
        let order = order(&[TSC_DEADLINE, TSC, 0x174, 0x2ff, 0x4b56_4d01, TSC_ADJUST]);
        assert_eq!(order[..2], [0x174, 0x4b56_4d01]);
        assert_eq!(order[order.len() - 3..], [TSC_ADJUST, TSC, TSC_DEADLINE]);
        let mut once = order.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), order.len());
        assert!(order.contains(&0x2ff));
    }

    #[test]
    fn msrs_with_memory_side_effects_are_omitted() {
        let order = order(&[0x11, 0x12, 0x4000_0000, 0x4000_0105, 0x4b56_4d00]);
        assert_eq!(order[0], 0x12);
        for index in [0x11, 0x4000_0000, 0x4000_0105, 0x4b56_4d00] {
            assert!(!order.contains(&index), "{index:#x}");
        }
    }

    #[test]
    fn too_many_msrs_are_rejected() {
        check(&vec![(0, 0); MAX_MSRS]).unwrap();
        let error = check(&vec![(0, 0); MAX_MSRS + 1]).unwrap_err().to_string();
        assert!(error.contains("1025 model-specific registers"), "{error}");
    }
}
