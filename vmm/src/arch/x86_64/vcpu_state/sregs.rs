//! Control, segment and page-directory-pointer registers.

use kvm_bindings::{KVM_CAP_SREGS2, KVM_SREGS2_FLAGS_PDPTRS_VALID, kvm_sregs, kvm_sregs2};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

use super::error::kernel_error;

/// Requests that kvm-ioctls does not wrap.
mod request {
    use kvm_bindings::{KVMIO, kvm_sregs2};
    vmm_sys_util::ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
    vmm_sys_util::ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
}

/// Registers of `KVM_GET_SREGS`, and with PAE paging the page-directory-pointer registers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SregsState {
    registers: kvm_sregs,
    /// Set with PAE paging and `KVM_CAP_SREGS2`. The registers can differ from guest memory (Intel SDM volume 3A, section 4.4.1);
    /// `KVM_SET_SREGS` loads them from guest memory.
    pdptrs: Option<[u64; 4]>,
}

impl SregsState {
    /// Reads the registers of `vcpu`.
    ///
    /// # Errors
    /// [`Error::Kernel`]
    pub fn save(vcpu: &VcpuFd, kvm: &Kvm) -> Result<Self, Error> {
        let registers = vcpu.get_sregs().map_err(kernel_error("KVM_GET_SREGS"))?;
        let mut with_pdptrs = kvm_sregs2::default();
        if has_sregs2(kvm) {
            // SAFETY: the request number encodes the type of `with_pdptrs`; the kernel writes no more.
            let result = unsafe { ioctl_with_mut_ref(vcpu, request::KVM_GET_SREGS2(), &mut with_pdptrs) };
            check_result(result).map_err(kernel_error("KVM_GET_SREGS2"))?;
        }
        let valid = with_pdptrs.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
        Ok(Self {
            registers,
            pdptrs: valid.then_some(with_pdptrs.pdptrs),
        })
    }

    /// Returns the registers of `KVM_GET_SREGS`.
    pub fn registers(&self) -> &kvm_sregs {
        &self.registers
    }

    /// Restores the registers of `vcpu`.
    ///
    /// # Errors
    /// [`Error::Kernel`]
    pub fn restore(&self, vcpu: &VcpuFd, kvm: &Kvm) -> Result<(), Error> {
        // An interrupt to be injected is restored with the events.
        let registers = kvm_sregs {
            interrupt_bitmap: [0; 4],
            ..self.registers
        };
        match self.pdptrs {
            Some(pdptrs) if has_sregs2(kvm) => {
                let registers = with_pdptrs(&registers, pdptrs);
                // SAFETY: the request number encodes the type of `registers`; the kernel reads no more.
                let result = unsafe { ioctl_with_ref(vcpu, request::KVM_SET_SREGS2(), &registers) };
                check_result(result).map_err(kernel_error("KVM_SET_SREGS2"))
            }
            _ => vcpu.set_sregs(&registers).map_err(kernel_error("KVM_SET_SREGS")),
        }
    }
}

fn has_sregs2(kvm: &Kvm) -> bool {
    kvm.check_extension_raw(KVM_CAP_SREGS2.into()) > 0
}

fn check_result(result: i32) -> Result<(), kvm_ioctls::Error> {
    match result {
        0 => Ok(()),
        _ => Err(kvm_ioctls::Error::last()),
    }
}

fn with_pdptrs(registers: &kvm_sregs, pdptrs: [u64; 4]) -> kvm_sregs2 {
    kvm_sregs2 {
        cs: registers.cs,
        ds: registers.ds,
        es: registers.es,
        fs: registers.fs,
        gs: registers.gs,
        ss: registers.ss,
        tr: registers.tr,
        ldt: registers.ldt,
        gdt: registers.gdt,
        idt: registers.idt,
        cr0: registers.cr0,
        cr2: registers.cr2,
        cr3: registers.cr3,
        cr4: registers.cr4,
        cr8: registers.cr8,
        efer: registers.efer,
        apic_base: registers.apic_base,
        flags: KVM_SREGS2_FLAGS_PDPTRS_VALID.into(),
        pdptrs,
    }
}
