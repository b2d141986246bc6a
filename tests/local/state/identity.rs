//! Identity record of a VM, as the guest `generation.elf` finds it.

use vmm::ErrorChain;
use vmm::config::{AddressLayout, IrqchipMode};

use super::saved::parse_sections;
use super::{Guest, Running, save};

const NAME: &str = "generation.elf";

/// Report of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Report {
    counter: u64,
    /// Generation ID and the words of the randomness, in hexadecimal.
    random: Vec<String>,
    interrupts: u32,
}

impl Report {
    fn read(guest: &mut Running) -> Self {
        let line = guest.read_line();
        let fields: Vec<&str> = line.split(' ').collect();
        let ["identity", counter, id, randomness, "interrupts", interrupts] = fields[..] else {
            panic!("{line}");
        };
        assert_eq!((id.len(), randomness.len()), (32, 128), "{line}");
        let words = (0..8).map(|word| &randomness[word * 16..][..16]);
        Self {
            counter: counter.parse().unwrap(),
            random: [id].into_iter().chain(words).map(str::to_owned).collect(),
            interrupts: interrupts.parse().unwrap(),
        }
    }

    /// Reads the report after an input byte.
    fn request(guest: &mut Running) -> Self {
        guest.send(b"?");
        Self::read(guest)
    }

    /// Expects that no part of the ID and of the randomness is equal in two of `reports`.
    fn expect_distinct(reports: &[&Self]) {
        for (index, report) in reports.iter().enumerate() {
            for other in &reports[..index] {
                for (part, same) in report.random.iter().zip(&other.random) {
                    assert_ne!(part, same, "{report:?} {other:?}");
                }
            }
        }
    }
}

/// Pauses `guest`, and resumes a clone of it.
fn resume_clone(guest: Guest, source: &Running) -> Running {
    source.machine.pause(scratch::TIMEOUT).unwrap();
    let clone = guest.clone_machine(&source.machine);
    clone.machine.resume().unwrap();
    clone
}

/// Command line with which the guest gets the interrupt.
const IOAPIC: &str = "ioapic=1";

fn check_identity(guest: Guest) {
    let has_interrupt = guest.cmdline == IOAPIC && guest.acpi;
    let expected = |counter: u32| (u64::from(counter), if has_interrupt { counter } else { 0 });
    // The interrupt alone wakes a clone. Without one, no output precedes the input byte.
    let read = |clone: &mut Running| match has_interrupt {
        true => Report::read(clone),
        false => Report::request(clone),
    };
    let mut source = guest.boot();
    let booted = Report::read(&mut source);
    assert_eq!((booted.counter, booted.interrupts), (0, 0));
    // Neither a pause nor a save changes it.
    source.machine.pause(scratch::TIMEOUT).unwrap();
    save(&source.machine);
    source.machine.resume().unwrap();
    assert_eq!(Report::request(&mut source), booted);

    let [first, second] = [(); 2].map(|()| read(&mut resume_clone(guest, &source)));
    let mut clone = resume_clone(guest, &source);
    let third = read(&mut clone);
    for report in [&first, &second, &third] {
        assert_eq!((report.counter, report.interrupts), expected(1));
    }
    clone.machine.pause(scratch::TIMEOUT).unwrap();
    clone.machine.resume().unwrap();
    assert_eq!(Report::request(&mut clone), third);
    let next = read(&mut resume_clone(guest, &clone));
    assert_eq!((next.counter, next.interrupts), expected(2));
    let other = Report::read(&mut guest.boot());
    Report::expect_distinct(&[&booted, &first, &second, &third, &next, &other]);

    // The source is no clone.
    source.machine.resume().unwrap();
    assert_eq!(Report::request(&mut source), booted);
}

#[test]
fn identity_changes_at_each_restore_only() {
    check_identity(Guest {
        cmdline: IOAPIC,
        vcpus: 2,
        ..Guest::new(NAME, IrqchipMode::Split)
    });
}

#[test]
fn identity_interrupt_arrives_by_kernel_irqchip() {
    check_identity(Guest {
        cmdline: IOAPIC,
        ..Guest::new(NAME, IrqchipMode::Kernel)
    });
}

/// A guest that uses local APICs alone may leave the lines of the PIC unmasked.
#[test]
fn identity_interrupt_does_not_reach_pic() {
    for irqchip in [IrqchipMode::Split, IrqchipMode::Kernel] {
        check_identity(Guest::new(NAME, irqchip));
    }
}

#[test]
fn identity_without_acpi_has_no_interrupt() {
    for irqchip in [IrqchipMode::Split, IrqchipMode::Kernel] {
        check_identity(Guest {
            cmdline: IOAPIC,
            acpi: false,
            ..Guest::new(NAME, irqchip)
        });
    }
}

/// A clone that is saved before its first resume has the old record in its memory.
#[test]
fn identity_of_unresumed_clone_changes_too() {
    let guest = Guest {
        cmdline: IOAPIC,
        ..Guest::new(NAME, IrqchipMode::Split)
    };
    let mut source = guest.boot();
    let booted = Report::read(&mut source);
    source.machine.pause(scratch::TIMEOUT).unwrap();
    let unresumed = guest.clone_machine(&source.machine);
    let mut clone = guest.clone_machine(&unresumed.machine);
    clone.machine.resume().unwrap();
    let cloned = Report::read(&mut clone);
    assert_eq!((cloned.counter, cloned.interrupts), (2, 1));
    Report::expect_distinct(&[&booted, &cloned]);
}

#[test]
fn state_of_older_layout_has_no_identity() {
    let old = Guest {
        layout: AddressLayout::V2,
        ..Guest::new(NAME, IrqchipMode::Split)
    };
    let mut source = old.boot();
    source.expect_line("no identity");
    source.machine.pause(scratch::TIMEOUT).unwrap();
    let state = save(&source.machine);
    assert!(!parse_sections(&state).iter().any(|(key, _)| key == "identity"));
    let mut clone = old.restore(&source.machine, &state);
    clone.machine.resume().unwrap();
    clone.send(b"?");
    // No line before it: there was no interrupt.
    assert_eq!(clone.read_line(), "no identity");

    let new = Guest {
        layout: AddressLayout::V3,
        ..old
    };
    let (restored, _printed) = new.try_restore(&source.machine, &state);
    let error = restored.err().unwrap();
    let message = ErrorChain(&error).to_string();
    assert!(message.contains("section \"identity\" is missing"), "{message}");
}
