//! Messages for the user.

use std::io::{self, Write};

/// Prints `message` on stderr. A failure to print cannot be reported.
pub fn warn(message: &str) {
    let _ = io::stderr().write_all(format!("mayfly-jailer: {message}\n").as_bytes());
}
