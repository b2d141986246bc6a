//! The devices of every machine.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use snapshot::Component;

use super::{Bench, Stage};
use crate::bus::BusDevice;
use crate::clock::Clock;
use crate::cmos::MemorySize;
use crate::power_ports::{EXIT_LENGTH, POWER_OFF_LENGTH};
use crate::serial::SerialOutput;
use crate::testing::{EdgeCounter, ManualClock};
use crate::{Cmos, ExitPort, I8042, Pit, Power, PowerOffPort, Serial, SleepPort};

/// A clock that shows what `clock` shows now, and goes its own way.
pub(super) fn apart(clock: &ManualClock) -> ManualClock {
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

pub(super) struct CmosBench {
    device: Cmos,
    clock: ManualClock,
}

impl CmosBench {
    fn on(clock: ManualClock) -> Self {
        let size = MemorySize {
            below_4_gib: 128 << 20,
            above_4_gib: 0,
        };
        let device = Cmos::new(size, Box::new(clock.clone()));
        Self { device, clock }
    }
}

impl Bench for CmosBench {
    const OF: &'static [&'static str] = &["Cmos"];
    const REGISTERS: u64 = 2;
    const STAGES: &'static [Stage<Self>] = &[
        ("indexed", |bench| poke(&mut bench.device, &[(0, 0x40)])),
        ("written", |bench| {
            poke(&mut bench.device, &[(0, 0x40), (1, 0x77)])
        }),
        ("set", |bench| poke(&mut bench.device, &[(0, 0x02), (1, 0x01)])),
        ("stopped", |bench| {
            poke(&mut bench.device, &[(0, 0x0b), (1, 0x82)])
        }),
        ("binary, 12 hours", |bench| {
            poke(&mut bench.device, &[(0, 0x0b), (1, 0x04)])
        }),
    ];

    fn new() -> Self {
        let clock = ManualClock::default();
        clock.advance(Duration::from_secs(1_709_251_198));
        Self::on(clock)
    }

    fn another(&self) -> Self {
        Self::on(apart(&self.clock))
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.device
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(&mut self.device)
    }

    fn happens(&mut self, what: u16) -> u64 {
        self.clock.advance(Duration::from_millis(what.into()));
        0
    }
}

pub(super) struct PitBench {
    device: Pit,
    clock: ManualClock,
    interrupt: Arc<EdgeCounter>,
}

impl PitBench {
    fn on(clock: ManualClock) -> Self {
        let interrupt = Arc::new(EdgeCounter::default());
        let device = Pit::new(interrupt.clone(), Box::new(clock.clone())).unwrap();
        Self {
            device,
            clock,
            interrupt,
        }
    }

    fn pass(&mut self, nanoseconds: u64) -> u32 {
        self.clock.advance(Duration::from_nanos(nanoseconds));
        self.device.expired();
        self.interrupt.take()
    }
}

impl Bench for PitBench {
    const OF: &'static [&'static str] = &["Pit"];
    /// Those of the counters; port 0x61 is behind them.
    const REGISTERS: u64 = crate::pit::CONTROL_OFFSET + 1;
    const STAGES: &'static [Stage<Self>] = &[
        ("control word", |bench| poke(&mut bench.device, &[(3, 0x34)])),
        ("half a count", |bench| {
            poke(&mut bench.device, &[(3, 0x34), (0, 0x11)])
        }),
        ("counting", |bench| {
            poke(&mut bench.device, &[(3, 0x34), (0, 0xa5), (0, 0x12)]);
            bench.pass(4_500_000);
        }),
        ("an edge that was not looked at", |bench| {
            poke(&mut bench.device, &[(3, 0x34), (0, 0xa5), (0, 0x12)]);
            bench.clock.advance(Duration::from_micros(4_500));
        }),
        ("one-shot, over", |bench| {
            poke(&mut bench.device, &[(3, 0x30), (0, 0x10), (0, 0x00)]);
            bench.pass(1_000_000);
        }),
        ("latched", |bench| {
            poke(&mut bench.device, &[(3, 0xb6), (2, 0xa5), (2, 0x12), (3, 0x80)]);
        }),
        ("status latched", |bench| {
            poke(&mut bench.device, &[(3, 0xb6), (2, 0xa5), (2, 0x12), (3, 0xe8)]);
        }),
        ("gate open, speaker on", |bench| {
            poke(
                &mut bench.device,
                &[(3, 0xb6), (2, 0xa5), (2, 0x12), (Self::REGISTERS - 1, 3)],
            );
            bench.pass(700_000);
        }),
    ];

    fn new() -> Self {
        Self::on(ManualClock::default())
    }

    fn another(&self) -> Self {
        Self::on(apart(&self.clock))
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.device
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(&mut self.device)
    }

    fn happens(&mut self, what: u16) -> u64 {
        self.pass(u64::from(what) * 1_000).into()
    }
}

