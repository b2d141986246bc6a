//! Preparation of a VM while the process waits for its configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::channel::{Receiver, channel};
use crate::config::{HostMemory, VmConfig, VmSpec};
use crate::machine::PreparedVm;
use crate::timeline::Timeline;

/// A VM for the start or load.
pub enum Preparation {
    /// A thread creates the VM, or has created it.
    Begun {
        /// Gets the VM unless its creation fails.
        created: Receiver<PreparedVm>,
        /// Drops a VM that does not fit after it has created the other, for which a start may wait.
        thread: JoinHandle<()>,
    },
    /// The VM exists.
    Complete(Box<PreparedVm>),
}

impl Preparation {
    /// Begins to create a VM with one vCPU and without memory. Returns `None` if that is not possible; the start reports the cause.
    pub fn begin(host: &HostMemory, timeline: &Arc<Timeline>) -> Option<Self> {
        let spec = VmConfig::new(PathBuf::new()).check(host).ok()?;
        let timeline = timeline.clone();
        Self::spawn(None, move || PreparedVm::create(spec, &timeline).ok()?)
    }

    /// Adds the memory of `spec` to the VM of `previous`, or replaces it by another.
    pub fn change(previous: Self, spec: VmSpec, timeline: &Arc<Timeline>) -> Option<Self> {
        let (fitting, unfit) = match previous.finish() {
            Some(prepared) if prepared.fits(&spec, None) => (Some(prepared), None),
            other => (None, other),
        };
        let timeline = timeline.clone();
        Self::spawn(unfit, move || {
            let mut prepared = match fitting {
                Some(prepared) => prepared,
                None => PreparedVm::create(spec.clone(), &timeline).ok()??,
            };
            prepared.add_memory(spec, &timeline).ok()?;
            Some(prepared)
        })
    }

    /// Waits for the rest of the creation. Returns `None` if it has failed.
    pub fn wait(self) -> Option<PreparedVm> {
        match self {
            Self::Begun { created, .. } => created.receive(),
            Self::Complete(prepared) => Some(*prepared),
        }
    }

    /// Waits for the creation, and for the end of its thread.
    fn finish(self) -> Option<PreparedVm> {
        match self {
            Self::Begun { created, thread } => {
                // A client that repeats its request waits here, and cannot grow the number of threads and VMs.
                #[allow(
                    clippy::disallowed_methods,
                    reason = "the thread makes only calls that this thread would make"
                )]
                let _ = thread.join();
                created.receive()
            }
            Self::Complete(prepared) => Some(*prepared),
        }
    }

    /// Calls `create` on a thread, which drops `unfit` afterwards.
    fn spawn(
        unfit: Option<PreparedVm>,
        create: impl FnOnce() -> Option<PreparedVm> + Send + 'static,
    ) -> Option<Self> {
        let (sender, created) = channel();
        let run = move || {
            // Fails if the process ends meanwhile.
            let _ = create().map(|prepared| sender.send(prepared));
            drop(sender);
            drop(unfit);
        };
        let thread = thread::Builder::new().name("mayfly_prepare".into()).spawn(run);
        thread.ok().map(|thread| Self::Begun { created, thread })
    }
}
