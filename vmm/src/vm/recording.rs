//! Recording of a working set while the guest runs.

use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use snapshot::GuestMemory;
use snapshot::file::{Header, Links, PendingStateFile, StateFile};
use vmm_sys_util::timerfd::TimerFd;

use crate::memory::working_set::Error;
use crate::memory::{Pagemap, WorkingSet};

/// Recording of a working set while the guest runs for a length of time. The clock of the recording pauses with the guest.
pub(crate) struct Recording {
    /// `None` once the recording has ended.
    files: Option<RecordingFiles>,
    /// Kept until the end of the VM: the event loop watches the descriptor, whose number must not be reused.
    timer: TimerFd,
    /// Run time until the end, counted from `running_since`.
    left: Duration,
    /// `None` while the guest is paused, and after the end.
    running_since: Option<Instant>,
}

/// Files of a recording, opened before the guest runs, so that errors occur at the load.
struct RecordingFiles {
    pagemap: Pagemap,
    file: PendingStateFile,
    path: PathBuf,
    header: Header,
    /// Checksum of the snapshot's state file.
    snapshot: u64,
    /// The guest has run since the load.
    has_run: bool,
}

impl Recording {
    /// Prepares a recording of the first `length` of run time to the file at `path`, for the snapshot of `state`.
    ///
    /// # Errors
    /// [`Error::Pages`] without /proc, [`Error::File`] when the file cannot be created, [`Error::Timer`].
    pub fn new(path: &Path, length: Duration, state: &StateFile, links: Links) -> Result<Self, Error> {
        let files = RecordingFiles {
            pagemap: Pagemap::open().map_err(Error::Pages)?,
            file: PendingStateFile::create_with(path, links).map_err(Error::File)?,
            path: path.to_owned(),
            header: state.header().clone(),
            snapshot: state.checksum(),
            has_run: false,
        };
        Ok(Self {
            files: Some(files),
            timer: TimerFd::new().map_err(|error| Error::Timer(error.into()))?,
            left: length,
            running_since: None,
        })
    }

    /// Returns a descriptor that is readable once [`is_due`](Self::is_due) returns true. The caller must not read from it.
    pub fn descriptor(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Starts the clock of the recording.
    pub fn resume(&mut self) {
        if let Some(files) = &mut self.files {
            files.has_run = true;
            self.running_since = Some(Instant::now());
            // Zero would disarm the timer. A valid time cannot fail.
            let _ = self.timer.reset(self.left.max(Duration::from_nanos(1)), None);
        }
    }

    /// Stops the clock of the recording.
    pub fn pause(&mut self) {
        if let Some(since) = self.running_since.take() {
            self.left = self.left.saturating_sub(since.elapsed());
            let _ = self.timer.clear();
        }
    }

    /// Returns true once the guest has run for the length of the recording.
    pub fn is_due(&self) -> bool {
        self.running_since
            .is_some_and(|since| since.elapsed() >= self.left)
    }

    /// Returns true if the guest has run and the set is not written yet.
    pub fn has_begun(&self) -> bool {
        self.files.as_ref().is_some_and(|files| files.has_run)
    }

    /// Writes the pages that the guest has touched in `memory`. Errors go to the log.
    pub fn end(&mut self, memory: &GuestMemory) {
        let Some(files) = self.files.take() else { return };
        // Disarmed, so that the descriptor stays watched but is never readable again.
        self.running_since = None;
        let _ = self.timer.clear();
        let path = files.path.display().to_string();
        if !files.has_run {
            return log::warn!("cannot record a working set in {path}: the guest has not run");
        }
        match files.write(memory) {
            Ok(set) => log::info!(
                "recorded a working set in {path}: {} pages touched, {} of them written",
                set.touched(),
                set.written()
            ),
            Err(error) => log::warn!(
                "cannot record a working set in {path}: {}",
                crate::ErrorChain(&error)
            ),
        }
    }
}

impl RecordingFiles {
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
    use snapshot::file::{self, Architecture, Contents, Header, HostIdentity, Links};

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
            contents: Contents::Full,
        };
        let state = Temporary::missing();
        file::write(state.path(), &header, ArchiveWriter::new()).unwrap();
        let state = file::read(state.path(), None).unwrap();
        Recording::new(path.path(), length, &state, Links::Follow).unwrap()
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
