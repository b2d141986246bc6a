//! Preparation of a VM while the process waits for its configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::config::{HostMemory, VmConfig, VmSpec};
use crate::machine::PreparedVm;
use crate::timeline::Timeline;

/// A VM that a thread creates, or has created.
pub struct Preparation(JoinHandle<Option<PreparedVm>>);

impl Preparation {
    /// Begins to create a VM with one vCPU and without memory. Returns `None` if that is not possible; the start reports the cause.
    pub fn begin(host: &HostMemory, timeline: &Arc<Timeline>) -> Option<Self> {
        let spec = VmConfig::new(PathBuf::new()).check(host).ok()?;
        let timeline = timeline.clone();
        Self::spawn(move || PreparedVm::create(spec, &timeline).ok()?)
    }

    /// Adds the memory of `spec` to the VM of `previous`, or replaces it by another.
    pub fn change(previous: Self, spec: VmSpec, timeline: &Arc<Timeline>) -> Option<Self> {
        // A client that repeats its request waits, and cannot grow the number of threads.
        let prepared = previous.wait();
        let timeline = timeline.clone();
        Self::spawn(move || {
            let (fitting, other) = match prepared {
                Some(prepared) if prepared.fits(&spec, false) => (Some(prepared), None),
                other => (None, other),
            };
            let created = match fitting {
                Some(prepared) => Some(prepared),
                None => PreparedVm::create(spec.clone(), &timeline).ok()?,
            };
            let mut created = created?;
            created.add_memory(spec, &timeline).ok()?;
            // After the new one, for which a start may wait.
            drop(other);
            Some(created)
        })
    }

    /// Waits for the rest of the creation. Returns `None` if it has failed.
    pub fn wait(self) -> Option<PreparedVm> {
        #[allow(
            clippy::disallowed_methods,
            reason = "the thread makes the calls that this thread would make itself"
        )]
        self.0.join().ok()?
    }

    fn spawn(create: impl FnOnce() -> Option<PreparedVm> + Send + 'static) -> Option<Self> {
        let thread = thread::Builder::new().name("mayfly_prepare".into()).spawn(create);
        thread.ok().map(Self)
    }
}
