//! `mayfly standby`: becomes the program mayfly-standby, which is installed beside mayfly.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::process;

/// Name of the program.
const NAME: &str = "mayfly-standby";

/// Failure to become the program.
#[derive(Debug, thiserror::Error)]
#[error("cannot execute {NAME}; install it in the directory of mayfly, or in a directory of PATH")]
pub struct Error(#[source] io::Error);

/// Becomes mayfly-standby with `arguments`. Returns only if that fails.
pub fn execute(arguments: Vec<OsString>) -> Error {
    for program in process::executed_paths() {
        let error = become_program(&program.with_file_name(NAME), &arguments);
        if error.kind() != io::ErrorKind::NotFound {
            return Error(error);
        }
    }
    Error(become_program(Path::new(NAME), &arguments))
}

/// Becomes `program`. A name without a directory is found in PATH.
fn become_program(program: &Path, arguments: &[OsString]) -> io::Error {
    Command::new(program).args(arguments).exec()
}
