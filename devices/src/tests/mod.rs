//! Round trips of every component with state: save, restore into a fresh component, save again, compare.
//!
//! A restored component must also continue exactly as the original.
//!
//! | module | contents |
//! |---|---|
//! | [`chips`] | fixtures of the devices of every machine |
//! | [`controllers`] | fixtures of the interrupt controllers |
//! | [`limiter`] | fixture of the rate limiter |
//! | [`virtio`] | fixtures of network and block devices behind their transport |

mod chips;
mod controllers;
mod limiter;
mod virtio;

use std::fmt::Debug;
use std::fs;
use std::path::Path;

use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use snapshot::{ArchiveReader, ArchiveWriter, Component};

use crate::bus::BusDevice;

/// Name of a state, and the actions that bring a fresh component into it.
type StateSetup<F> = (&'static str, fn(&mut F));

/// A component and its environment.
trait Fixture: Sized + 'static {
    /// Names of the covered types.
    const TYPES: &'static [&'static str];
    /// Number of register addresses, 0 without registers.
    const REGISTERS: u64;
    /// Distinct states besides the fresh one.
    const STATES: &'static [StateSetup<Self>];

    /// Creates a fresh component.
    fn new() -> Self;

    /// Creates a fresh component at the same time and with a copy of the memory.
    fn fresh_copy(&self) -> Self;

    /// Returns the component.
    fn component(&mut self) -> &mut dyn Component;

    /// Returns the device that holds its registers.
    fn registers(&mut self) -> Option<&mut dyn BusDevice>;

    /// Applies an external event and returns its visible effect.
    fn apply_event(&mut self, _event: u16) -> u64 {
        0
    }

    /// Completes requests in flight before a save.
    fn drain(&mut self) {}

    /// Resumes the component after a restore.
    fn resume(&mut self) {}

    /// Returns the memory that the guest sees.
    fn memory(&self) -> Vec<u8> {
        Vec::new()
    }
}

fn save<F: Fixture>(fixture: &mut F) -> Vec<u8> {
    fixture.drain();
    let mut archive = ArchiveWriter::new();
    fixture
        .component()
        .save_section("component", &mut archive)
        .unwrap();
    archive.into_bytes()
}

fn restore<F: Fixture>(fixture: &mut F, state: &[u8]) {
    let mut archive = ArchiveReader::parse(state).unwrap();
    fixture
        .component()
        .restore_section("component", &mut archive)
        .unwrap();
    archive.finish().unwrap();
}

/// Creates a component in the state of `setup`; fresh if `None`.
fn in_state<F: Fixture>(setup: Option<&StateSetup<F>>) -> F {
    let mut fixture = F::new();
    if let Some((_, apply)) = setup {
        apply(&mut fixture);
    }
    fixture
}

/// Creates a component in each state, with the name of the state.
fn all_states<F: Fixture>() -> impl Iterator<Item = (&'static str, F)> {
    let states = F::STATES.iter().map(|setup| (setup.0, in_state(Some(setup))));
    [("fresh", F::new())].into_iter().chain(states)
}

/// Checks the round trip of every state.
fn check_round_trip<F: Fixture>() {
    let mut seen = Vec::new();
    for (name, mut fixture) in all_states::<F>() {
        let state = save(&mut fixture);
        assert_eq!(save(&mut fixture), state, "{name}: a save changes the state");
        let mut fresh = fixture.fresh_copy();
        restore(&mut fresh, &state);
        assert!(save(&mut fresh) == state, "{name}: the restored state differs");
        // A restore replaces every earlier state.
        for (earlier, mut used) in all_states::<F>() {
            restore(&mut used, &state);
            assert!(
                save(&mut used) == state,
                "{name}: the state restored over {earlier} differs"
            );
        }
        let current = (state, fixture.memory());
        compare_registers(&mut fixture, &mut fresh, name);
        for (other, same) in &seen {
            assert!(*same != current, "{name} equals {other}: its setup has no effect");
        }
        seen.push((name, current));
    }
}

/// Resumes both components and compares all registers, read by bytes and by words.
fn compare_registers<F: Fixture>(original: &mut F, copy: &mut F, state: &str) {
    original.resume();
    copy.resume();
    for width in [1, 4] {
        for offset in 0..F::REGISTERS {
            let room = usize::try_from(F::REGISTERS - offset).unwrap();
            let step = Step::Read(offset, room.min(width));
            assert_eq!(
                apply_step(copy, &step),
                apply_step(original, &step),
                "{state}: register {offset:#x}"
            );
        }
    }
}

/// One action on a component.
#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Event(u16),
}

fn steps(registers: u64) -> impl Strategy<Value = Vec<Step>> {
    // Addresses are modulo the number of registers. Without registers, only events have an effect.
    let range = (any::<u64>(), 0_u32..4).prop_map(move |(offset, width)| {
        let offset = offset % registers.max(1);
        let room = usize::try_from(registers - offset.min(registers)).unwrap();
        (offset, (1_usize << width).min(room))
    });
    let write = (range.clone(), any::<[u8; 8]>())
        .prop_map(|((offset, width), data)| Step::Write(offset, data[..width].to_vec()));
    let step = prop_oneof![
        2 => range.prop_map(|(offset, width)| Step::Read(offset, width)),
        3 => write,
        2 => any::<u16>().prop_map(Step::Event),
    ];
    proptest::collection::vec(step, 0..48)
}

