//! Locks without poisoning.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`.
///
/// Ignores poisoning: a panic ends the process, so that no thread observes a poisoned lock.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
