//! Thread of a kick.

use devices::sync::atomic::{AtomicI32, Ordering, fence};

/// ID of the thread that a kick interrupts.
///
/// The kicking thread stores a reason, for example in the gate, and then loads the ID. The thread stores its ID and then loads the
/// reason. With a full barrier between each store and load, one side sees the store of the other: no reason is lost.
#[derive(Debug, Default)]
pub struct KickTarget(AtomicI32);

impl KickTarget {
    /// Sets the ID, which is not 0. The calling thread checks for work afterwards.
    pub fn bind(&self, thread: i32) {
        self.0.store(thread, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Removes the ID. The thread no longer needs a kick.
    pub fn unbind(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Returns the ID to kick, after the store of the reason. `None` while no thread is bound: it checks for work when it is.
    pub fn to_kick(&self) -> Option<i32> {
        fence(Ordering::SeqCst);
        self.thread()
    }

    /// Returns the ID, to observe the thread. `None` while no thread is bound.
    pub fn thread(&self) -> Option<i32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|thread| *thread != 0)
    }
}
