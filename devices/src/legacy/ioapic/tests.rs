use std::sync::{Arc, Mutex};

use proptest::prelude::proptest;
use snapshot::Persist;

use super::{Entry, Ioapic, Message, MessageSink, REGISTERS_LENGTH, Route};
use crate::bus::BusDevice;
use crate::sync::lock;
use crate::testing::{accesses, check_round_trip, replay};

#[derive(Debug, PartialEq)]
enum Call {
    Send(Message),
    Routes(Vec<Route>),
}

#[derive(Default)]
struct Recorder(Mutex<Vec<Call>>);

impl Recorder {
    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut lock(&self.0))
    }

    /// Returns the data words of the messages since the last call.
    fn sent(&self) -> Vec<u32> {
        let data = |call| match call {
            Call::Send(message) => Some(message.data),
            Call::Routes(_) => None,
        };
        self.take().into_iter().filter_map(data).collect()
    }
}

impl MessageSink for Recorder {
    fn send(&self, message: Message) {
        lock(&self.0).push(Call::Send(message));
    }

    fn replace_routes(&self, routes: &[Route]) {
        lock(&self.0).push(Call::Routes(routes.to_vec()));
    }
}

fn ioapic() -> (Ioapic, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    (Ioapic::new(recorder.clone()), recorder)
}

fn write(ioapic: &mut Ioapic, register: u8, value: u32) {
    ioapic.write(0x00, &u32::from(register).to_le_bytes());
    ioapic.write(0x10, &value.to_le_bytes());
}

fn read(ioapic: &mut Ioapic, register: u8) -> u32 {
    ioapic.write(0x00, &[register]);
    let mut data = [0xaa; 4];
    ioapic.read(0x10, &mut data);
    u32::from_le_bytes(data)
}

/// Writes the entry of a pin in the order of Linux: upper half first.
fn program(ioapic: &mut Ioapic, pin: u8, low: u32, destination: u8) {
    write(ioapic, 0x11 + 2 * pin, u32::from(destination) << 24);
    write(ioapic, 0x10 + 2 * pin, low);
}

#[test]
fn edge_has_message_of_its_pin() {
    for entry in [0x0300_0000_0000_0841_u64, 0x45, 0xff00_0000_0000_0141] {
        let (mut ioapic, recorder) = ioapic();
        let [low, destination] = [entry, entry >> 56].map(|bits| u32::try_from(bits & 0xffff_ffff).unwrap());
        program(&mut ioapic, 13, low, u8::try_from(destination).unwrap());
        recorder.take();
        ioapic.set_level(13, true);
        let sent = recorder.take().pop();
        assert_eq!(Message::of_edge(entry).map(Call::Send), sent, "{entry:#x}");
        assert!(sent.is_some());
    }
    for (entry, reason) in [
        (0x1_0041, "masked"),
        (0x8041, "level-triggered"),
        (0x0f, "vector"),
    ] {
        assert_eq!(Message::of_edge(entry), None, "{reason}");
    }
}

