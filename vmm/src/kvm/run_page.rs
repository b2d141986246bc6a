//! Access to the `kvm_run` page of a vCPU (KVM API §5), for fields that kvm-ioctls does not expose.

use kvm_bindings::{KVM_EXIT_INTR, KVM_INTERNAL_ERROR_EMULATION, kvm_run};
use kvm_ioctls::VcpuFd;

/// The `kvm_run` page of one vCPU.
///
/// The kernel writes the page only during `KVM_RUN` on the thread that holds this value, so plain accesses between two
/// runs do not race.
pub struct RunPage<'a>(pub(crate) &'a mut kvm_run);

/// Details of an exit with `KVM_EXIT_INTERNAL_ERROR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InternalError {
    /// `KVM_INTERNAL_ERROR_*`.
    pub suberror: u32,
    /// Bytes of the instruction that KVM could not emulate, and their number, if the kernel reports them.
    pub instruction: Option<([u8; 15], usize)>,
}

impl<'a> RunPage<'a> {
    /// Returns the page of `vcpu`.
    pub fn of(vcpu: &'a mut VcpuFd) -> Self {
        Self(vcpu.get_kvm_run())
    }

    /// Clears `immediate_exit`: the next `KVM_RUN` enters the guest. Must precede the check for work, so that a later
    /// kick is not lost.
    pub fn clear_immediate_exit(&mut self) {
        let flag = &raw mut self.0.immediate_exit;
        // SAFETY: the pointer comes from a live reference; the signal handler writes the flag on this same thread.
        unsafe { flag.write_volatile(0) };
        // Suffices: the signal handler, which sets the flag, and the kernel, which reads it, run on this thread.
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// Sets `immediate_exit`: the next `KVM_RUN` completes the operation of the last exit and returns without guest entry.
    pub fn set_immediate_exit(&mut self) {
        let flag = &raw mut self.0.immediate_exit;
        // SAFETY: the pointer comes from a live reference; the signal handler writes the flag on this same thread.
        unsafe { flag.write_volatile(1) };
    }

    /// Returns true if `immediate_exit` is set.
    pub fn has_immediate_exit(&self) -> bool {
        let flag = &raw const self.0.immediate_exit;
        // SAFETY: as in [`set_immediate_exit`](Self::set_immediate_exit).
        unsafe { flag.read_volatile() != 0 }
    }

    /// Returns true if a signal ended the last run.
    pub fn was_interrupted(&self) -> bool {
        self.0.exit_reason == KVM_EXIT_INTR
    }

    /// Returns the details of the internal error that ended the last run.
    pub fn internal_error(&self) -> InternalError {
        // SAFETY: this union member consists of integers, for which every bit pattern is valid.
        let internal = unsafe { self.0.__bindgen_anon_1.internal };
        let mut error = InternalError {
            suberror: internal.suberror,
            instruction: None,
        };
        // struct kvm_run.emulation_failure: ndata, flags (bit 0: instruction bytes follow), then size and 15 bytes.
        let bytes_follow = internal.ndata >= 3 && internal.data[0] & 1 == 1;
        if internal.suberror == KVM_INTERNAL_ERROR_EMULATION && bytes_follow {
            let mut raw = [0; 16];
            raw[..8].copy_from_slice(&internal.data[1].to_le_bytes());
            raw[8..].copy_from_slice(&internal.data[2].to_le_bytes());
            let mut bytes = [0; 15];
            bytes.copy_from_slice(&raw[1..]);
            error.instruction = Some((bytes, usize::from(raw[0]).min(15)));
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{kvm_run, kvm_run__bindgen_ty_1__bindgen_ty_13};

    use super::RunPage;

    #[test]
    fn internal_error_holds_instruction() {
        let mut page = kvm_run::default();
        page.__bindgen_anon_1.internal = kvm_run__bindgen_ty_1__bindgen_ty_13::default();
        page.__bindgen_anon_1.internal.suberror = 1;
        page.__bindgen_anon_1.internal.ndata = 4;
        let instruction = u64::from_le_bytes([4, 0x66, 0x0f, 0xef, 0xc0, 0x90, 0x90, 0x90]);
        page.__bindgen_anon_1.internal.data = [0; 16];
        // SAFETY: the member was initialised just above.
        let data = unsafe { &mut page.__bindgen_anon_1.internal.data };
        data[..2].copy_from_slice(&[1, instruction]);
        let (bytes, length) = RunPage(&mut page).internal_error().instruction.unwrap();
        assert_eq!(bytes[..length], [0x66, 0x0f, 0xef, 0xc0]);
    }
}
