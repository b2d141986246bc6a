//! Model-specific registers. Intel SDM volume 4; Documentation/virt/kvm/x86/msr.rst for those from 0x4b56_4d00.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use snapshot::persist::Error;

use super::{invalid, refused};

const TSC: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3b;
const TSC_DEADLINE: u32 = 0x6e0;
/// Set after all others, in this order: some kernels move the counter with its adjustment, and the deadline is compared
/// with the counter.
const LAST: [u32; 3] = [TSC_ADJUST, TSC, TSC_DEADLINE];

/// Memory types, which kernels do not list: the default type, eight ranges, eleven fixed ranges.
const MTRRS: [u32; 28] = [
    0x2ff, 0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d,
    0x20e, 0x20f, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];

/// `MSR_KVM_WALL_CLOCK` and its older number. Setting one has KVM write the time into guest memory, at an address that the
/// guest uses for something else by now.
const WALL_CLOCKS: [u32; 2] = [0x4b56_4d00, 0x11];
/// Those of Hyper-V, which no guest is told of. KVM allocates several pages for a vCPU on which one is set.
const HYPER_V: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_01ff;

/// More than any kernel lists.
const MAX_MSRS: usize = 1024;

/// Bounds what [`restore`] is given.
///
/// # Errors
/// [`Error::Invalid`]
pub fn check(msrs: &[(u32, u64)]) -> Result<(), Error> {
    match msrs.len() {
        0..=MAX_MSRS => Ok(()),
        count => Err(invalid(format!(
            "{count} model-specific registers, where {MAX_MSRS} can be"
        ))),
    }
}

/// Reads all that the vCPU has, in the order in which they are to be set.
///
/// # Errors
/// [`Error::Kernel`]
pub fn save(vcpu: &VcpuFd, kvm: &Kvm) -> Result<Vec<(u32, u64)>, Error> {
    let listed = kvm
        .get_msr_index_list()
        .map_err(refused("KVM_GET_MSR_INDEX_LIST"))?;
    let mut values = Vec::new();
    for indices in order(listed.as_slice()).chunks(KVM_MAX_MSR_ENTRIES) {
        read(vcpu, indices, &mut values)?;
    }
    Ok(values)
}

/// What of `listed` is saved, and what kernels do not list, each once.
fn order(listed: &[u32]) -> Vec<u32> {
    let kept = |index: &u32| {
        !LAST.contains(index)
            && !MTRRS.contains(index)
            && !WALL_CLOCKS.contains(index)
            && !HYPER_V.contains(index)
    };
    let middle = listed.iter().copied().filter(kept);
    middle.chain(MTRRS).chain(LAST).collect()
}

/// Appends index and value of those of `indices` that can be read: the kernel lists some that this vCPU does not have.
fn read(vcpu: &VcpuFd, mut indices: &[u32], values: &mut Vec<(u32, u64)>) -> Result<(), Error> {
    while !indices.is_empty() {
        let mut msrs = entries(indices.iter().map(|index| (*index, 0)))?;
        let done = vcpu.get_msrs(&mut msrs).map_err(refused("KVM_GET_MSRS"))?;
        let read = msrs.as_slice().iter().take(done);
        values.extend(read.map(|entry| (entry.index, entry.data)));
        // KVM stops at the first that it does not have.
        indices = indices.get(done + 1..).unwrap_or_default();
    }
    Ok(())
}

/// Sets them in their order.
///
/// # Errors
/// [`Error::Invalid`] for one that the vCPU does not take, unless it has the value already: several can be read only.
pub fn restore(vcpu: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), Error> {
    msrs.chunks(KVM_MAX_MSR_ENTRIES)
        .try_for_each(|msrs| write(vcpu, msrs))
}

fn write(vcpu: &VcpuFd, mut msrs: &[(u32, u64)]) -> Result<(), Error> {
    while !msrs.is_empty() {
        let done = vcpu
            .set_msrs(&entries(msrs.iter().copied())?)
            .map_err(refused("KVM_SET_MSRS"))?;
        // KVM stops at the first that it does not take.
        let Some(((index, value), rest)) = msrs.get(done..).and_then(<[_]>::split_first) else {
            break;
        };
        let mut found = Vec::new();
        read(vcpu, &[*index], &mut found)?;
        if found != [(*index, *value)] {
            return Err(invalid(format!(
                "this host's KVM does not take {value:#x} as register {index:#x}"
            )));
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
    Msrs::from_entries(&entries)
        .map_err(|_| invalid(format!("{} model-specific registers at once", entries.len())))
}

#[cfg(test)]
mod tests {
    use super::{MAX_MSRS, TSC, TSC_ADJUST, TSC_DEADLINE, check, order};

    #[test]
    fn counters_come_last_and_nothing_twice() {
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
    fn what_touches_memory_is_left_out() {
        let order = order(&[0x11, 0x12, 0x4000_0000, 0x4000_0105, 0x4b56_4d00]);
        assert_eq!(order[0], 0x12);
        for index in [0x11, 0x4000_0000, 0x4000_0105, 0x4b56_4d00] {
            assert!(!order.contains(&index), "{index:#x}");
        }
    }

    #[test]
    fn their_number_is_bounded() {
        check(&vec![(0, 0); MAX_MSRS]).unwrap();
        let error = check(&vec![(0, 0); MAX_MSRS + 1]).unwrap_err().to_string();
        assert!(error.contains("1025 model-specific registers"), "{error}");
    }
}
