//! Cancellation of an operation by another thread, between two pieces of its work.

use std::io;

use devices::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};

const OPEN: u8 = 0;
const CANCELLED: u8 = 1;
const COMMITTED: u8 = 2;

/// Reason why an operation cannot run on another thread.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The event of its end cannot be created.
    #[error("cannot create an eventfd; raise the limit of descriptors (ulimit -n)")]
    EventFd(#[source] io::Error),
    /// The thread cannot be created.
    #[error("cannot start a thread; raise the limits of memory and threads (ulimit -v, -u, pids.max)")]
    Thread(#[source] io::Error),
}

/// The operation was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operation was cancelled")]
pub struct Cancelled;

/// State of an operation that can be cancelled until it commits.
///
/// The state itself is relaxed: its exchange is atomic, so that one side decides, and the result passes through a channel.
#[derive(Debug)]
pub struct Cancellation {
    state: AtomicU8,
    /// Bytes that the operation may still process before its commit. Only the operation changes them.
    budget: AtomicU64,
    is_limited: bool,
    must_clean_up: AtomicBool,
}

impl Default for Cancellation {
    fn default() -> Self {
        Self::with_budget(u64::MAX)
    }
}

impl Cancellation {
    /// Returns the state of an operation that is cancelled once it has processed more than `bytes`.
    pub fn with_budget(bytes: u64) -> Self {
        Self {
            state: AtomicU8::new(OPEN),
            budget: AtomicU64::new(bytes),
            is_limited: bytes != u64::MAX,
            must_clean_up: AtomicBool::new(false),
        }
    }

    /// Records that the operation has something to remove after a cancellation, for example temporary files. The operation must call
    /// [`spend`](Self::spend) before it creates the first of them: the end of the process may have ceased to wait. From here on it
    /// must not wait for long without a call of `spend`.
    pub fn set_must_clean_up(&self) {
        self.must_clean_up.store(true, Ordering::Relaxed);
        // Full barrier: this side stores the flag, then loads the state; the other stores the state, then loads the flag. At least one
        // side sees the store of the other.
        fence(Ordering::SeqCst);
    }

    /// Returns true if the operation has something to remove after a cancellation, or ends at its next call of [`spend`](Self::spend).
    /// To be called after [`cancel`](Self::cancel).
    pub fn must_clean_up(&self) -> bool {
        fence(Ordering::SeqCst);
        self.must_clean_up.load(Ordering::Relaxed)
    }

    /// Returns true if the operation is in the part that must not be interrupted.
    pub fn is_committed(&self) -> bool {
        self.state.load(Ordering::Relaxed) == COMMITTED
    }

    /// Cancels the operation. Returns false, without effect, if it has committed.
    pub fn cancel(&self) -> bool {
        self.decide(CANCELLED)
    }

    /// Returns true if the operation was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.state.load(Ordering::Relaxed) == CANCELLED
    }

    /// Allows the next piece of the operation, which processes `bytes`.
    ///
    /// # Errors
    /// [`Cancelled`], never after the commit.
    pub fn spend(&self, bytes: u64) -> Result<(), Cancelled> {
        match self.budget.load(Ordering::Relaxed).checked_sub(bytes) {
            Some(rest) => self.budget.store(rest, Ordering::Relaxed),
            None => drop(self.cancel()),
        }
        match self.is_cancelled() {
            true => Err(Cancelled),
            false => Ok(()),
        }
    }

    /// Allows work of unknown duration, for which no budget suffices: cancels the operation if it has one.
    ///
    /// # Errors
    /// [`Cancelled`], never after the commit.
    pub fn exclude_budget(&self) -> Result<(), Cancelled> {
        if self.is_limited {
            self.cancel();
        }
        self.spend(0)
    }

    /// Begins the part that must not be interrupted.
    ///
    /// # Errors
    /// [`Cancelled`]
    pub fn commit(&self) -> Result<(), Cancelled> {
        match self.decide(COMMITTED) {
            true => Ok(()),
            false => Err(Cancelled),
        }
    }

    /// Changes the state from open to `state`. Returns true if it has this state now.
    fn decide(&self, state: u8) -> bool {
        let decided = self
            .state
            .compare_exchange(OPEN, state, Ordering::Relaxed, Ordering::Relaxed);
        decided.is_ok() || decided == Err(state)
    }
}

#[cfg(test)]
mod tests {
    use super::{Cancellation, Cancelled};

    #[test]
    fn cancelled_operation_does_not_commit() {
        let state = Cancellation::default();
        assert_eq!(state.spend(u64::MAX / 2), Ok(()));
        assert!(state.cancel() && state.cancel() && state.is_cancelled());
        assert_eq!((state.spend(1), state.commit()), (Err(Cancelled), Err(Cancelled)));
        assert!(!state.is_committed() && !state.must_clean_up());
        state.set_must_clean_up();
        assert!(state.must_clean_up());
    }

    #[test]
    fn committed_operation_is_not_cancelled() {
        let state = Cancellation::with_budget(1);
        assert_eq!(state.commit(), Ok(()));
        assert!(!state.cancel() && !state.is_cancelled() && state.is_committed());
        assert_eq!(state.spend(2), Ok(()));
    }

    #[test]
    fn work_of_unknown_duration_exceeds_each_budget() {
        assert_eq!(Cancellation::default().exclude_budget(), Ok(()));
        let state = Cancellation::with_budget(u64::MAX - 1);
        assert_eq!(state.exclude_budget(), Err(Cancelled));
        assert!(state.is_cancelled());
    }

    #[test]
    fn exceeded_budget_cancels() {
        let state = Cancellation::with_budget(2);
        assert_eq!((state.spend(1), state.spend(1)), (Ok(()), Ok(())));
        assert_eq!(state.spend(1), Err(Cancelled));
        assert!(state.is_cancelled());
    }
}
