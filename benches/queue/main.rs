//! Compares the virtio devices with the bare system calls that their work requires. The device side is an
//! in-process driver with real rings in real memory. The floor is a loop over the same file or tap with the
//! same buffers. `make queue` runs it; ROUNDS in the environment sets the number of rounds, and ONLY selects
//! benchmarks by a part of their name. The exit status is 1 if a goal is missed.
//!
//! The measured time of the device starts at the notification and ends at the last used buffer. It excludes
//! the work of a driver on the rings, which belongs to the guest.
//!
//! The floor of a rewriter of addresses is the same device without one.

#![allow(missing_docs, reason = "a program")]
#![allow(clippy::unwrap_used, reason = "a program; an error ends it")]

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
    println!(
        "medians of {rounds} rounds, in operations per second; the ratio is the median of the ratios per round"
    );
    BenchmarkResult::print_head();
    let mut missed = Vec::new();
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut run = |benchmark: &mut dyn Benchmark| {
        if !benchmark.name().contains(only.as_str()) {
            return;
        }
        let result = measure(benchmark, rounds);
        result.print();
        missed.extend(result.missed());
    };
    // The disk of a benchmark takes a second to write.
    let has_disks = !only.starts_with("net");
    for engine in [IoEngine::Sync, IoEngine::Async]
        .into_iter()
        .filter(|_| has_disks)
    {
        for shape in block::SHAPES {
            run(&mut block::Pages::new(engine, shape));
        }
    }
    if let Err(error) = namespace::enter() {
        eprintln!("cannot create a network namespace: {error}; run as root, or allow user namespaces");
        return ExitCode::FAILURE;
    }
    for shape in net::SHAPES {
        run(&mut net::Transmit::new(shape));
        run(&mut net::Receive::new(shape));
        run(&mut net::Rewriter::transmit(shape));
        run(&mut net::Rewriter::receive(shape));
    }
    if only.is_empty() || only == "idle" {
        missed.extend(idle::missed());
    }
    missed.iter().for_each(|goal| println!("missed goal: {goal}"));
    match missed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
