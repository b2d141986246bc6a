//! How a guest says that it has ended.

use std::io;
use std::sync::OnceLock;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

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

/// Where devices leave the guest's wish to end; the first one counts.
#[derive(Debug)]
pub struct Power {
    event: OnceLock<PowerEvent>,
    notify: EventFd,
}

impl Power {
    /// A machine that is on.
    ///
    /// # Errors
    /// The kernel's answer when no eventfd can be made.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            event: OnceLock::new(),
            notify: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Asks for the end. Later wishes than the first are ignored.
    pub fn request(&self, event: PowerEvent) {
        if self.event.set(event).is_ok() {
            // The counter holds 1 at most, so that the write can neither block nor fail.
            let _ = self.notify.write(1);
        }
    }

    /// The guest's wish, if it has expressed one.
    pub fn requested(&self) -> Option<PowerEvent> {
        self.event.get().copied()
    }

    /// Becomes readable with the first wish.
    pub fn notify(&self) -> &EventFd {
        &self.notify
    }
}

#[cfg(test)]
mod tests {
    use super::{Power, PowerEvent};

    #[test]
    fn the_first_wish_counts() {
        let power = Power::new().unwrap();
        assert_eq!(power.requested(), None);
        assert!(power.notify().read().is_err());
        power.request(PowerEvent::Exit(7));
        power.request(PowerEvent::Off);
        assert_eq!(power.requested(), Some(PowerEvent::Exit(7)));
        assert_eq!(power.notify().read().unwrap(), 1);
    }
}
