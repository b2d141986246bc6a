//! Memory slots: which guest-physical addresses are backed by which part of this process.
//!
//! Slots are set once, before the interrupt controller, the vCPUs and any ioeventfd exist. Afterwards the same call
//! waits for grace periods of several milliseconds; memory is replaced by mapping over it, under the live slot.

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use snapshot::GuestMemory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{Error, failed};

/// Gives every region of `memory` a slot of `vm`, in which KVM logs the pages that are written if `logged`.
///
/// `memory` must outlive `vm`; the machine owns both and drops the VM first.
///
/// # Errors
/// [`Error::Call`], naming the region.
pub fn set(vm: &VmFd, memory: &GuestMemory, logged: bool) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let area = kvm_userspace_memory_region {
            slot,
            flags: if logged { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the area is a live mapping of exactly that size, which the machine keeps until the VM is gone.
        let done = unsafe { vm.set_user_memory_region(area) };
        done.map_err(failed(format!(
            "KVM_SET_USER_MEMORY_REGION of {:#x} bytes at {:#x}",
            area.memory_size, area.guest_phys_addr
        )))?;
    }
    Ok(())
}
