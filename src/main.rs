//! mayfly: a minimal virtual machine monitor for unikernels on KVM.
//!
//! | module | contents |
//! |---|---|
//! | `allocator` | heap of the process, its end without memory |
//! | `process` | initialization, processor time, death by a signal |
//! | `cli` | arguments, help texts, options in error messages |
//! | `run`, `restore`, `serve`, `demo` | the commands with a VM |
//! | `shell` | a VM that is made before its snapshot is known |
//! | `session` | their VM from its start to its end |
//! | `crash` | report of a crash of the guest |
//! | `profile` | samples of the guest by function |
//! | `snapshot`, `inspect` | the commands without a VM |
//! | `vm_client` | snapshots of a running VM by its API |
//! | `sibling` | the commands of the programs mayfly-standby and mayfly-tools |
//! | `filters` | isolation of the process: seccomp filters, capabilities |
//! | `terminal` | the terminal as the guest's serial console |
//! | `logging` | messages and the log |
//! | `printable`, `output` | text without control characters, on stdout |
//! | `timings` | measurements as a table and as a trace |
//! | `version` | versions of the program and of its interfaces |

#![cfg_attr(not(test), no_main)]

mod allocator;
mod cli;
mod crash;
mod demo;
mod filters;
mod inspect;
mod logging;
mod measurement;
mod output;
mod printable;
mod process;
mod profile;
mod restore;
mod run;
mod serve;
mod session;
mod shell;
mod sibling;
mod snapshot;
mod terminal;
mod timings;
mod version;
mod vm_client;

use std::time::Instant;

use api::request_log;

use crate::cli::args::{self, Command, firecracker};
use crate::cli::hints::{self, OptionSet};
use crate::output::{chain, print, print_result};

#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

/// Entry point of the program, called by the C library.
///
/// The entry point of the standard library reads and parses `/proc/self/maps`, and gives each thread a second stack, to report
/// stack overflows: some 25 system calls of a start. Of its other work this does the necessary part: it keeps descriptors 0 to 2
/// open, ignores SIGPIPE, and flushes stdout.
#[cfg(not(test))]
// SAFETY: no other symbol has this name, and the unused arguments are an integer and a pointer, as C passes them.
#[unsafe(no_mangle)]
extern "C" fn main(_count: libc::c_int, _arguments: *const *const libc::c_char) -> libc::c_int {
    process::initialize();
    let status = command();
    // A thread that the end of the process does not wait for may own the terminal.
    vmm::emergency::restore();
    // The process ends: an error cannot be reported any more.
    let _ = std::io::Write::flush(&mut std::io::stdout());
    libc::c_int::from(status)
}

/// Executes the command line and returns the exit status.
#[cfg_attr(
    test,
    allow(dead_code, reason = "the test harness has a main function of its own")
)]
fn command() -> u8 {
    let started_at = Instant::now();
    let exec = process::cpu_time();
    logging::start();
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let command = match args::parse(&program, arguments) {
        Ok(command) => command,
        Err(error) => {
            logging::print_message(&error.to_string());
            return error.status();
        }
    };
    let is_server = matches!(command, Command::Serve(_));
    let result = match command {
        Command::Run(run) => {
            run::run(*run, started_at, exec).map_err(|error| hints::describe(error.inner(), OptionSet::Run))
        }
        Command::Restore(restore) => restore::restore(*restore, started_at, exec).or_else(|error| {
            logging::print_message(&hints::describe(error.inner(), OptionSet::Restore));
            Ok(error.status())
        }),
        Command::Shell(args) => apart(|| shell::shell(&args, started_at)).map_err(|error| chain(&error)),
        Command::Snapshot(snapshot) => apart(|| snapshot::create(&snapshot))
            .map(|()| process::SUCCESS)
            .map_err(|error| chain(&error)),
        Command::SnapshotInfo(directory) => print_result(apart(|| snapshot::info(&directory))),
        Command::SnapshotVersion => print(snapshot::format_version()),
        Command::DescribeSnapshot(path) => print_result(apart(|| snapshot::describe_format(&path))),
        Command::SnapshotMerge(directories) => print_result(apart(|| snapshot::merge(&directories))),
        Command::Inspect(path) => print_result(apart(|| inspect::inspect(&path))),
        Command::Demo => apart(|| demo::demo(started_at, exec)).map_err(|error| chain(&error)),
        Command::Serve(options) => {
            apart(|| serve::serve(*options, started_at)).map_err(|error| chain(&error))
        }
        Command::Sibling(name, arguments) => Err(chain(&apart(|| sibling::execute(name, &arguments)))),
        Command::Help(topic) => print(topic.text()),
        Command::Version => print(version::line()),
        Command::Versions => print(version::json()),
        Command::FirecrackerVersion => print(format!("Firecracker v{}\n\n", firecracker::VERSION)),
    };
    let status = result.unwrap_or_else(|error| {
        logging::print_message(&error);
        process::FAILURE
    });
    if is_server {
        request_log::log_exit(status);
    }
    status
}

/// Calls `function` without inlining it: a start by `run` or `restore` maps all pages of [`command`].
#[inline(never)]
fn apart<T>(function: impl FnOnce() -> T) -> T {
    function()
}
