//! Ports by which a guest requests the end of its virtual machine: ACPI power-off at 0x600 and 0x604, debug exit at
//! 0x501; and the port at 0x502 by which it announces that it is ready.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};

use crate::bus::{BusDevice, ByteRegisters};

/// ACPI sleep control and status register: 1 port, reported in the FADT.
pub const SLEEP_PORT: u64 = 0x600;
/// ACPI PM1a control register: 2 ports.
pub const POWER_OFF_PORT: u64 = 0x604;
/// Number of ports of [`PowerOffPort`].
pub const POWER_OFF_LENGTH: u64 = 2;
/// Debug exit: 4 ports, for exit codes of up to 4 bytes.
pub const EXIT_PORT: u64 = 0x501;
/// Number of ports of [`ExitPort`].
pub const EXIT_LENGTH: u64 = 4;
/// Offset of the ready port behind [`EXIT_PORT`].
const READY_OFFSET: u64 = 1;

/// SLP_EN of the PM1a control register: enter the sleep state. Power-off is the only state.
const SLEEP_ENABLE: u16 = 1 << 13;

/// SLP_EN of the sleep control register.
const SLEEP_CONTROL_ENABLE: u8 = 1 << 5;

/// Request of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Power off.
    Off,
    /// Reset. It ends the VM too: mayfly never restarts a machine.
    Reset,
    /// Exit with this code, as written to the debug exit port.
    Exit(u32),
}

impl PowerEvent {
    /// Returns the exit status of a process whose guest has ended so: 8 bits of its code. A code other than 0 never becomes 0.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Off | Self::Reset => 0,
            Self::Exit(code) => match code.to_le_bytes()[0] {
                0 if code != 0 => u8::MAX,
                status => status,
            },
        }
    }
}

/// Request of the guest to end, as devices record it; the first one wins. A vCPU thread checks it after each write of
/// the guest.
#[derive(Debug, Default)]
pub struct Power {
    event: OnceLock<PowerEvent>,
    /// Relaxed: the flag passes no data.
    is_ready: AtomicBool,
}

impl Power {
    /// Creates a record without a request.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records the request `event`. Ignores it if there is an earlier one.
    pub fn request(&self, event: PowerEvent) {
        // The only error is an earlier request.
        let _ = self.event.set(event);
    }

    /// Returns the guest's request, if there is one.
    pub fn requested(&self) -> Option<PowerEvent> {
        self.event.get().copied()
    }

    /// Records that the guest serves its clients.
    pub fn set_ready(&self) {
        self.is_ready.store(true, Ordering::Relaxed);
    }

    /// Returns true if the guest has announced that it serves its clients.
    pub fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }
}

/// State of a port: empty, because no port has registers that keep a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerPortState;

impl Schema for PowerPortState {
    const NAME: &'static str = "power-port";
    const VERSION: u32 = 1;
}

/// ACPI PM1a control register. A 16-bit write with bit 13 set, as in 0x2000, powers off; other writes have no effect.
/// Reads return all ones.
#[derive(Debug)]
pub struct PowerOffPort(Arc<Power>);

impl PowerOffPort {
    /// Creates a port that requests power-off from `power`.
    pub fn new(power: Arc<Power>) -> Self {
        Self(power)
    }
}

impl BusDevice for PowerOffPort {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u16::from_le_bytes) else {
            return;
        };
        if value & SLEEP_ENABLE != 0 {
            self.0.request(PowerEvent::Off);
        }
    }
}

/// Debug exit port. A write of 1, 2 or 4 bytes to its first port is a request to exit with that code. A byte at its second
/// port announces that the guest is ready. Reads return all ones.
#[derive(Debug)]
pub struct ExitPort(Arc<Power>);

impl ExitPort {
    /// Creates a port that requests the exit from `power`.
    pub fn new(power: Arc<Power>) -> Self {
        Self(power)
    }
}

impl BusDevice for ExitPort {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == READY_OFFSET && data.len() == 1 {
            return self.0.set_ready();
        }
        let code = match *data {
            [a] => u32::from(a),
            [a, b] => u32::from_le_bytes([a, b, 0, 0]),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => return,
        };
        if offset == 0 {
            self.0.request(PowerEvent::Exit(code));
        }
    }
}

/// ACPI sleep control and sleep status register of a hardware-reduced machine, at the same port (ACPI 6.5, 4.8.3.7).
///
/// A write with bit 5 set powers off, whatever the sleep type; other writes have no effect. Reads return zero: no
/// wake-up.
#[derive(Debug)]
pub struct SleepPort(Arc<Power>);

impl SleepPort {
    /// Creates a port that requests power-off from `power`.
    pub fn new(power: Arc<Power>) -> Self {
        Self(power)
    }
}

impl ByteRegisters for SleepPort {
    fn read_register(&mut self, _: u64) -> u8 {
        0
    }

