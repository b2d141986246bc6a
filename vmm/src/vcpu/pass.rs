//! `KVM_RUN` up to the door of the guest and back.
//!
//! KVM puts some of what has happened to a vCPU off until it is about to enter the guest: a local APIC's timer that has
//! expired becomes an interrupt there, and the end of a level-triggered interrupt becomes an exit. `immediate_exit` returns
//! before that. A signal that is pending while `KVM_RUN` looks returns after it, and still before the first instruction.

use std::io;

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};
use vmm_sys_util::signal::{block_signal, clear_signal, get_blocked_signals, unblock_signal};

use crate::kvm::kick::{kick_this_thread, signal};

vmm_sys_util::ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, u32);

/// `struct kvm_signal_mask` with the kernel's set of 64 signals behind it, which is not aligned.
#[repr(C)]
struct SignalMask {
    /// Bytes of the set.
    length: u32,
    /// Signal 1 is bit 0.
    blocked: [u8; 8],
}

/// Lets `work` run the vCPU, which does not enter the guest meanwhile. The calling thread is one that is kicked.
///
/// A kick that comes meanwhile is lost on it, so that it has to look for work afterwards.
///
/// # Errors
/// The kernel's answer to what failed.
pub(super) fn run_until_entry<T>(vcpu: &mut VcpuFd, work: impl FnOnce(&mut VcpuFd) -> T) -> io::Result<T> {
    let other = |error: vmm_sys_util::signal::Error| io::Error::other(error.to_string());
    let blocked = get_blocked_signals().map_err(other)?;
    block_signal(signal()).map_err(other)?;
    let done = set_mask(vcpu, Some(&blocked)).map(|()| {
        kick_this_thread();
        work(vcpu)
    });
    // All three are undone whatever happened. None fails for arguments that were good before.
    let _ = set_mask(vcpu, None);
    let _ = clear_signal(signal());
    let _ = unblock_signal(signal());
    done
}

/// Has `KVM_RUN` block these signals, and no others; or those that its caller does.
fn set_mask(vcpu: &VcpuFd, signals: Option<&[libc::c_int]>) -> io::Result<()> {
    let result = match signals {
        Some(signals) => {
            let bit = |signal: &libc::c_int| 1_u64.checked_shl(u32::try_from(signal - 1).ok()?);
            let blocked = signals.iter().filter_map(bit).fold(0, |set, bit| set | bit);
            let mask = SignalMask {
                length: 8,
                blocked: blocked.to_le_bytes(),
            };
            // SAFETY: the kernel reads the length and as many bytes behind it.
            unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) }
        }
        // SAFETY: without an address the kernel reads nothing.
        None => unsafe { ioctl(vcpu, KVM_SET_SIGNAL_MASK()) },
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
