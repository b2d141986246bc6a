//! Model-specific registers at reset, where KVM's own values will not do. Intel SDM volume 4.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::kvm::{Error, failed};

/// `IA32_MISC_ENABLE` with fast string operations: without them guests give `rep movs` up.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// `IA32_MTRR_DEF_TYPE`: enabled, write-back by default, as firmware leaves it.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// Sets them.
///
/// # Errors
/// [`Error::Call`], naming the register that KVM refused.
pub fn set(vcpu: &VcpuFd) -> Result<(), Error> {
    let entries = [MISC_ENABLE, MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&entries).unwrap_or_else(|_| unreachable!("two entries fit"));
    let done = vcpu.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
    match entries.get(done) {
        // KVM stops at the first register that it does not take and returns how many it took.
        Some(refused) => Err(failed(format!("KVM_SET_MSRS of register {:#x}", refused.index))(
            kvm_ioctls::Error::new(libc::EINVAL),
        )),
        None => Ok(()),
    }
}
