use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`.
///
/// A poisoned lock cannot be seen, because a panic ends the process; so there is no error to hand on.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
