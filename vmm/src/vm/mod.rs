//! A machine that runs, and the one thread that owns it.

mod events;
mod input;
mod signals;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use devices::lock;
use devices::serial::output;

use crate::machine::Machine;
use crate::vcpu::Ending;

pub use input::{InputFilter, Verdict};
pub use signals::{
    block as block_signals, heeded as heeded_signals, ignore_output_signals, unblock as unblock_signal,
};

/// How long a reader of the guest's output may make no progress before the end of the VM no longer waits for it.
pub const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);

/// Where the VM is connected to the process around it.
pub struct Console<'a> {
    /// What the guest's serial port receives; nothing when there is none.
    pub input: Option<BorrowedFd<'a>>,
    /// Sees the input before the guest does.
    pub filter: Option<Box<dyn InputFilter>>,
    /// Signals that end the VM, blocked in every thread.
    pub signals: &'a [libc::c_int],
}

/// Why a VM is over.
#[derive(Debug)]
pub enum End {
    /// A vCPU has left the guest for good.
    Guest(Ending),
    /// The user has asked for it at the console.
    User,
    /// A signal has asked for it.
    Signal(libc::c_int),
}

/// Why the event loop could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A descriptor of the event loop could not be had.
    #[error("cannot {operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The event loop failed.
    #[error("cannot wait for events")]
    Events(#[source] event_manager::Error),
}

/// A machine whose vCPUs run. Dropping it stops them.
pub struct Vm {
    machine: Machine,
}

impl Vm {
    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine }
    }

    /// Runs the event loop until the VM is over, and then prints what the guest's output still holds back while its
    /// reader reads; a signal and the user do not wait for that. What nobody has taken by then is counted as lost.
    ///
    /// # Errors
    /// [`Error`]
    pub fn run(&self, console: Console<'_>) -> Result<End, Error> {
        let end = events::run(&self.machine, console)?;
        self.machine.mark_first_output();
        self.machine.discard_output();
        Ok(end)
    }

    /// What the guest's output has lost, if it has and it was not said yet.
    pub fn output_report(&self) -> Option<output::Error> {
        lock(self.machine.serial()).output_mut().report()
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }
}
