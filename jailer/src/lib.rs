//! Confines a VMM before it starts: Firecracker's jailer, argument for argument, with mayfly as the usual program.
//!
//! [`run`] executes one command line. Its steps, in this order:
//!
//! | step | module |
//! |---|---|
//! | open standard descriptors that are closed, close all others | `sys` |
//! | parse the command line | `args` |
//! | check the program for defects that `execve` would reject later | `program` |
//! | create the directories of the jail and lock it, copy the program | `jail` |
//! | join the network namespace, create cgroups and join them | `steps`, `cgroup` |
//! | create a mount namespace, make the jail its root | `root` |
//! | create the directories and devices in the jail | `jail` |
//! | fork for `--daemonize` and `--new-pid-ns`, write the PID file, set limits, group and user, `execve` | `launch` |
//!
//! If a step fails, `undo` removes the files, mounts and cgroups of the steps before it. It uses descriptors of directories that are
//! opened before the root changes. Files, directories and cgroups that existed before stay, with their owner and mode.
//!
//! # Threat model
//!
//! The command line comes from a trusted user, root. An earlier process in the jail may have been hostile: it owns the directory
//! `root` of its jail. No step follows a link in there, and no step trusts a file in there to find a running process (`leftover`).
//! The directories above `root` belong to root.
//!
//! This crate depends on no other crate of mayfly.

mod args;
mod cgroup;
mod contents;
mod error;
mod help;
mod jail;
mod launch;
mod leftover;
mod processor;
mod program;
mod report;
mod retry;
mod root;
mod steps;
mod sys;
mod undo;

use std::ffi::OsString;
use std::io::{self, Write};

use crate::args::Command;
use crate::report::warn;

/// Release of Firecracker whose jailer this is. Clients compare the first two numbers.
pub const VERSION: &str = "1.17.0";

/// Exit status of success.
const SUCCESS: u8 = 0;
/// Exit status of each failure, as Firecracker's jailer has it for usage errors.
const FAILURE: u8 = 1;

/// Executes the command line `arguments`, without the name of the program. Returns the exit status, unless the process becomes the
/// VMM.
pub fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    let clocks = launch::Clocks::now();
    sys::ignore_broken_pipes();
    let arguments: Vec<OsString> = arguments.collect();
    if let Err(error) = sys::close_descriptors(args::passed(&arguments)) {
        return fail(&error.to_string());
    }
    match args::parse(arguments.into_iter()) {
        Ok(Command::Help) => print(help::TEXT),
        Ok(Command::Version) => print(&format!("Jailer v{VERSION}\n\n")),
        Ok(Command::Jail(args)) => match steps::execute(&args, clocks) {
            Ok(()) => SUCCESS,
            Err(error) => fail(&error.describe()),
        },
        Err(error) => fail(&error.to_string()),
    }
}

/// Prints `message` on stderr and returns the exit status.
fn fail(message: &str) -> u8 {
    warn(message);
    FAILURE
}

/// Prints `text` on stdout. A closed pipe is no error: the reader needs no more.
fn print(text: &str) -> u8 {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(&format!("cannot write to stdout: {error}"))
        }
        _ => SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    /// Clients compare the versions of both programs.
    #[test]
    fn version_is_that_of_mayfly() {
        let arguments = include_str!("../../src/cli/args/firecracker.rs");
        let line = format!("pub const VERSION: &str = \"{}\";", super::VERSION);
        assert!(arguments.contains(&line), "{line}");
    }
}
