//! Criterion benchmarks of the start of a guest: from spawn to the guest's first byte and to the exit of the
//! process.

#![allow(missing_docs, clippy::unwrap_used, reason = "a program; an error ends it")]

#[path = "../spawn/mod.rs"]
mod spawn;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use spawn::run;

fn boot(criterion: &mut Criterion) {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let mayfly = format!("{root}/dist/mayfly");
    let mut group = criterion.benchmark_group("boot");
    group
        .sample_size(30)
        .measurement_time(Duration::from_secs(3))
        .warm_up_time(Duration::from_secs(1));
    for (name, guest, options) in [
        ("hello", "hello", &["--memory", "128M"][..]),
        ("hello without tables", "hello", &["--no-acpi", "--no-mptable"]),
        (
            "hello with the in-kernel irqchip",
            "hello",
            &["--irqchip", "kernel"],
        ),
        ("hello with 2 GiB of memory", "hello", &["--memory", "2G"]),
        ("an ELF of 100 KiB", "big-100k", &["--memory", "512M"]),
        ("an ELF of 256 MiB", "big", &["--memory", "512M"]),
    ] {
        let image = format!("{root}/dist/guests/x86_64/{guest}.elf");
        let command: Vec<&str> = [&mayfly, "run", &image]
            .into_iter()
            .chain(options.iter().copied())
            .collect();
        group.bench_function(format!("{name}: first byte"), |bencher| {
            bencher.iter_custom(|times| (0..times).map(|_| run(&command).unwrap().first_byte).sum());
        });
        group.bench_function(format!("{name}: exit"), |bencher| {
            bencher.iter_custom(|times| (0..times).map(|_| run(&command).unwrap().end).sum());
        });
    }
    group.finish();
}

criterion_group!(benches, boot);
criterion_main!(benches);
