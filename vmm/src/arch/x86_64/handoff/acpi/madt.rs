//! Local APICs and IOAPIC.

use crate::arch::x86_64::handoff::Tables;
use crate::arch::x86_64::handoff::fields::{TableBuilder, low};
use crate::arch::x86_64::layout;

/// There are two 8259s as well, which must be masked when the APICs are used.
const PCAT_COMPATIBLE: u32 = 1 << 0;

/// Types of structures: ACPI 6.5, table 5.21.
const LOCAL_APIC: u8 = 0;
const IOAPIC: u8 = 1;
const SOURCE_OVERRIDE: u8 = 2;
const LOCAL_NMI: u8 = 4;

const ENABLED: u32 = 1 << 0;
/// Active high, edge-triggered: ACPI 6.5, table 5.26.
const HIGH_EDGE: u16 = 0b01 | 0b01 << 2;
const ALL_PROCESSORS: u8 = 0xff;
/// Input of the IOAPIC at which the timer's IRQ 0 arrives.
const TIMER_GSI: u32 = 2;

/// The MADT's contents behind its header.
pub fn structures(tables: &Tables<'_>) -> Vec<u8> {
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
    // Flags of zero: as the bus has it. LINT1.
    fields.u8(LOCAL_NMI).u8(6).u8(ALL_PROCESSORS).u16(0).u8(1);
    fields.finish()
}
