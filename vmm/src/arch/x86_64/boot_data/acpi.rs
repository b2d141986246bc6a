//! ACPI tables: hardware-reduced, so that the machine needs no event registers, SCI or PM timer (ACPI 6.5, section 4.1).

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path, ResourceTemplate,
    Scope,
};
use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use devices::serial::uart;
use devices::{i8042, power};

use super::tables::{TableBuilder, Tables, low};
use crate::arch::MmioDeviceInfo;
use crate::arch::x86_64::layout;
use crate::identity;

/// Capacity of the tables in bytes.
pub const CAPACITY: u64 = layout::IDENTITY - layout::ACPI;

/// OEM ID, six characters.
const OEM: [u8; 6] = *b"MAYFLY";
/// OEM table ID, eight characters.
const OEM_TABLE: [u8; 8] = *b"MICROVM ";
/// OEM revision.
const OEM_REVISION: u32 = 1;

/// Alignment of the tables. The RSDP requires 16 bytes: ACPI 6.5, section 5.2.5.1.
const ALIGNMENT: usize = 16;
/// Length of the common header: ACPI 6.5, section 5.2.6.
const HEADER: u32 = 36;

/// Name of the device of the generation ID.
const GENERATION_ID: &str = "VGEN";
/// Notification of a new generation ID: "Virtual Machine Generation ID", Microsoft.
const ID_CHANGED: u8 = 0x80;

/// Sleep type of S5 in the sleep control register: ACPI 6.5, section 4.8.3.7.
const POWER_OFF_TYPE: u8 = 5;

// AML: a port has 16 bits, and an IO descriptor describes up to 255 ports.
#[allow(clippy::cast_possible_truncation, reason = "a test checks the table")]
const SERIAL_PORTS: (u16, u8) = (layout::SERIAL_PORT as u16, uart::LENGTH as u8);
#[allow(clippy::cast_possible_truncation, reason = "a test checks the table")]
const KEYBOARD_PORTS: [u16; 2] = [i8042::DATA_PORT as u16, i8042::COMMAND_PORT as u16];

/// IA-PC boot architecture flags: ACPI 6.5, table 5.11. The flag "CMOS RTC not present" stays clear.
const LEGACY_DEVICES: u16 = 1 << 0;
const I8042: u16 = 1 << 1;
const NO_VGA: u16 = 1 << 2;

/// The machine also has two 8259s, which the guest masks to use the APICs: ACPI 6.5, table 5.20.
const PCAT_COMPATIBLE: u32 = 1 << 0;

/// Types of interrupt controller structures: ACPI 6.5, table 5.21.
const LOCAL_APIC: u8 = 0;
const IOAPIC: u8 = 1;
const SOURCE_OVERRIDE: u8 = 2;
const LOCAL_NMI: u8 = 4;

const ENABLED: u32 = 1 << 0;
/// Active high, edge-triggered: ACPI 6.5, table 5.26.
const HIGH_EDGE: u16 = 0b01 | 0b01 << 2;
const ALL_PROCESSORS: u8 = 0xff;
/// Input of the IOAPIC for IRQ 0, the timer.
const TIMER_GSI: u32 = 2;

/// Builds the tables at [`layout::ACPI`]: RSDP, DSDT, FADT, MADT, XSDT.
pub fn build(tables: &Tables<'_>) -> Vec<u8> {
    // Each table follows the tables that it points to, because it contains their addresses.
    let mut block = vec![0; Rsdp::len()];
    let dsdt = append(&mut block, &table(*b"DSDT", 2, &build_dsdt(tables)));
    let fadt = append(&mut block, &build_fadt(dsdt));
    let madt = append(&mut block, &table(*b"APIC", 5, &build_madt(tables)));
    let entries: Vec<u8> = [fadt, madt].into_iter().flat_map(u64::to_le_bytes).collect();
    let xsdt = append(&mut block, &table(*b"XSDT", 1, &entries));

    let mut rsdp = Vec::with_capacity(Rsdp::len());
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    block[..rsdp.len()].copy_from_slice(&rsdp);
    block
}

/// Adds the common header to `body`.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(signature, HEADER, revision, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(body);
    table
}

/// Appends a table. Returns its guest-physical address.
fn append(block: &mut Vec<u8>, table: &dyn Aml) -> u64 {
    block.resize(block.len().next_multiple_of(ALIGNMENT), 0);
    let address = layout::ACPI + block.len() as u64;
    table.to_aml_bytes(block);
    address
}

/// Builds the body of the DSDT: `\_S5_`, serial port, keyboard, a device `LNRO0005` for each MMIO device, with `_UID` from
/// 0 in the order given, and the generation ID. The devices lie below 4 GiB.
fn build_dsdt(tables: &Tables<'_>) -> Vec<u8> {
    let mmio_devices = tables.mmio_devices;
    let mut aml = Vec::with_capacity(320 + mmio_devices.len() * 80);
    // One element: with two or more, Nanos writes to PM1a, which hardware-reduced ACPI does not have.
    let sleep = Package::new(vec![&POWER_OFF_TYPE]);
    Name::new("_S5_".into(), &sleep).to_aml_bytes(&mut aml);
    define_serial_port(&mut aml);
    define_keyboard(&mut aml);
    for (number, info) in mmio_devices.iter().enumerate() {
        define_mmio_device(number, info, &mut aml);
    }
    if let Some(record) = tables.identity {
        define_generation_id(record + identity::ID_OFFSET, &mut aml);
        define_event_device(&mut aml);
    }
    aml
}

