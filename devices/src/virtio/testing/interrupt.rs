use std::sync::atomic::{AtomicU32, Ordering};

use crate::interrupt::Interrupt;

/// An interrupt line that counts its assertions.
#[derive(Debug, Default)]
pub struct CountingInterrupt(AtomicU32);

impl CountingInterrupt {
    /// Returns the number of assertions since the last call.
    pub fn take(&self) -> u32 {
        self.0.swap(0, Ordering::SeqCst)
    }
}

impl Interrupt for CountingInterrupt {
    fn set_level(&self, asserted: bool) {
        self.0.fetch_add(asserted.into(), Ordering::SeqCst);
    }
}
