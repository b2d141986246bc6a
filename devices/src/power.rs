//! How a guest says that it has ended.

use std::sync::OnceLock;

/// What a guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Power off.
    Off,
    /// Reset. mayfly runs one life of a machine, so that a reset ends it too.
    Reset,
    /// End with this code, as written to the debug-exit port.
    Exit(u32),
}

/// Where devices leave the guest's wish to end; the first one counts. vCPUs look at it after each write of the guest.
#[derive(Debug, Default)]
pub struct Power {
    event: OnceLock<PowerEvent>,
}

impl Power {
    /// A machine that is on.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for the end. Later wishes than the first are ignored.
    pub fn request(&self, event: PowerEvent) {
        // The error is that there was a wish before.
        let _ = self.event.set(event);
    }

    /// The guest's wish, if it has expressed one.
    pub fn requested(&self) -> Option<PowerEvent> {
        self.event.get().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::{Power, PowerEvent};

    #[test]
    fn the_first_wish_counts() {
        let power = Power::new();
        assert_eq!(power.requested(), None);
        power.request(PowerEvent::Exit(7));
        power.request(PowerEvent::Off);
        assert_eq!(power.requested(), Some(PowerEvent::Exit(7)));
    }
}
