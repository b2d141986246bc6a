//! Commands of other programs, which are installed beside mayfly: `mayfly standby`, `mayfly core`, `mayfly ctl`, `mayfly doctor`.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::process;

/// The supervisor.
pub const STANDBY: &str = "mayfly-standby";
/// Commands that start no VM.
pub const TOOLS: &str = "mayfly-tools";

/// Failure to become the program.
#[derive(Debug, thiserror::Error)]
#[error("cannot execute {name}; install it in the directory of mayfly, or in a directory of PATH")]
pub struct Error {
    /// Name of the program.
    name: &'static str,
    /// Cause.
    #[source]
    source: io::Error,
}

/// Becomes the program `name` with `arguments`. Returns only if that fails.
pub fn execute(name: &'static str, arguments: &[OsString]) -> Error {
    for program in process::executed_paths() {
        let source = become_program(&program.with_file_name(name), arguments);
        if source.kind() != io::ErrorKind::NotFound {
            return Error { name, source };
        }
    }
    let source = become_program(Path::new(name), arguments);
    Error { name, source }
}

/// Becomes `program`. A name without a directory is found in PATH.
fn become_program(program: &Path, arguments: &[OsString]) -> io::Error {
    Command::new(program).args(arguments).exec()
}
