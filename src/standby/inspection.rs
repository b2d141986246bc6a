//! Access to files on a thread: their file system may be slow, or never respond. For example the snapshot of a registration.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use vmm::ErrorChain;
use vmm::config::VmConfig;
use vmm::control;
use vmm_sys_util::eventfd::EventFd;

/// Maximum number of threads that read the snapshots of registrations.
pub const MAX_THREADS: usize = 8;

/// Reason of an inspection that does not end in time.
const UNRESPONSIVE: &str = "its file system does not respond in time";

/// Description of a snapshot, or the reason for its rejection.
pub type Described = Result<VmConfig, String>;

/// Threads that access files, and their signal.
#[derive(Debug)]
pub struct Inspector {
    /// Signalled at the end of an inspection.
    signal: Arc<EventFd>,
    /// Maximum number of threads.
    max_threads: usize,
}

/// Registration of an instance, while its snapshot is read.
#[derive(Debug)]
pub struct Registration {
    /// Identifier of the instance.
    pub id: String,
    /// Body of the request.
    pub body: Vec<u8>,
    /// Reading of the snapshot.
    pub inspection: Inspection<Described>,
}

/// An inspection in progress.
#[derive(Debug)]
pub struct Inspection<T> {
    result: Receiver<T>,
    deadline: Instant,
}

impl<T> Inspection<T> {
    /// Returns true if it has ended. Takes its result.
    pub fn has_ended(&self) -> bool {
        !matches!(self.result.try_recv(), Err(TryRecvError::Empty))
    }
}

impl Inspector {
    /// Prepares the signal of at most `max_threads` threads.
    ///
    /// # Errors
    /// Fails without descriptors.
    pub fn new(max_threads: usize) -> io::Result<Self> {
        let signal = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        Ok(Self { signal, max_threads })
    }

    /// Returns the eventfd that is readable at the end of an inspection.
    pub fn signal(&self) -> &EventFd {
        &self.signal
    }

    /// Begins `inspect`, for example [`describe`], on a thread.
    ///
    /// # Errors
    /// A text if there is no thread for it.
    pub fn begin<T: Send + 'static>(
        &self,
        timeout: Duration,
        inspect: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Inspection<T>, String> {
        // One reference is that of this structure, each thread has another one.
        let threads = Arc::strong_count(&self.signal) - 1;
        if threads >= self.max_threads {
            return Err(format!(
                "cannot access its files: the file systems of {threads} others do not respond; repair them first"
            ));
        }
        let (sender, result) = mpsc::channel();
        let signal = Arc::clone(&self.signal);
        let spawned = thread::Builder::new().name("inspect".into()).spawn(move || {
            // Without a receiver, the wait for it is over.
            let _ = sender.send(inspect());
            let _ = signal.write(1);
        });
        spawned.map_err(|error| format!("cannot start a thread that accesses its files: {error}"))?;
        let deadline = Instant::now() + timeout;
        Ok(Inspection { result, deadline })
    }

    /// Returns the result of `inspection` once it has ended, or the reason once its time is over.
    pub fn result<T>(&self, inspection: &Inspection<T>) -> Option<Result<T, &'static str>> {
        // Before the result: a later signal reports a later end.
        let _ = self.signal.read();
        match inspection.result.try_recv() {
            Ok(result) => Some(Ok(result)),
            Err(TryRecvError::Disconnected) => Some(Err("its thread has ended without a result")),
            Err(TryRecvError::Empty) => (Instant::now() >= inspection.deadline).then_some(Err(UNRESPONSIVE)),
        }
    }
}

/// Describes the snapshot in `directory`, which must have a memory file.
///
/// # Errors
/// A text with the reason.
pub fn describe(directory: &Path) -> Described {
    let current = directory.join("current");
    let directory: &Path = if current.exists() { &current } else { directory };
    let described = control::describe_snapshot(&directory.join(control::STATE_NAME));
    let (_, saved) = described.map_err(|error| format!("snapshot_path: {}", ErrorChain(&error)))?;
    let memory = directory.join(control::MEMORY_NAME);
    if !memory.is_file() {
        return Err(format!(
            "snapshot_path: cannot find the file {}; name a complete snapshot",
            memory.display()
        ));
    }
    Ok(saved)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::{Described, Inspector, MAX_THREADS};

    #[test]
    fn result_arrives_with_the_signal() {
        let inspector = Inspector::new(MAX_THREADS).unwrap();
        let (go, wait) = mpsc::channel::<()>();
        let inspect = move || -> Described {
            let _ = wait.recv_timeout(scratch::TIMEOUT);
            Err("no".into())
        };
        let inspection = inspector.begin(scratch::TIMEOUT, inspect).unwrap();
        assert!(inspector.result(&inspection).is_none());
        go.send(()).unwrap();
        scratch::wait_until("the signal", || inspector.signal().read().is_ok());
        assert_eq!(inspector.result(&inspection).unwrap().unwrap().unwrap_err(), "no");
    }

    #[test]
    fn stuck_inspections_end_and_are_limited() {
        let inspector = Inspector::new(MAX_THREADS).unwrap();
        let mut stuck = Vec::new();
        for _ in 0..MAX_THREADS {
            let (go, wait) = mpsc::channel::<()>();
            let inspect = move || {
                let _ = wait.recv_timeout(scratch::TIMEOUT);
            };
            let inspection = inspector.begin(Duration::ZERO, inspect).unwrap();
            let reason = inspector.result(&inspection).unwrap().unwrap_err();
            assert!(reason.ends_with("does not respond in time"), "{reason}");
            assert!(!inspection.has_ended());
            stuck.push(go);
        }
        let begin = || inspector.begin(scratch::TIMEOUT, || "next");
        assert!(begin().unwrap_err().contains("of 8 others do not respond"));
        drop(stuck);
        let mut next = None;
        scratch::wait_until("a thread ends", || {
            next = begin().ok();
            next.is_some()
        });
        // Signals of the late ones are none of this one.
        let mut result = None;
        scratch::wait_until("the next one ends", || {
            result = inspector.result(next.as_ref().unwrap());
            result.is_some()
        });
        assert_eq!(result.unwrap(), Ok("next"));
    }
}
