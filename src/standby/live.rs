//! Wake and process of an instance that is not asleep.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::exchange::Exchange;
use super::net::FirstFrames;
use super::preparation::Preparation;

/// Process of an instance.
#[derive(Debug)]
pub struct Running {
    /// Process ID.
    pub pid: libc::pid_t,
    /// Descriptor of the process, readable at its end.
    pub process: OwnedFd,
}

/// Process of an earlier supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Generation of the snapshots of the instance when the process started; none in a record of an earlier version.
    pub generation: Option<Box<str>>,
}

/// Frames of a wake by the identifiers of their interfaces. They are in memory until a process starts, which may be tried again.
#[derive(Debug, Default)]
pub struct WakeFrames(Vec<(Box<str>, FirstFrames)>);

impl WakeFrames {
    /// Creates the frames of one interface.
    pub fn of(interface: &str, frames: FirstFrames) -> Self {
        Self(vec![(interface.into(), frames)])
    }

    /// Adds frames of `interface`, which have arrived after those that are present. Returns the number of frames that exceed the limits
    /// of [`FirstFrames`].
    pub fn add(&mut self, interface: &str, frames: FirstFrames) -> usize {
        if frames.is_empty() {
            return 0;
        }
        match self.0.iter_mut().find(|(id, _)| **id == *interface) {
            Some((_, present)) => present.append(&frames),
            None => {
                self.0.push((interface.into(), frames));
                0
            }
        }
    }

    /// Returns the number of frames.
    pub fn len(&self) -> usize {
        self.0.iter().map(|(_, frames)| frames.len()).sum()
    }

    /// Returns a file with the frames of each interface, for `--first-frames`.
    ///
    /// # Errors
    /// Fails without memory or descriptors.
    pub fn to_files(&self) -> io::Result<Vec<(&str, OwnedFd)>> {
        let files = self.0.iter().map(|(id, frames)| Ok((&**id, frames.to_memfd()?)));
        files.collect()
    }
}

/// Wake and process of an instance.
#[derive(Debug)]
pub struct Live {
    /// Beginning of the wake.
    pub woken_at: Instant,
    /// The process, once it is started.
    pub running: Option<Running>,
    /// Connection to the shell that the process was, until its reply.
    pub shell: Option<UnixStream>,
    /// Request to the API of the process.
    pub exchange: Option<Exchange>,
    /// End of the wait for the API of the process.
    pub deadline: Option<Instant>,
    /// The process is one of an earlier supervisor.
    pub found: Option<Found>,
    /// Access to its directory on a thread.
    pub preparation: Preparation,
    /// Frames that the process gets first.
    pub frames: WakeFrames,
    /// The wait for its guest is over, and the process is killed.
    pub is_late: bool,
    /// Wake it again at the end of the process.
    pub wakes_again: bool,
    /// The process has rejected to cancel its suspend: each tick asks if its guest runs.
    pub is_cancel_rejected: bool,
    /// Suspend it once it runs.
    pub suspends_next: bool,
    /// Processor time at the last sample in ticks.
    pub cpu_ticks: u64,
    /// Last sample at which the guest had used the processor.
    pub active_at: Instant,
    /// Memory at the last sample in KiB.
    pub memory_kib: u64,
}

impl Live {
    /// Begins a wake. `memory_kib` is the expected memory.
    pub fn new(memory_kib: u64, frames: WakeFrames) -> Self {
        let now = Instant::now();
        Self {
            woken_at: now,
            running: None,
            shell: None,
            exchange: None,
            deadline: None,
            found: None,
            preparation: Preparation::None,
            frames,
            is_late: false,
            wakes_again: false,
            is_cancel_rejected: false,
            suspends_next: false,
            cpu_ticks: 0,
            active_at: now,
            memory_kib,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FirstFrames, WakeFrames};

    fn frames(lengths: &[usize]) -> FirstFrames {
        let mut frames = FirstFrames::default();
        assert!(lengths.iter().all(|length| frames.push(&vec![0; *length])));
        frames
    }

    #[test]
    fn frames_of_all_interfaces_are_kept_in_order() {
        let mut all = WakeFrames::of("a", frames(&[60]));
        assert_eq!(all.add("b", frames(&[61])), 0);
        assert_eq!(all.add("a", frames(&[62, 63])), 0);
        assert_eq!(all.add("c", frames(&[])), 0);
        assert_eq!(all.len(), 4);
        let expected = [("a", frames(&[60, 62, 63])), ("b", frames(&[61]))];
        assert!(
            all.0
                .iter()
                .map(|(id, frames)| (&**id, frames.clone()))
                .eq(expected)
        );
        let files = all.to_files().unwrap();
        assert!(files.iter().map(|(id, _)| *id).eq(["a", "b"]));
    }
}
