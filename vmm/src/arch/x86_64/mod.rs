//! x86_64: a machine with local APICs, IOAPIC, PIC and PIT, started in protected or long mode.
//!
//! | module | holds |
//! |---|---|
//! | [`entry`] | the registers, descriptors and page tables that a guest starts with |
//! | [`handoff`] | what a guest finds in memory when it starts |
//! | [`layout`] | physical addresses and interrupt lines |

pub mod entry;
pub mod handoff;
pub mod layout;
