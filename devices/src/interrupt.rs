//! The interrupt line of a device.

/// One input of an interrupt controller.
pub trait Interrupt: Send + Sync {
    /// Sets the level of the line. An edge-triggered input detects a rising edge when `asserted` changes from false to
    /// true.
    fn set_level(&self, asserted: bool);

    /// Asserts and deasserts the line: one edge.
    fn trigger(&self) {
        self.set_level(true);
        self.set_level(false);
    }
}
