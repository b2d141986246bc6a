//! Timer of the local APIC in one-shot and periodic mode: Intel SDM volume 3A, section 11.5.4. A TSC deadline is an MSR.
//!
//! KVM stores the expiration time. The interrupt reaches the local APIC only after a host timer has fired and `KVM_RUN` has
//! been called. Until then only the current count, which KVM computes on each read, shows the expiration.

use std::array;
use std::thread;
use std::time::Duration;

use kvm_bindings::kvm_lapic_state;

/// Offsets of local APIC registers: Intel SDM volume 3A, table 11-1.
const LVT_TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
/// Timer mode in [`LVT_TIMER`]; 0 is one-shot.
const MODE: u32 = 3 << 17;

/// Sleep that ends after host timers that were due at its start: they use the same clock, on the processor on which the vCPU
/// thread ran last and now sleeps.
const EXPIRY_WAIT: Duration = Duration::from_micros(50);

/// Waits for the host timer if the count in `lapic` has expired. The host timer is late on a loaded host.
pub fn wait_for_expiry(lapic: &kvm_lapic_state) {
    if is_expired(lapic) {
        thread::sleep(EXPIRY_WAIT);
    }
}

/// Returns true if the timer expired between two reads: the count restarted or stopped.
pub fn has_expired(before: &kvm_lapic_state, after: &kvm_lapic_state) -> bool {
    let [before, after] = [before, after].map(|lapic| register(lapic, CURRENT_COUNT));
    after > before || after == 0 && before > 0
}

/// Clears the initial count of an expired one-shot timer, whose interrupt has been delivered. KVM restarts a nonzero count at
/// the restore, and the timer expires a second time. The guest then reads an initial count of 0; it must write the count to
/// use the timer again.
pub fn disarm_expired(lapic: &mut kvm_lapic_state) {
    if is_expired(lapic) && register(lapic, LVT_TIMER) & MODE == 0 {
        lapic.regs[INITIAL_COUNT..INITIAL_COUNT + 4].fill(0);
    }
}

fn is_expired(lapic: &kvm_lapic_state) -> bool {
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
    fn register_is_four_bytes() {
        let mut lapic = kvm_lapic_state::default();
        for (register, value) in lapic.regs[CURRENT_COUNT..].iter_mut().zip([1, 2, 3, -1]) {
            *register = value;
        }
        assert_eq!(register(&lapic, CURRENT_COUNT), 0xff03_0201);
    }

    #[test]
    fn timer_expired_if_count_rose_or_reached_zero() {
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
    fn expired_one_shot_timer_is_disarmed() {
        for (mode, initial, current, left) in [
            (0, 9, 0, 0),
            (0, 9, 3, 9),
            (0, 0, 0, 0),
            // Periodic, and TSC deadline.
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
