//! Gate at which the vCPU threads of a paused VM wait.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use devices::lock;

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const STOPPED: u8 = 2;

/// Gate between the vCPU threads and the guest.
///
/// A thread checks it before each guest entry. The event loop closes it and then kicks the threads, so that a thread inside the guest
/// checks it too. A stopped gate never opens again.
#[derive(Debug)]
pub struct PauseGate {
    state: AtomicU8,
    outside: Mutex<Outside>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Outside {
    /// Threads that wait at the gate or have ended, and so are outside the guest.
    threads: usize,
    /// Number of calls of `notify_waiters`.
    notifications: u64,
}

impl Default for PauseGate {
    fn default() -> Self {
        Self {
            state: AtomicU8::new(OPEN),
            outside: Mutex::default(),
            changed: Condvar::new(),
        }
    }
}

impl PauseGate {
    /// Returns true if a thread may enter the guest.
    pub fn is_open(&self) -> bool {
        self.state.load(Ordering::SeqCst) == OPEN
    }

    /// Returns true if the threads must end.
    pub fn is_stopped(&self) -> bool {
        self.state.load(Ordering::SeqCst) == STOPPED
    }

    /// Returns true if threads must wait.
    pub fn is_closed(&self) -> bool {
        self.state.load(Ordering::SeqCst) == CLOSED
    }

    /// Waits until the gate is open or stopped. Calls `handle` once at the beginning, and after each
    /// [`notify_waiters`](Self::notify_waiters).
    pub fn wait(&self, mut handle: impl FnMut()) {
        let mut outside = lock(&self.outside);
        outside.threads += 1;
        self.changed.notify_all();
        // None: requests from before this call are handled too.
        let mut handled = None;
        while self.is_closed() {
            let notifications = outside.notifications;
            if handled != Some(notifications) {
                drop(outside);
                handle();
                handled = Some(notifications);
                outside = lock(&self.outside);
                continue;
            }
            outside = self.changed.wait(outside).unwrap_or_else(PoisonError::into_inner);
        }
        outside.threads -= 1;
    }

    /// Wakes the waiting threads to handle requests.
    pub fn notify_waiters(&self) {
        lock(&self.outside).notifications += 1;
        self.changed.notify_all();
    }

    /// Counts the calling thread, which ends, as outside the guest for good.
    pub fn leave(&self) {
        lock(&self.outside).threads += 1;
        self.changed.notify_all();
    }

    /// Closes the gate, calls `kick` to interrupt the threads, and waits until all `count` of them are outside the guest.
    ///
    /// A thread that has not yet left [`wait`](Self::wait) since an earlier close counts as outside: it finds the gate closed again.
    pub fn close(&self, count: usize, kick: impl FnOnce()) {
        if self.set_state(CLOSED) {
            kick();
            let inside = |outside: &mut Outside| outside.threads < count;
            let closed = self.changed.wait_while(lock(&self.outside), inside);
            drop(closed.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// As [`close`](Self::close), but opens the gate again and returns false after `timeout`.
    pub fn close_timeout(&self, count: usize, kick: impl FnOnce(), timeout: Duration) -> bool {
        if self.set_state(CLOSED) {
            kick();
            let inside = |outside: &mut Outside| outside.threads < count;
            let closed = self
                .changed
                .wait_timeout_while(lock(&self.outside), timeout, inside);
            let (outside, waited) = closed.unwrap_or_else(PoisonError::into_inner);
            drop(outside);
            if waited.timed_out() {
                self.open();
                return false;
            }
        }
        true
    }

    /// Opens the gate again.
    pub fn open(&self) {
        self.set_state(OPEN);
    }

    /// Stops the gate. Threads inside the guest must be kicked afterwards.
    pub fn stop(&self) {
        self.set_state(STOPPED);
    }

    /// Sets the state and wakes all waiting threads. Returns false, without effect, if the gate is stopped.
    fn set_state(&self, state: u8) -> bool {
        // Under the lock, so that no thread checks the state just before the change and waits just after it.
        let _outside = lock(&self.outside);
        if self.is_stopped() {
            return false;
        }
        self.state.store(state, Ordering::SeqCst);
        self.changed.notify_all();
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::{Arc, mpsc};
    use std::thread;
    use std::time::Duration;

    use super::PauseGate;

    #[test]
    fn closed_gate_holds_threads() {
        let gate = Arc::new(PauseGate::default());
        let rounds = Arc::new(AtomicU64::new(0));
        let inside = Arc::new(AtomicBool::new(false));
        let worker = {
            let (gate, rounds, inside) = (gate.clone(), rounds.clone(), inside.clone());
            thread::spawn(move || {
                while !gate.is_stopped() {
                    if !gate.is_open() {
                        gate.wait(|| ());
                        continue;
                    }
                    inside.store(true, Ordering::SeqCst);
                    rounds.fetch_add(1, Ordering::SeqCst);
                    inside.store(false, Ordering::SeqCst);
                }
                gate.leave();
            })
        };
        for _ in 0..100 {
            gate.close(1, || {});
            let seen = rounds.load(Ordering::SeqCst);
            thread::yield_now();
            assert_eq!(
                (inside.load(Ordering::SeqCst), rounds.load(Ordering::SeqCst)),
                (false, seen)
            );
            gate.open();
            while rounds.load(Ordering::SeqCst) == seen {
                thread::yield_now();
            }
        }
        gate.close(1, || {});
        gate.stop();
        worker.join().unwrap();
        // A stopped gate does not wait for a second thread.
        gate.close(2, || panic!("a stopped gate was closed"));
        gate.open();
        assert!(gate.is_stopped());
    }

    #[test]
    fn gate_opens_after_timeout() {
        let gate = PauseGate::default();
        let mut kicked = false;
        assert!(!gate.close_timeout(1, || kicked = true, Duration::ZERO));
        assert!(kicked && gate.is_open());
        gate.leave();
        assert!(gate.close_timeout(1, || {}, Duration::ZERO));
        assert!(gate.is_closed());
    }

    #[test]
    fn waiting_thread_handles_notifications() {
        let gate = Arc::new(PauseGate::default());
        gate.close(0, || {});
        let (handled, calls) = mpsc::channel();
        let worker = {
            let gate = gate.clone();
            thread::spawn(move || gate.wait(|| handled.send(()).unwrap()))
        };
        calls.recv().unwrap();
        for _ in 0..100 {
            gate.notify_waiters();
            calls.recv().unwrap();
        }
        gate.open();
        worker.join().unwrap();
        assert!(calls.recv().is_err(), "handled after the gate opened");
    }
}
