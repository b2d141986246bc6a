//! The virtio devices side by side with the system calls that they cannot do without: an in-process driver with real rings in
//! real memory, and a bare loop over the same file or tap with the same buffers. `make queue` runs it; ROUNDS in the
//! environment changes the number of rounds, and ONLY limits it to what has that in its name. Ends with status 1 when a goal is
//! missed.
//!
//! What is timed on the device's side is its own part, from the kick to the last used buffer: what a driver does to fill and
//! to empty the rings is the guest's.

#![allow(missing_docs, reason = "a program")]
#![allow(
    clippy::unwrap_used,
    reason = "a measurement that cannot be made ends the program"
)]

mod block;
mod comparison;
mod idle;
mod namespace;
mod net;

use std::process::ExitCode;

use comparison::{Benchmark, BenchmarkResult, measure};
use devices::virtio::block::IoEngine;

fn main() -> ExitCode {
    let rounds = std::env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(60);
    println!("medians of {rounds} rounds, in operations a second; the ratio is the median of each round's");
    BenchmarkResult::print_head();
    let mut missed = Vec::new();
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut run = |contest: &mut dyn Benchmark| {
        if !contest.name().contains(only.as_str()) {
            return;
        }
        let comparison = measure(contest, rounds);
        comparison.print();
        missed.extend(comparison.missed());
    };
    for engine in [IoEngine::Sync, IoEngine::Async] {
        for shape in block::SHAPES {
            run(&mut block::Pages::new(engine, shape));
        }
    }
    if let Err(error) = namespace::enter() {
        eprintln!("no network namespace of our own: {error}: run this as root, or allow user namespaces");
        return ExitCode::FAILURE;
    }
    for shape in net::SHAPES {
        run(&mut net::Transmit::new(shape));
        run(&mut net::Receive::new(shape));
    }
    if only.is_empty() || only == "idle" {
        missed.extend(idle::missed());
    }
    missed.iter().for_each(|goal| println!("missed: {goal}"));
    match missed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
