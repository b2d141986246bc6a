//! Connection between the guest's serial port and the process.

use std::any::Any;
use std::os::fd::OwnedFd;

use devices::serial::SerialOutput;

/// Reason why the console cannot be opened; the caller of the VM defines it.
pub type ConsoleError = Box<dyn std::error::Error + Send + Sync>;

/// Effect of some input on the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputAction {
    /// None.
    Continue,
    /// The user ends the VM.
    End,
}

/// Filter between the input and the guest, for example for escape keys.
pub trait InputFilter {
    /// Appends the bytes of `input` that are for the guest to `out`.
    fn filter(&mut self, input: &[u8], out: &mut Vec<u8>) -> InputAction;
}

/// Console of a guest.
pub struct Console {
    /// Receives the guest's output.
    pub output: SerialOutput,
    /// Source of the guest's input; none gives the guest no input.
    pub input: Option<OwnedFd>,
    /// Filter of the input.
    pub filter: Option<Box<dyn InputFilter + Send>>,
    /// Dropped at the end of the VM; restores the terminal.
    pub guard: Option<Box<dyn Any + Send>>,
}

/// Input of a console, before the event loop reads it.
pub struct ConsoleInput {
    /// Source of the input.
    pub file: OwnedFd,
    /// Filter of the input.
    pub filter: Option<Box<dyn InputFilter + Send>>,
}
