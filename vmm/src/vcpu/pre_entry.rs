//! `KVM_RUN` up to guest entry.
//!
//! KVM defers some work to guest entry: an expired timer of a local APIC becomes an interrupt there, and the end of a level-triggered
//! interrupt becomes an exit. With `immediate_exit` KVM_RUN returns before this work. With a pending signal it returns after the
//! work and before the first instruction of the guest.

use std::io;

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};
use vmm_sys_util::signal::{block_signal, clear_signal, get_blocked_signals, unblock_signal};

use crate::kvm::kick::{kick_this_thread, signal};

vmm_sys_util::ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, u32);

/// `struct kvm_signal_mask`, followed without alignment by the kernel's set of 64 signals.
#[repr(C)]
struct SignalMask {
    /// Length of the set in bytes.
    length: u32,
    /// Signal 1 is bit 0.
    blocked: [u8; 8],
}

/// Calls `work`, in which KVM_RUN returns after KVM's pending work and before guest entry. The calling thread must be bound to a
/// [`Kick`](crate::kvm::Kick).
///
/// A kick during `work` is lost: the caller must check the gate afterwards.
///
/// # Errors
/// Fails if a signal mask cannot be changed; `work` has not run then.
pub(super) fn run_until_entry<T>(vcpu: &mut VcpuFd, work: impl FnOnce(&mut VcpuFd) -> T) -> io::Result<T> {
    let other = |error: vmm_sys_util::signal::Error| io::Error::other(error.to_string());
    let blocked = get_blocked_signals().map_err(other)?;
    block_signal(signal()).map_err(other)?;
    let result = set_mask(vcpu, Some(&blocked)).map(|()| {
        kick_this_thread();
        work(vcpu)
    });
    // Undone after an error too. None of the three calls fails: their arguments were valid before.
    let _ = set_mask(vcpu, None);
    let _ = clear_signal(signal());
    let _ = unblock_signal(signal());
    result
}

/// Sets the signals that KVM_RUN blocks; none keeps the mask of the caller.
fn set_mask(vcpu: &VcpuFd, signals: Option<&[libc::c_int]>) -> io::Result<()> {
    let result = match signals {
        Some(signals) => {
            let bit = |signal: &libc::c_int| 1_u64.checked_shl(u32::try_from(signal - 1).ok()?);
            let blocked = signals.iter().filter_map(bit).fold(0, |set, bit| set | bit);
            let mask = SignalMask {
                length: 8,
                blocked: blocked.to_le_bytes(),
            };
            // SAFETY: the kernel reads `length`, and then 8 bytes of `blocked`, which follow without padding.
            unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) }
        }
        // SAFETY: with a null address the kernel reads nothing.
        None => unsafe { ioctl(vcpu, KVM_SET_SIGNAL_MASK()) },
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
