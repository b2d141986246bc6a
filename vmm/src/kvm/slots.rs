//! Memory slots: mappings of guest-physical addresses to host addresses.
//!
//! Slots are set once, before the interrupt controller, the vCPUs and any ioeventfd exist: afterwards the call waits for RCU grace
//! periods of several milliseconds. To replace memory, map over the host addresses of a slot.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use snapshot::GuestMemory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{Error, failed};

/// Sets a memory slot of `vm` for each region of `memory`, without KVM's dirty log: the log misses writes of this
/// process, and costs the guest a page fault per page.
///
/// `memory` must outlive `vm`; the machine owns both and drops the VM first.
///
/// # Errors
/// [`Error::Call`] with the region in its text.
pub fn set(vm: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let area = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the area is a live mapping of exactly that size; the machine unmaps it after the VM is dropped.
        let result = unsafe { vm.set_user_memory_region(area) };
        result.map_err(failed(format!(
            "KVM_SET_USER_MEMORY_REGION of {:#x} bytes at {:#x}",
            area.memory_size, area.guest_phys_addr
        )))?;
    }
    Ok(())
}
