use std::sync::{Arc, Mutex};

use proptest::prelude::proptest;
use snapshot::Persist;

use super::{COMMAND_OFFSET, COMMAND_PORT, DATA_PORT, I8042};
use crate::bus::{Bus, BusBuilder};
use crate::power::{Power, PowerEvent};
use crate::testing::{accesses, comes_back, replay, survives_a_snapshot};
use crate::window::Window;

struct Board {
    power: Arc<Power>,
    device: Arc<Mutex<I8042>>,
    bus: Bus,
}

impl Board {
    fn new() -> Self {
        let power = Arc::new(Power::new());
        let device = Arc::new(Mutex::new(I8042::new(power.clone())));
        let mut builder = BusBuilder::new();
        builder.claim("i8042", DATA_PORT, 1, device.clone()).unwrap();
        let window = Window::new(device.clone(), COMMAND_OFFSET);
        builder
            .claim("i8042", COMMAND_PORT, 1, Arc::new(Mutex::new(window)))
            .unwrap();
        Self {
            power,
            device,
            bus: builder.build(),
        }
    }

    fn status(&self) -> u8 {
        let mut data = [0xaa];
        self.bus.read(0x64, &mut data);
        assert_eq!(data[0] & 0x02, 0, "the input buffer is never full");
        data[0]
    }

    fn command(&self, command: u8) {
        self.bus.write(0x64, &[command]);
    }

    fn data(&self, value: u8) {
        self.bus.write(0x60, &[value]);
    }

    /// The byte in the output buffer, if the status says that there is one.
    fn answer(&self) -> Option<u8> {
        let full = self.status() & 0x01 != 0;
        let mut data = [0xaa];
        self.bus.read(0x60, &mut data);
        full.then_some(data[0])
    }
}

#[test]
fn guests_reset_the_machine() {
    for (command, data) in [(0xfe, None), (0xf0, None), (0xd1, Some(0xfe)), (0xd1, Some(0x02))] {
        let board = Board::new();
        board.command(command);
        data.into_iter().for_each(|data| board.data(data));
        assert_eq!(board.power.requested(), Some(PowerEvent::Reset), "{command:#x}");
    }
    let board = Board::new();
    for command in [0xff, 0xd0, 0xaa, 0x60] {
        board.command(command);
    }
    board.data(0xfe);
    board.data(0xfe);
    board.command(0xd1);
    board.data(0x03);
    assert_eq!(board.power.requested(), None);
}

#[test]
fn linux_finds_a_controller_without_a_mouse() {
    let board = Board::new();
    assert_eq!(board.answer(), None, "nothing to flush");
    board.command(0xaa);
    assert_eq!(board.answer(), Some(0x55));
    board.command(0x20);
    let config = board.answer().unwrap();
    assert_eq!(config, 0x64);
    board.command(0x60);
    board.data(config | 0x10);
    board.command(0x20);
    assert_eq!(board.answer(), Some(0x74));
    assert_ne!(board.status() & 0x10, 0, "not locked");
    // The loop through the mouse port comes back as a keyboard's byte.
    board.command(0xd3);
    board.data(0x5a);
    assert_eq!(board.status() & 0x21, 0x01);
    assert_eq!(board.answer(), Some(0x5a));
    board.command(0xa9);
    assert_eq!(board.answer(), Some(0x02));
    board.command(0xa8);
    board.command(0x20);
    assert_eq!(board.answer().unwrap() & 0x20, 0x20, "the mouse port stays off");
    board.command(0xab);
    assert_eq!(board.answer(), Some(0x00));
    board.command(0xae);
    board.command(0x20);
    assert_eq!(board.answer(), Some(0x64));
    board.data(0xf2);
    assert_eq!(board.answer(), None, "there is no keyboard");
}

#[test]
fn status_tells_a_command_from_data() {
    let board = Board::new();
    board.command(0x61);
    assert_eq!(board.status(), 0x1c);
    board.data(0x99);
    assert_eq!(board.status(), 0x14);
    board.command(0x21);
    assert_eq!(board.answer(), Some(0x99));
    board.command(0xc0);
    assert_eq!(board.answer(), Some(0x80));
    board.command(0xd0);
    assert_eq!(board.answer(), Some(0x03));
}

fn fresh() -> I8042 {
    I8042::new(Arc::new(Power::new()))
}

#[test]
fn state_comes_back_and_is_checked() {
    let board = Board::new();
    board.command(0x20);
    board.command(0x65);
    let device = crate::sync::lock(&board.device);
    survives_a_snapshot(&*device, fresh);
    let mut state = device.save().unwrap();
    state.awaiting = Some(0xaa);
    assert!(fresh().restore(state).is_err());
}

proptest! {
    #[test]
    fn nothing_a_guest_does_breaks_it(list in accesses(5)) {
        let mut device = fresh();
        replay(&mut device, &list);
        comes_back(&device, fresh);
    }
}
