//! Compares mayfly with the floor program. Each round runs every command once, so that other load of the host
//! affects all commands alike. `make floor` runs it; ROUNDS in the environment sets the number of rounds.

#![allow(missing_docs, reason = "a program")]

mod spawn;

use std::process::ExitCode;
use std::time::Duration;

use spawn::{Run, run};

struct Row {
    name: &'static str,
    /// Index of the baseline row for the ratio.
    baseline: usize,
    command: Vec<String>,
}

/// Index of the row for a small image with the memory size of the row for the large image.
const SMALL_IMAGE: usize = 6;

fn rows() -> Vec<Row> {
    let root = env!("CARGO_MANIFEST_DIR");
    let floor = |memory: &str| vec![format!("{root}/dist/floor"), memory.to_owned()];
    let mayfly = |guest: &str, memory: &str| {
        let guest = format!("{root}/dist/guests/x86_64/{guest}.elf");
        vec![
            format!("{root}/dist/mayfly"),
            "run".into(),
            guest,
            "--memory".into(),
            memory.to_owned(),
        ]
    };
    let row = |name, baseline, command| Row {
        name,
        baseline,
        command,
    };
    vec![
        row("floor, 128 MiB", 0, floor("128")),
        row("mayfly, 128 MiB", 0, mayfly("hello", "128M")),
        row("floor, 512 MiB", 2, floor("512")),
        row("mayfly, 512 MiB", 2, mayfly("hello", "512M")),
        row("floor, 2 GiB", 4, floor("2048")),
        row("mayfly, 2 GiB", 4, mayfly("hello", "2G")),
        row("mayfly, 512 MiB, ELF of 100 KiB", 2, mayfly("big-100k", "512M")),
        row(
            "mayfly, 512 MiB, ELF of 256 MiB",
            SMALL_IMAGE,
            mayfly("big", "512M"),
        ),
    ]
}

fn main() -> ExitCode {
    let rounds = std::env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(200);
    let rows = rows();
    let mut runs: Vec<Vec<Run>> = vec![Vec::with_capacity(rounds); rows.len()];
    // The first two rounds fill the page cache and do not count.
    for round in 0..rounds + 2 {
        for (row, runs) in rows.iter().zip(&mut runs) {
            let command: Vec<&str> = row.command.iter().map(String::as_str).collect();
            match run(&command) {
                Ok(run) if round >= 2 => runs.push(run),
                Ok(_) => {}
                Err(error) => {
                    eprintln!(
                        "{}: {error}; run `make floor`, which builds the programs",
                        row.name
                    );
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    print(&rows, &runs);
    let missed = missed(&rows, &runs);
    missed.iter().for_each(|goal| println!("missed goal: {goal}"));
    if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Returns the missed goals.
fn missed(rows: &[Row], runs: &[Vec<Run>]) -> Vec<String> {
    let first = |row: usize| median(runs[row].iter().map(|run| run.first_byte)).as_secs_f64();
    let mut goals = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let ratio = first(index) / first(row.baseline);
        // 1.3 applies to the same guest on the floor, 1.1 to a large image against a small one.
        let limit = match index {
            SMALL_IMAGE => f64::INFINITY,
            _ if row.baseline == SMALL_IMAGE => 1.1,
            _ => 1.3,
        };
        goals.push((
            ratio <= limit,
            format!("{}: ratio {ratio:.2}, goal {limit}", row.name),
        ));
        let rss = median(runs[index].iter().map(|run| run.peak_kib));
        goals.push((
            rss <= 2048,
            format!("{}: peak RSS {rss} KiB, goal 2048", row.name),
        ));
        let last = millis(median(runs[index].iter().map(|run| run.end - run.first_byte)));
        goals.push((
            last <= 3.0,
            format!("{}: exit {last:.2} ms after the first byte, goal 3", row.name),
        ));
    }
    let size =
        std::fs::metadata(concat!(env!("CARGO_MANIFEST_DIR"), "/dist/mayfly")).map_or(0, |file| file.len());
    println!("size of dist/mayfly: {} KiB", size >> 10);
    goals.push((
        size <= 3 << 20,
        format!("size of dist/mayfly: {size} bytes, goal 3 MiB"),
    ));
    goals
        .into_iter()
        .filter(|(is_reached, _)| !is_reached)
        .map(|(_, goal)| goal)
        .collect()
}

fn print(rows: &[Row], runs: &[Vec<Run>]) {
    println!("medians of {} rounds, time from spawn to:", runs[0].len());
    println!(
        "{:<34} {:>12} {:>8} {:>9} {:>12} {:>10}",
        "", "first byte", "ratio", "minimum", "exit", "peak RSS"
    );
    for (row, own) in rows.iter().zip(runs) {
        let first = |runs: &[Run]| median(runs.iter().map(|run| run.first_byte));
        let ratio = first(own).as_secs_f64() / first(&runs[row.baseline]).as_secs_f64();
        println!(
            "{:<34} {:>9.3} ms {:>8.2} {:>6.3} ms {:>9.3} ms {:>6} KiB",
            row.name,
            millis(first(own)),
            ratio,
            millis(own.iter().map(|run| run.first_byte).min().unwrap_or_default()),
            millis(median(own.iter().map(|run| run.end))),
            median(own.iter().map(|run| run.peak_kib)),
        );
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Returns the median.
fn median<T: Ord + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort();
    values[values.len() / 2]
}
