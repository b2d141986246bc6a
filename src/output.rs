//! Text of the program on stdout.

use std::error::Error;
use std::io::{self, Write};

use vmm::ErrorChain;

use crate::printable::{printable, printable_lines};
use crate::process;

/// Returns `error` and its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    printable(&ErrorChain(error).to_string())
}

/// Prints the text of a command that produces text only, and returns its exit status.
///
/// # Errors
/// The error of the command, or of [`print()`], with its causes.
pub fn print_result<T: AsRef<[u8]>, E: Error>(result: Result<T, E>) -> Result<u8, String> {
    match result {
        Ok(text) => print(text),
        Err(error) => Err(chain(&error)),
    }
}

/// Prints `text` on stdout, with control characters escaped, and returns the exit status of success. A closed pipe is no error: the
/// reader needs no more.
///
/// # Errors
/// A message if stdout cannot be written, for example because its file system is full.
pub fn print(text: impl AsRef<[u8]>) -> Result<u8, String> {
    match io::stdout().write_all(printable_lines(text.as_ref()).as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to stdout: {error}"))
        }
        _ => Ok(process::SUCCESS),
    }
}
