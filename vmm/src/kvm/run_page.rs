//! The page that a vCPU shares with the kernel, for what kvm-ioctls does not hand out.

use kvm_bindings::{KVM_EXIT_INTR, KVM_INTERNAL_ERROR_EMULATION, kvm_run};
use kvm_ioctls::VcpuFd;

/// The shared page of one vCPU.
///
/// The kernel writes it only during `KVM_RUN`, on the thread that holds this, so that plain reads and writes between
/// two runs race with nothing.
pub struct RunPage<'a>(pub(crate) &'a mut kvm_run);

/// What the kernel says of an internal error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InternalError {
    /// `KVM_INTERNAL_ERROR_*`.
    pub suberror: u32,
    /// The bytes of the instruction that could not be emulated, when the kernel gives them.
    pub instruction: Option<([u8; 15], usize)>,
}

/// The width of the last port access in bytes. A string instruction moves several units of it in one exit.
pub(crate) struct PortWidth(*const u8);

impl PortWidth {
    /// The width; 1 for what was no port access.
    pub fn get(&self) -> usize {
        // SAFETY: the vCPU, and with it the page, outlives the handling of its exit; the kernel does not write now.
        usize::from(unsafe { self.0.read_volatile() }).max(1)
    }

    #[cfg(test)]
    pub fn fixed(width: u8) -> Self {
        Self(Box::leak(Box::new(width)))
    }
}

impl<'a> RunPage<'a> {
    /// The page of `vcpu`.
    pub fn of(vcpu: &'a mut VcpuFd) -> Self {
        Self(vcpu.get_kvm_run())
    }

    /// Where the width of a port access will be, while the exit that it belongs to is still borrowed.
    pub(crate) fn port_width(&mut self) -> PortWidth {
        // SAFETY: the place is within a live kvm_run; no reference to it is made.
        PortWidth(unsafe { &raw const self.0.__bindgen_anon_1.io.size })
    }

    /// Whether an interrupt of an external controller can be injected now.
    pub fn is_interrupt_ready(&self) -> bool {
        self.0.ready_for_interrupt_injection != 0 && self.0.if_flag != 0
    }

    /// Asks for an exit as soon as an interrupt can be injected, or takes that back.
    pub fn request_interrupt_window(&mut self, wanted: bool) {
        self.0.request_interrupt_window = wanted.into();
    }

    /// Lets the next `KVM_RUN` enter the guest. Called before looking for work, so that a later kick is kept.
    pub fn clear_immediate_exit(&mut self) {
        let flag = &raw mut self.0.immediate_exit;
        // SAFETY: the pointer comes from a live reference; the signal handler writes it on this very thread.
        unsafe { flag.write_volatile(0) };
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// Has the next `KVM_RUN` return without entering the guest, once it has completed what the last exit began.
    pub fn set_immediate_exit(&mut self) {
        let flag = &raw mut self.0.immediate_exit;
        // SAFETY: the pointer comes from a live reference; the signal handler writes it on this very thread.
        unsafe { flag.write_volatile(1) };
    }

    /// Whether the next `KVM_RUN` will not enter the guest.
    pub fn has_immediate_exit(&self) -> bool {
        let flag = &raw const self.0.immediate_exit;
        // SAFETY: as in [`set_immediate_exit`](Self::set_immediate_exit).
        unsafe { flag.read_volatile() != 0 }
    }

    /// Whether the last run ended because of a signal.
    pub fn was_interrupted(&self) -> bool {
        self.0.exit_reason == KVM_EXIT_INTR
    }

    /// What the kernel says of the internal error that ended the last run.
    pub fn internal_error(&self) -> InternalError {
        // SAFETY: every bit pattern is valid for the integers of this member of the union.
        let internal = unsafe { self.0.__bindgen_anon_1.internal };
        let mut error = InternalError {
            suberror: internal.suberror,
            instruction: None,
        };
        // Layout of struct kvm_run.emulation_failure: ndata, flags (1: bytes follow), then size and 15 bytes.
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
    fn the_instruction_is_found_where_the_kernel_puts_it() {
        let mut page = kvm_run::default();
        page.__bindgen_anon_1.internal = kvm_run__bindgen_ty_1__bindgen_ty_13::default();
        page.__bindgen_anon_1.internal.suberror = 1;
        page.__bindgen_anon_1.internal.ndata = 4;
        let instruction = u64::from_le_bytes([4, 0x66, 0x0f, 0xef, 0xc0, 0x90, 0x90, 0x90]);
        page.__bindgen_anon_1.internal.data = [0; 16];
        // SAFETY: the member was written whole just above.
        let data = unsafe { &mut page.__bindgen_anon_1.internal.data };
        data[..2].copy_from_slice(&[1, instruction]);
        let (bytes, length) = RunPage(&mut page).internal_error().instruction.unwrap();
        assert_eq!(bytes[..length], [0x66, 0x0f, 0xef, 0xc0]);
    }
}
