//! mayfly-standby: the supervisor of suspended instances, executed by `mayfly standby`.
//!
//! | module | contents |
//! |---|---|
//! | `args`, `help` | arguments, help text |
//! | `schema`, `config` | bodies of requests, configuration of an instance |
//! | `journal` | registrations and failures on disk |
//! | `registry`, `live` | instances in memory: states, names and addresses; those with a process |
//! | `queue` | order of the wakes |
//! | `core` | the state of the supervisor, and its event sources |
//! | `register`, `inspection` | registration; access to its snapshot on a thread |
//! | `lifecycle`, `memory` | wake and suspend; room for wakes |
//! | `preparation`, `preparations` | files of a start; access to them on a thread if their file system may not respond |
//! | `end`, `recovery` | the end of a process; processes of an earlier supervisor |
//! | `command`, `exchange` | command line of a process, requests to its API |
//! | `net` | frames of suspended instances |
//! | `links`, `passed`, `cgroup` | interfaces, inherited taps and limits of an instance |
//! | `networks`, `attach` | shared networks, and their use by instances |
//! | `shells`, `warm` | shells, and wakes in them |
//! | `sys`, `procfs` | system calls; files of processes in `/proc` |
//! | `supervisor`, `routes`, `metrics` | event loop, API |

#[cfg(not(test))]
#[path = "../allocator.rs"]
mod allocator;
mod args;
mod attach;
mod cgroup;
mod command;
mod config;
mod core;
mod end;
mod exchange;
mod help;
mod inspection;
mod journal;
mod lifecycle;
mod links;
mod live;
#[path = "../logging/mod.rs"]
#[allow(dead_code, unused_imports, reason = "mayfly uses the rest")]
mod logging;
mod memory;
#[path = "../shell/message.rs"]
#[allow(dead_code, reason = "mayfly uses the rest")]
mod message;
mod metrics;
#[allow(
    dead_code,
    unused_imports,
    reason = "a library, of which the supervisor uses a part"
)]
mod net;
mod networks;
mod passed;
mod preparation;
mod preparations;
#[path = "../printable.rs"]
#[allow(dead_code, reason = "mayfly uses the rest")]
mod printable;
#[path = "../process.rs"]
#[allow(dead_code, reason = "mayfly uses the rest")]
mod process;
mod procfs;
mod queue;
mod recovery;
mod register;
mod registry;
mod routes;
mod schema;
mod shells;
mod supervisor;
mod sys;
mod warm;

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
            let _ = io::stdout().write_all(help::TEXT.as_bytes());
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
