//! Everything with state, in every state that matters: saved, restored into a fresh one and saved again, it is the same, and
//! it goes on as the one that was saved.
//!
//! | module | holds |
//! |---|---|
//! | [`chips`] | what a machine always has |
//! | [`controllers`] | the interrupt controllers |
//! | [`limiter`] | what keeps devices from doing too much |
//! | [`virtio`] | network and block devices behind their transport |

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

/// How a component gets into a state: what it is called, and what is done to a fresh one.
type Stage<B> = (&'static str, fn(&mut B));

/// A component, and all that is around it.
trait Bench: Sized + 'static {
    /// The types of which it is the proof.
    const OF: &'static [&'static str];
    /// Addresses of the registers, 0 if there are none.
    const REGISTERS: u64;
    /// States beyond that of a fresh one. No two of them are equal.
    const STAGES: &'static [Stage<Self>];

    /// A fresh one.
    fn new() -> Self;

    /// A fresh one like this one, at the same time and with a copy of its memory.
    fn another(&self) -> Self;

    fn component(&mut self) -> &mut dyn Component;

    /// What its registers are reached by.
    fn registers(&mut self) -> Option<&mut dyn BusDevice>;

    /// Something that comes from outside, and what is seen of it there.
    fn happens(&mut self, _what: u16) -> u64 {
        0
    }

    /// What is done before the state is saved.
    fn quiet(&mut self) {}

    /// What is done once before the guest goes on after a restore.
    fn resume(&mut self) {}

    /// What the guest sees beside registers.
    fn memory(&self) -> Vec<u8> {
        Vec::new()
    }
}

fn save<B: Bench>(bench: &mut B) -> Vec<u8> {
    bench.quiet();
    let mut archive = ArchiveWriter::new();
    bench.component().save_section("it", &mut archive).unwrap();
    archive.into_bytes()
}

fn restore<B: Bench>(bench: &mut B, state: &[u8]) {
    let mut archive = ArchiveReader::parse(state).unwrap();
    bench.component().restore_section("it", &mut archive).unwrap();
    archive.finish().unwrap();
}

/// A fresh one, `None`, or one at `stage`.
fn at<B: Bench>(stage: Option<&Stage<B>>) -> B {
    let mut bench = B::new();
    if let Some((_, reach)) = stage {
        reach(&mut bench);
    }
    bench
}

/// [`at`] each of its stages, and what that is called.
fn everywhere<B: Bench>() -> impl Iterator<Item = (&'static str, B)> {
    let stages = B::STAGES.iter().map(|stage| (stage.0, at(Some(stage))));
    [("fresh", B::new())].into_iter().chain(stages)
}

/// The generic test.
fn returns<B: Bench>() {
    let mut seen = Vec::new();
    for (stage, mut bench) in everywhere::<B>() {
        let state = save(&mut bench);
        assert_eq!(save(&mut bench), state, "{stage}: to be saved changes nothing");
        let mut fresh = bench.another();
        restore(&mut fresh, &state);
        assert!(save(&mut fresh) == state, "{stage}: another one comes out");
        // Nothing stays of what was before.
        for (earlier, mut lived) in everywhere::<B>() {
            restore(&mut lived, &state);
            assert!(
                save(&mut lived) == state,
                "{stage}: it is not what it was after {earlier}"
            );
        }
        let here = (state, bench.memory());
        read_alike(&mut bench, &mut fresh, stage);
        for (other, same) in &seen {
            assert!(
                *same != here,
                "{stage} is the same as {other}: it was not reached"
            );
        }
        seen.push((stage, here));
    }
}

/// The guest goes on, and reads everything, bytes and words.
fn read_alike<B: Bench>(original: &mut B, copy: &mut B, stage: &str) {
    original.resume();
    copy.resume();
    for width in [1, 4] {
        for offset in 0..B::REGISTERS {
            let room = usize::try_from(B::REGISTERS - offset).unwrap();
            let step = Step::Read(offset, room.min(width));
            assert_eq!(
                take(copy, &step),
                take(original, &step),
                "{stage}: register {offset:#x}"
            );
        }
    }
}

/// Something that is done to a component.
#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Happens(u16),
}

