//! kvmclock: time since the boot of the guest, common to all vCPUs.

use std::time::Duration;

use kvm_bindings::{KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use snapshot::Schema;
use snapshot::persist::Error;

use crate::arch::realtime_ns;
use crate::kvm::cause;

/// State of the clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// Nanoseconds since the guest's boot.
    nanoseconds: u64,
    /// Nanoseconds since 1970 on the host's real-time clock at the same moment.
    realtime: u64,
}

impl Schema for ClockState {
    const NAME: &'static str = "kvmclock";
    const VERSION: u32 = 1;
}

fn kernel_error(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |error| Error::Kernel {
        component: ClockState::NAME,
        operation,
        source: cause(error),
    }
}

impl ClockState {
    /// Reads the clock of `vm`.
    ///
    /// # Errors
    /// [`Error::Kernel`]
    pub fn save(vm: &VmFd) -> Result<Self, Error> {
        let data = vm.get_clock().map_err(kernel_error("KVM_GET_CLOCK"))?;
        // KVM API, KVM_GET_CLOCK: `realtime` is valid only with this flag, that is with the time stamp counter as clock source.
        let has_realtime = data.flags & KVM_CLOCK_REALTIME != 0;
        Ok(Self {
            nanoseconds: data.clock,
            realtime: if has_realtime {
                data.realtime
            } else {
                realtime_ns()
            },
        })
    }

    /// Sets the clock of `vm` to the saved time. With `realtime`, adds the time since the save.
    ///
    /// # Errors
    /// [`Error::Kernel`], and [`Error::Invalid`] for a time beyond the range of the clock.
    pub fn restore(&self, vm: &VmFd, realtime: bool) -> Result<(), Error> {
        let data = kvm_clock_data {
            clock: self.time_at(realtime.then(realtime_ns))?,
            ..Default::default()
        };
        vm.set_clock(&data).map_err(kernel_error("KVM_SET_CLOCK"))
    }

    /// Returns the time since the save.
    pub fn passed(&self) -> Duration {
        Duration::from_nanos(realtime_ns().saturating_sub(self.realtime))
    }

    /// Returns the time of the clock at host time `now`, or the saved time for `None`. A host clock that was set back does not
    /// set this one back.
    fn time_at(&self, now: Option<u64>) -> Result<u64, Error> {
        let passed = now.map_or(0, |now| now.saturating_sub(self.realtime));
        let clock = self.nanoseconds.saturating_add(passed);
        // KVM stores the clock as a signed number.
        match i64::try_from(clock) {
            Ok(_) => Ok(clock),
            Err(_) => Err(Error::Invalid {
                component: ClockState::NAME,
                reason: format!("clock value {clock} ns exceeds {} ns", i64::MAX),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ClockState;

    #[test]
    fn realtime_moves_clock_forward_only() {
        let clock = ClockState {
            nanoseconds: 5,
            realtime: 100,
        };
        assert_eq!(clock.time_at(None).unwrap(), 5);
        assert_eq!(clock.time_at(Some(107)).unwrap(), 12);
        assert_eq!(clock.time_at(Some(93)).unwrap(), 5);
        assert!(clock.time_at(Some(u64::MAX)).is_err());
    }
}
