//! What mayfly has to say: a line each, to stderr or to a file, never making anybody wait for long.
//!
//! | module | holds |
//! |---|---|
//! | `process` | the log of the libraries, and [`ProcessLog`], by which it is changed |
//! | `budget` | how much of it is said |
//! | `file` | the file that takes it instead of stderr |
//! | `line` | a line of that file |
//! | `stamp` | the time in it |
//! | `stderr` | [`print`]: writes to stderr |

mod budget;
mod file;
mod line;
mod process;
mod stamp;
mod stderr;

// The command line that lets a client change the log names it.
pub use process::ProcessLog;
pub use process::{print_message, start};
pub use stderr::print;
