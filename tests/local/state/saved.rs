//! Bytes of a saved state.

use std::time::Instant;

use snapshot::ArchiveWriter;
use vmm::config::IrqchipMode;

use super::{Guest, save};

/// Sections that consist mainly of times.
const CLOCKS: [&str; 3] = ["clock", "cmos", "pit"];

/// Returns the distance from the first to the last differing byte of each section, without clocks.
fn differences(first: &[u8], second: &[u8]) -> Vec<(String, usize)> {
    let [first, second] = [first, second].map(|state| {
        let mut sections = parse_sections(state);
        let vcpus = sections.iter_mut().filter(|(key, _)| key.starts_with("vcpu/"));
        vcpus.for_each(|(_, payload)| mark_sse_in_use(payload));
        sections
    });
    assert_eq!(first.len(), second.len());
    let pairs = first.into_iter().zip(second);
    pairs
        .filter(|((key, _), _)| !CLOCKS.contains(&key.as_str()))
        .map(|((key, before), (same, after))| {
            assert_eq!((&key, before.len()), (&same, after.len()));
            let mut offsets = (0..before.len()).filter(|offset| before[*offset] != after[*offset]);
            let first = offsets.next();
            let length = first.map_or(0, |first| offsets.next_back().unwrap_or(first) + 1 - first);
            (key, length)
        })
        .collect()
}

/// Marks the SSE registers of a vCPU state as in use. The CPU may report registers with initial values either way, depending
/// on preemption (Intel SDM volume 1, section 13.6).
fn mark_sse_in_use(payload: &mut [u8]) {
    // MXCSR with its reset value, before MXCSR_MASK.
    let mxcsr = payload
        .windows(6)
        .position(|bytes| bytes == [0x80, 0x1f, 0, 0, 0xff, 0xff]);
    let mxcsr = mxcsr.expect("an XSAVE area with the initial MXCSR");
    // XSTATE_BV is the first field of the XSAVE header, at offset 512 of the area.
    payload[mxcsr - 24 + 512] |= 2;
}

/// Parses keys and payloads, in the format of the crate `snapshot`.
pub(super) fn parse_sections(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut sections = Vec::new();
    let mut take = |length: usize| bytes.split_off(..length).map(<[u8]>::to_vec);
    while let Some(length) = take(2) {
        let key = take(usize::from(length[0])).unwrap();
        let name = take(2).unwrap();
        take(usize::from(name[0]) + 4).unwrap();
        let length = u32::from_le_bytes(take(4).unwrap().try_into().unwrap());
        let payload = take(usize::try_from(length).unwrap()).unwrap();
        sections.push((String::from_utf8(key).unwrap(), payload));
    }
    sections
}

#[test]
fn restored_state_saves_unchanged() {
    let kinds = [IrqchipMode::Split, IrqchipMode::Kernel];
    for (irqchip, vcpus) in kinds.into_iter().flat_map(|kind| [(kind, 1), (kind, 4)]) {
        let echo = Guest {
            vcpus,
            has_devices: true,
            ..Guest::new("echo-ioapic.elf", irqchip)
        };
        let mut guest = echo.boot();
        guest.expect_line("ready");
        guest.machine.pause(scratch::TIMEOUT).unwrap();
        guest.send(b"pending");
        let first = save(&guest.machine);
        let clone = echo.restore(&guest.machine, &first);
        // Preparation of the resume does not change the state.
        clone.machine.prepare_resume();
        let second = save(&clone.machine);
        for (key, different) in differences(&first, &second) {
            let allowed = match key.as_str() {
                // The MSR of the TSC.
                key if key.starts_with("vcpu/") => 10,
                // Load times of the three counters of the in-kernel PIT.
                "irqchip" if irqchip == IrqchipMode::Kernel => 3 * 24,
                // The number of loads.
                "identity" => 1,
                _ => 0,
            };
            assert!(different <= allowed, "{key} differs within {different} bytes");
        }
    }
}

/// Returns whether `vector` is pending in the IRR of the first vCPU's local APIC.
fn is_pending(state: &[u8], vector: usize) -> bool {
    let vcpu = parse_sections(state).into_iter().find(|(key, _)| key == "vcpu/0");
    let (_, payload) = vcpu.unwrap();
    // The LAPIC page is the only field of 1024 bytes: its length precedes it, and 0x30 holds the version of KVM's LAPIC.
    let at = (0..payload.len() - 1026)
        .find(|at| payload[*at..at + 2] == [0x80, 8] && payload[at + 0x32] == 0x14)
        .unwrap();
    let requests = at + 2 + 0x200;
    payload[requests + vector / 32 * 0x10 + vector % 32 / 8] & 1 << (vector % 8) != 0
}

/// KVM defers the timer interrupt to the next guest entry.
#[test]
fn timer_expiry_during_pause_is_saved() {
    let mut guest = Guest::new("ticker.elf", IrqchipMode::Split).boot();
    guest.read_tick();
    guest.machine.pause(scratch::TIMEOUT).unwrap();
    let begin = Instant::now();
    while !is_pending(&save(&guest.machine), 0x40) {
        assert!(begin.elapsed().as_secs() < 60, "a timer of 10 ms does not expire");
    }
}

/// The expiry may change devices and memory, which the caller then saves again.
#[test]
fn timer_expiry_during_save_is_reported() {
    let mut guest = Guest::new("ticker.elf", IrqchipMode::Split).boot();
    guest.read_tick();
    guest.machine.pause(scratch::TIMEOUT).unwrap();
    let begin = Instant::now();
    let mut seen = [false; 2];
    while seen != [true; 2] {
        assert!(
            begin.elapsed().as_secs() < 60,
            "the result does not vary: {seen:?}"
        );
        let state_save = guest.machine.begin_save().unwrap();
        let mut archive = ArchiveWriter::new();
        state_save.save_devices(&mut archive).unwrap();
        let is_changed = state_save.finish(&mut archive).unwrap();
        seen[usize::from(is_changed)] = true;
    }
}

/// KVM restarts an expired one-shot count at restore, which would expire again.
#[test]
fn expired_timer_does_not_fire_again() {
    let once = Guest::new("once.elf", IrqchipMode::Split);
    let mut guest = once.boot();
    guest.expect_line("ready");
    for _ in 0..3 {
        guest.machine.pause(scratch::TIMEOUT).unwrap();
        guest = once.clone_machine(&guest.machine);
        guest.machine.resume().unwrap();
        // The first response may precede a spurious interrupt, the second does not.
        for _ in 0..2 {
            guest.send(b"?");
            assert_eq!(guest.read_line(), "ticks 1");
        }
    }
}
