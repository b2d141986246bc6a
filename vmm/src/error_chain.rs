//! Display of an error with its causes.

use std::error::Error;
use std::{fmt, io};

use devices::thread_role;

/// Error with its causes in one line: `error: cause: cause of the cause`. If the kernel denied access because this process has given up
/// rights, the way out follows.
pub struct ErrorChain<'a>(pub &'a dyn Error);

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        let mut is_denied = false;
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            let system = error.downcast_ref::<io::Error>();
            is_denied |= system.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
            cause = error.source();
        }
        match thread_role::denial_hint() {
            Some(hint) if is_denied => write!(f, "; {hint}"),
            _ => Ok(()),
        }
    }
}
