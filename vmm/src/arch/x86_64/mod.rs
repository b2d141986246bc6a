//! x86_64: a machine with local APICs, IOAPIC, PIC and PIT, started in protected or long mode.
//!
//! | module | holds |
//! |---|---|
//! | [`entry`] | the registers, descriptors and page tables that a guest starts with |
//! | [`layout`] | physical addresses and interrupt lines |

pub mod entry;
pub mod layout;
