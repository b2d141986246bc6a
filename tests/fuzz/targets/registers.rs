//! Registers of IOAPIC, 8259As, PIT, CMOS, i8042, serial port and power ports.
//!
//! All accesses of a guest are harmless. At any point, the state saves and restores to an equal state, and the restored chips
//! continue as the original: reads and interrupts are the same.

use super::board::{Board, ManualClock};
use super::input::Input;

/// One action on the chips.
enum Step<'a> {
    Read(u8, u16, usize),
    Write(u8, u16, &'a [u8]),
    Event(u8, u8),
    Advance(std::time::Duration),
    Restore,
}

fn step<'a>(input: &mut Input<'a>) -> Step<'a> {
    let operation = input.u8();
    let width = 1 << (operation >> 4 & 3);
    // Byte offsets reach all registers but those of the IOAPIC, whose offsets are below 0x50 too.
    match operation % 8 {
        0 | 1 => Step::Read(input.u8(), input.u8().into(), width),
        2..=4 => Step::Write(input.u8(), input.u8().into(), input.bytes(width)),
        5 => Step::Event(input.u8(), input.u8()),
        6 => Step::Advance(input.duration()),
        _ => Step::Restore,
    }
}

/// Applies `step` and returns its visible effect.
fn apply(board: &mut Board, step: &Step<'_>) -> Vec<u8> {
    let mut seen = Vec::new();
    match *step {
        Step::Read(chip, offset, width) => {
            seen.resize(width, 0);
            board.with_chip(chip, offset, |device, offset| device.read(offset, &mut seen));
        }
        Step::Write(chip, offset, data) => {
            board.with_chip(chip, offset, |device, offset| device.write(offset, data));
        }
        Step::Event(kind, value) => seen.extend(board.apply_event(kind, value).to_le_bytes()),
        Step::Advance(duration) => board.advance(duration),
        Step::Restore => {}
    }
    seen
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut original = Board::new(ManualClock::default());
    let mut copy = original.restored_copy();
    while !input.is_empty() {
        let step = step(&mut input);
        if let Step::Restore = step {
            assert_eq!(copy.differences(&original), [""; 0]);
            copy = original.restored_copy();
            original.take_messages();
            copy.take_messages();
        }
        assert_eq!(apply(&mut copy, &step), apply(&mut original, &step));
        assert_eq!(copy.take_messages(), original.take_messages());
    }
    assert_eq!(copy.differences(&original), [""; 0]);
}