/// A device without anything around it.
macro_rules! plain {
    ($bench:ident, $device:ty, $name:literal, $registers:expr, $new:expr) => {
        pub(super) struct $bench($device);

        impl Bench for $bench {
            const OF: &'static [&'static str] = &[$name];
            const REGISTERS: u64 = $registers;
            const STAGES: &'static [Stage<Self>] = &[];

            fn new() -> Self {
                Self($new)
            }

            fn another(&self) -> Self {
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

plain!(
    PowerOffBench,
    PowerOffPort,
    "PowerOffPort",
    POWER_OFF_LENGTH,
    PowerOffPort::new(Arc::new(Power::new()))
);
plain!(
    ExitBench,
    ExitPort,
    "ExitPort",
    EXIT_LENGTH,
    ExitPort::new(Arc::new(Power::new()))
);
plain!(
    SleepBench,
    SleepPort,
    "SleepPort",
    1,
    SleepPort::new(Arc::new(Power::new()))
);

pub(super) struct I8042Bench {
    device: I8042,
    interrupt: Arc<EdgeCounter>,
}

const DATA: u64 = 0;
const COMMAND: u64 = 4;

impl Bench for I8042Bench {
    const OF: &'static [&'static str] = &["I8042"];
    const REGISTERS: u64 = 5;
    const STAGES: &'static [Stage<Self>] = &[
        ("an answer waits", |bench| {
            poke(&mut bench.device, &[(COMMAND, 0x20)])
        }),
        ("data is awaited", |bench| {
            poke(&mut bench.device, &[(COMMAND, 0x65)])
        }),
        ("memory is written", |bench| {
            poke(&mut bench.device, &[(COMMAND, 0x65), (DATA, 9)])
        }),
        ("keys wait", |bench| bench.device.press_ctrl_alt_del()),
        ("keys wait, one was read", |bench| {
            bench.device.press_ctrl_alt_del();
            bench.device.read(DATA, &mut [0]);
        }),
        ("keys wait for the keyboard to be turned on", |bench| {
            poke(&mut bench.device, &[(COMMAND, 0x60), (DATA, 0x75)]);
            bench.device.press_ctrl_alt_del();
        }),
        ("the keyboard waits for its data", |bench| {
            poke(&mut bench.device, &[(DATA, 0xed)])
        }),
        ("another set of codes", |bench| {
            poke(&mut bench.device, &[(DATA, 0xf0), (DATA, 1)])
        }),
        ("all at once", |bench| {
            poke(
                &mut bench.device,
                &[(COMMAND, 0x20), (COMMAND, 0x65), (COMMAND, 0xae), (DATA, 0xed)],
            );
            bench.device.press_ctrl_alt_del();
            poke(&mut bench.device, &[(COMMAND, 0x65)]);
        }),
    ];

    fn new() -> Self {
        let interrupt = Arc::new(EdgeCounter::default());
        let device = I8042::new(Arc::new(Power::new()), interrupt.clone());
        Self { device, interrupt }
    }

    fn another(&self) -> Self {
        Self::new()
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.device
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(&mut self.device)
    }

    fn happens(&mut self, what: u16) -> u64 {
        if what & 3 == 0 {
            self.device.press_ctrl_alt_del();
        }
        self.interrupt.take().into()
    }

    fn resume(&mut self) {
        self.interrupt.take();
    }
}

pub(super) struct SerialBench {
    device: Serial,
    edges: Arc<EdgeCounter>,
    _reader: File,
}

impl Bench for SerialBench {
    const OF: &'static [&'static str] = &["Serial"];
    const REGISTERS: u64 = 8;
    const STAGES: &'static [Stage<Self>] = &[
        ("scratched", |bench| poke(&mut bench.device, &[(7, 0x5a)])),
        ("divisor shown", |bench| {
            poke(&mut bench.device, &[(3, 0x83), (0, 1)])
        }),
        ("loopback", |bench| {
            poke(&mut bench.device, &[(4, 0x10), (0, b'x')])
        }),
        ("transmitter empty", |bench| poke(&mut bench.device, &[(1, 2)])),
        ("FIFO full", |bench| {
            assert_eq!(bench.device.enqueue(&[7; 100]), 64);
        }),
        ("FIFO full, interrupt pending", |bench| {
            poke(&mut bench.device, &[(1, 1)]);
            assert_eq!(bench.device.enqueue(&[7; 100]), 64);
        }),
        ("both interrupts pending", |bench| {
            poke(&mut bench.device, &[(1, 3)]);
            bench.device.enqueue(b"a");
            bench.device.read(2, &mut [0]);
        }),
    ];

    fn new() -> Self {
        let edges = Arc::new(EdgeCounter::default());
        let (reader, writer) = crate::serial::testing::small_pipe();
        let device = Serial::new(edges.clone(), SerialOutput::new(writer).unwrap()).unwrap();
        Self {
            device,
            edges,
            _reader: reader,
        }
    }

    fn another(&self) -> Self {
        Self::new()
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.device
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(&mut self.device)
    }

    fn happens(&mut self, what: u16) -> u64 {
        let [length, first] = what.to_le_bytes();
        let bytes: Vec<u8> = (0..length % 80).map(|index| first.wrapping_add(index)).collect();
        self.device.enqueue(&bytes) as u64
    }

    fn resume(&mut self) {
        self.edges.take();
    }
}
