//! Model-specific registers at reset whose KVM defaults are unsuitable. Intel SDM volume 4, section 2.1.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::kvm::{Error, failed};

/// `IA32_MISC_ENABLE` with fast string operations: without them guests avoid `rep movs`.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// `IA32_MTRR_DEF_TYPE`: MTRRs enabled, default type write-back, as firmware sets it.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// Sets the registers of `vcpu`.
///
/// # Errors
/// [`Error::Call`] with the register that KVM rejects.
pub fn set(vcpu: &VcpuFd) -> Result<(), Error> {
    let entries = [MISC_ENABLE, MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs =
        Msrs::from_entries(&entries).unwrap_or_else(|_| unreachable!("two entries are below the limit"));
    let done = vcpu.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
    match entries.get(done) {
        // KVM API, KVM_SET_MSRS: the call stops at the first register that it rejects and returns the number of set registers.
        Some(rejected) => Err(failed(format!("KVM_SET_MSRS of register {:#x}", rejected.index))(
            kvm_ioctls::Error::new(libc::EINVAL),
        )),
        None => Ok(()),
    }
}
