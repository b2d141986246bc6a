//! mayfly side by side with the floor program: each round runs every command once, so that whatever else the machine does
//! hits all of them alike. `make floor` runs it; ROUNDS in the environment changes the number of rounds.

#![allow(missing_docs, reason = "a program")]

mod spawn;

use std::process::ExitCode;
use std::time::Duration;

use spawn::{Run, run};

struct Row {
    name: &'static str,
    /// Index of the row that this one is compared with.
    against: usize,
    command: Vec<String>,
}

/// Index of the row of a small image with as much memory as that of the large one.
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
    let row = |name, against, command| Row {
        name,
        against,
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
    // The first two rounds fill the page cache and are not counted.
    for round in 0..rounds + 2 {
        for (row, runs) in rows.iter().zip(&mut runs) {
            let command: Vec<&str> = row.command.iter().map(String::as_str).collect();
            match run(&command) {
                Ok(run) if round >= 2 => runs.push(run),
                Ok(_) => {}
                Err(error) => {
                    eprintln!(
                        "{}: {error}: run make floor, which builds what is needed",
                        row.name
                    );
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    print(&rows, &runs);
    let missed = missed(&rows, &runs);
    missed.iter().for_each(|goal| println!("missed: {goal}"));
    if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The goals that were not reached.
fn missed(rows: &[Row], runs: &[Vec<Run>]) -> Vec<String> {
    let first = |row: usize| median(runs[row].iter().map(|run| run.first_byte)).as_secs_f64();
    let mut goals = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let ratio = first(index) / first(row.against);
        // The same guest against the floor, and a large image against a small one.
        let most = match index {
            SMALL_IMAGE => f64::INFINITY,
            _ if row.against == SMALL_IMAGE => 1.1,
            _ => 1.3,
        };
        goals.push((
            ratio <= most,
            format!(
                "{}: {ratio:.2} times what it is compared with, not {most}",
                row.name
            ),
        ));
        let rss = median(runs[index].iter().map(|run| run.peak_kib));
        goals.push((rss <= 2048, format!("{}: {rss} KiB resident, not 2048", row.name)));
        let last = millis(median(runs[index].iter().map(|run| run.end - run.first_byte)));
        goals.push((
            last <= 3.0,
            format!("{}: ends {last:.2} ms after its first byte, not 3", row.name),
        ));
    }
    let size =
        std::fs::metadata(concat!(env!("CARGO_MANIFEST_DIR"), "/dist/mayfly")).map_or(0, |file| file.len());
    println!("dist/mayfly has {} KiB", size >> 10);
    goals.push((
        size <= 3 << 20,
        format!("dist/mayfly has {size} bytes, not 3 MiB"),
    ));
    goals
        .into_iter()
        .filter(|(reached, _)| !reached)
        .map(|(_, goal)| goal)
        .collect()
}

fn print(rows: &[Row], runs: &[Vec<Run>]) {
    println!("medians of {} rounds, spawn to:", runs[0].len());
    println!(
        "{:<34} {:>12} {:>8} {:>9} {:>12} {:>10}",
        "", "first byte", "ratio", "fastest", "end", "peak RSS"
    );
    for (row, own) in rows.iter().zip(runs) {
        let first = |runs: &[Run]| median(runs.iter().map(|run| run.first_byte));
        let ratio = first(own).as_secs_f64() / first(&runs[row.against]).as_secs_f64();
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

/// The value in the middle.
fn median<T: Ord + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort();
    values[values.len() / 2]
}
