//! The local APIC's timer where it counts down. A deadline of the time stamp counter is an MSR.
//!
//! KVM keeps the time at which the count is over. When that has come, a timer of the host has to run, and `KVM_RUN` after it, before
//! there is an interrupt in the local APIC; until then the count alone, which KVM works out when it is asked, shows it.

use std::array;
use std::thread;
use std::time::Duration;

use kvm_bindings::kvm_lapic_state;

/// Registers of the local APIC: Intel's manual, volume 3, table 11-1.
const LVT_TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
/// The mode in [`LVT_TIMER`], of which 0 is that of a count that ends.
const MODE: u32 = 3 << 17;

/// A sleep that is over only after timers of the host that were due when it began: they are of the same clock, and on the processor
/// on which the vCPU was last, which is the one that its thread sleeps on.
const WAIT: Duration = Duration::from_micros(50);

/// Waits until the host has done its part if the count in `lapic` is over. Its part comes late where the host's processors are in
/// demand.
pub fn wait_for_expiry(lapic: &kvm_lapic_state) {
    if is_over(lapic) {
        thread::sleep(WAIT);
    }
}

/// Whether a timer has expired between two readings: it has begun again, or has stopped.
pub fn has_expired(before: &kvm_lapic_state, after: &kvm_lapic_state) -> bool {
    let [before, after] = [before, after].map(|lapic| register(lapic, CURRENT_COUNT));
    after > before || after == 0 && before > 0
}

/// Has a count that is over, and whose interrupt has been made, not begin anew when it is restored, as KVM would have it: it would be
/// over once more. The guest reads an initial count of 0 then, of a timer that it has to load before it can use it again.
pub fn disarm_expired(lapic: &mut kvm_lapic_state) {
    if is_over(lapic) && register(lapic, LVT_TIMER) & MODE == 0 {
        lapic.regs[INITIAL_COUNT..INITIAL_COUNT + 4].fill(0);
    }
}

fn is_over(lapic: &kvm_lapic_state) -> bool {
    register(lapic, INITIAL_COUNT) != 0 && register(lapic, CURRENT_COUNT) == 0
}

fn register(lapic: &kvm_lapic_state, at: usize) -> u32 {
    u32::from_le_bytes(array::from_fn(|byte| lapic.regs[at + byte].cast_unsigned()))
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_lapic_state;

    use super::{CURRENT_COUNT, INITIAL_COUNT, LVT_TIMER, disarm_expired, has_expired, register};

    fn lapic(mode: u8, initial: u8, current: u8) -> kvm_lapic_state {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[LVT_TIMER] = 0x40;
        lapic.regs[LVT_TIMER + 2] = (mode << 1).cast_signed();
        lapic.regs[INITIAL_COUNT] = initial.cast_signed();
        lapic.regs[CURRENT_COUNT] = current.cast_signed();
        lapic
    }

    #[test]
    fn registers_have_four_bytes() {
        let mut lapic = kvm_lapic_state::default();
        for (register, value) in lapic.regs[CURRENT_COUNT..].iter_mut().zip([1, 2, 3, -1]) {
            *register = value;
        }
        assert_eq!(register(&lapic, CURRENT_COUNT), 0xff03_0201);
    }

    #[test]
    fn a_timer_has_expired_when_its_count_is_not_lower() {
        for (before, after, expired) in [
            (0, 0, false),
            (7, 7, false),
            (7, 1, false),
            (7, 0, true),
            (7, 8, true),
            (0, 1, true),
        ] {
            let [before, after] = [before, after].map(|count| lapic(0, 9, count));
            assert_eq!(has_expired(&before, &after), expired);
        }
    }

    #[test]
    fn only_a_count_that_ends_and_is_over_is_retired() {
        for (mode, initial, current, left) in [
            (0, 9, 0, 0),
            (0, 9, 3, 9),
            (0, 0, 0, 0),
            // Periodic, and by deadlines.
            (1, 9, 0, 9),
            (2, 0, 0, 0),
        ] {
            let mut lapic = lapic(mode, initial, current);
            disarm_expired(&mut lapic);
            assert_eq!(
                register(&lapic, INITIAL_COUNT),
                left,
                "mode {mode}, {current} of {initial}"
            );
        }
    }
}
