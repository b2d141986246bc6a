//! I/O thread of a machine whose memory comes from a fault handler.
//!
//! An access to an absent page waits for the handler, possibly for ever. Device work on the event loop would then block the API and
//! signals, so this thread executes it: the events of the devices, their available buffers after a restore, and [jobs](IoThread::run)
//! of the main thread, which waits for them at most [`PAGE_TIMEOUT`]. A job that is late goes on in the background without effect.
//!
//! The thread waits at the gate like a vCPU thread, so that a paused VM processes no event. Events stay pending in the epoll
//! instance meanwhile. Jobs run at the gate too.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use devices::{ThreadRole, lock};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::claim::Claim;
use crate::arch::SharedSource;
use crate::channel::{ReceiveError, Receiver, SendError, Sender, channel};
use crate::vcpu::{ThreadSet, VcpuShared};

/// Time without a page of the fault handler, after which an operation fails.
pub(crate) const PAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// Time between two checks for the end of an operation that waits.
pub(super) const WAIT_INTERVAL: Duration = Duration::from_millis(10);

/// Stack of the thread in bytes, as for a vCPU thread: both process queues.
const STACK_SIZE: usize = 128 << 10;

/// Jobs that wait for the thread. More are rejected: a client could otherwise grow the process by repeated requests.
const MAX_JOBS: usize = 4;

/// Events of one call of epoll_wait(2).
const MAX_EVENTS: usize = 8;

/// Data of the eventfd in the epoll instance. Sources have their index.
const WAKE: u64 = u64::MAX;

/// Reason why a thread of the machine does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThreadWait {
    /// Threads wait for a page of the fault handler.
    #[error(
        "a thread waits for a page of the fault handler ({0}); repeat the request when the handler sends it"
    )]
    Page(ThreadSet),
    /// Threads do not leave the kernel or a device.
    #[error(
        "a thread does not stop ({0}): probably the disk of the memory file, the image or a drive does not answer; repeat the request \
         when it does"
    )]
    Disk(ThreadSet),
    /// The guest has stopped, or the process ends.
    #[error("the VM stops")]
    Stopped,
    /// The I/O thread has ended.
    #[error("the I/O thread ({name}) has ended after an error, which the log contains; load the snapshot again", name = ThreadSet::IO_NAME)]
    Ended,
    /// The I/O thread has too many jobs.
    #[error(
        "{MAX_JOBS} earlier requests wait for a page of guest memory ({name}); repeat the request when the page arrives",
        name = ThreadSet::IO_NAME
    )]
    Full,
}

type Job = Box<dyn FnOnce() + Send>;

