//! Gate at which the vCPU threads of a paused VM wait.

use std::fmt;
use std::time::Duration;

use devices::sync::atomic::{AtomicU8, Ordering};
use devices::sync::{Condvar, Mutex, lock, wait, wait_within};

use crate::channel::poll;

const OPEN: u8 = 0;
/// Bit: all threads must wait.
const CLOSED: u8 = 1;
/// Bit: the threads must end. No other bit is set.
const STOPPED: u8 = 2;
/// Bit: a debugger holds some threads.
const HELD: u8 = 4;

/// Threads that wait at a [`PauseGate`]: vCPU threads by number, and the I/O thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadSet(u64);

impl ThreadSet {
    /// The I/O thread, which exists if a fault handler serves guest memory.
    pub const IO: Self = Self(1 << 63);
    /// The threads of all vCPUs.
    pub const ALL_VCPUS: Self = Self((1 << 63) - 1);
    /// Name of the I/O thread.
    pub const IO_NAME: &'static str = "mayfly_io";

    /// Returns the thread of vCPU `id`.
    pub const fn vcpu(id: u8) -> Self {
        Self(1 << id)
    }

    /// Returns the threads of vCPUs 0 to `count` - 1.
    pub const fn vcpus(count: usize) -> Self {
        Self((1 << count) - 1)
    }

    /// Returns the threads of both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns the threads that are not in `other`.
    const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Returns true if this set has a thread of `other`.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for ThreadSet {
    /// Formats the names of the threads, separated by commas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for id in (0..63).filter(|id| self.0 & 1 << id != 0) {
            write!(f, "{comma}fc_vcpu {id}")?;
            comma = ", ";
        }
        if self.without(Self::IO) != *self {
            write!(f, "{comma}{}", Self::IO_NAME)?;
        }
        Ok(())
    }
}

