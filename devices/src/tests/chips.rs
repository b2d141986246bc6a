//! Fixtures of the devices of every machine.

use std::fs::File;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use snapshot::persist::Error;
use snapshot::{ArchiveReader, ArchiveWriter, Component};

use super::{Fixture, StateSetup};
use crate::bus::BusDevice;
use crate::clock::Clock;
use crate::legacy::cmos::MemorySize;
use crate::legacy::power::{EXIT_LENGTH, POWER_OFF_LENGTH};
use crate::legacy::serial::{Pl011Registers, SerialModel, SerialOutput};
use crate::lock;
use crate::testing::{EdgeCounter, ManualClock};
use crate::{Cmos, ExitPort, I8042, Pit, Power, PowerOffPort, Rtc, Serial, SleepPort};

/// Creates an independent clock with the current time of `clock`.
pub(super) fn separate(clock: &ManualClock) -> ManualClock {
    let other = ManualClock::default();
    other.advance(clock.now());
    other
}

/// Writes bytes to registers.
pub(super) fn poke(device: &mut dyn BusDevice, writes: &[(u64, u8)]) {
    for (offset, value) in writes {
        device.write(*offset, &[*value]);
    }
}

pub(super) struct CmosFixture {
    device: Cmos,
    clock: ManualClock,
}

impl CmosFixture {
    fn with_clock(clock: ManualClock) -> Self {
        let size = MemorySize {
            below_4_gib: 128 << 20,
            above_4_gib: 0,
        };
        let device = Cmos::new(size, Box::new(clock.clone()));
        Self { device, clock }
    }
}

impl Fixture for CmosFixture {
    const TYPES: &'static [&'static str] = &["Cmos"];
    const REGISTERS: u64 = 2;
    const STATES: &'static [StateSetup<Self>] = &[
        ("index written", |fixture| poke(&mut fixture.device, &[(0, 0x40)])),
        ("memory written", |fixture| {
            poke(&mut fixture.device, &[(0, 0x40), (1, 0x77)])
        }),
        ("time set", |fixture| {
            poke(&mut fixture.device, &[(0, 0x02), (1, 0x01)])
        }),
        ("clock stopped", |fixture| {
            poke(&mut fixture.device, &[(0, 0x0b), (1, 0x82)])
        }),
        ("binary, 12 hours", |fixture| {
            poke(&mut fixture.device, &[(0, 0x0b), (1, 0x04)])
        }),
    ];

    fn new() -> Self {
        let clock = ManualClock::default();
        clock.advance(Duration::from_secs(1_709_251_198));
        Self::with_clock(clock)
    }

    fn fresh_copy(&self) -> Self {
        Self::with_clock(separate(&self.clock))
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.device
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(&mut self.device)
    }

    fn apply_event(&mut self, event: u16) -> u64 {
        self.clock.advance(Duration::from_millis(event.into()));
        0
    }
}

pub(super) struct PitFixture {
    device: Pit,
    clock: ManualClock,
    interrupt: Arc<EdgeCounter>,
}

impl PitFixture {
    fn with_clock(clock: ManualClock) -> Self {
        let interrupt = Arc::new(EdgeCounter::default());
        let device = Pit::new(interrupt.clone(), Box::new(clock.clone())).unwrap();
        Self {
            device,
            clock,
            interrupt,
        }
    }

    fn advance(&mut self, nanoseconds: u64) -> u32 {
        self.clock.advance(Duration::from_nanos(nanoseconds));
        self.device.handle_timer();
        self.interrupt.take()
    }
}

