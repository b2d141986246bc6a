//! Types that threads share, and locks without poisoning.
//!
//! Code whose order of memory accesses the tests in `tests/interleavings` check takes its types from this module. With `cfg(loom)`
//! they are those of loom, which runs a test in each order that the memory model of Rust allows.

use std::sync::PoisonError;
use std::time::Duration;

#[cfg(loom)]
pub use loom::sync::{Arc, Condvar, Mutex, MutexGuard, atomic};
#[cfg(not(loom))]
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard, atomic};

/// Locks `mutex`.
///
/// Ignores poisoning: a panic ends the process, so that no thread observes a poisoned lock.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a notification of `changed`. May return without one.
pub fn wait<'a, T>(changed: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// Waits while the data of `guard` `is_busy`, at most for `timeout`. Another thread notifies `changed` after each change. The second
/// value is true if the data is not busy.
#[cfg(not(loom))]
pub fn wait_within<'a, T>(
    changed: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Duration,
    is_busy: impl FnMut(&mut T) -> bool,
) -> (MutexGuard<'a, T>, bool) {
    let waited = changed.wait_timeout_while(guard, timeout, is_busy);
    let (guard, result) = waited.unwrap_or_else(PoisonError::into_inner);
    (guard, !result.timed_out())
}

/// As without loom, but the timeout never expires: loom then reports a lost notification as a deadlock.
#[cfg(loom)]
pub fn wait_within<'a, T>(
    changed: &Condvar,
    mut guard: MutexGuard<'a, T>,
    _: Duration,
    mut is_busy: impl FnMut(&mut T) -> bool,
) -> (MutexGuard<'a, T>, bool) {
    while is_busy(&mut guard) {
        guard = wait(changed, guard);
    }
    (guard, true)
}

/// Locks `mutex` and waits as [`wait_within`]. Returns true if the data is not busy.
pub fn wait_while<T>(
    mutex: &Mutex<T>,
    changed: &Condvar,
    timeout: Duration,
    is_busy: impl Fn(&T) -> bool,
) -> bool {
    wait_within(changed, lock(mutex), timeout, |data| is_busy(data)).1
}
