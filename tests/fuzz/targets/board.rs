//! The chips of a machine with their interrupt lines, without KVM.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::bus::{BusDevice, SharedDevice};
use devices::cmos::MemorySize;
use devices::ioapic::{Message, MessageSink, Route};
use devices::pic::Chip;
use devices::{
    Clock, Cmos, ExitPort, ExternalInterrupt, I8042, Pit, Power, PowerOffPort, Serial, SleepPort,
    SplitIrqchip, lock,
};
use snapshot::{ArchiveReader, ArchiveWriter, Component};

/// A clock that only [`advance`](Self::advance) moves. Clones share the time.
#[derive(Clone, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    pub fn advance(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).expect("the duration is short");
        self.0.fetch_add(nanoseconds, Ordering::SeqCst);
    }

    /// Returns an independent clock with the same time.
    pub fn separate(&self) -> Self {
        Self(Arc::new(AtomicU64::new(self.0.load(Ordering::SeqCst))))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

/// Local APICs: record all messages.
#[derive(Default)]
struct Apics(Mutex<Vec<Message>>);

impl MessageSink for Apics {
    fn send(&self, message: Message) {
        // Delivery modes 0 and 1, fixed and lowest priority, have a vector.
        let has_vector = message.data >> 8 & 7 <= 1;
        assert!(
            !has_vector || message.data & 0xff >= 0x10,
            "an invalid vector was sent: {message:x?}"
        );
        lock(&self.0).push(message);
    }

    fn replace_routes(&self, routes: &[Route]) {
        assert!(routes.len() <= 24, "there are {} routes", routes.len());
    }
}

impl ExternalInterrupt for Apics {
    fn raise(&self) {}
}

/// Interrupt lines of the chips, as in a PC.
const PIT_LINE: u32 = 0;
const KEYBOARD_LINE: u32 = 1;
const SERIAL_LINE: u32 = 4;

/// Input of the serial port.
const TEXT: [u8; 64] = [b'x'; 64];

/// All chips. Chips share one power switch, and interrupt the 8259As and the IOAPIC.
pub struct Board {
    clock: ManualClock,
    irqchip: SplitIrqchip,
    apics: Arc<Apics>,
    pit: Pit,
    cmos: Cmos,
    i8042: I8042,
    serial: Serial,
    power_off: PowerOffPort,
    exit: ExitPort,
    sleep: SleepPort,
}

impl Board {
    pub fn new(clock: ManualClock) -> Self {
        let apics = Arc::new(Apics::default());
        let irqchip = SplitIrqchip::new(apics.clone(), apics.clone());
        let line = |gsi| irqchip.line(gsi).expect("the line exists");
        let power = Arc::new(Power::new());
        let size = MemorySize {
            below_4_gib: 128 << 20,
            above_4_gib: 0,
        };
        let null: OwnedFd = File::options()
            .write(true)
            .open("/dev/null")
            .expect("cannot open /dev/null")
            .into();
        let output = devices::serial::SerialOutput::new(null).expect("cannot create the serial output");
        Self {
            pit: Pit::new(line(PIT_LINE), Box::new(clock.clone())).expect("cannot create the PIT"),
            cmos: Cmos::new(size, Box::new(clock.clone())),
            i8042: I8042::new(power.clone(), line(KEYBOARD_LINE)),
            serial: Serial::new(line(SERIAL_LINE), output).expect("cannot create the serial port"),
            power_off: PowerOffPort::new(power.clone()),
            exit: ExitPort::new(power.clone()),
            sleep: SleepPort::new(power),
            irqchip,
            apics,
            clock,
        }
    }

    /// Returns a board in the same state, with a clock of its own.
    pub fn restored_copy(&self) -> Self {
        let saved = self.save();
        let mut copy = Self::new(self.clock.separate());
        let mut reader = ArchiveReader::parse(&saved).expect("saved sections can be parsed");
        for (key, component) in copy.components_mut() {
            component
                .restore_section(key, &mut reader)
                .unwrap_or_else(|error| panic!("cannot restore {key}: {error:?}"));
        }
        reader.finish().expect("all sections were restored");
        assert!(copy.save() == saved, "the restored state differs");
        copy
    }

    fn components(&self) -> [(&'static str, &dyn Component); 8] {
        [
            ("irqchip", &self.irqchip),
            ("pit", &self.pit),
            ("cmos", &self.cmos),
            ("i8042", &self.i8042),
            ("serial", &self.serial),
            ("power-off", &self.power_off),
            ("exit", &self.exit),
            ("sleep", &self.sleep),
        ]
    }

    /// Returns the components, with the interrupt controllers last: a restored device may set its line.
    fn components_mut(&mut self) -> [(&'static str, &mut dyn Component); 8] {
        [
            ("pit", &mut self.pit),
            ("cmos", &mut self.cmos),
            ("i8042", &mut self.i8042),
            ("serial", &mut self.serial),
            ("power-off", &mut self.power_off),
            ("exit", &mut self.exit),
            ("sleep", &mut self.sleep),
            ("irqchip", &mut self.irqchip),
        ]
    }

    /// Returns the state of all chips.
    pub fn save(&self) -> Vec<u8> {
        let mut writer = ArchiveWriter::new();
        for (key, component) in self.components() {
            component
                .save_section(key, &mut writer)
                .unwrap_or_else(|error| panic!("cannot save {key}: {error:?}"));
        }
        writer.into_bytes()
    }

    /// Returns the keys of the components whose state differs from that of `other`.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let pairs = self.components().into_iter().zip(other.components());
        let state = |key, component: &dyn Component| {
            let mut writer = ArchiveWriter::new();
            let saved = component.save_section(key, &mut writer);
            saved.unwrap_or_else(|error| panic!("cannot save {key}: {error:?}"));
            writer.into_bytes()
        };
        let differs = |(own, other): &((&'static str, &dyn Component), (&'static str, &dyn Component))| {
            state(own.0, own.1) != state(other.0, other.1)
        };
        pairs.filter(differs).map(|(own, _)| own.0).collect()
    }

    /// Calls `access` with the chip that `number` selects and an offset within its registers.
    pub fn with_chip(&mut self, number: u8, offset: u16, access: impl FnOnce(&mut dyn BusDevice, u64)) {
        let number = number % 11;
        if let Some((device, length)) = self.irqchip_ports(number) {
            return access(&mut *lock(&device), u64::from(offset) % length);
        }
        let (device, length): (&mut dyn BusDevice, u64) = match number {
            4 => (&mut self.pit, devices::pit::CONTROL_OFFSET + 1),
            5 => (&mut self.cmos, 2),
            6 => (&mut self.i8042, devices::i8042::COMMAND_OFFSET + 1),
            7 => (&mut self.serial, devices::serial::uart::LENGTH),
            8 => (&mut self.power_off, devices::power::POWER_OFF_LENGTH),
            9 => (&mut self.exit, devices::power::EXIT_LENGTH),
            _ => (&mut self.sleep, 1),
        };
        access(device, u64::from(offset) % length);
    }

    /// Returns ports or registers of an interrupt controller with their number.
    fn irqchip_ports(&self, number: u8) -> Option<(SharedDevice, u64)> {
        match number {
            0 => Some((self.irqchip.pic_ports(Chip::Master), 2)),
            1 => Some((self.irqchip.pic_ports(Chip::Slave), 2)),
            2 => Some((self.irqchip.edge_level_ports(), 2)),
            3 => Some((self.irqchip.ioapic_registers(), 0x50)),
            _ => None,
        }
    }

    /// Applies an event from outside the guest and returns its visible effect.
    pub fn apply_event(&mut self, kind: u8, value: u8) -> u64 {
        match kind % 8 {
            0 => self.irqchip.acknowledge().map_or(0x100, u64::from),
            1 | 2 => {
                if let Some(line) = self.irqchip.line(u32::from(value % 32)) {
                    line.set_level(kind % 8 == 1);
                }
                self.irqchip.intr().into()
            }
            3 => {
                self.irqchip.end_of_interrupt(value);
                self.irqchip.intr().into()
            }
            4 => {
                self.i8042.press_ctrl_alt_del();
                0
            }
            5 => self.serial.enqueue(&TEXT[..usize::from(value) % 65]) as u64,
            6 => {
                self.pit.handle_timer();
                0
            }
            _ => self.serial.output_mut().flush().into(),
        }
    }

    pub fn advance(&mut self, duration: Duration) {
        self.clock.advance(duration);
    }

    /// Removes and returns the messages of the IOAPIC.
    pub fn take_messages(&mut self) -> Vec<Message> {
        std::mem::take(&mut lock(&self.apics.0))
    }
}
