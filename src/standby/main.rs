//! mayfly-standby: the supervisor of suspended instances, executed by `mayfly standby`.
//!
//! | module | contents |
//! |---|---|
//! | `args` | arguments, help text |
//! | `supervisor` | event loop |
//! | `routes` | requests of the API |
//! | `peer` | users whose connections are served |

#[cfg(not(test))]
#[path = "../allocator.rs"]
mod allocator;
mod args;
#[path = "../logging/mod.rs"]
#[allow(dead_code, reason = "mayfly uses the other functions")]
mod logging;
mod peer;
#[path = "../printable.rs"]
#[allow(dead_code, reason = "mayfly uses the other functions")]
mod printable;
#[path = "../process.rs"]
#[allow(dead_code, reason = "mayfly uses the other functions")]
mod process;
mod routes;
mod supervisor;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use vmm::ErrorChain;

use args::Command;

#[cfg(not(test))]
#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

/// Exit status of a usage error.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    #[cfg(not(test))]
    process::initialize();
    logging::start();
    match args::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            // A closed pipe is no error: the reader needs no more.
            let _ = io::stdout().write_all(args::HELP.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Command::Supervise(args)) => match supervisor::supervise(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error, process::FAILURE),
        },
        Err(error) => fail(&error, USAGE),
    }
}

/// Prints `error` with its causes, and returns `status`.
fn fail(error: &dyn Error, status: u8) -> ExitCode {
    logging::print_message(&printable::printable(&ErrorChain(error).to_string()));
    ExitCode::from(status)
}
