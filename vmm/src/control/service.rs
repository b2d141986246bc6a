//! What the owner of a VM serves besides the VM.

use std::os::fd::RawFd;

use super::Control;

/// Somebody who takes wishes for the VM from outside: an API.
pub trait Service {
    /// Readable as long as there is something to do. It never changes.
    fn descriptor(&self) -> RawFd;

    /// Does some of it, a bounded amount, without waiting for anybody.
    fn ready(&mut self, control: &mut Control);

    /// A SIGHUP has come. Returns whether it meant this: there are logs to be opened again. Otherwise it ends the VM.
    fn reopen_logs(&mut self) -> bool {
        false
    }
}