impl Fixture for PitFixture {
    const TYPES: &'static [&'static str] = &["Pit"];
    /// From the counters to port 0x61.
    const REGISTERS: u64 = crate::legacy::pit::CONTROL_OFFSET + 1;
    const STATES: &'static [StateSetup<Self>] = &[
        ("control word", |fixture| poke(&mut fixture.device, &[(3, 0x34)])),
        ("incomplete count", |fixture| {
            poke(&mut fixture.device, &[(3, 0x34), (0, 0x11)])
        }),
        ("counting", |fixture| {
            poke(&mut fixture.device, &[(3, 0x34), (0, 0xa5), (0, 0x12)]);
            fixture.advance(4_500_000);
        }),
        ("unchecked edge", |fixture| {
            poke(&mut fixture.device, &[(3, 0x34), (0, 0xa5), (0, 0x12)]);
            fixture.clock.advance(Duration::from_micros(4_500));
        }),
        ("expired one-shot", |fixture| {
            poke(&mut fixture.device, &[(3, 0x30), (0, 0x10), (0, 0x00)]);
            fixture.advance(1_000_000);
        }),
        ("latched", |fixture| {
            poke(&mut fixture.device, &[(3, 0xb6), (2, 0xa5), (2, 0x12), (3, 0x80)]);
        }),
        ("status latched", |fixture| {
            poke(&mut fixture.device, &[(3, 0xb6), (2, 0xa5), (2, 0x12), (3, 0xe8)]);
        }),
        ("gate high, speaker on", |fixture| {
            poke(
                &mut fixture.device,
                &[(3, 0xb6), (2, 0xa5), (2, 0x12), (Self::REGISTERS - 1, 3)],
            );
            fixture.advance(700_000);
        }),
    ];

    fn new() -> Self {
        Self::with_clock(ManualClock::default())
    }

    fn fresh_copy(&self) -> Self {
        Self::with_clock(separate(&self.clock))
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.device
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(&mut self.device)
    }

    fn apply_event(&mut self, event: u16) -> u64 {
        self.advance(u64::from(event) * 1_000).into()
    }
}

/// Defines the fixture of a device without environment.
macro_rules! plain_fixture {
    ($fixture:ident, $device:ty, $name:literal, $registers:expr, $new:expr) => {
        pub(super) struct $fixture($device);

        impl Fixture for $fixture {
            const TYPES: &'static [&'static str] = &[$name];
            const REGISTERS: u64 = $registers;
            const STATES: &'static [StateSetup<Self>] = &[];

            fn new() -> Self {
                Self($new)
            }

            fn fresh_copy(&self) -> Self {
                Self::new()
            }

            fn component(&mut self) -> &mut dyn Component {
                &mut self.0
            }

            fn registers(&mut self) -> Option<&mut dyn BusDevice> {
                Some(&mut self.0)
            }
        }
    };
}

plain_fixture!(
    PowerOffFixture,
    PowerOffPort,
    "PowerOffPort",
    POWER_OFF_LENGTH,
    PowerOffPort::new(Arc::new(Power::new()))
);
plain_fixture!(
    ExitFixture,
    ExitPort,
    "ExitPort",
    EXIT_LENGTH,
    ExitPort::new(Arc::new(Power::new()))
);
plain_fixture!(
    SleepFixture,
    SleepPort,
    "SleepPort",
    1,
    SleepPort::new(Arc::new(Power::new()))
);

pub(super) struct I8042Fixture {
    device: I8042,
    interrupt: Arc<EdgeCounter>,
}

const DATA: u64 = 0;
const COMMAND: u64 = 4;

