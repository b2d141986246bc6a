//! Where the vCPUs of a paused VM wait.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use devices::lock;

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const STOPPED: u8 = 2;

/// The gate between the vCPUs' threads and the guest.
///
/// A thread looks at it before each entry, and the owner kicks the threads after it has closed it, so that one that is in
/// the guest comes to look. Stopping is for good.
#[derive(Debug)]
pub struct PauseGate {
    state: AtomicU8,
    outside: Mutex<Outside>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Outside {
    /// Threads that are certain not to be in the guest: they wait here, or have ended.
    threads: usize,
    /// How often those that wait have been called.
    calls: u64,
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
    /// Whether a thread may enter the guest.
    pub fn is_open(&self) -> bool {
        self.state.load(Ordering::SeqCst) == OPEN
    }

    /// Whether the threads are to end.
    pub fn is_stopped(&self) -> bool {
        self.state.load(Ordering::SeqCst) == STOPPED
    }

    /// Whether threads wait here, and are not told to end.
    pub fn is_closed(&self) -> bool {
        self.state.load(Ordering::SeqCst) == CLOSED
    }

    /// Waits until the gate is open or stopped. Meanwhile `answer` is called once in the beginning and whenever somebody
    /// [calls](Self::notify_waiters).
    pub fn wait(&self, mut answer: impl FnMut()) {
        let mut outside = lock(&self.outside);
        outside.threads += 1;
        self.changed.notify_all();
        // Unlike any number of calls, so that what was asked before this thread came is answered too.
        let mut answered = None;
        while self.is_closed() {
            let calls = outside.calls;
            if answered != Some(calls) {
                drop(outside);
                answer();
                answered = Some(calls);
                outside = lock(&self.outside);
                continue;
            }
            outside = self.changed.wait(outside).unwrap_or_else(PoisonError::into_inner);
        }
        outside.threads -= 1;
    }

    /// Has everybody who waits look for what is asked of it.
    pub fn notify_waiters(&self) {
        lock(&self.outside).calls += 1;
        self.changed.notify_all();
    }

    /// The calling thread will not enter the guest any more.
    pub fn leave(&self) {
        lock(&self.outside).threads += 1;
        self.changed.notify_all();
    }

    /// Closes the gate, has `kick` interrupt the threads, and waits until all `count` of them are outside.
    pub fn close(&self, count: usize, kick: impl FnOnce()) {
        if self.turn(CLOSED) {
            kick();
            let inside = |outside: &mut Outside| outside.threads < count;
            let closed = self.changed.wait_while(lock(&self.outside), inside);
            drop(closed.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// As [`close`](Self::close), but when that takes longer than `patience` the gate opens again; false then.
    pub fn close_within(&self, count: usize, kick: impl FnOnce(), patience: Duration) -> bool {
        if self.turn(CLOSED) {
            kick();
            let inside = |outside: &mut Outside| outside.threads < count;
            let closed = self
                .changed
                .wait_timeout_while(lock(&self.outside), patience, inside);
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
        self.turn(OPEN);
    }

    /// Has the threads end; who is in the guest still has to be kicked.
    pub fn stop(&self) {
        self.turn(STOPPED);
    }

    /// Returns false when it is too late.
    fn turn(&self, state: u8) -> bool {
        // With the lock, so that nobody looks just before this and waits just after it.
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
    fn a_closed_gate_holds_everybody_until_it_opens_or_stops() {
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
        // Who has ended is outside, and a stopped gate waits for nobody.
        gate.close(2, || panic!("there is nobody left"));
        gate.open();
        assert!(gate.is_stopped());
    }

    #[test]
    fn a_gate_that_somebody_does_not_come_to_opens_again() {
        let gate = PauseGate::default();
        let mut kicked = false;
        assert!(!gate.close_within(1, || kicked = true, Duration::ZERO));
        assert!(kicked && gate.is_open());
        gate.leave();
        assert!(gate.close_within(1, || {}, Duration::ZERO));
        assert!(gate.is_closed());
    }

    #[test]
    fn who_waits_answers_calls() {
        let gate = Arc::new(PauseGate::default());
        gate.close(0, || {});
        let (answer, answers) = mpsc::channel();
        let worker = {
            let gate = gate.clone();
            thread::spawn(move || gate.wait(|| answer.send(()).unwrap()))
        };
        answers.recv().unwrap();
        for _ in 0..100 {
            gate.notify_waiters();
            answers.recv().unwrap();
        }
        gate.open();
        worker.join().unwrap();
        assert!(answers.recv().is_err(), "nobody was asked any more");
    }
}
