use std::sync::{Arc, Mutex};

use proptest::prelude::proptest;
use snapshot::Persist;

use super::{COMMAND_OFFSET, COMMAND_PORT, DATA_PORT, I8042, Keyboard};
use crate::bus::OffsetDevice;
use crate::bus::{Bus, BusBuilder};
use crate::legacy::power::{Power, PowerEvent};
use crate::sync::lock;
use crate::testing::{EdgeCounter, accesses, check_round_trip, replay};

struct Board {
    power: Arc<Power>,
    interrupt: Arc<EdgeCounter>,
    device: Arc<Mutex<I8042>>,
    bus: Bus,
}

impl Board {
    fn new() -> Self {
        let power = Arc::new(Power::new());
        let interrupt = Arc::new(EdgeCounter::default());
        let device = Arc::new(Mutex::new(I8042::new(power.clone(), interrupt.clone())));
        let mut builder = BusBuilder::new();
        builder.claim("i8042", DATA_PORT, 1, device.clone()).unwrap();
        let command = OffsetDevice::new(device.clone(), COMMAND_OFFSET);
        builder
            .claim("i8042", COMMAND_PORT, 1, Arc::new(Mutex::new(command)))
            .unwrap();
        Self {
            power,
            interrupt,
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

    /// Reads the output buffer. Returns the byte if the status register reports one.
    fn response(&self) -> Option<u8> {
        let full = self.status() & 0x01 != 0;
        let mut data = [0xaa];
        self.bus.read(0x60, &mut data);
        full.then_some(data[0])
    }

    /// Reads all available bytes.
    fn responses(&self) -> Vec<u8> {
        std::iter::from_fn(|| self.response()).collect()
    }

    fn configure(&self, config: u8) {
        self.command(0x60);
        self.data(config);
    }

    fn press(&self) {
        lock(&self.device).press_ctrl_alt_del();
    }
}

/// Configuration byte of Linux: translation and interrupt enabled.
const LINUX: u8 = 0x65;
const PRESSED_1: [u8; 8] = [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d];
const PRESSED_2: [u8; 11] = [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];

#[test]
fn reset_line_requests_reset() {
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
fn linux_probe_finds_no_mouse() {
    let board = Board::new();
    assert_eq!(board.response(), None, "the output buffer is empty");
    board.command(0xaa);
    assert_eq!(board.response(), Some(0x55));
    board.command(0x20);
    let config = board.response().unwrap();
    assert_eq!(config, 0x64);
    board.command(0x60);
    board.data(config | 0x10);
    board.command(0x20);
    assert_eq!(board.response(), Some(0x74));
    assert_ne!(board.status() & 0x10, 0, "not locked");
    // The loopback byte of the mouse port comes back as a keyboard byte.
    board.command(0xd3);
    board.data(0x5a);
    assert_eq!(board.status() & 0x21, 0x01);
    assert_eq!(board.response(), Some(0x5a));
    board.command(0xa9);
    assert_eq!(board.response(), Some(0x02));
    board.command(0xa8);
    board.command(0x20);
    assert_eq!(board.response().unwrap() & 0x20, 0x20, "the mouse port stays off");
    board.command(0xab);
    assert_eq!(board.response(), Some(0x00));
    board.command(0xae);
    board.command(0x20);
    assert_eq!(board.response(), Some(0x64));
    board.data(0xf2);
    assert_eq!(board.responses(), [0xfa, 0xab, 0x41]);
    assert_eq!(board.interrupt.take(), 0, "the interrupt is disabled");
}

#[test]
fn status_distinguishes_command_from_data() {
    let board = Board::new();
    board.command(0x61);
    assert_eq!(board.status(), 0x1c);
    board.data(0x99);
    assert_eq!(board.status(), 0x14);
    board.command(0x21);
    assert_eq!(board.response(), Some(0x99));
    board.command(0xc0);
    assert_eq!(board.response(), Some(0x80));
    board.command(0xd0);
    assert_eq!(board.response(), Some(0x03));
}

#[test]
fn ctrl_alt_del_sends_make_and_break_codes() {
    for (config, codes) in [
        (LINUX, &PRESSED_1[..]),
        (LINUX & !0x40, &PRESSED_2[..]),
        (LINUX & !0x01, &PRESSED_1[..]),
    ] {
        let board = Board::new();
        board.configure(config);
        assert_eq!(board.interrupt.take(), 0);
        board.press();
        let mut read = Vec::new();
        loop {
            // One edge per byte, when it becomes readable.
            let readable = board.status() & 0x01 != 0;
            assert_eq!(board.interrupt.take(), u32::from(readable && config & 0x01 != 0));
            match board.response() {
                Some(byte) => read.push(byte),
                None => break,
            }
        }
        assert_eq!(read, codes, "{config:#x}");
    }
}

#[test]
fn disabled_keyboard_keeps_its_bytes() {
    let board = Board::new();
    board.configure(LINUX | 0x10);
    board.press();
    assert_eq!((board.status() & 0x01, board.interrupt.take()), (0, 0));
    assert_eq!(board.response(), None);
    board.command(0x20);
    assert_eq!(
        board.interrupt.take(),
        0,
        "a disabled keyboard masks the interrupt of responses"
    );
    assert_eq!(board.response(), Some(LINUX | 0x10));
    board.command(0xae);
    assert_eq!(board.interrupt.take(), 1);
    assert_eq!(board.responses(), PRESSED_1);
}

#[test]
fn controller_response_precedes_keyboard_bytes() {
    let board = Board::new();
    board.configure(LINUX);
    board.press();
    board.command(0x20);
    assert_eq!(board.interrupt.take(), 1);
    assert_eq!(board.response(), Some(LINUX));
    assert_eq!(board.interrupt.take(), 1);
    assert_eq!(board.responses(), PRESSED_1);
    // Enabling the interrupt triggers it for a readable byte.
    board.configure(LINUX & !0x01);
    board.press();
    assert_eq!(board.interrupt.take(), 7);
    board.configure(LINUX);
    assert_eq!(board.interrupt.take(), 1);
}

#[test]
fn keyboard_responds_to_at_commands() {
    for (bytes, translated, plain) in [
        (&[0xff][..], &[0xfa, 0xaa][..], &[0xfa, 0xaa][..]),
        (&[0xf2], &[0xfa, 0xab, 0x41], &[0xfa, 0xab, 0x83]),
        (&[0xed, 0x07], &[0xfa, 0xfa], &[0xfa, 0xfa]),
        (&[0xf3, 0x00], &[0xfa, 0xfa], &[0xfa, 0xfa]),
        (&[0xf0, 0x00], &[0xfa, 0xfa, 0x41], &[0xfa, 0xfa, 2]),
        (
            &[0xf0, 0x01, 0xf0, 0x00],
            &[0xfa, 0xfa, 0xfa, 0xfa, 0x43],
            &[0xfa, 0xfa, 0xfa, 0xfa, 1],
        ),
        (&[0xf0, 0x03], &[0xfa, 0xfe], &[0xfa, 0xfe]),
        // A command byte instead of data is a command.
        (&[0xed, 0xf4], &[0xfa, 0xfa], &[0xfa, 0xfa]),
        (&[0xf4, 0xf5, 0xf6], &[0xfa], &[0xfa]),
        (&[0xee], &[0xee], &[0xee]),
        (&[0x00], &[0xfe], &[0xfe]),
        (&[0xfe], &[0xfe], &[0xfe]),
    ] {
        for (config, responses) in [(LINUX, translated), (LINUX & !0x40, plain)] {
            let board = Board::new();
            board.configure(config | 0x10);
            bytes.iter().for_each(|byte| board.data(*byte));
            assert_eq!(board.responses(), responses, "{bytes:x?} {config:#x}");
            assert_eq!(usize::try_from(board.interrupt.take()).unwrap(), responses.len());
        }
    }
}

#[test]
fn keys_follow_scanning_and_set() {
    let board = Board::new();
    board.configure(LINUX & !0x40);
    for (commands, codes) in [
        (&[0xf5][..], &[][..]),
        (&[0xf4], &PRESSED_2),
        (&[0xf0, 0x01], &PRESSED_1),
        (&[0xf6], &PRESSED_2),
        (&[0xf5, 0xff], &PRESSED_2),
    ] {
        commands.iter().for_each(|byte| board.data(*byte));
        board.responses();
        board.press();
        assert_eq!(board.responses(), codes, "{commands:x?}");
    }
    // A byte for the mouse does not reach the keyboard.
    board.command(0xd4);
    board.data(0xf5);
    board.press();
    assert_eq!(board.responses(), PRESSED_2);
}

#[test]
fn unread_bytes_are_bounded() {
    let board = Board::new();
    board.configure(LINUX);
    for _ in 0..1000 {
        board.press();
    }
    assert_eq!(board.responses(), [PRESSED_1, PRESSED_1].concat());
    board.press();
    board.press();
    for _ in 0..1000 {
        board.data(0xf2);
    }
    let responses = board.responses();
    assert_eq!(responses[16..19], [0xfa, 0xab, 0x41], "responses fit behind keys");
    assert_eq!(responses.len(), 24);
}

fn fresh() -> I8042 {
    I8042::new(Arc::new(Power::new()), Arc::new(EdgeCounter::default()))
}

#[test]
fn invalid_state_is_rejected() {
    let board = Board::new();
    board.command(0x20);
    board.command(0x65);
    board.command(0xae);
    board.data(0xed);
    board.press();
    board.command(0x65);
    let device = lock(&board.device);
    let mut state = device.save().unwrap();
    state.awaiting = Some(0xaa);
    assert!(fresh().restore(state).is_err());
    for (queue, set, awaiting) in [(25, 2, None), (0, 0, None), (0, 3, None), (0, 2, Some(0xf4))] {
        let mut state = device.save().unwrap();
        state.keyboard = Keyboard::with_state(queue, set, awaiting);
        assert!(fresh().restore(state).is_err(), "{queue} {set} {awaiting:?}");
    }
}

proptest! {
    #[test]
    fn any_access_is_safe(list in accesses(5)) {
        let mut device = fresh();
        for part in list.chunks(5) {
            device.press_ctrl_alt_del();
            replay(&mut device, part);
        }
        check_round_trip(&device, fresh);
    }
}

#[test]
fn accesses_and_resets_are_counted() {
    let board = Board::new();
    let recorder = lock(&board.device).recorder();
    board.status();
    board.command(0xaa);
    board.command(0xfe);
    let metrics = recorder.metrics();
    assert_eq!((metrics.reads, metrics.writes, metrics.resets), (1, 2, 1));
}
