//! x86_64: a machine with local APICs, IOAPIC, PIC and PIT, started in protected or long mode.

pub mod layout;