    fn write_register(&mut self, _: u64, value: u8) {
        if value & SLEEP_CONTROL_ENABLE != 0 {
            self.0.request(PowerEvent::Off);
        }
    }
}

macro_rules! persist_nothing {
    ($($port:ty),*) => {
        $(impl Persist for $port {
            type State = PowerPortState;

            fn save(&self) -> Result<PowerPortState, Error> {
                Ok(PowerPortState)
            }

            fn restore(&mut self, _: PowerPortState) -> Result<(), Error> {
                Ok(())
            }
        })*
    };
}

persist_nothing!(PowerOffPort, ExitPort, SleepPort);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::proptest;

    use super::{EXIT_LENGTH, ExitPort, POWER_OFF_LENGTH, Power, PowerEvent, PowerOffPort, SleepPort};
    use crate::bus::BusDevice;
    use crate::testing::{accesses, replay};

    #[test]
    fn guest_failure_never_becomes_success() {
        for (code, expected) in [
            (0, 0),
            (1, 1),
            (255, 255),
            (256, 255),
            (0x101, 1),
            (u32::MAX, 255),
            (0x8000_0000, 255),
        ] {
            assert_eq!(PowerEvent::Exit(code).exit_status(), expected, "{code:#x}");
        }
        assert_eq!(
            (PowerEvent::Off.exit_status(), PowerEvent::Reset.exit_status()),
            (0, 0)
        );
    }

    fn power() -> Arc<Power> {
        Arc::new(Power::new())
    }

    fn after_power_off_write(offset: u64, data: &[u8]) -> Option<PowerEvent> {
        let power = power();
        PowerOffPort::new(power.clone()).write(offset, data);
        power.requested()
    }

    fn after_exit_write(offset: u64, data: &[u8]) -> Option<PowerEvent> {
        let power = power();
        ExitPort::new(power.clone()).write(offset, data);
        power.requested()
    }

    #[test]
    fn first_request_wins() {
        let power = Power::new();
        assert_eq!(power.requested(), None);
        power.request(PowerEvent::Exit(7));
        power.request(PowerEvent::Off);
        assert_eq!(power.requested(), Some(PowerEvent::Exit(7)));
    }

    #[test]
    fn power_off_port_sleep_enable_powers_off() {
        assert_eq!(after_power_off_write(0, &[0x00, 0x20]), Some(PowerEvent::Off));
        assert_eq!(after_power_off_write(0, &[0x01, 0x34]), Some(PowerEvent::Off));
        for data in [&[0x00, 0x1c][..], &[0x20], &[0, 0x20, 0, 0]] {
            assert_eq!(after_power_off_write(0, data), None, "{data:x?}");
        }
    }

    #[test]
    fn exit_port_write_requests_exit_code() {
        for (data, code) in [
            (&[0x85][..], 0x85),
            (&[0x85, 1], 0x185),
            (&[1, 2, 3, 4], 0x0403_0201),
            (&[0], 0),
        ] {
            assert_eq!(after_exit_write(0, data), Some(PowerEvent::Exit(code)));
        }
        assert_eq!(after_exit_write(1, &[1]), None);
        assert_eq!(after_exit_write(0, &[1, 2, 3]), None);
    }

    #[test]
    fn byte_at_second_exit_port_announces_ready_guest() {
        for (offset, data, is_ready) in [
            (1, &[0][..], true),
            (1, &[7], true),
            (1, &[1, 2], false),
            (0, &[1], false),
            (2, &[1], false),
        ] {
            let power = power();
            ExitPort::new(power.clone()).write(offset, data);
            assert_eq!(power.is_ready(), is_ready, "{offset} {data:?}");
        }
    }

    #[test]
    fn sleep_port_sleep_enable_powers_off() {
        for (value, event) in [
            (0x34, Some(PowerEvent::Off)),
            (0x20, Some(PowerEvent::Off)),
            (0x80, None),
            (0x1c, None),
        ] {
            let power = power();
            SleepPort::new(power.clone()).write(0, &[value]);
            assert_eq!(power.requested(), event, "{value:#x}");
        }
        let mut data = [1];
        SleepPort::new(power()).read(0, &mut data);
        assert_eq!(data, [0]);
    }

    #[test]
    fn power_off_and_exit_port_read_as_ones() {
        let (mut off, mut exit) = (PowerOffPort::new(power()), ExitPort::new(power()));
        let mut data = [0; 2];
        off.read(0, &mut data);
        assert_eq!(data, [0xff; 2]);
        exit.read(0, &mut data[..1]);
    }

    proptest! {
        #[test]
        fn any_access_is_safe(off in accesses(POWER_OFF_LENGTH), exit in accesses(EXIT_LENGTH)) {
            replay(&mut PowerOffPort::new(power()), &off);
            replay(&mut ExitPort::new(power()), &exit);
        }
    }
}
