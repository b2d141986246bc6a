//! Memory slots: which guest-physical addresses are backed by which part of this process.
//!
//! Slots are set once, before the interrupt controller, the vCPUs and any ioeventfd exist. Afterwards the same call
//! waits for grace periods of several milliseconds; memory is replaced by mapping over it, under the live slot.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use snapshot::GuestMemory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{Error, failed};

/// Gives every region of `memory` a slot of `vm`. KVM does not log which pages are written: it would not see what this process
/// writes, and cost the guest a fault a page.
///
/// `memory` must outlive `vm`; the machine owns both and drops the VM first.
///
/// # Errors
/// [`Error::Call`], naming the region.
pub fn set(vm: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let area = kvm_userspace_memory_region {
            slot,
            flags: 0,
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
