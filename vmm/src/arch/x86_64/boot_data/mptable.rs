//! MP table: Intel MultiProcessor Specification 1.4, chapter 4, and the BIOS data that refers to it.

use devices::ioapic;

use super::tables::{TableBuilder, Tables, low};
use crate::arch::x86_64::layout;

/// Address of the BIOS data to write. The first word is the segment of the extended BIOS data area.
pub const BIOS_DATA: u64 = 0x40e;
/// Capacity of the table in bytes: the extended BIOS data area.
pub const CAPACITY: u64 = layout::CONVENTIONAL_END - layout::EBDA;

const SPECIFICATION: u8 = 4;
const FLOATING_POINTER: usize = 16;
/// Offset of the checksum in the header of the configuration table, which has 44 bytes.
const CHECKSUM: usize = 7;
/// Version of the local APICs since the Pentium 4.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = ioapic::MODEL;
const ISA: u8 = 0;

const ENABLED: u8 = 1 << 0;
const BOOT_PROCESSOR: u8 = 1 << 1;
/// Family 6, and the features FPU and APIC. Guests use CPUID instead.
const SIGNATURE: u32 = 0x600;
const FEATURES: u32 = 0x201;

/// Interrupt types: MP specification 1.4, section 4.3.4.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Destination: local APICs of all processors.
const ALL_PROCESSORS: u8 = 0xff;
/// Input of the IOAPIC for IRQ 0, the timer.
const TIMER_PIN: u8 = 2;

/// Builds the BIOS data at [`BIOS_DATA`]: address of the MP table in paragraphs, and at 0x413 the size of base memory in KiB.
/// The equipment list between them is zero.
pub fn build_bios_data() -> Vec<u8> {
    const SEGMENT: u16 = (layout::EBDA >> 4 & 0xffff) as u16;
    const BASE_KIB: u16 = (layout::EBDA >> 10 & 0xffff) as u16;
    let mut fields = TableBuilder::with_capacity(7);
    fields.u16(SEGMENT).pad_to(0x413 - 0x40e).u16(BASE_KIB);
    fields.finish()
}

/// Builds the MP table at [`layout::EBDA`]: the floating pointer, followed by the configuration table.
///
/// ISA interrupts use the input of the same number, except the timer. MMIO devices with other interrupts are listed on the ISA
/// bus too: edge-triggered and active high, at the input of the GSI.
pub fn build(tables: &Tables<'_>) -> Vec<u8> {
    let mut entries = TableBuilder::with_capacity(1024);
    let mut count = 0;
    for processor in 0..tables.vcpus {
        let boot = if processor == 0 { BOOT_PROCESSOR } else { 0 };
        entries
            .u8(0)
            .u8(processor)
            .u8(LOCAL_APIC_VERSION)
            .u8(ENABLED | boot)
            .u32(SIGNATURE)
            .u32(FEATURES)
            .u64(0);
        count += 1;
    }
    let ioapic = tables.ioapic_id();
    entries.u8(1).u8(ISA).bytes(b"ISA   ");
    entries
        .u8(2)
        .u8(ioapic)
        .u8(IOAPIC_VERSION)
        .u8(ENABLED)
        .u32(low(layout::IOAPIC));
    count += 2;
    for irq in (0..layout::IOAPIC_PINS).filter(|irq| is_listed(*irq, tables)) {
        let pin = if irq == 0 { TIMER_PIN } else { irq };
        append_interrupt(&mut entries, 3, INT, irq, [ioapic, pin]);
        count += 1;
    }
    append_interrupt(&mut entries, 4, EXT_INT, 0, [0, 0]);
    append_interrupt(&mut entries, 4, NMI, 0, [ALL_PROCESSORS, 1]);
    count += 2;
    assemble(&entries.finish(), count)
}

/// Returns true if the table lists `irq`. IRQ 2 is the cascade of the second PIC.
fn is_listed(irq: u8, tables: &Tables<'_>) -> bool {
    match irq {
        2 => false,
        0..16 => true,
        _ => tables.mmio_devices.iter().any(|info| info.gsi == u32::from(irq)),
    }
}

/// Appends an interrupt assignment. Entry type 3 is for an input of the IOAPIC, 4 for an input of local APICs.
fn append_interrupt(entries: &mut TableBuilder, entry: u8, kind: u8, irq: u8, to: [u8; 2]) {
    // Flags 0: polarity and trigger mode conform to the bus, for ISA active high and edge-triggered.
    entries.u8(entry).u8(kind).u16(0).u8(ISA).u8(irq).bytes(&to);
}

/// Adds the floating pointer and the header to `count` entries.
fn assemble(entries: &[u8], count: u16) -> Vec<u8> {
    const HEADER: u16 = 44;
    let length = HEADER.saturating_add(u16::try_from(entries.len()).unwrap_or(u16::MAX));
    let mut fields = TableBuilder::with_capacity(FLOATING_POINTER + usize::from(length));
    // MP specification 1.4, section 4.1: feature byte 1 of 0 declares a configuration table, bit 7 of feature byte 2 clear
    // declares virtual wire mode.
    fields
        .bytes(b"_MP_")
        .u32(low(layout::EBDA) + 16)
        .u8(1)
        .u8(SPECIFICATION)
        .pad_to(FLOATING_POINTER)
        .set_checksum(0, 10);
    fields
        .bytes(b"PCMP")
        .u16(length)
        .u8(SPECIFICATION)
        .u8(0)
        .bytes(b"MAYFLY  ")
        .bytes(b"MICROVM     ")
        .u32(0)
        .u16(0)
        .u16(count)
        .u32(low(layout::LOCAL_APIC))
        .u32(0)
        .bytes(entries)
        .set_checksum(FLOATING_POINTER, FLOATING_POINTER + CHECKSUM);
    fields.finish()
}
