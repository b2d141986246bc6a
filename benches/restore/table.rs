//! Table of results and missed goals.

use std::process::ExitCode;

/// Row of the table.
pub struct Row {
    name: &'static str,
    own: f64,
    /// Baseline of the ratio, if any.
    baseline: Option<f64>,
    unit: &'static str,
    reached: f64,
    goal: f64,
}

impl Row {
    /// Creates a row for the ratio of two times in microseconds.
    pub fn ratio(name: &'static str, own: f64, baseline: f64, goal: f64) -> Self {
        Self {
            name,
            own,
            baseline: Some(baseline),
            unit: "us",
            reached: own / baseline,
            goal,
        }
    }

    /// Creates a row for a value with a limit.
    pub fn limit(name: &'static str, own: f64, unit: &'static str, goal: f64) -> Self {
        Self {
            name,
            own,
            baseline: None,
            unit,
            reached: own,
            goal,
        }
    }

    fn is_missed(&self) -> bool {
        self.reached > self.goal
    }
}

/// Prints the table. Returns a failure if a goal is missed.
pub fn print(rounds: usize, rows: &[Row]) -> ExitCode {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("medians of {rounds} rounds; load {}", load.trim());
    println!(
        "{:<52} {:>12} {:>12} {:>9} {:>12}",
        "", "mayfly", "baseline", "result", "goal"
    );
    for row in rows {
        let unit = row.unit;
        let baseline = row
            .baseline
            .map(|baseline| format!("{baseline:.1} {unit}"))
            .unwrap_or_default();
        let own = format!("{:.1} {unit}", row.own);
        println!(
            "{:<52} {own:>12} {baseline:>12} {:>9.2} <= {:>9.2}",
            row.name, row.reached, row.goal
        );
    }
    let missed: Vec<&Row> = rows.iter().filter(|row| row.is_missed()).collect();
    missed
        .iter()
        .for_each(|row| println!("missed goal: {}", row.name));
    if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Returns the median.
pub fn median<T: Ord + Copy>(mut values: Vec<T>) -> T {
    values.sort();
    values[values.len() / 2]
}
