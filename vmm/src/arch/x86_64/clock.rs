//! kvmclock: the guest's time since its boot, one for all vCPUs.

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
    /// Nanoseconds of the host's real-time clock at the same moment; Linux before 5.16 does not say.
    realtime: Option<u64>,
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
        let says = data.flags & KVM_CLOCK_REALTIME != 0;
        Ok(Self {
            nanoseconds: data.clock,
            realtime: says.then_some(data.realtime),
        })
    }

    /// Lets the clock of `vm` go on from where it stood, or, if `realtime`, from where it would stand had it never stopped.
    ///
    /// # Errors
    /// [`Error::Kernel`], and [`Error::Invalid`] for a clock that cannot jump or has no room to.
    pub fn restore(&self, vm: &VmFd, realtime: bool) -> Result<(), Error> {
        vm.set_clock(&self.data(realtime)?)
            .map_err(refused("KVM_SET_CLOCK"))
    }

    fn data(&self, realtime: bool) -> Result<kvm_clock_data, Error> {
        let invalid = |reason: &str| Error::Invalid {
            component: ClockState::NAME,
            reason: reason.to_owned(),
        };
        // Half of the range, 292 years: KVM counts with signs.
        if i64::try_from(self.nanoseconds).is_err() {
            return Err(invalid("the clock stands beyond its range"));
        }
        let mut data = kvm_clock_data {
            clock: self.nanoseconds,
            ..Default::default()
        };
        if realtime {
            data.flags = KVM_CLOCK_REALTIME;
            data.realtime = self.realtime.ok_or_else(|| {
                invalid(
                    "it was saved on a kernel before Linux 5.16, which does not say what time it was: restore it without a \
                     jump of the clock",
                )
            })?;
        }
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::KVM_CLOCK_REALTIME;

    use super::ClockState;

    #[test]
    fn it_jumps_only_when_asked_and_able() {
        let mut clock = ClockState {
            nanoseconds: 5,
            realtime: Some(7),
        };
        let still = clock.data(false).unwrap();
        assert_eq!((still.clock, still.flags, still.realtime), (5, 0, 0));
        let jumping = clock.data(true).unwrap();
        assert_eq!(
            (jumping.clock, jumping.flags, jumping.realtime),
            (5, KVM_CLOCK_REALTIME, 7)
        );
        clock.realtime = None;
        assert!(clock.data(true).unwrap_err().to_string().contains("Linux 5.16"));
        clock.nanoseconds = u64::MAX;
        assert!(clock.data(false).is_err());
    }
}
