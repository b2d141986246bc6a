//! What is in a saved state, byte by byte.

use std::time::Instant;

use snapshot::ArchiveWriter;
use vmm::config::IrqchipMode;

use super::{Guest, save};

/// Sections that are time and little else.
const CLOCKS: [&str; 3] = ["clock", "cmos", "pit"];

/// Bytes from the first to the last in which two states differ, by section, clocks left out.
fn differences(first: &[u8], second: &[u8]) -> Vec<(String, usize)> {
    let [first, second] = [first, second].map(|state| {
        let mut sections = sections(state);
        let vcpus = sections.iter_mut().filter(|(key, _)| key.starts_with("vcpu/"));
        vcpus.for_each(|(_, payload)| use_sse(payload));
        sections
    });
    assert_eq!(first.len(), second.len());
    let pairs = first.into_iter().zip(second);
    pairs
        .filter(|((key, _), _)| !CLOCKS.contains(&key.as_str()))
        .map(|((key, before), (same, after))| {
            assert_eq!((&key, before.len()), (&same, after.len()));
            let mut places = (0..before.len()).filter(|place| before[*place] != after[*place]);
            let first = places.next();
            let length = first.map_or(0, |first| places.next_back().unwrap_or(first) + 1 - first);
            (key, length)
        })
        .collect()
}

/// Says of a vCPU's state that the SSE registers are in use. A processor may say so of registers that have their initial
/// values, and then not again once the thread was preempted (Intel's manual, volume 1, 13.6), which is no difference.
fn use_sse(payload: &mut [u8]) {
    // Where the XSAVE area has MXCSR, which is as after a reset, and in front of its mask.
    let mxcsr = payload
        .windows(6)
        .position(|bytes| bytes == [0x80, 0x1f, 0, 0, 0xff, 0xff]);
    let mxcsr = mxcsr.expect("an XSAVE area with the initial MXCSR");
    // The header of the area begins with what is in use.
    payload[mxcsr - 24 + 512] |= 2;
}

/// Keys and payloads, by the format that the crate `snapshot` documents.
fn sections(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
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
fn a_state_that_was_restored_is_saved_as_it_was() {
    let kinds = [IrqchipMode::Split, IrqchipMode::Kernel];
    for (irqchip, vcpus) in kinds.into_iter().flat_map(|kind| [(kind, 1), (kind, 4)]) {
        let echo = Guest {
            vcpus,
            devices: true,
            ..Guest::new("echo-ioapic.elf", irqchip)
        };
        let mut guest = echo.boot();
        guest.wait_for("ready");
        guest.machine.pause();
        guest.send(b"pending");
        let first = save(&guest.machine);
        let clone = echo.resumed(&guest.machine, &first);
        // What can be done ahead of going on changes nothing.
        clone.machine.prepare_resume();
        let second = save(&clone.machine);
        for (key, different) in differences(&first, &second) {
            let allowed = match key.as_str() {
                // The time stamp counter.
                key if key.starts_with("vcpu/") => 10,
                // When each counter of the PIT in the kernel was loaded.
                "irqchip" if irqchip == IrqchipMode::Kernel => 3 * 24,
                _ => 0,
            };
            assert!(different <= allowed, "{key} differs within {different} bytes");
        }
    }
}

/// Whether the local APIC in the state of the first vCPU has the interrupt of `vector` pending.
fn is_pending(state: &[u8], vector: usize) -> bool {
    let vcpu = sections(state).into_iter().find(|(key, _)| key == "vcpu/0");
    let (_, payload) = vcpu.unwrap();
    // The only run of 1024 bytes: its length comes before it, and at 0x30 the version of all of KVM's local APICs.
    let at = (0..payload.len() - 1026)
        .find(|at| payload[*at..at + 2] == [0x80, 8] && payload[at + 0x32] == 0x14)
        .unwrap();
    let requests = at + 2 + 0x200;
    payload[requests + vector / 32 * 0x10 + vector % 32 / 8] & 1 << (vector % 8) != 0
}

/// KVM makes an interrupt of it only when the guest is entered again.
#[test]
fn a_timer_that_expires_while_the_guest_is_paused_is_in_the_state() {
    let mut guest = Guest::new("ticker.elf", IrqchipMode::Split).boot();
    guest.tick();
    guest.machine.pause();
    let begin = Instant::now();
    while !is_pending(&save(&guest.machine), 0x40) {
        assert!(begin.elapsed().as_secs() < 60, "a timer of 10 ms does not expire");
    }
}

/// Devices and memory may have changed then, and are saved again.
#[test]
fn a_timer_that_expires_while_the_state_is_read_is_told() {
    let mut guest = Guest::new("ticker.elf", IrqchipMode::Split).boot();
    guest.tick();
    guest.machine.pause();
    let begin = Instant::now();
    let mut seen = [false; 2];
    while seen != [true; 2] {
        assert!(
            begin.elapsed().as_secs() < 60,
            "whether a timer expired is always told the same: {seen:?}"
        );
        let saving = guest.machine.begin_save().unwrap();
        let mut archive = ArchiveWriter::new();
        saving.save_devices(&mut archive).unwrap();
        let is_changed = saving.finish(&mut archive).unwrap();
        seen[usize::from(is_changed)] = true;
    }
}

/// KVM begins a count that is over anew, and it is over again.
#[test]
fn a_timer_that_has_expired_does_not_do_so_again() {
    let once = Guest::new("once.elf", IrqchipMode::Split);
    let mut guest = once.boot();
    guest.wait_for("ready");
    for _ in 0..3 {
        guest.machine.pause();
        guest = once.clone_of(&guest.machine);
        guest.machine.resume();
        // The first answer may be on its way when an interrupt comes.
        for _ in 0..2 {
            guest.send(b"?");
            assert_eq!(guest.line(), "ticks 1");
        }
    }
}
