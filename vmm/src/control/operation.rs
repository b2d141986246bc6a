//! Operation on a thread of its own, which exists while the operation runs.

use std::io;
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::cancellation::Cancellation;
use crate::channel::{ReceiveError, Receiver, channel};

/// Maximum wait for a cancelled operation that has nothing to clean up. One that waits longer ends with the process.
const END_TIMEOUT: Duration = Duration::from_millis(100);

/// Maximum further wait for a cancelled operation that has files to remove. A system call on a disk or server that does not respond
/// never ends; the next snapshot at the same paths removes the files.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// Operation that runs on another thread and returns a `T`.
pub(super) struct Operation<T> {
    cancellation: Arc<Cancellation>,
    result: Receiver<T>,
}

impl<T: Send + 'static> Operation<T> {
    /// Runs `operation` on a new thread. `ended` is signalled after its end.
    ///
    /// # Errors
    /// Fails if the thread cannot be created.
    pub fn spawn(
        ended: Arc<EventFd>,
        operation: impl FnOnce(&Cancellation) -> T + Send + 'static,
    ) -> io::Result<Self> {
        let cancellation = Arc::new(Cancellation::default());
        let (sender, result) = channel();
        let state = cancellation.clone();
        let body = move || {
            // Fails if the process ends.
            let _ = sender.send(operation(&state));
            // Fails only if the counter is at its maximum, and then the eventfd is readable.
            let _ = ended.write(1);
        };
        Builder::new().name("mayfly_op".to_owned()).spawn(body)?;
        Ok(Self { cancellation, result })
    }

    /// Returns the result, or `None` while the operation runs.
    pub fn take_result(&self) -> Option<T> {
        self.result.try_receive().ok()
    }

    /// Requests the end of the operation, without a wait. Returns false if the operation commits its result already.
    pub fn cancel(&self) -> bool {
        self.cancellation.cancel()
    }

    /// Waits for the end of the operation: without limit if it has committed, at most 2.1 s if it is cancelled and has files to
    /// remove, otherwise at most 100 ms.
    pub fn wait(self) {
        let ended = self.result.receive_within(END_TIMEOUT);
        if !matches!(ended, Err(ReceiveError::Empty)) {
            return;
        }
        if self.cancellation.is_committed() {
            // A partial commit would cost the old snapshot.
            let _ = self.result.receive();
        } else if self.cancellation.must_clean_up() {
            let _ = self.result.receive_within(CLEAN_UP_TIMEOUT);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::time::Instant;

    use vmm_sys_util::eventfd::EventFd;

    use super::Operation;

    #[test]
    fn end_is_signalled_after_result() {
        let ended = Arc::new(EventFd::new(0).unwrap());
        let (go, started) = mpsc::channel();
        let operation = Operation::spawn(ended.clone(), move |_| scratch::receive(&started)).unwrap();
        assert_eq!(operation.take_result(), None);
        go.send(7).unwrap();
        ended.read().unwrap();
        assert_eq!(operation.take_result(), Some(7));
    }

    #[test]
    fn cancelled_operation_is_not_awaited_without_limit() {
        let ended = Arc::new(EventFd::new(0).unwrap());
        let (go, started) = mpsc::channel::<()>();
        let operation =
            Operation::spawn(ended.clone(), move |_| started.recv_timeout(scratch::TIMEOUT)).unwrap();
        assert!(operation.cancel());
        let start = Instant::now();
        operation.wait();
        assert!(start.elapsed() >= super::END_TIMEOUT);
        drop(go);
        ended.read().unwrap();
    }

    #[test]
    fn hung_clean_up_is_not_awaited_without_limit() {
        let ended = Arc::new(EventFd::new(0).unwrap());
        let (prepared, preparations) = mpsc::channel();
        let (go, started) = mpsc::channel::<()>();
        let operation = Operation::spawn(ended.clone(), move |cancellation| {
            cancellation.set_must_clean_up();
            prepared.send(()).unwrap();
            started.recv_timeout(scratch::TIMEOUT)
        })
        .unwrap();
        scratch::receive(&preparations);
        assert!(operation.cancel());
        let start = Instant::now();
        operation.wait();
        let elapsed = start.elapsed();
        assert!(elapsed >= super::END_TIMEOUT + super::CLEAN_UP_TIMEOUT && elapsed < scratch::TIMEOUT);
        drop(go);
        ended.read().unwrap();
    }

    #[test]
    fn committed_operation_is_awaited() {
        let ended = Arc::new(EventFd::new(0).unwrap());
        let (committed, commits) = mpsc::channel();
        let (go, started) = mpsc::channel::<()>();
        let operation = Operation::spawn(ended.clone(), move |cancellation| {
            cancellation.commit().unwrap();
            committed.send(()).unwrap();
            let _ = started.recv_timeout(scratch::TIMEOUT);
        })
        .unwrap();
        scratch::receive(&commits);
        assert!(!operation.cancel());
        drop(go);
        operation.wait();
        ended.read().unwrap();
    }
}