/// Applies `step` and returns its visible effect.
fn apply_step<F: Fixture>(fixture: &mut F, step: &Step) -> Vec<u8> {
    let mut seen = Vec::new();
    match (step, fixture.registers()) {
        (Step::Event(event), _) => seen.extend(fixture.apply_event(*event).to_le_bytes()),
        (Step::Read(offset, width), Some(registers)) => {
            seen.resize(*width, 0);
            registers.read(*offset, &mut seen);
        }
        (Step::Write(offset, data), Some(registers)) => registers.write(*offset, data),
        (_, None) => {}
    }
    fixture.drain();
    seen
}

/// Checks that a component restored from any reachable state continues as the original.
fn check_continuation<F: Fixture>() {
    let past = (0..=F::STATES.len(), steps(F::REGISTERS));
    let cases = (past, steps(F::REGISTERS));
    let mut runner = TestRunner::new(Config {
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&cases, |((state, past), future)| {
        let mut original: F = in_state(state.checked_sub(1).and_then(|state| F::STATES.get(state)));
        for step in &past {
            apply_step(&mut original, step);
        }
        let state = save(&mut original);
        let mut copy = original.fresh_copy();
        restore(&mut copy, &state);
        assert!(save(&mut copy) == state, "the restored state differs");
        original.resume();
        copy.resume();
        for step in &future {
            assert_eq!(
                apply_step(&mut copy, step),
                apply_step(&mut original, step),
                "{step:x?}"
            );
        }
        assert!(
            save(&mut copy) == save(&mut original),
            "the states differ after the same steps"
        );
        assert!(
            copy.memory() == original.memory(),
            "the memories differ after the same steps"
        );
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

macro_rules! table {
    ($($name:ident: $fixture:ty,)*) => {
        $(mod $name {
            use super::*;

            #[test]
            fn every_state_round_trips() {
                check_round_trip::<$fixture>();
            }

            #[test]
            fn restored_component_continues_as_original() {
                check_continuation::<$fixture>();
            }
        })*

        /// Types in the table.
        const COVERED: &[&[&str]] = &[$(<$fixture>::TYPES),*];
    };
}

table! {
    cmos: chips::CmosFixture,
    exit_port: chips::ExitFixture,
    i8042: chips::I8042Fixture,
    ioapic: controllers::IoapicFixture,
    irqchip: controllers::IrqchipFixture,
    token_buckets: limiter::LimiterFixture,
    pic: controllers::PicFixture,
    pit: chips::PitFixture,
    power_off_port: chips::PowerOffFixture,
    pl011: chips::Pl011Fixture,
    rtc: chips::RtcFixture,
    serial: chips::SerialFixture,
    sleep_port: chips::SleepFixture,
    disk_by_io_uring: virtio::DiskFixture<true>,
    disk: virtio::DiskFixture<false>,
    net: virtio::NetFixture,
}

/// Collects the source files below `directory`, without tests.
fn collect_sources(directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let is_test = ["tests", "tests.rs", "testing", "testing.rs"]
            .iter()
            .any(|name| path.ends_with(name));
        if is_test {
            continue;
        }
        if path.is_dir() {
            collect_sources(&path, found);
        } else {
            found.push(fs::read_to_string(&path).unwrap());
        }
    }
}

/// Returns the types in `text` with state: by an `impl`, or by the macro for empty state.
fn stateful_types(text: &str) -> Vec<String> {
    let word = |text: &str| {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
        text[..end.unwrap_or(text.len())].to_owned()
    };
    let implementations = text.lines().filter(|line| line.trim_start().starts_with("impl"));
    let mut found: Vec<String> = ["Persist for ", "Component for "]
        .iter()
        .flat_map(|of| {
            implementations
                .clone()
                .filter_map(move |line| line.split_once(of))
        })
        .map(|(_, rest)| word(rest))
        .filter(|name| !name.is_empty())
        .collect();
    for list in text.split("persist_nothing!(").skip(1) {
        let list = list.split(')').next().unwrap();
        found.extend(list.split(',').map(|name| name.trim().to_owned()));
    }
    found
}

#[test]
fn every_stateful_type_is_in_table() {
    let mut texts = Vec::new();
    collect_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut texts);
    let types: Vec<String> = texts.iter().flat_map(|text| stateful_types(text)).collect();
    assert!(
        ["Cmos", "SleepPort", "Transport"]
            .iter()
            .all(|name| types.iter().any(|found| found == name)),
        "the parser misses types: {types:?}"
    );
    let covered = COVERED.concat();
    for name in &types {
        assert!(covered.contains(&name.as_str()), "no fixture covers {name}");
    }
    for name in covered {
        assert!(types.iter().any(|found| found == name), "{name} has no state");
    }
}
