//! KVM of the hosts.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Requests of the KVM API, Documentation/virt/kvm/api.rst.
const KVM_CREATE_VM: libc::Ioctl = 0xae01;
const KVM_CHECK_EXTENSION: libc::Ioctl = 0xae03;
const KVM_CAP_COUNTER_OFFSET: libc::c_int = 227;
const KVM_CREATE_DEVICE: libc::Ioctl = 0xc00c_aee0_u32 as libc::Ioctl;
/// Only checks that KVM has the device.
const KVM_CREATE_DEVICE_TEST: u32 = 1;
const KVM_DEV_TYPE_ARM_VGIC_V2: u32 = 5;
const KVM_DEV_TYPE_ARM_VGIC_V3: u32 = 7;

mod gic2 {
    #[test]
    fn guests_have_gicv2_alone() {
        let path = concat!(module_path!(), "::guests_have_gicv2_alone");
        crate::host::run(path, || super::check_versions(true, false));
    }
}

mod gic3 {
    #[test]
    fn guests_have_gicv3_alone() {
        let path = concat!(module_path!(), "::guests_have_gicv3_alone");
        crate::host::run(path, || super::check_versions(false, true));
    }
}

/// Checks that KVM of this host has an offset for the counters of a VM, which a restore then sets.
pub fn check_counter_offset() {
    let kvm = File::open("/dev/kvm").unwrap();
    // SAFETY: the descriptor is open, and the argument is a number.
    let answer = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CHECK_EXTENSION, KVM_CAP_COUNTER_OFFSET) };
    assert!(answer > 0, "{}", io::Error::last_os_error());
}

/// Checks the versions of the GIC that KVM of this host offers to guests.
fn check_versions(has_v2: bool, has_v3: bool) {
    let kvm = File::open("/dev/kvm").unwrap();
    // SAFETY: the descriptor is open, and the argument is a number.
    let vm = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0) };
    assert!(vm >= 0, "{}", io::Error::last_os_error());
    let has_device = |kind: u32| {
        let mut device = [kind, 0, KVM_CREATE_DEVICE_TEST];
        // SAFETY: the descriptor is open, and `device` has the layout of struct kvm_create_device.
        unsafe { libc::ioctl(vm, KVM_CREATE_DEVICE, device.as_mut_ptr()) == 0 }
    };
    assert_eq!(has_device(KVM_DEV_TYPE_ARM_VGIC_V2), has_v2);
    assert_eq!(has_device(KVM_DEV_TYPE_ARM_VGIC_V3), has_v3);
}
