//! mayfly: a minimal virtual machine monitor for unikernels on KVM.

#![cfg_attr(not(test), no_main)]

mod cli;
mod demo;
mod inspect;
mod logging;
mod process;
mod run;
mod serve;
mod snapshot;
mod terminal;
mod timings;

use std::io::{self, Write};
use std::time::Instant;

use vmm::ErrorChain;

use crate::cli::args::{self, Command, firecracker};
use crate::cli::ctl;

/// Does what the command line says, and returns the exit status.
#[cfg_attr(test, allow(dead_code, reason = "tests have a main of their own"))]
fn command() -> u8 {
    let origin = Instant::now();
    let exec = run::process_time();
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
    let result = match command {
        Command::Run(run) => run::run(*run, origin, exec).map_err(|error| ErrorChain(&error).to_string()),
        Command::Restore(restore) => {
            run::restore(*restore, origin, exec).map_err(|error| ErrorChain(&error).to_string())
        }
        Command::Snapshot(take) => {
            let taken = snapshot::create(&take);
            taken
                .map(|()| process::SUCCESS)
                .map_err(|error| ErrorChain(&error).to_string())
        }
        Command::SnapshotInfo(folder) => match snapshot::info(&folder) {
            Ok(text) => print(text),
            Err(error) => Err(ErrorChain(&error).to_string()),
        },
        Command::SnapshotVersion => print(snapshot::format_version()),
        Command::DescribeSnapshot(path) => match snapshot::describe_format(&path) {
            Ok(text) => print(text),
            Err(error) => Err(ErrorChain(&error).to_string()),
        },
        Command::SnapshotMerge(folders) => match snapshot::merge(&folders) {
            Ok(text) => print(text),
            Err(error) => Err(ErrorChain(&error).to_string()),
        },
        Command::Inspect(path) => match inspect::inspect(&path) {
            Ok(text) => print(text),
            Err(error) => Err(ErrorChain(&error).to_string()),
        },
        Command::Demo => demo::demo(origin, exec).map_err(|error| ErrorChain(&error).to_string()),
        Command::Serve(options) => {
            serve::serve(*options, origin).map_err(|error| ErrorChain(&error).to_string())
        }
        Command::Ctl(ctl) => match ctl::run(&ctl, &mut io::stdin()) {
            Ok(answer) => print(answer),
            Err(error) => Err(ErrorChain(&error).to_string()),
        },
        Command::Help(topic) => print(topic.text()),
        Command::Version => print(concat!("mayfly ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::FirecrackerVersion => print(format!("Firecracker v{}\n\n", firecracker::VERSION)),
    };
    result.unwrap_or_else(|error| {
        logging::print_message(&error);
        process::FAILURE
    })
}

/// Prints `text` on stdout. A reader that has seen enough is no error.
fn print(text: impl AsRef<[u8]>) -> Result<u8, String> {
    match io::stdout().write_all(text.as_ref()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to stdout: {error}"))
        }
        _ => Ok(process::SUCCESS),
    }
}
