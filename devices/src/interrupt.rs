//! The wire from a device to the interrupt controller.

/// One interrupt input of an interrupt controller.
pub trait Interrupt: Send + Sync {
    /// Sets the level of the wire. An edge-triggered input sees a rising edge when `asserted` goes from false to true.
    fn set_level(&self, asserted: bool);

    /// Raises and lowers the wire: one edge.
    fn trigger(&self) {
        self.set_level(true);
        self.set_level(false);
    }
}
