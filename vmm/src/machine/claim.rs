//! Decision between a job of another thread and the timeout of its caller.

use devices::sync::atomic::{AtomicU8, AtomicU64, Ordering};

const PENDING: u8 = 0;
const CLAIMED: u8 = 1;
const CANCELLED: u8 = 2;

/// Decision between the end of a job and its timeout.
#[derive(Debug, Default)]
pub struct Claim {
    state: AtomicU8,
    progress: AtomicU64,
}

impl Claim {
    /// Returns true if the caller still waits, and will wait for the rest of the job. The rest must not access guest memory.
    pub fn take(&self) -> bool {
        self.decide(CLAIMED)
    }

    /// Ends the wait of the caller. Returns false if the job has taken its claim: the caller must wait for its result.
    pub fn cancel(&self) -> bool {
        self.decide(CANCELLED)
    }

    /// Returns true if the caller no longer waits.
    pub fn is_cancelled(&self) -> bool {
        self.state.load(Ordering::Relaxed) == CANCELLED
    }

    /// Reports progress, which restarts the timeout.
    pub fn report_progress(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of reports of progress.
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Changes the state from pending to `state`. Returns false if it is decided already.
    ///
    /// Relaxed: the exchange is atomic, so that one side wins. All data of the job and its result pass through channels.
    fn decide(&self, state: u8) -> bool {
        let decided = self
            .state
            .compare_exchange(PENDING, state, Ordering::Relaxed, Ordering::Relaxed);
        decided.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::Claim;

    #[test]
    fn cancelled_job_gets_no_claim() {
        let claim = Claim::default();
        assert!(!claim.is_cancelled());
        assert!(claim.cancel());
        assert!(claim.is_cancelled() && !claim.take());
    }

    #[test]
    fn claimed_job_is_not_cancelled() {
        let claim = Claim::default();
        assert!(claim.take());
        assert!(!claim.cancel());
        assert!(!claim.is_cancelled());
    }
}
