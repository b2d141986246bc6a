//! Memory slots: mappings of guest-physical addresses to host addresses.
//!
//! Slots are set once, before the interrupt controller, the vCPUs and any ioeventfd exist: afterwards the call waits for RCU grace
//! periods of several milliseconds. To replace memory, map over the host addresses of a slot.

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use snapshot::GuestMemory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{Error, failed};

/// Sets a memory slot of `vm` for each region of `memory`. A region with a log of the writes of this process gets KVM's dirty log
/// too, which costs the guest a fault for each page that it writes.
///
/// `memory` must outlive `vm`; the machine owns both and drops the VM first.
///
/// # Errors
/// [`Error::Call`] with the region in its text.
pub fn set(vm: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let area = kvm_userspace_memory_region {
            slot,
            flags: region.bitmap().log().map_or(0, |_| KVM_MEM_LOG_DIRTY_PAGES),
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

/// Returns the pages of memory slot `slot` with `size` bytes that the guest or KVM has written since the last call, a bit for each.
///
/// # Errors
/// [`Error::Call`].
pub fn take_dirty_log(vm: &VmFd, slot: u32, size: usize) -> Result<Vec<u64>, Error> {
    vm.get_dirty_log(slot, size)
        .map_err(failed(format!("KVM_GET_DIRTY_LOG of slot {slot}")))
}
