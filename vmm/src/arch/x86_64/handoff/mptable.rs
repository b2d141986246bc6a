//! The MP table, Intel MultiProcessor Specification 1.4, and the BIOS data that leads to it.

use devices::ioapic;

use crate::arch::x86_64::handoff::Tables;
use crate::arch::x86_64::handoff::fields::{TableBuilder, low};
use crate::arch::x86_64::layout;

/// Address of the first word of the BIOS data that is written: the segment of the extended BIOS data area.
pub const BIOS_DATA: u64 = 0x40e;
/// Bytes that the table may take: the rest of the extended BIOS data area.
pub const CAPACITY: u64 = layout::CONVENTIONAL_END - layout::EBDA;

const SPECIFICATION: u8 = 4;
const FLOATING_POINTER: usize = 16;
/// Offset of the checksum in the configuration table's header, whose length is 44.
const CHECKSUM: usize = 7;
/// The local APICs are those in every processor since the Pentium 4.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = ioapic::MODEL;
const ISA: u8 = 0;

const ENABLED: u8 = 1 << 0;
const BOOT_PROCESSOR: u8 = 1 << 1;
/// Family 6, and the features FPU and APIC: guests read the real ones by CPUID.
const SIGNATURE: u32 = 0x600;
const FEATURES: u32 = 0x201;

/// Kinds of interrupt: section 4.3.4, table 4-10.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Destination: the local APICs of all processors.
const EVERYONE: u8 = 0xff;
/// Input of the IOAPIC at which the timer's IRQ 0 arrives.
const TIMER_PIN: u8 = 2;

/// The bytes from [`BIOS_DATA`] to the size of the base memory: where the MP table is, in paragraphs, and how many KiB
/// come before it. Between the two lies the BIOS's list of equipment, which is empty.
pub fn bios_data() -> Vec<u8> {
    const SEGMENT: u16 = (layout::EBDA >> 4 & 0xffff) as u16;
    const BASE_KIB: u16 = (layout::EBDA >> 10 & 0xffff) as u16;
    let mut fields = TableBuilder::with_capacity(7);
    fields.u16(SEGMENT).pad_to(0x413 - 0x40e).u16(BASE_KIB);
    fields.finish()
}

/// Builds what goes to [`layout::EBDA`]: the floating pointer and, right behind it, the configuration table.
///
/// ISA interrupts go to the input of the same number, but for the timer. Windows whose interrupt is none of ISA's are
/// listed as if they were on that bus: edge-triggered and active high, at the input with the GSI's number.
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
    for irq in (0..layout::IOAPIC_PINS).filter(|irq| wired(*irq, tables)) {
        let pin = if irq == 0 { TIMER_PIN } else { irq };
        interrupt(&mut entries, 3, INT, irq, [ioapic, pin]);
        count += 1;
    }
    interrupt(&mut entries, 4, EXT_INT, 0, [0, 0]);
    interrupt(&mut entries, 4, NMI, 0, [EVERYONE, 1]);
    count += 2;
    assemble(&entries.finish(), count)
}

/// Whether the table lists interrupt `irq`. IRQ 2 is where the second PIC is chained to the first.
fn wired(irq: u8, tables: &Tables<'_>) -> bool {
    match irq {
        2 => false,
        0..16 => true,
        _ => tables.windows.iter().any(|window| window.gsi == u32::from(irq)),
    }
}

/// Appends an interrupt assignment: entry type 3 for an input of the IOAPIC, 4 for one of local APICs.
fn interrupt(entries: &mut TableBuilder, entry: u8, kind: u8, irq: u8, to: [u8; 2]) {
    // Polarity and trigger mode conform to the bus: for ISA, edge-triggered and active high.
    entries.u8(entry).u8(kind).u16(0).u8(ISA).u8(irq).bytes(&to);
}

fn assemble(entries: &[u8], count: u16) -> Vec<u8> {
    const HEADER: u16 = 44;
    let length = HEADER.saturating_add(u16::try_from(entries.len()).unwrap_or(u16::MAX));
    let mut fields = TableBuilder::with_capacity(FLOATING_POINTER + usize::from(length));
    // The feature byte of zero says that there is a table, the next one that the processors start in virtual wire mode.
    fields
        .bytes(b"_MP_")
        .u32(low(layout::EBDA) + 16)
        .u8(1)
        .u8(SPECIFICATION)
        .pad_to(FLOATING_POINTER)
        .seal(0, 10);
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
        .seal(FLOATING_POINTER, FLOATING_POINTER + CHECKSUM);
    fields.finish()
}
