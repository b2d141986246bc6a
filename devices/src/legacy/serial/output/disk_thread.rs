//! Thread that writes to a file on a disk, which may delay a write without a bound.
//!
//! No other thread waits for the disk: the thread has a buffer of its own, and reports its end by an eventfd. It takes new bytes only
//! after the earlier ones, so that their order stays. It starts at the first write that may wait.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::sync::{lock, wait_while};
use crate::thread_role::ThreadRole;

/// Maximum number of bytes that the thread takes at once.
const BUFFER_SIZE: usize = 64 << 10;
/// Bytes of stack of the thread.
const STACK_SIZE: usize = 128 << 10;

/// The thread. Drop does not wait: the thread ends after it has written its bytes.
#[derive(Debug)]
pub struct DiskThread {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    file: Arc<File>,
    state: Mutex<State>,
    /// Notified after each change of `phase` and `is_stopping`.
    changed: Condvar,
    /// Signalled at each failure, and at the end of a write for which the caller waits.
    ended: Arc<EventFd>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Bytes to write. The thread takes them for the time of the write.
    bytes: Vec<u8>,
    /// Number of bytes that are not written.
    pending: usize,
    /// A caller waits for the end of the write.
    is_awaited: bool,
    is_stopping: bool,
}

#[derive(Debug)]
enum Phase {
    /// All bytes are written.
    Idle,
    /// The thread has bytes to write.
    Busy,
    /// The write has failed, and the caller has not seen the error.
    Failed(io::Error),
    /// The caller has seen the error. Its next call repeats the write.
    Held,
}

impl DiskThread {
    /// Starts the thread, which writes to `file` and signals `ended`.
    ///
    /// # Errors
    /// Fails if the kernel does not create a thread, or without memory for the buffer.
    pub fn start(file: Arc<File>, ended: Arc<EventFd>) -> io::Result<Self> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(BUFFER_SIZE)?;
        let shared = Arc::new(Shared {
            file,
            state: Mutex::new(State {
                phase: Phase::Idle,
                bytes,
                pending: 0,
                is_awaited: false,
                is_stopping: false,
            }),
            changed: Condvar::new(),
            ended,
        });
        let thread = Builder::new().name("serial".to_owned()).stack_size(STACK_SIZE);
        thread.spawn({
            let shared = shared.clone();
            move || {
                ThreadRole::Worker.enter_or_log();
                shared.run();
            }
        })?;
        Ok(Self { shared })
    }

    /// Returns `Ok` if all bytes are written, so that the thread takes others. Repeats a failed write.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if bytes are not written yet: the eventfd reports their end. The error of a failed write, once.
    pub fn check(&self) -> io::Result<()> {
        let mut state = lock(&self.shared.state);
        match std::mem::replace(&mut state.phase, Phase::Held) {
            Phase::Idle => {
                state.phase = Phase::Idle;
                return Ok(());
            }
            Phase::Failed(error) => return Err(error),
            Phase::Busy => state.phase = Phase::Busy,
            Phase::Held => {
                state.phase = Phase::Busy;
                self.shared.changed.notify_all();
            }
        }
        state.is_awaited = true;
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Takes the first of `bytes` and returns their number. [`check`](Self::check) must have returned `Ok`.
    pub fn submit(&self, bytes: &[u8]) -> usize {
        let chunk = &bytes[..bytes.len().min(BUFFER_SIZE)];
        let mut state = lock(&self.shared.state);
        debug_assert!(matches!(state.phase, Phase::Idle), "the thread has other bytes");
        state.bytes.clear();
        state.bytes.extend_from_slice(chunk);
        state.pending = chunk.len();
        state.is_awaited = false;
        state.phase = Phase::Busy;
        self.shared.changed.notify_all();
        chunk.len()
    }

    /// Returns the number of bytes that are not written.
    pub fn pending(&self) -> usize {
        lock(&self.shared.state).pending
    }

    /// Waits at most `timeout` for the end of the write. Returns true if no write runs.
    pub fn wait(&self, timeout: Duration) -> bool {
        let Shared { state, changed, .. } = &*self.shared;
        wait_while(state, changed, timeout, |state| {
            matches!(state.phase, Phase::Busy)
        })
    }
}

impl Drop for DiskThread {
    fn drop(&mut self) {
        lock(&self.shared.state).is_stopping = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        while let Some(mut bytes) = self.next_bytes() {
            let (written, result) = write_all(&self.file, &bytes);
            bytes.drain(..written);
            let mut state = lock(&self.state);
            state.pending = bytes.len();
            state.bytes = bytes;
            state.phase = match result {
                Ok(()) => Phase::Idle,
                Err(error) => Phase::Failed(error),
            };
            if std::mem::take(&mut state.is_awaited) || matches!(state.phase, Phase::Failed(_)) {
                // Fails only if the counter is at its maximum, and then the eventfd is readable.
                let _ = self.ended.write(1);
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Waits for bytes. Returns `None` at the end of the thread.
    fn next_bytes(&self) -> Option<Vec<u8>> {
        let mut state = lock(&self.state);
        while !matches!(state.phase, Phase::Busy) && !state.is_stopping {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        matches!(state.phase, Phase::Busy).then(|| std::mem::take(&mut state.bytes))
    }
}

/// Writes `bytes`. Returns the number of written bytes and the result.
fn write_all(mut file: &File, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Of a server. The caller would take it for a file without room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return (written, Err(io::Error::from_raw_os_error(libc::EIO)));
            }
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}
