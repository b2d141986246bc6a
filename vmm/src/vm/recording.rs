//! Recording of a working set while the guest runs.

use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use snapshot::GuestMemory;
use snapshot::file::{Header, PendingStateFile, StateFile};
use vmm_sys_util::timerfd::TimerFd;

use crate::memory::working_set::Error;
use crate::memory::{Pagemap, WorkingSet};

/// Recording of a working set for a length of time in which the guest runs; it pauses with the guest.
pub(crate) struct Recording {
    /// None once the recording has ended.
    open: Option<Open>,
    /// Kept until the end of the VM: the event loop watches the descriptor, whose number must not be reused.
    timer: TimerFd,
    left: Duration,
    since: Option<Instant>,
}

/// Files of a recording, opened before the guest runs, so that errors occur at the load.
struct Open {
    pagemap: Pagemap,
    file: PendingStateFile,
    path: PathBuf,
    header: Header,
    snapshot: u64,
    has_run: bool,
}

impl Recording {
    /// Prepares a recording of the first `length` of run time to the file at `path`, for the snapshot of `state`.
    ///
    /// # Errors
    /// [`Error::Pages`] without /proc, [`Error::File`] when the file cannot be created, [`Error::Timer`].
    pub fn new(path: &Path, length: Duration, state: &StateFile) -> Result<Self, Error> {
        let open = Open {
            pagemap: Pagemap::open().map_err(Error::Pages)?,
            file: PendingStateFile::create(path).map_err(Error::File)?,
            path: path.to_owned(),
            header: state.header().clone(),
            snapshot: state.checksum(),
            has_run: false,
        };
        Ok(Self {
            open: Some(open),
            timer: TimerFd::new().map_err(|error| Error::Timer(error.into()))?,
            left: length,
            since: None,
        })
    }

    /// Returns a descriptor that is readable when [`is_due`](Self::is_due) may have become true. It must not be read.
    pub fn descriptor(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Starts the clock of the recording.
    pub fn resume(&mut self) {
        if let Some(open) = &mut self.open {
            open.has_run = true;
            self.since = Some(Instant::now());
            // Zero would disarm the timer. A valid time cannot fail.
            let _ = self.timer.reset(self.left.max(Duration::from_nanos(1)), None);
        }
    }

    /// Stops the clock of the recording.
    pub fn pause(&mut self) {
        if let Some(since) = self.since.take() {
            self.left = self.left.saturating_sub(since.elapsed());
            let _ = self.timer.clear();
        }
    }

    /// Returns true once the guest has run for the length of the recording.
    pub fn is_due(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= self.left)
    }

    /// Returns true if the guest has run and the set is not written yet.
    pub fn has_begun(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.has_run)
    }

    /// Writes the pages that the guest has touched in `memory`. Errors go to the log.
    pub fn end(&mut self, memory: &GuestMemory) {
        let Some(open) = self.open.take() else { return };
        // A disarmed timer is not readable.
        self.since = None;
        let _ = self.timer.clear();
        let path = open.path.display().to_string();
        if !open.has_run {
            return log::warn!("no working set in {path}: the guest has not run");
        }
        match open.write(memory) {
            Ok(set) => log::info!(
                "the working set is in {path}: {} pages touched, {} of them written",
                set.touched(),
                set.written()
            ),
            Err(error) => log::warn!("no working set in {path}: {}", crate::ErrorChain(&error)),
        }
    }
}

impl Open {
    fn write(self, memory: &GuestMemory) -> Result<WorkingSet, Error> {
        let set = WorkingSet::record(memory, &self.pagemap, self.snapshot)?;
        set.write(self.file, &self.header)?;
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use snapshot::ArchiveWriter;
    use snapshot::file::{self, Architecture, Contents, Header, HostIdentity};

    use super::Recording;
    use crate::boot::testing::Temporary;
    use crate::memory::{WorkingSet, allocate, page_size};

    const HOUR: Duration = Duration::from_secs(3600);

    fn recording(path: &Temporary, length: Duration) -> Recording {
        let header = Header {
            host: HostIdentity {
                architecture: Architecture::X86_64,
                page_size: u32::try_from(page_size()).unwrap(),
                cpu: String::new(),
            },
            memory: page_size(),
            contents: Contents::Whole,
        };
        let state = Temporary::missing();
        file::write(state.path(), &header, ArchiveWriter::new()).unwrap();
        Recording::new(path.path(), length, &file::read(state.path(), None).unwrap()).unwrap()
    }

    #[test]
    fn pause_stops_clock() {
        let path = Temporary::missing();
        let mut recording = recording(&path, HOUR);
        assert!(!recording.has_begun() && !recording.timer.is_armed().unwrap());
        recording.resume();
        assert!(recording.has_begun() && !recording.is_due());
        assert!(recording.timer.is_armed().unwrap());
        recording.pause();
        assert!(!recording.timer.is_armed().unwrap());
        let left = recording.left;
        assert!(left < HOUR, "no time has passed");
        recording.pause();
        assert_eq!(recording.left, left);
        recording.resume();
        assert!(recording.timer.is_armed().unwrap());
    }

    #[test]
    fn due_recording_ends_once() {
        let path = Temporary::missing();
        let mut recording = recording(&path, Duration::ZERO);
        assert!(!recording.is_due());
        recording.resume();
        assert!(recording.is_due());
        let page = usize::try_from(page_size()).unwrap();
        let memory = allocate(&[(vm_memory::GuestAddress(0), page)]).unwrap();
        recording.end(&memory);
        WorkingSet::describe(path.path()).unwrap();
        std::fs::remove_file(path.path()).unwrap();
        assert!(!recording.is_due() && !recording.has_begun() && !recording.timer.is_armed().unwrap());
        recording.resume();
        recording.end(&memory);
        assert!(!path.path().exists());
    }
}
