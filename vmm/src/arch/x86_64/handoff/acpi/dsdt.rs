//! Definitions of devices: serial port, keyboard, virtio-mmio, and the sleep state to power off by.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope, ZERO,
};

use devices::i8042;
use devices::serial::uart;

use crate::arch::x86_64::handoff::MmioDeviceInfo;
use crate::arch::x86_64::handoff::fields::low;
use crate::arch::x86_64::layout;

/// What goes into the sleep control register, as a sleep type, to power off.
pub const POWER_OFF_TYPE: u8 = 5;

// Ports have 16 bits, and an IO descriptor counts up to 255 of them.
#[allow(clippy::cast_possible_truncation, reason = "checked by the test of the table")]
const SERIAL_PORTS: (u16, u8) = (layout::SERIAL_PORT as u16, uart::LENGTH as u8);
#[allow(clippy::cast_possible_truncation, reason = "checked by the test of the table")]
const KEYBOARD_PORTS: [u16; 2] = [i8042::DATA_PORT as u16, i8042::COMMAND_PORT as u16];

/// The DSDT's definitions in AML: `\_S5_`, the serial port, the keyboard, and a device `LNRO0005` for each window, numbered from 0 by
/// `_UID` in the order given. The windows lie below 4 GiB.
pub fn definitions(windows: &[MmioDeviceInfo]) -> Vec<u8> {
    let mut aml = Vec::with_capacity(128 + windows.len() * 80);
    let sleep = Package::new(vec![&POWER_OFF_TYPE, &ZERO, &ZERO, &ZERO]);
    Name::new("_S5_".into(), &sleep).to_aml_bytes(&mut aml);
    serial(&mut aml);
    keyboard(&mut aml);
    for (number, window) in windows.iter().enumerate() {
        virtio(number, window, &mut aml);
    }
    aml
}

fn serial(aml: &mut Vec<u8>) {
    let ports = IO::new(SERIAL_PORTS.0, SERIAL_PORTS.0, 1, SERIAL_PORTS.1);
    let interrupt = edge(layout::SERIAL_IRQ);
    device(
        "COM1".into(),
        &EISAName::new("PNP0501"),
        0,
        vec![&ports, &interrupt],
        aml,
    );
}

/// In hardware-reduced ACPI there are no interrupts that are there without being named, so that Linux has none for a keyboard
/// that it finds by its ports only.
fn keyboard(aml: &mut Vec<u8>) {
    let [data, command] = KEYBOARD_PORTS.map(|port| IO::new(port, port, 1, 1));
    let interrupt = edge(layout::KEYBOARD_IRQ);
    device(
        "KBD_".into(),
        &EISAName::new("PNP0303"),
        0,
        vec![&data, &command, &interrupt],
        aml,
    );
}

fn virtio(number: usize, window: &MmioDeviceInfo, aml: &mut Vec<u8>) {
    let registers = Memory32Fixed::new(true, low(window.base), low(window.size));
    let interrupt = edge(window.gsi);
    // Three digits are plenty for the windows that fit in the hole, and in the tables.
    let name = format!("V{:03X}", number & 0xfff);
    device(
        name.as_str().into(),
        &"LNRO0005",
        number,
        vec![&registers, &interrupt],
        aml,
    );
}

/// Defines one device below `\_SB_`.
fn device(name: Path, hardware: &dyn Aml, number: usize, resources: Vec<&dyn Aml>, aml: &mut Vec<u8>) {
    let hardware = Name::new("_HID".into(), hardware);
    let unique = Name::new("_UID".into(), &number);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    let device = Device::new(name, vec![&hardware, &unique, &resources]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(aml);
}

/// An interrupt that the device consumes: edge-triggered, active high, not shared.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}
