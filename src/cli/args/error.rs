//! Usage errors.

use std::ffi::{OsStr, OsString};

use vmm::arch::Architecture;

use super::firecracker;

/// Exit status of a usage error.
const USAGE: u8 = 2;

/// Usage error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag of Firecracker's command line is invalid.
    #[error(transparent)]
    Firecracker(firecracker::Error),
    /// No command is given.
    #[error("missing command; run mayfly --help")]
    NoCommand,
    /// The command is unknown.
    #[error("{0:?} is not a command; run mayfly --help")]
    Command(String),
    /// No image is given.
    #[error("missing the path of an image; run mayfly {0} KERNEL")]
    NoKernel(&'static str),
    /// No snapshot is given, or too few.
    #[error("missing the directory of a snapshot; run mayfly {0} --help")]
    NoDirectory(&'static str),
    /// No socket is given.
    #[error("missing the path of a socket; run mayfly shell SOCKET")]
    NoSocket,
    /// Filters are chosen and turned off.
    #[error("--seccomp-filter excludes --no-seccomp; remove one")]
    Filters,
    /// An argument is unexpected, possibly one of the guest.
    #[error("{0:?} is an unexpected argument; guest arguments follow a lone --")]
    Unexpected(String),
    /// The value is invalid for its option.
    #[error("{option} {value:?}: {reason}")]
    Value {
        /// The option.
        option: &'static str,
        /// The given value.
        value: String,
        /// The error, and a description of valid values.
        reason: String,
    },
    /// The machine of another architecture has the option.
    #[error("{option} is an option of {required} machines, and this machine is {architecture}; remove it")]
    Architecture {
        /// The option.
        option: &'static str,
        /// Architecture of its machines.
        required: Architecture,
        /// Architecture of this machine.
        architecture: Architecture,
    },
    /// An option is given twice.
    #[error("{0} is given twice; remove one")]
    Twice(&'static str),
    /// An option requires another one.
    #[error("{0} requires {1}; add it")]
    Requires(&'static str, &'static str),
    /// Two options exclude each other.
    #[error("{0} and {1} exclude each other: prefetched pages would be recorded as touched; remove one")]
    Exclusive(&'static str, &'static str),
    /// A shell has no listener for gdb.
    #[error(
        "--gdb and --shell exclude each other: a shell has no listener; remove one, or attach by mayfly ctl gdb"
    )]
    GdbInShell,
    /// The vCPU threads of a shell cannot sample.
    #[error(
        "--profile and --shell exclude each other: the vCPU threads of a shell start without a timer for samples; remove one"
    )]
    ProfileInShell,
    /// A suspend has a place for its snapshot, and creates none.
    #[error(
        "--suspend-to and --stateless exclude each other: a stateless suspend creates no snapshot; remove one"
    )]
    Stateless,
    /// A value, often the name of a file, is not UTF-8.
    #[error("{0} {1:?} is not UTF-8; rename the file if it names one")]
    NotUtf8(&'static str, OsString),
    /// A guest argument is not UTF-8.
    #[error("guest argument {0:?} is not UTF-8; use printable ASCII")]
    GuestArgument(OsString),
    /// An option is unknown, or has no value.
    #[error("{source}; run mayfly {command} --help")]
    Syntax {
        /// The command.
        command: &'static str,
        /// Error of the parser.
        source: lexopt::Error,
    },
    /// An option before the command is unknown.
    #[error("{0}; run mayfly --help")]
    TopLevel(#[source] lexopt::Error),
}

impl Error {
    /// Returns the exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Firecracker(error) => error.status(),
            _ => USAGE,
        }
    }
}

/// Converts an error of the parser into a usage error of `command`.
pub fn syntax(command: &'static str) -> impl FnOnce(lexopt::Error) -> Error {
    move |source| Error::Syntax { command, source }
}

/// Returns `argument` with invalid UTF-8 replaced.
pub fn lossy(argument: &OsStr) -> String {
    argument.to_string_lossy().into_owned()
}