impl Fixture for I8042Fixture {
    const TYPES: &'static [&'static str] = &["I8042"];
    const REGISTERS: u64 = 5;
    const STATES: &'static [StateSetup<Self>] = &[
        ("unread response", |fixture| {
            poke(&mut fixture.device, &[(COMMAND, 0x20)])
        }),
        ("data byte missing", |fixture| {
            poke(&mut fixture.device, &[(COMMAND, 0x65)])
        }),
        ("memory written", |fixture| {
            poke(&mut fixture.device, &[(COMMAND, 0x65), (DATA, 9)])
        }),
        ("unread keys", |fixture| fixture.device.press_ctrl_alt_del()),
        ("unread keys, one read", |fixture| {
            fixture.device.press_ctrl_alt_del();
            fixture.device.read(DATA, &mut [0]);
        }),
        ("unread keys of a disabled keyboard", |fixture| {
            poke(&mut fixture.device, &[(COMMAND, 0x60), (DATA, 0x75)]);
            fixture.device.press_ctrl_alt_del();
        }),
        ("keyboard data byte missing", |fixture| {
            poke(&mut fixture.device, &[(DATA, 0xed)])
        }),
        ("scan code set 1", |fixture| {
            poke(&mut fixture.device, &[(DATA, 0xf0), (DATA, 1)])
        }),
        ("all combined", |fixture| {
            poke(
                &mut fixture.device,
                &[(COMMAND, 0x20), (COMMAND, 0x65), (COMMAND, 0xae), (DATA, 0xed)],
            );
            fixture.device.press_ctrl_alt_del();
            poke(&mut fixture.device, &[(COMMAND, 0x65)]);
        }),
    ];

    fn new() -> Self {
        let interrupt = Arc::new(EdgeCounter::default());
        let device = I8042::new(Arc::new(Power::new()), interrupt.clone());
        Self { device, interrupt }
    }

    fn fresh_copy(&self) -> Self {
        Self::new()
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.device
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(&mut self.device)
    }

    fn apply_event(&mut self, event: u16) -> u64 {
        if event & 3 == 0 {
            self.device.press_ctrl_alt_del();
        }
        self.interrupt.take().into()
    }

    fn resume(&mut self) {
        self.interrupt.take();
    }
}

pub(super) struct SerialFixture {
    device: Serial,
    edges: Arc<EdgeCounter>,
    _reader: File,
}

impl Fixture for SerialFixture {
    const TYPES: &'static [&'static str] = &["Serial"];
    const REGISTERS: u64 = 8;
    const STATES: &'static [StateSetup<Self>] = &[
        ("scratch written", |fixture| {
            poke(&mut fixture.device, &[(7, 0x5a)])
        }),
        ("divisor latch accessible", |fixture| {
            poke(&mut fixture.device, &[(3, 0x83), (0, 1)])
        }),
        ("loopback", |fixture| {
            poke(&mut fixture.device, &[(4, 0x10), (0, b'x')])
        }),
        ("transmitter empty", |fixture| {
            poke(&mut fixture.device, &[(1, 2)])
        }),
        ("FIFO full", |fixture| {
            assert_eq!(fixture.device.enqueue(&[7; 100]), 64);
        }),
        ("FIFO full, interrupt pending", |fixture| {
            poke(&mut fixture.device, &[(1, 1)]);
            assert_eq!(fixture.device.enqueue(&[7; 100]), 64);
        }),
        ("both interrupts pending", |fixture| {
            poke(&mut fixture.device, &[(1, 3)]);
            fixture.device.enqueue(b"a");
            fixture.device.read(2, &mut [0]);
        }),
    ];

    fn new() -> Self {
        let edges = Arc::new(EdgeCounter::default());
        let (reader, writer) = crate::legacy::serial::testing::small_pipe();
        let device = Serial::new(edges.clone(), SerialOutput::new(writer).unwrap()).unwrap();
        Self {
            device,
            edges,
            _reader: reader,
        }
    }

    fn fresh_copy(&self) -> Self {
        Self::new()
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.device
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(&mut self.device)
    }

    fn apply_event(&mut self, event: u16) -> u64 {
        let [length, first] = event.to_le_bytes();
        let bytes: Vec<u8> = (0..length % 80).map(|index| first.wrapping_add(index)).collect();
        self.device.enqueue(&bytes) as u64
    }

    fn resume(&mut self) {
        self.edges.take();
    }
}

/// A serial port with the registers of a PL011, whose state has two sections.
struct Pl011Port(Arc<Mutex<Serial>>);

