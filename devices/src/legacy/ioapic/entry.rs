use serde::{Deserialize, Serialize};

use super::Message;

const DELIVERY_SHIFT: u32 = 8;
const LOWEST_PRIORITY: u64 = 1;
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DESTINATION_SHIFT: u32 = 56;

/// Delivery status (bit 12) and remote IRR (bit 14) are read-only; bits 17 to 55 are reserved.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// First vector that a local APIC takes as an interrupt.
const FIRST_VECTOR: u64 = 0x10;

/// One entry of the redirection table, as the guest reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry(u64);

impl Entry {
    /// Masked, as after reset.
    pub(super) const RESET: Self = Self(MASKED);

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    /// Takes what the guest wrote. Remote IRR stays, but an edge-triggered entry has none: operating systems switch to
    /// edge and back in order to clear it.
    pub(super) fn set_bits(&mut self, bits: u64) {
        self.0 = (bits & WRITABLE) | (self.0 & REMOTE_IRR);
        if !self.is_level() {
            self.0 &= !REMOTE_IRR;
        }
    }

    /// Whether a guest could have got the entry to be so.
    pub(super) fn is_valid(self) -> bool {
        self.0 & !(WRITABLE | REMOTE_IRR) == 0 && (self.is_level() || !self.remote_irr())
    }

    pub(super) fn vector(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    pub(super) fn is_masked(self) -> bool {
        self.0 & MASKED != 0
    }

    /// Whether the pin waits for an end of interrupt after each message. Only fixed and lowest-priority interrupts have
    /// one; the trigger mode of all others counts as edge (data sheet, "Delivery Mode").
    pub(super) fn is_level(self) -> bool {
        self.0 & LEVEL != 0 && self.is_vectored()
    }

    pub(super) fn remote_irr(self) -> bool {
        self.0 & REMOTE_IRR != 0
    }

    pub(super) fn set_remote_irr(&mut self, set: bool) {
        match set {
            true => self.0 |= REMOTE_IRR,
            false => self.0 &= !REMOTE_IRR,
        }
    }

    /// What the pin sends, masked or not; `None` for a vector that no local APIC takes.
    pub(super) fn message(self) -> Option<Message> {
        let vector = u64::from(self.vector());
        if self.is_vectored() && vector < FIRST_VECTOR {
            return None;
        }
        let destination = self.0 >> DESTINATION_SHIFT;
        let mode = u64::from(self.0 & LOGICAL != 0);
        // Level-triggered messages also carry "assert" in bit 14, where an entry has its remote IRR.
        let level = match self.is_level() {
            true => LEVEL | 1 << 14,
            false => 0,
        };
        let data = vector | self.delivery() << DELIVERY_SHIFT | level;
        Some(Message {
            address: 0xfee0_0000 | destination << 12 | mode << 2,
            data: u32::try_from(data).ok()?,
        })
    }

    /// Where interrupts of the pin go, if they go anywhere.
    ///
    /// A masked edge-triggered pin goes nowhere. A masked level-triggered one keeps its route: its last interrupt may
    /// still be in service, and KVM reports the end of an interrupt only while a route has its vector.
    pub(super) fn route(self) -> Option<Message> {
        self.message().filter(|_| self.is_level() || !self.is_masked())
    }

    fn delivery(self) -> u64 {
        self.0 >> DELIVERY_SHIFT & 7
    }

    fn is_vectored(self) -> bool {
        self.delivery() <= LOWEST_PRIORITY
    }
}
