//! Locks without poisoning.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Locks `mutex`.
///
/// Ignores poisoning: a panic ends the process, so that no thread observes a poisoned lock.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits while the data of `mutex` `is_busy`, at most for `timeout`. Another thread notifies `changed` after each change. Returns true if
/// the data is not busy.
pub(crate) fn wait_while<T>(
    mutex: &Mutex<T>,
    changed: &Condvar,
    timeout: Duration,
    is_busy: impl Fn(&T) -> bool,
) -> bool {
    let waited = changed.wait_timeout_while(lock(mutex), timeout, |data| is_busy(data));
    !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
}
