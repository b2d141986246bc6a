//! The table of what was measured, and what of it misses its goal.

use std::process::ExitCode;

/// One line.
pub struct Row {
    name: &'static str,
    own: f64,
    /// What it is compared with, if it is.
    against: Option<f64>,
    unit: &'static str,
    reached: f64,
    goal: f64,
}

impl Row {
    /// Two times in microseconds, whose ratio has the goal.
    pub fn ratio(name: &'static str, own: f64, against: f64, goal: f64) -> Self {
        Self {
            name,
            own,
            against: Some(against),
            unit: "us",
            reached: own / against,
            goal,
        }
    }

    /// What has a goal by itself.
    pub fn limit(name: &'static str, own: f64, unit: &'static str, goal: f64) -> Self {
        Self {
            name,
            own,
            against: None,
            unit,
            reached: own,
            goal,
        }
    }

    fn is_missed(&self) -> bool {
        self.reached > self.goal
    }
}

/// Prints all, and says whether every goal was reached.
pub fn print(rounds: usize, rows: &[Row]) -> ExitCode {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("medians of {rounds} rounds; load {}", load.trim());
    println!(
        "{:<52} {:>12} {:>12} {:>9} {:>12}",
        "", "mayfly", "against", "result", "goal"
    );
    for row in rows {
        let unit = row.unit;
        let against = row
            .against
            .map(|against| format!("{against:.1} {unit}"))
            .unwrap_or_default();
        let own = format!("{:.1} {unit}", row.own);
        println!(
            "{:<52} {own:>12} {against:>12} {:>9.2} <= {:>9.2}",
            row.name, row.reached, row.goal
        );
    }
    let missed: Vec<&Row> = rows.iter().filter(|row| row.is_missed()).collect();
    missed.iter().for_each(|row| println!("missed: {}", row.name));
    if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The value in the middle.
pub fn median<T: Ord + Copy>(mut values: Vec<T>) -> T {
    values.sort();
    values[values.len() / 2]
}
