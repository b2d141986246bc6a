//! Tells once when the back end can be written to.
//!
//! The event loop watches descriptors for what can be read. An epoll instance can be read when what it watches is ready,
//! so that one that watches the back end for room, and only while somebody waits for it, is what the loop needs.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Becomes readable when the watched descriptor becomes writable, once for each [`Writable::watch`].
pub(super) struct Writable {
    epoll: Epoll,
    known: bool,
    watching: bool,
}

impl Writable {
    /// Watches nothing yet.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            known: false,
            watching: false,
        })
    }

    /// Whether somebody waits.
    pub(super) fn is_watching(&self) -> bool {
        self.watching
    }

    /// Waits for `descriptor`, always the same one, to become writable, or broken.
    pub(super) fn watch(&mut self, descriptor: RawFd) -> io::Result<()> {
        let operation = match self.known {
            true => ControlOperation::Modify,
            false => ControlOperation::Add,
        };
        let event = EpollEvent::new(EventSet::OUT | EventSet::ONE_SHOT, 0);
        self.epoll.ctl(operation, descriptor, event)?;
        self.known = true;
        self.watching = true;
        Ok(())
    }

    /// Takes the news that it is writable, so that it is not told again.
    pub(super) fn take(&mut self) {
        self.watching = false;
        // Without a timeout this only fetches what is there; with nothing there, nothing was to be taken.
        let _ = self.epoll.wait(0, &mut [EpollEvent::default()]);
    }
}

impl AsRawFd for Writable {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
