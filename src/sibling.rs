//! Commands of other programs, which are installed beside mayfly: `mayfly standby`, `mayfly core`, `mayfly ctl`, `mayfly doctor`.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;

/// The supervisor.
pub const STANDBY: &str = "mayfly-standby";
/// Commands that start no VM.
pub const TOOLS: &str = "mayfly-tools";

/// Failure to become the program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No directory has it.
    #[error("cannot execute {name}; install it in the directory of mayfly, or in a directory of PATH")]
    Missing {
        /// Name of the program.
        name: &'static str,
        /// Error of the last search.
        #[source]
        source: io::Error,
    },
    /// The kernel does not execute the program in the directory of mayfly, for example because it is not executable.
    #[error("cannot execute {program:?}; install mayfly again")]
    Execute {
        /// Path of the program.
        program: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

/// Becomes the program `name` with `arguments`. Returns only if that fails.
pub fn execute(name: &'static str, arguments: &[OsString]) -> Error {
    for executed in process::executed_paths() {
        let program = executed.with_file_name(name);
        let source = become_program(&program, arguments);
        if source.kind() != io::ErrorKind::NotFound {
            return Error::Execute { program, source };
        }
    }
    let source = become_program(Path::new(name), arguments);
    Error::Missing { name, source }
}

/// Becomes `program`. A name without a directory is found in PATH.
fn become_program(program: &Path, arguments: &[OsString]) -> io::Error {
    Command::new(program).args(arguments).exec()
}