/// Appends the device of the generation ID at `address`: "Virtual Machine Generation ID", Microsoft. Linux matches the hardware ID,
/// other systems the compatible ID.
fn define_generation_id(address: u64, aml: &mut Vec<u8>) {
    let hardware = Name::new("_HID".into(), &"VMGENCTR");
    let compatible = Name::new("_CID".into(), &"VM_Gen_Counter");
    let description = Name::new("_DDN".into(), &"VM_Gen_Counter");
    let halves = [low(address), low(address >> 32)];
    let halves = Package::new(vec![&halves[0], &halves[1]]);
    let address = Name::new("ADDR".into(), &halves);
    let device = Device::new(
        GENERATION_ID.into(),
        vec![&hardware, &compatible, &description, &address],
    );
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(aml);
}

/// Appends the generic event device, whose interrupt notifies the generation ID of a change: ACPI 6.5, section 5.6.9.
fn define_event_device(aml: &mut Vec<u8>) {
    let hardware = Name::new("_HID".into(), &"ACPI0013");
    let unique = Name::new("_UID".into(), &0_u8);
    let interrupt = edge_interrupt(layout::IDENTITY_PIN.into());
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt]));
    let target = Path::new(GENERATION_ID);
    let notify = Notify::new(&target, &ID_CHANGED);
    // The argument is the interrupt, of which there is one.
    let event = Method::new("_EVT".into(), 1, true, vec![&notify]);
    let device = Device::new("GED_".into(), vec![&hardware, &unique, &resources, &event]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(aml);
}

/// Appends the serial port.
fn define_serial_port(aml: &mut Vec<u8>) {
    let ports = IO::new(SERIAL_PORTS.0, SERIAL_PORTS.0, 1, SERIAL_PORTS.1);
    let interrupt = edge_interrupt(layout::SERIAL_IRQ);
    define_device(
        "COM1".into(),
        &EISAName::new("PNP0501"),
        0,
        vec![&ports, &interrupt],
        aml,
    );
}

/// Appends the keyboard. Hardware-reduced ACPI has no implicit legacy interrupts, so that Linux assigns none to a keyboard that
/// it probes by its ports.
fn define_keyboard(aml: &mut Vec<u8>) {
    let [data, command] = KEYBOARD_PORTS.map(|port| IO::new(port, port, 1, 1));
    let interrupt = edge_interrupt(layout::KEYBOARD_IRQ);
    define_device(
        "KBD_".into(),
        &EISAName::new("PNP0303"),
        0,
        vec![&data, &command, &interrupt],
        aml,
    );
}

/// Appends virtio-mmio device `number`.
fn define_mmio_device(number: usize, info: &MmioDeviceInfo, aml: &mut Vec<u8>) {
    let registers = Memory32Fixed::new(true, low(info.base), low(info.size));
    let interrupt = edge_interrupt(info.gsi);
    // Three digits number more devices than fit in the tables.
    let name = format!("V{:03X}", number & 0xfff);
    define_device(
        name.as_str().into(),
        &"LNRO0005",
        number,
        vec![&registers, &interrupt],
        aml,
    );
}

/// Appends one device below `\_SB_`.
fn define_device(name: Path, hardware: &dyn Aml, number: usize, resources: Vec<&dyn Aml>, aml: &mut Vec<u8>) {
    let hardware = Name::new("_HID".into(), hardware);
    let unique = Name::new("_UID".into(), &number);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    let device = Device::new(name, vec![&hardware, &unique, &resources]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(aml);
}

/// Returns an interrupt that the device consumes: edge-triggered, active high, exclusive.
fn edge_interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// Builds the FADT: registers for power-off and reset, and legacy devices. `dsdt` is the address of the DSDT, below 4 GiB.
fn build_fadt(dsdt: u64) -> FADT {
    let port = |address| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address);
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .preferred_pm_profile(PmProfile::Unspecified)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::ResetRegSup)
        // Set: the buttons are not fixed features (ACPI 6.5, table 5.10). The DSDT defines none either.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    // Both fields, because some guests read only the 32-bit one.
    fadt.dsdt = low(dsdt).into();
    fadt.x_dsdt = dsdt.into();
    fadt.iapc_boot_arch = (LEGACY_DEVICES | I8042 | NO_VGA).into();
    fadt.reset_reg = port(i8042::COMMAND_PORT);
    fadt.reset_value = i8042::RESET;
    fadt.sleep_control_reg = port(power::SLEEP_PORT);
    fadt.sleep_status_reg = port(power::SLEEP_PORT);
    fadt.finalize()
}

/// Builds the body of the MADT: local APICs and IOAPIC.
fn build_madt(tables: &Tables<'_>) -> Vec<u8> {
    let mut fields = TableBuilder::with_capacity(36 + usize::from(tables.vcpus) * 8);
    fields.u32(low(layout::LOCAL_APIC)).u32(PCAT_COMPATIBLE);
    for processor in 0..tables.vcpus {
        fields
            .u8(LOCAL_APIC)
            .u8(8)
            .u8(processor)
            .u8(processor)
            .u32(ENABLED);
    }
    fields
        .u8(IOAPIC)
        .u8(12)
        .u8(tables.ioapic_id())
        .u8(0)
        .u32(low(layout::IOAPIC))
        .u32(0);
    fields
        .u8(SOURCE_OVERRIDE)
        .u8(10)
        .u8(0)
        .u8(0)
        .u32(TIMER_GSI)
        .u16(HIGH_EDGE);
    // Flags 0: polarity and trigger mode conform to the bus. Input: LINT1.
    fields.u8(LOCAL_NMI).u8(6).u8(ALL_PROCESSORS).u16(0).u8(1);
    fields.finish()
}
