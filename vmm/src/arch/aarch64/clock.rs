//! Counters of the timers in a snapshot. All vCPUs have the same counter, which goes on from its saved value.

use std::arch::asm;
use std::os::fd::{AsRawFd, OwnedFd};

use kvm_bindings::{KVM_CAP_COUNTER_OFFSET, kvm_one_reg};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use snapshot::Schema;
use snapshot::persist::Error;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::registers::VIRTUAL_COUNTER;
use crate::arch::realtime_ns;

const NANOSECONDS: u128 = 1_000_000_000;

/// Requests that kvm-ioctls does not wrap, or only for its own type of a vCPU.
mod request {
    use kvm_bindings::{KVMIO, kvm_one_reg};

    /// Offset of the virtual and the physical counter from those of the host: KVM API, `KVM_ARM_SET_COUNTER_OFFSET`.
    #[repr(C)]
    pub struct CounterOffset {
        pub counter_offset: u64,
        pub reserved: u64,
    }

    vmm_sys_util::ioctl_iow_nr!(KVM_GET_ONE_REG, KVMIO, 0xab, kvm_one_reg);
    vmm_sys_util::ioctl_iow_nr!(KVM_SET_ONE_REG, KVMIO, 0xac, kvm_one_reg);
    vmm_sys_util::ioctl_iow_nr!(KVM_ARM_SET_COUNTER_OFFSET, KVMIO, 0xb5, CounterOffset);
}

/// State of the counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterState {
    /// Virtual counter.
    counter: u64,
    /// Increments in a second.
    frequency: u64,
    /// Nanoseconds since 1970 on the host's real-time clock at the same moment.
    realtime: u64,
}

impl Schema for CounterState {
    const NAME: &'static str = "aarch64-counter";
    const VERSION: u32 = 1;
}

impl CounterState {
    /// Reads the counter of the vCPU with the descriptor `vcpu`.
    ///
    /// # Errors
    /// [`Error::Kernel`]
    pub fn save(vcpu: &OwnedFd) -> Result<Self, Error> {
        let mut counter = 0_u64;
        let request = kvm_one_reg {
            id: VIRTUAL_COUNTER,
            addr: (&raw mut counter) as u64,
        };
        // SAFETY: the kernel writes the 8 bytes of the register to `counter`, which outlives the call.
        let result = unsafe { ioctl_with_ref(vcpu, request::KVM_GET_ONE_REG(), &request) };
        check(result, "KVM_GET_ONE_REG of the counter")?;
        Ok(Self {
            counter,
            frequency: frequency(),
            realtime: realtime_ns(),
        })
    }

    /// Sets the counters of `vm`, whose vCPUs do not run, to the saved value. With `realtime`, adds the time since the save.
    ///
    /// # Errors
    /// [`Error::Kernel`], and [`Error::Invalid`] if the frequency differs on this host.
    pub fn restore(&self, vm: &VmFd, vcpu: &OwnedFd, realtime: bool) -> Result<(), Error> {
        let own = frequency();
        if self.frequency != own {
            return Err(Error::Invalid {
                component: Self::NAME,
                reason: format!(
                    "its counter has {} Hz, and that of this host {own} Hz; load it on the host where it was created",
                    self.frequency
                ),
            });
        }
        let counter = self.value_at(realtime.then(realtime_ns));
        if has_offset(vm) {
            return set_offset(vm, counter);
        }
        // Sets the offset of all vCPUs. The physical counter has none before Linux 6.4.
        let request = kvm_one_reg {
            id: VIRTUAL_COUNTER,
            addr: (&raw const counter) as u64,
        };
        // SAFETY: the kernel reads the 8 bytes of the register from `counter`, which outlives the call.
        let result = unsafe { ioctl_with_ref(vcpu, request::KVM_SET_ONE_REG(), &request) };
        check(result, "KVM_SET_ONE_REG of the counter")
    }

    /// Returns the counter at host time `now`, or the saved value for `None`. A host clock that was set back does not set it back.
    fn value_at(&self, now: Option<u64>) -> u64 {
        let passed = now.map_or(0, |now| now.saturating_sub(self.realtime));
        let increments = u128::from(passed) * u128::from(self.frequency) / NANOSECONDS;
        let increments = u64::try_from(increments).unwrap_or(u64::MAX);
        self.counter.saturating_add(increments)
    }
}

/// Starts the counters of `vm`, whose vCPUs do not run, at 0. KVM without an offset for both starts the virtual counter alone.
///
/// # Errors
/// [`Error::Kernel`]
pub fn start(vm: &VmFd) -> Result<(), Error> {
    match has_offset(vm) {
        true => set_offset(vm, 0),
        false => Ok(()),
    }
}

/// Returns true if KVM has one offset for the virtual and the physical counter: from Linux 6.4 on.
fn has_offset(vm: &VmFd) -> bool {
    vm.check_extension_raw(KVM_CAP_COUNTER_OFFSET.into()) > 0
}

/// Sets both counters to `counter`.
fn set_offset(vm: &VmFd, counter: u64) -> Result<(), Error> {
    let offset = request::CounterOffset {
        counter_offset: host_counter().wrapping_sub(counter),
        reserved: 0,
    };
    // SAFETY: the kernel reads the structure, which has the size that the request number encodes.
    let result = unsafe { ioctl_with_ref(vm, request::KVM_ARM_SET_COUNTER_OFFSET(), &offset) };
    check(result, "KVM_ARM_SET_COUNTER_OFFSET")
}

fn check(result: i32, operation: &'static str) -> Result<(), Error> {
    if result == 0 {
        return Ok(());
    }
    Err(Error::Kernel {
        component: CounterState::NAME,
        operation,
        source: std::io::Error::last_os_error(),
    })
}

/// Returns a duplicate of the descriptor of a vCPU.
pub fn duplicate(vcpu: &impl AsRawFd) -> std::io::Result<OwnedFd> {
    // SAFETY: the vCPU keeps its descriptor open during the call.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
    borrowed.try_clone_to_owned()
}

fn frequency() -> u64 {
    let value: u64;
    // SAFETY: Linux permits reads of the register in user mode; the instruction has no other effect.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Returns the counter of the host, whose virtual counter has no offset.
fn host_counter() -> u64 {
    let value: u64;
    // SAFETY: Linux permits reads of the register in user mode; the instructions have no other effect.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