/// Gate between the vCPU threads and the guest.
///
/// A thread checks it before each guest entry. The event loop closes it and then kicks the threads, so that a thread inside the guest
/// checks it too. A stopped gate never opens again.
///
/// A debugger [holds](Self::hold) the threads of vCPUs at the gate, each by itself. A thread enters the guest if the gate is open and the
/// debugger does not hold it, so that neither the VM's owner nor the debugger undoes the wait for the other.
#[derive(Debug)]
pub struct PauseGate {
    state: AtomicU8,
    outside: Mutex<Outside>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Outside {
    /// Threads that a debugger holds.
    held: ThreadSet,
    /// Threads that wait at the gate or have ended, and so are outside the guest.
    threads: ThreadSet,
    /// Threads that have ended.
    ended: ThreadSet,
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
    /// Returns true if each thread may enter the guest.
    pub fn is_open(&self) -> bool {
        self.state() == OPEN
    }

    /// Returns true if `thread` may enter the guest.
    pub fn is_open_to(&self, thread: ThreadSet) -> bool {
        match self.state() {
            OPEN => true,
            HELD => !lock(&self.outside).held.has(thread),
            _ => false,
        }
    }

    /// Returns true if a debugger holds threads.
    pub fn is_held(&self) -> bool {
        self.state() & HELD != 0
    }

    /// Returns true if the threads must end.
    pub fn is_stopped(&self) -> bool {
        self.state() == STOPPED
    }

    /// Returns true if all threads must wait.
    pub fn is_closed(&self) -> bool {
        self.state() & CLOSED != 0
    }

    /// Returns when the closed gate is opened or stopped, or after a millisecond.
    pub fn expect_change(&self) {
        poll(|| (!self.is_closed()).then_some(()));
    }

    /// Waits until the gate is open to `thread`, or stopped. Calls `handle` once at the beginning, and after each
    /// [`notify_waiters`](Self::notify_waiters). `thread` is the calling thread.
    pub fn wait(&self, thread: ThreadSet, mut handle: impl FnMut()) {
        let mut outside = lock(&self.outside);
        outside.threads = outside.threads.and(thread);
        self.changed.notify_all();
        // None: requests from before this call are handled too.
        let mut handled = None;
        while self.is_closed() || self.is_held() && outside.held.has(thread) {
            let notifications = outside.notifications;
            if handled != Some(notifications) {
                drop(outside);
                handle();
                handled = Some(notifications);
                outside = lock(&self.outside);
                continue;
            }
            outside = wait(&self.changed, outside);
        }
        outside.threads = outside.threads.without(thread);
    }

    /// Wakes the waiting threads to handle requests.
    pub fn notify_waiters(&self) {
        lock(&self.outside).notifications += 1;
        self.changed.notify_all();
    }

    /// Counts the calling `thread`, which ends, as outside the guest for good.
    pub fn leave(&self, thread: ThreadSet) {
        let mut outside = lock(&self.outside);
        outside.threads = outside.threads.and(thread);
        outside.ended = outside.ended.and(thread);
        drop(outside);
        self.changed.notify_all();
    }

    /// Waits at most `timeout` until all `threads` of the stopped gate have ended. Returns those that have not.
    pub fn wait_end(&self, threads: ThreadSet, timeout: Duration) -> ThreadSet {
        let runs = |outside: &mut Outside| !threads.without(outside.ended).is_empty();
        let (outside, _) = wait_within(&self.changed, lock(&self.outside), timeout, runs);
        threads.without(outside.ended)
    }

    /// Closes the gate before the first guest entry.
    pub fn close_at_start(&self) {
        self.change(|_, state| *state |= CLOSED);
    }

    /// Closes the gate, calls `kick` to interrupt the threads, and waits until all `threads` are outside the guest. Opens it again after
    /// `timeout`.
    ///
    /// A thread that has not yet left [`wait`](Self::wait) since an earlier close counts as outside: it finds the gate closed again.
    ///
    /// # Errors
    /// The threads that are not outside the guest after `timeout`, or when the gate is stopped.
    pub fn close(&self, threads: ThreadSet, kick: impl FnOnce(), timeout: Duration) -> Result<(), ThreadSet> {
        if self.change(|_, state| *state |= CLOSED) {
            kick();
            let waiting = self.wait_outside(threads, timeout);
            if !waiting.is_empty() {
                self.open();
                return Err(waiting);
            }
        }
        Ok(())
    }

    /// Waits at most `timeout` until all `threads` are outside the guest, or the gate is stopped. Returns those that are inside.
    pub fn wait_outside(&self, threads: ThreadSet, timeout: Duration) -> ThreadSet {
        let inside =
            |outside: &mut Outside| !threads.without(outside.threads).is_empty() && !self.is_stopped();
        let (outside, _) = wait_within(&self.changed, lock(&self.outside), timeout, inside);
        threads.without(outside.threads)
    }

    /// Opens the gate again.
    pub fn open(&self) {
        self.change(|_, state| *state &= !CLOSED);
    }

    /// Holds exactly `threads` for a debugger, which must be vCPUs: none releases all. Threads inside the guest must be kicked
    /// afterwards.
    pub fn hold(&self, threads: ThreadSet) {
        self.change(|outside, state| {
            outside.held = threads;
            *state = *state & !HELD | if threads.is_empty() { 0 } else { HELD };
        });
    }

    /// Holds all vCPUs if `condition` is true. Returns true if they are held now. The check and the hold are one step for other callers
    /// of [`hold`](Self::hold): a release after a change of the condition leaves no vCPU held.
    pub fn hold_if(&self, condition: impl FnOnce() -> bool) -> bool {
        let mut is_held = false;
        self.change(|outside, state| {
            is_held = condition();
            if is_held {
                outside.held = ThreadSet::ALL_VCPUS;
                *state |= HELD;
            }
        });
        is_held
    }

    /// Stops the gate. Threads inside the guest must be kicked afterwards.
    pub fn stop(&self) {
        self.change(|_, state| *state = STOPPED);
    }

    fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    /// Changes the state and wakes all waiting threads. Returns false, without effect, if the gate is stopped.
    fn change(&self, change: impl FnOnce(&mut Outside, &mut u8)) -> bool {
        // Under the lock, so that no thread checks the state just before the change and waits just after it.
        let mut outside = lock(&self.outside);
        let mut state = self.state();
        if state == STOPPED {
            return false;
        }
        change(&mut outside, &mut state);
        // Release: a thread that reads the state without the lock sees what precedes the change, for example a restored device. A kick
        // follows for a thread inside the guest; its full barrier is in `KickTarget`.
        self.state.store(state, Ordering::Release);
        drop(outside);
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

    use super::{PauseGate, ThreadSet};

    const FIRST: ThreadSet = ThreadSet::vcpu(0);

    #[test]
    fn closed_gate_holds_threads() {
        scratch::limited(hold_threads);
    }

    fn hold_threads() {
        let gate = Arc::new(PauseGate::default());
        let rounds = Arc::new(AtomicU64::new(0));
        let inside = Arc::new(AtomicBool::new(false));
        let worker = {
            let (gate, rounds, inside) = (gate.clone(), rounds.clone(), inside.clone());
            thread::spawn(move || {
                while !gate.is_stopped() {
                    if !gate.is_open() {
                        gate.wait(FIRST, || ());
                        continue;
                    }
                    inside.store(true, Ordering::SeqCst);
                    rounds.fetch_add(1, Ordering::SeqCst);
                    inside.store(false, Ordering::SeqCst);
                }
                gate.leave(FIRST);
            })
        };
        for _ in 0..100 {
            gate.close(FIRST, || {}, scratch::TIMEOUT).unwrap();
            let seen = rounds.load(Ordering::SeqCst);
            thread::yield_now();
            assert_eq!(
                (inside.load(Ordering::SeqCst), rounds.load(Ordering::SeqCst)),
                (false, seen)
            );
            gate.open();
            scratch::wait_until("a round of the thread", || rounds.load(Ordering::SeqCst) > seen);
        }
        gate.close(FIRST, || {}, scratch::TIMEOUT).unwrap();
        gate.stop();
        scratch::join(worker);
        // A stopped gate does not wait for a second thread.
        let kick = || panic!("a stopped gate was closed");
        gate.close(ThreadSet::vcpus(2), kick, scratch::TIMEOUT).unwrap();
        gate.open();
        assert!(gate.is_stopped());
    }

    #[test]
    fn debugger_holds_single_threads_of_open_and_closed_gate() {
        let gate = PauseGate::default();
        let second = ThreadSet::vcpu(1);
        gate.hold(FIRST);
        assert!(gate.is_held() && !gate.is_open() && !gate.is_closed());
        assert_eq!((gate.is_open_to(FIRST), gate.is_open_to(second)), (false, true));
        assert_eq!(
            gate.wait_outside(FIRST.and(second), Duration::ZERO),
            FIRST.and(second)
        );
        gate.close_at_start();
        assert!(gate.is_held() && gate.is_closed() && !gate.is_open_to(second));
        gate.open();
        assert_eq!((gate.is_open_to(FIRST), gate.is_open_to(second)), (false, true));
        gate.close_at_start();
        gate.hold(ThreadSet::default());
        assert!(!gate.is_held() && !gate.is_open_to(FIRST));
        gate.open();
        assert!(gate.is_open_to(FIRST) && gate.is_open());
        assert!(!gate.hold_if(|| false) && gate.is_open());
        assert!(gate.hold_if(|| true) && !gate.is_open_to(FIRST) && !gate.is_open_to(second));
        gate.stop();
        gate.hold(FIRST);
        assert!(!gate.hold_if(|| true));
        assert!(gate.is_stopped() && !gate.is_held());
    }

    #[test]
    fn gate_opens_after_timeout() {
        let gate = PauseGate::default();
        let mut kicked = false;
        let both = FIRST.and(ThreadSet::IO);
        let waiting = gate.close(both, || kicked = true, Duration::ZERO);
        assert_eq!(waiting, Err(both));
        assert_eq!(waiting.unwrap_err().to_string(), "fc_vcpu 0, mayfly_io");
        assert!(kicked && gate.is_open());
        gate.leave(FIRST);
        assert_eq!(gate.close(both, || {}, Duration::ZERO), Err(ThreadSet::IO));
        gate.leave(ThreadSet::IO);
        assert_eq!(gate.close(both, || {}, Duration::ZERO), Ok(()));
        assert!(gate.is_closed());
    }

    #[test]
    fn end_of_threads_is_awaited_within_timeout() {
        let gate = Arc::new(PauseGate::default());
        gate.stop();
        let both = ThreadSet::vcpus(2);
        gate.leave(FIRST);
        assert_eq!(gate.wait_end(both, Duration::ZERO), ThreadSet::vcpu(1));
        let worker = {
            let gate = gate.clone();
            thread::spawn(move || gate.leave(ThreadSet::vcpu(1)))
        };
        assert_eq!(gate.wait_end(both, scratch::TIMEOUT), ThreadSet::default());
        scratch::join(worker);
    }

    #[test]
    fn waiting_thread_handles_notifications() {
        scratch::limited(notify_waiting_thread);
    }

    fn notify_waiting_thread() {
        let gate = Arc::new(PauseGate::default());
        gate.close_at_start();
        let (handled, calls) = mpsc::channel();
        let worker = {
            let gate = gate.clone();
            thread::spawn(move || gate.wait(FIRST, || handled.send(()).unwrap()))
        };
        scratch::receive(&calls);
        for _ in 0..100 {
            gate.notify_waiters();
            scratch::receive(&calls);
        }
        gate.open();
        scratch::join(worker);
        assert!(calls.try_recv().is_err(), "handled after the gate opened");
    }
}