fn steps(registers: u64) -> impl Strategy<Value = Vec<Step>> {
    // Addresses are taken modulo the number of registers; without any, all that is left is what happens.
    let place = (any::<u64>(), 0_u32..4).prop_map(move |(offset, width)| {
        let offset = offset % registers.max(1);
        let room = usize::try_from(registers - offset.min(registers)).unwrap();
        (offset, (1_usize << width).min(room))
    });
    let write = (place.clone(), any::<[u8; 8]>())
        .prop_map(|((offset, width), data)| Step::Write(offset, data[..width].to_vec()));
    let step = prop_oneof![
        2 => place.prop_map(|(offset, width)| Step::Read(offset, width)),
        3 => write,
        2 => any::<u16>().prop_map(Step::Happens),
    ];
    proptest::collection::vec(step, 0..48)
}

/// Does `step`, and what the guest or somebody else sees of it.
fn take<B: Bench>(bench: &mut B, step: &Step) -> Vec<u8> {
    let mut seen = Vec::new();
    match (step, bench.registers()) {
        (Step::Happens(what), _) => seen.extend(bench.happens(*what).to_le_bytes()),
        (Step::Read(offset, width), Some(registers)) => {
            seen.resize(*width, 0);
            registers.read(*offset, &mut seen);
        }
        (Step::Write(offset, data), Some(registers)) => registers.write(*offset, data),
        (_, None) => {}
    }
    bench.quiet();
    seen
}

/// Wherever one is after anything that a guest may do, another one in its place goes on as it does.
fn goes_on<B: Bench>() {
    let past = (0..=B::STAGES.len(), steps(B::REGISTERS));
    let cases = (past, steps(B::REGISTERS));
    let mut runner = TestRunner::new(Config {
        failure_persistence: None,
        ..Config::default()
    });
    let done = runner.run(&cases, |((stage, past), future)| {
        let mut original: B = at(stage.checked_sub(1).and_then(|stage| B::STAGES.get(stage)));
        for step in &past {
            take(&mut original, step);
        }
        let state = save(&mut original);
        let mut copy = original.another();
        restore(&mut copy, &state);
        assert!(save(&mut copy) == state, "another one comes out");
        original.resume();
        copy.resume();
        for step in &future {
            assert_eq!(take(&mut copy, step), take(&mut original, step), "{step:x?}");
        }
        assert!(save(&mut copy) == save(&mut original), "they went different ways");
        assert!(copy.memory() == original.memory(), "they left different memory");
        Ok(())
    });
    if let Err(error) = done {
        panic!("{error}");
    }
}

macro_rules! table {
    ($($name:ident: $bench:ty,)*) => {
        $(mod $name {
            use super::*;

            #[test]
            fn every_state_returns() {
                returns::<$bench>();
            }

            #[test]
            fn a_restored_one_goes_on_as_the_original() {
                goes_on::<$bench>();
            }
        })*

        /// Types that are in the table.
        const PROVEN: &[&[&str]] = &[$(<$bench>::OF),*];
    };
}

table! {
    cmos: chips::CmosBench,
    exit_port: chips::ExitBench,
    i8042: chips::I8042Bench,
    ioapic: controllers::IoapicBench,
    irqchip: controllers::IrqchipBench,
    token_buckets: limiter::LimiterBench,
    pic: controllers::PicBench,
    pit: chips::PitBench,
    power_off_port: chips::PowerOffBench,
    serial: chips::SerialBench,
    sleep_port: chips::SleepBench,
    disk_by_io_uring: virtio::DiskBench<true>,
    disk: virtio::DiskBench<false>,
    net: virtio::NetBench,
}

/// Source files of this crate that are no tests, below `folder`.
fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_test = ["tests", "tests.rs", "testing", "testing.rs"]
            .iter()
            .any(|name| path.ends_with(name));
        if is_test {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else {
            found.push(fs::read_to_string(&path).unwrap());
        }
    }
}

/// The types in `text` that keep state: by an `impl`, or by the macro for those that have none.
fn keepers(text: &str) -> Vec<String> {
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
fn whatever_keeps_state_is_in_the_table() {
    let mut texts = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut texts);
    let keepers: Vec<String> = texts.iter().flat_map(|text| keepers(text)).collect();
    assert!(
        ["Cmos", "SleepPort", "Transport"]
            .iter()
            .all(|name| keepers.iter().any(|keeper| keeper == name)),
        "sources are not read as they are written: {keepers:?}"
    );
    let proven = PROVEN.concat();
    for keeper in &keepers {
        assert!(
            proven.contains(&keeper.as_str()),
            "nothing shows that a {keeper} returns"
        );
    }
    for name in proven {
        assert!(
            keepers.iter().any(|keeper| keeper == name),
            "{name} keeps no state"
        );
    }
}
