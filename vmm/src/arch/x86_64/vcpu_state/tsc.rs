//! Time stamp counter: its offset from that of the host.

use std::io;
use std::time::Duration;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use snapshot::persist::Error;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::error::COMPONENT;

/// Requests that kvm-ioctls does not wrap for vCPUs of x86_64.
mod request {
    use kvm_bindings::{KVMIO, kvm_device_attr};

    vmm_sys_util::ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
    vmm_sys_util::ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
}

/// Advances the counter of `vcpu`, which has its saved value, by `time` at `tsc_khz`. The offset changes, not the register: by a write KVM
/// would guess if the counters of several vCPUs belong together. All of them advance by one number.
///
/// Before Linux 5.16 the counter does not advance, and a warning is logged.
///
/// # Errors
/// [`Error::Kernel`]
pub fn advance(vcpu: &VcpuFd, tsc_khz: u32, time: Duration) -> Result<(), Error> {
    let mut offset = 0_u64;
    let request = attribute(&raw mut offset);
    // SAFETY: the kernel writes the 8 bytes of the offset to `offset`, which outlives the call.
    let read = unsafe { ioctl_with_ref(vcpu, request::KVM_GET_DEVICE_ATTR(), &request) };
    if read != 0 {
        let error = io::Error::last_os_error();
        log::warn!(
            "the time stamp counter of the guest stays behind the real time: KVM has no offset for it: {error}"
        );
        return Ok(());
    }
    // The offset is a signed number in an unsigned one.
    let advanced = offset.wrapping_add(cycles(tsc_khz, time));
    let request = attribute(&raw const advanced);
    // SAFETY: the kernel reads the 8 bytes of `advanced`, which outlives the call.
    let written = unsafe { ioctl_with_ref(vcpu, request::KVM_SET_DEVICE_ATTR(), &request) };
    if written != 0 {
        return Err(Error::Kernel {
            component: COMPONENT,
            operation: "KVM_SET_DEVICE_ATTR of KVM_VCPU_TSC_OFFSET",
            source: io::Error::last_os_error(),
        });
    }
    Ok(())
}

/// Returns the request for the offset at `value`.
fn attribute(value: *const u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: value as u64,
        ..Default::default()
    }
}

/// Returns the increments of a counter in `time`. At most those of some hundred years.
fn cycles(tsc_khz: u32, time: Duration) -> u64 {
    let cycles = time.as_nanos() * u128::from(tsc_khz) / 1_000_000;
    u64::try_from(cycles).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::cycles;

    #[test]
    fn cycles_follow_frequency() {
        assert_eq!(cycles(2_500_000, Duration::from_millis(2)), 5_000_000);
        assert_eq!(cycles(1, Duration::from_nanos(999_999)), 0);
        assert_eq!(cycles(u32::MAX, Duration::MAX), u64::MAX);
    }
}
