//! kvmclock: the guest's time since its boot, one for all vCPUs.

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use snapshot::Schema;
use snapshot::persist::Error;

use crate::kvm::cause;

/// The clock as it stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// Nanoseconds since the guest's boot.
    nanoseconds: u64,
    /// Nanoseconds of the host's real-time clock, since 1970, at the same moment.
    realtime: u64,
}

impl Schema for ClockState {
    const NAME: &'static str = "kvmclock";
    const VERSION: u32 = 1;
}

fn refused(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
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
        let data = vm.get_clock().map_err(refused("KVM_GET_CLOCK"))?;
        // KVM says what time it was only if it keeps the clock by the time stamp counter.
        let says = data.flags & KVM_CLOCK_REALTIME != 0;
        Ok(Self {
            nanoseconds: data.clock,
            realtime: if says { data.realtime } else { now() },
        })
    }

    /// Lets the clock of `vm` go on from where it stood, or, if `realtime`, from where it would stand had it never stopped.
    ///
    /// # Errors
    /// [`Error::Kernel`], and [`Error::Invalid`] for a time beyond the clock's range.
    pub fn restore(&self, vm: &VmFd, realtime: bool) -> Result<(), Error> {
        let data = kvm_clock_data {
            clock: self.at(realtime.then(now))?,
            ..Default::default()
        };
        vm.set_clock(&data).map_err(refused("KVM_SET_CLOCK"))
    }

    /// What the clock says when the host's says `now`, if that counts. A host's clock that was set back does not turn it back.
    fn at(&self, now: Option<u64>) -> Result<u64, Error> {
        let passed = now.map_or(0, |now| now.saturating_sub(self.realtime));
        let clock = self.nanoseconds.saturating_add(passed);
        // KVM counts with signs.
        match i64::try_from(clock) {
            Ok(_) => Ok(clock),
            Err(_) => Err(Error::Invalid {
                component: ClockState::NAME,
                reason: format!("the clock would stand at {clock} ns, beyond its range of 292 years"),
            }),
        }
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::ClockState;

    #[test]
    fn it_jumps_forward_when_asked_and_never_back() {
        let clock = ClockState {
            nanoseconds: 5,
            realtime: 100,
        };
        assert_eq!(clock.at(None).unwrap(), 5);
        assert_eq!(clock.at(Some(107)).unwrap(), 12);
        assert_eq!(clock.at(Some(93)).unwrap(), 5);
        assert!(clock.at(Some(u64::MAX)).is_err());
    }
}