/// Handle of the thread. Dropping it stops and joins the thread, which must not wait for a page then.
pub(super) struct IoThread {
    jobs: Sender<Job>,
    wake: Arc<EventFd>,
    shared: Arc<VcpuShared>,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts the thread for `sources`, while the gate is closed. It calls `start` when the gate opens for the first time.
    ///
    /// # Errors
    /// Fails if a descriptor or the thread cannot be created.
    pub fn spawn(
        sources: Vec<SharedSource>,
        start: impl FnOnce() + Send + 'static,
        shared: Arc<VcpuShared>,
    ) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let epoll = Epoll::new()?;
        let add = |file, set, data| epoll.ctl(ControlOperation::Add, file, EpollEvent::new(set, data));
        add(wake.as_raw_fd(), EventSet::IN, WAKE)?;
        for (index, source) in (0..).zip(&sources) {
            let source = lock(source);
            let set = if source.is_edge() {
                EventSet::IN | EventSet::EDGE_TRIGGERED
            } else {
                EventSet::IN
            };
            add(source.descriptor(), set, index)?;
        }
        let (jobs, job_receiver) = channel();
        let runner = Runner {
            epoll,
            wake: wake.clone(),
            sources,
            jobs: job_receiver,
            shared: shared.clone(),
        };
        let thread = Builder::new()
            .name(ThreadSet::IO_NAME.to_owned())
            .stack_size(STACK_SIZE)
            .spawn(move || runner.run(start))?;
        Ok(Self {
            jobs,
            wake,
            shared,
            thread: Some(thread),
        })
    }

    /// Makes the drop of the handle not wait for the thread if it is in `threads`.
    pub fn abandon(&mut self, threads: ThreadSet) {
        if threads.has(ThreadSet::IO) {
            self.thread = None;
        }
    }

    /// Makes the thread look at the gate.
    pub fn kick(&self) {
        // Fails only if the counter is at its maximum, and then the eventfd is readable.
        let _ = self.wake.write(1);
    }

    /// Runs `job` on the thread and waits for its result, at most [`PAGE_TIMEOUT`] after its last progress. A job that changes
    /// anything but rings first takes its [`Claim`], and returns `None` if it cannot.
    ///
    /// # Errors
    /// [`ThreadWait`] if the job has not taken its claim in this time, or before the machine is stopped, or the thread takes no job; it
    /// has no effect then.
    pub fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Claim) -> Option<T> + Send + 'static,
    ) -> Result<T, ThreadWait> {
        self.run_until(|| false, job)
    }

    /// As [`run`](Self::run), but also fails when `is_cancelled` returns true.
    pub fn run_until<T: Send + 'static>(
        &self,
        is_cancelled: impl Fn() -> bool,
        job: impl FnOnce(&Claim) -> Option<T> + Send + 'static,
    ) -> Result<T, ThreadWait> {
        let claim = Arc::new(Claim::default());
        let (reply, result) = channel();
        let claimed = claim.clone();
        let job = Box::new(move || {
            // Fails if the caller no longer waits.
            let _ = reply.send(job(&claimed));
        });
        self.jobs
            .send_within(MAX_JOBS, job)
            .map_err(|error| match error {
                SendError::Full => ThreadWait::Full,
                SendError::Disconnected => self.ended(),
            })?;
        self.kick();
        self.shared.gate.notify_waiters();
        let mut progress = (0, Instant::now());
        loop {
            match result.receive_within(WAIT_INTERVAL) {
                // None: the job has lost its claim.
                Ok(result) => return result.ok_or_else(|| self.late()),
                Err(ReceiveError::Disconnected) => return Err(self.ended()),
                Err(ReceiveError::Empty) => {}
            }
            let count = claim.progress();
            if count != progress.0 {
                progress = (count, Instant::now());
            }
            let is_over =
                progress.1.elapsed() >= PAGE_TIMEOUT || is_cancelled() || self.shared.gate.is_stopped();
            if is_over && claim.cancel() {
                return Err(self.late());
            }
        }
    }

    /// Returns the reason why the thread has not done a job.
    fn late(&self) -> ThreadWait {
        if self.shared.gate.is_stopped() {
            ThreadWait::Stopped
        } else {
            ThreadWait::Page(ThreadSet::IO)
        }
    }

    /// Returns the reason why the thread has ended.
    fn ended(&self) -> ThreadWait {
        if self.shared.gate.is_stopped() {
            ThreadWait::Stopped
        } else {
            ThreadWait::Ended
        }
    }
}

impl Drop for IoThread {
    #[allow(
        clippy::disallowed_methods,
        reason = "the gate is stopped, and the kick ends the thread's wait"
    )]
    fn drop(&mut self) {
        self.shared.gate.stop();
        self.kick();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Body of the thread.
struct Runner {
    epoll: Epoll,
    wake: Arc<EventFd>,
    sources: Vec<SharedSource>,
    jobs: Receiver<Job>,
    shared: Arc<VcpuShared>,
}

impl Runner {
    fn run(self, start: impl FnOnce()) {
        let gate = &self.shared.gate;
        // Its creator is not restricted yet: a load has more rights than a running VM.
        if let Err(error) = ThreadRole::Vmm.enter() {
            log::error!("the I/O thread ends: cannot restrict its system calls and rights: {error}");
            return gate.leave(ThreadSet::IO);
        }
        let mut start = Some(start);
        while !gate.is_stopped() {
            if gate.is_closed() {
                gate.wait(ThreadSet::IO, || self.run_jobs());
            } else if let Some(start) = start.take() {
                start();
            } else if let Err(error) = self.process_events() {
                log::error!("the I/O thread ends: cannot wait for events: {error}");
                break;
            }
        }
        gate.leave(ThreadSet::IO);
    }

    fn run_jobs(&self) {
        self.jobs.try_iter().for_each(|job| job());
    }

    fn process_events(&self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); MAX_EVENTS];
        let count = match self.epoll.wait(-1, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        // All of them, even if the gate closes meanwhile: an edge-triggered event is not reported again.
        for event in &events[..count] {
            if event.data() == WAKE {
                let _ = self.wake.read();
                self.run_jobs();
            } else if let Some(source) = usize::try_from(event.data())
                .ok()
                .and_then(|index| self.sources.get(index))
            {
                lock(source).ready();
            }
        }
        Ok(())
    }
}
