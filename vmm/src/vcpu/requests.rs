//! Requests of observers to a vCPU thread.

use devices::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Request to open the statistics.
const STATISTICS: u8 = 1;
/// Request to handle the channel of the thread.
const INSPECTION: u8 = 2;

/// Requests to a vCPU thread, which handles them after its next exit.
///
/// All accesses are relaxed: the flags pass no data. An inspection is in the channel, whose lock orders it: a thread that sees the
/// request takes the lock after the observer.
#[derive(Debug, Default)]
pub struct ObserverRequests {
    requests: AtomicU8,
    /// An inspection has no reply yet.
    is_inspected: AtomicBool,
}

impl ObserverRequests {
    /// Requests the statistics, without a kick.
    pub fn request_statistics(&self) {
        self.requests.fetch_or(STATISTICS, Ordering::Relaxed);
    }

    /// Takes the request for statistics. Returns false if there is none. Only for the vCPU thread.
    pub fn take_statistics(&self) -> bool {
        self.requests.fetch_and(!STATISTICS, Ordering::Relaxed) & STATISTICS != 0
    }

    /// Begins an inspection. Returns false if an earlier one has no reply yet.
    pub fn begin_inspection(&self) -> bool {
        !self.is_inspected.swap(true, Ordering::Relaxed)
    }

    /// Requests that the thread handles its channel, which holds the inspection already. A kick follows.
    pub fn request_inspection(&self) {
        self.requests.fetch_or(INSPECTION, Ordering::Relaxed);
    }

    /// Takes the request for an inspection, before the channel is read: a later request sets it again. Only for the vCPU thread.
    pub fn take_inspection(&self) {
        self.requests.fetch_and(!INSPECTION, Ordering::Relaxed);
    }

    /// Ends an inspection. Only for the vCPU thread.
    pub fn end_inspection(&self) {
        self.is_inspected.store(false, Ordering::Relaxed);
    }

    /// Returns true if there is a request to the vCPU thread.
    pub fn has_any(&self) -> bool {
        self.requests.load(Ordering::Relaxed) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::ObserverRequests;

    #[test]
    fn inspection_begins_after_end_of_earlier_one() {
        let requests = ObserverRequests::default();
        assert!(requests.begin_inspection() && !requests.begin_inspection());
        requests.request_inspection();
        assert!(requests.has_any());
        requests.take_inspection();
        assert!(!requests.has_any() && !requests.begin_inspection());
        requests.end_inspection();
        assert!(requests.begin_inspection());
    }
}
