/// A message-signalled interrupt, as on the bus between IOAPIC and local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// 0xfee0_0000, destination in bits 12 to 19, destination mode (1 is logical) in bit 2.
    pub address: u64,
    /// Vector in bits 0 to 7, delivery mode in bits 8 to 10, assert in bit 14 and level-triggered in bit 15.
    pub data: u32,
}

/// Where the interrupts of one pin go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The pin, which is the global system interrupt of the same number.
    pub pin: u32,
    /// What is sent when the pin is asserted.
    pub message: Message,
}

/// Takes the IOAPIC's messages to the local APICs.
///
/// Both methods are called with the lock of the interrupt controller held, so that messages and routes arrive in the
/// order in which they were made. They must not call back into it.
pub trait MessageSink: Send + Sync {
    /// Delivers one interrupt.
    fn send(&self, message: Message);

    /// Replaces all routes. Called before the first message that follows the change, and only when a route differs.
    fn routes_changed(&self, routes: &[Route]);
}