#[test]
fn registers_match_data_sheet() {
    let (mut ioapic, recorder) = ioapic();
    assert_eq!(read(&mut ioapic, 0), 0);
    assert_eq!(read(&mut ioapic, 1), 0x0017_0020);
    write(&mut ioapic, 1, 0);
    write(&mut ioapic, 0, 0xffff_ffff);
    assert_eq!(read(&mut ioapic, 0), 0x0f00_0000);
    assert_eq!(read(&mut ioapic, 2), 0x0f00_0000);
    assert_eq!(read(&mut ioapic, 1), 0x0017_0020);
    for pin in 0..24 {
        assert_eq!(read(&mut ioapic, 0x10 + 2 * pin), 0x0001_0000);
        assert_eq!(read(&mut ioapic, 0x11 + 2 * pin), 0);
    }
    program(&mut ioapic, 23, 0xffff_ffff, 0xff);
    assert_eq!(
        read(&mut ioapic, 0x3e),
        0x0001_afff,
        "status and remote IRR are read-only"
    );
    assert_eq!(read(&mut ioapic, 0x3f), 0xff00_0000);
    write(&mut ioapic, 0x40, 0x30);
    assert_eq!(read(&mut ioapic, 0x40), 0, "there is no pin 24");
    let mut wide = [0xaa; 8];
    ioapic.read(0x00, &mut wide);
    assert_eq!(wide, [0x40, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(recorder.take(), []);
}

#[test]
fn edge_is_sent_once_and_lost_while_masked() {
    let (mut ioapic, recorder) = ioapic();
    program(&mut ioapic, 4, 0x0001_0034, 2);
    ioapic.set_level(4, true);
    program(&mut ioapic, 4, 0x0000_0034, 2);
    let message = Message {
        address: 0xfee0_2000,
        data: 0x34,
    };
    let route = Route { pin: 4, message };
    assert_eq!(recorder.take(), [Call::Routes(vec![route])]);
    ioapic.set_level(4, true);
    assert_eq!(recorder.take(), [], "the line is already high");
    ioapic.set_level(4, false);
    ioapic.set_level(4, true);
    assert_eq!(recorder.take(), [Call::Send(message)]);
    ioapic.end_of_interrupt(0x34);
    ioapic.set_level(24, true);
    ioapic.set_level(255, true);
    assert_eq!(recorder.take(), []);
}

#[test]
fn level_is_sent_after_each_end_until_line_falls() {
    let (mut ioapic, recorder) = ioapic();
    program(&mut ioapic, 10, 0xa055, 1);
    recorder.take();
    ioapic.set_level(10, true);
    assert_eq!(recorder.sent(), [0xc055]);
    assert_eq!(read(&mut ioapic, 0x24), 0xe055, "remote IRR");
    ioapic.set_level(10, false);
    ioapic.set_level(10, true);
    assert_eq!(recorder.sent(), [0_u32; 0], "an interrupt is in service");
    ioapic.end_of_interrupt(0x56);
    assert_eq!(recorder.sent(), [0_u32; 0], "another vector");
    ioapic.end_of_interrupt(0x55);
    assert_eq!(recorder.sent(), [0xc055]);
    ioapic.write(0x40, &0x55_u32.to_le_bytes());
    assert_eq!(recorder.sent(), [0xc055], "the EOI register ends it too");
    ioapic.set_level(10, false);
    ioapic.end_of_interrupt(0x55);
    assert_eq!(recorder.sent(), [0_u32; 0]);
    assert_eq!(read(&mut ioapic, 0x24), 0xa055);
}

#[test]
fn level_is_held_while_masked() {
    let (mut ioapic, recorder) = ioapic();
    program(&mut ioapic, 10, 0x0001_8055, 1);
    ioapic.set_level(10, true);
    assert_eq!(recorder.sent(), [0_u32; 0]);
    program(&mut ioapic, 10, 0x0000_8055, 1);
    assert_eq!(recorder.sent(), [0xc055]);
    program(&mut ioapic, 10, 0x0001_8055, 1);
    ioapic.end_of_interrupt(0x55);
    assert_eq!(recorder.sent(), [0_u32; 0], "ended while masked");
    program(&mut ioapic, 10, 0x0000_8055, 1);
    assert_eq!(recorder.sent(), [0xc055]);
}

#[test]
fn switch_to_edge_and_back_ends_interrupt() {
    let (mut ioapic, recorder) = ioapic();
    program(&mut ioapic, 10, 0x8055, 1);
    ioapic.set_level(10, true);
    recorder.take();
    program(&mut ioapic, 10, 0x0001_0055, 1);
    assert_eq!(read(&mut ioapic, 0x24), 0x0001_0055);
    program(&mut ioapic, 10, 0x8055, 1);
    assert_eq!(recorder.sent(), [0xc055]);
}

#[test]
fn message_has_delivery_and_destination_mode() {
    let (mut ioapic, recorder) = ioapic();
    program(&mut ioapic, 1, 0x0931, 0xff);
    program(&mut ioapic, 0, 0x8700, 0x01);
    recorder.take();
    ioapic.set_level(1, true);
    ioapic.set_level(0, true);
    let lowest = Message {
        address: 0xfeef_f004,
        data: 0x131,
    };
    // ExtINT has no end of interrupt, so that it counts as edge-triggered in any trigger mode.
    let external = Message {
        address: 0xfee0_1000,
        data: 0x700,
    };
    assert_eq!(recorder.take(), [Call::Send(lowest), Call::Send(external)]);
    ioapic.set_level(0, false);
    ioapic.set_level(0, true);
    assert_eq!(recorder.take(), [Call::Send(external)]);
}

#[test]
fn changed_routes_precede_message() {
    let (mut ioapic, recorder) = ioapic();
    ioapic.set_level(3, true);
    program(&mut ioapic, 3, 0x8040, 0);
    let message = Message {
        address: 0xfee0_0000,
        data: 0xc040,
    };
    let route = Route { pin: 3, message };
    assert_eq!(recorder.take(), [Call::Routes(vec![route]), Call::Send(message)]);
    program(&mut ioapic, 3, 0x8040, 0);
    program(&mut ioapic, 3, 0x0001_8040, 0);
    assert_eq!(
        recorder.take(),
        [],
        "the end of the last interrupt is outstanding"
    );
    assert_eq!(ioapic.route(3), Some(message));
    program(&mut ioapic, 3, 0x0001_0040, 0);
    assert_eq!(recorder.take(), [Call::Routes(vec![])]);
    program(&mut ioapic, 3, 0x0f, 0);
    assert_eq!(ioapic.route(3), None, "vector 15 is invalid");
    assert_eq!(ioapic.route(24), None);
}

#[test]
fn restore_reports_routes_and_sends_no_message() {
    let (mut original, _) = ioapic();
    program(&mut original, 10, 0x8055, 1);
    original.set_level(10, true);

    let (mut restored, recorder) = ioapic();
    restored.restore(original.save().unwrap()).unwrap();
    assert_eq!(recorder.take(), [Call::Routes(original.routes())]);
    restored.restore(original.save().unwrap()).unwrap();
    assert_eq!(recorder.take(), []);
    restored.end_of_interrupt(0x55);
    assert_eq!(recorder.sent(), [0xc055]);
}

#[test]
fn invalid_state_is_rejected() {
    let good = ioapic().0.save().unwrap();
    let mut edge_with_remote_irr = Entry::RESET;
    edge_with_remote_irr.set_remote_irr(true);
    let mut pin_24 = good.clone();
    pin_24.asserted = 1 << 24;
    let mut identifier = good.clone();
    identifier.id = 0x10;
    let mut entry = good;
    entry.entries[5] = edge_with_remote_irr;
    for state in [pin_24, identifier, entry] {
        assert!(ioapic().0.restore(state).is_err());
    }
}

proptest! {
    #[test]
    fn any_access_is_safe(
        registers in accesses(0x50),
        wide in accesses(REGISTERS_LENGTH),
        values in proptest::collection::vec((0_u8..0x60, proptest::num::u32::ANY), 0..64),
    ) {
        let (mut ioapic, _) = ioapic();
        replay(&mut ioapic, &registers);
        replay(&mut ioapic, &wide);
        for (register, value) in values {
            write(&mut ioapic, register, value);
            ioapic.set_level(register % 32, value & 1 != 0);
            ioapic.end_of_interrupt(value.to_le_bytes()[0]);
        }
        check_round_trip(&ioapic, || self::ioapic().0);
    }
}