impl Component for Pl011Port {
    fn save_section(&self, key: &str, archive: &mut ArchiveWriter) -> Result<(), Error> {
        lock(&self.0).save_section(key, archive)?;
        Pl011Registers(self.0.clone()).save_section(&format!("{key}/registers"), archive)
    }

    fn restore_section(&mut self, key: &str, archive: &mut ArchiveReader<'_>) -> Result<(), Error> {
        lock(&self.0).restore_section(key, archive)?;
        Pl011Registers(self.0.clone()).restore_section(&format!("{key}/registers"), archive)
    }
}

impl BusDevice for Pl011Port {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.0).read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        lock(&self.0).write(offset, data);
    }
}

pub(super) struct Pl011Fixture {
    port: Pl011Port,
    _reader: File,
}

impl Fixture for Pl011Fixture {
    const TYPES: &'static [&'static str] = &["Pl011Registers"];
    const REGISTERS: u64 = 0x4c;
    const STATES: &'static [StateSetup<Self>] = &[
        ("divisor written", |fixture| poke(&mut fixture.port, &[(0x24, 9)])),
        ("receiver interrupt unmasked", |fixture| {
            poke(&mut fixture.port, &[(0x38, 0x10)]);
        }),
        ("byte received", |fixture| {
            assert_eq!(lock(&fixture.port.0).enqueue(b"a"), 1);
        }),
        ("FIFO full, interrupt pending", |fixture| {
            poke(&mut fixture.port, &[(0x2c, 0x10), (0x38, 0x50)]);
            lock(&fixture.port.0).enqueue(&[7; 100]);
        }),
        ("loopback", |fixture| {
            fixture.port.write(0x30, &[0x81, 3]);
            poke(&mut fixture.port, &[(0, b'x')]);
        }),
    ];

    fn new() -> Self {
        let (reader, writer) = crate::legacy::serial::testing::small_pipe();
        let output = SerialOutput::new(writer).unwrap();
        let line = Arc::new(EdgeCounter::default());
        let serial = Serial::with_model(SerialModel::Pl011, line, output).unwrap();
        Self {
            port: Pl011Port(Arc::new(Mutex::new(serial))),
            _reader: reader,
        }
    }

    fn fresh_copy(&self) -> Self {
        Self::new()
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.port
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(&mut self.port)
    }

    fn apply_event(&mut self, event: u16) -> u64 {
        let [length, first] = event.to_le_bytes();
        let bytes: Vec<u8> = (0..length % 40).map(|index| first.wrapping_add(index)).collect();
        lock(&self.port.0).enqueue(&bytes) as u64
    }
}

/// Registers of the PL031 whose values depend on the time of the host: data, load.
const RTC_TIMES: [u64; 2] = [0, 8];

/// The clock runs on during the comparisons, so that the driver sees no time and sets it in the named states alone.
#[derive(Default)]
pub(super) struct RtcFixture(Rtc);

impl BusDevice for RtcFixture {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match RTC_TIMES.contains(&offset) {
            true => data.fill(0),
            false => self.0.read(offset, data),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if !RTC_TIMES.contains(&offset) {
            self.0.write(offset, data);
        }
    }
}

impl Fixture for RtcFixture {
    const TYPES: &'static [&'static str] = &["Rtc"];
    const REGISTERS: u64 = 0x24;
    const STATES: &'static [StateSetup<Self>] = &[
        ("time set", |fixture| fixture.0.write(8, &[0x40, 0, 0, 0])),
        ("match written", |fixture| fixture.0.write(4, &[1, 2, 3, 4])),
        ("interrupt unmasked", |fixture| {
            fixture.0.write(0x10, &[1, 0, 0, 0])
        }),
    ];

    fn new() -> Self {
        Self::default()
    }

    fn fresh_copy(&self) -> Self {
        Self::default()
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.0
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(self)
    }
}
