//! Two ways to the same end, in turns.

use std::time::Duration;

/// The time that a round takes of each side, about.
const ROUND: Duration = Duration::from_millis(4);

/// A device and its floor.
pub trait Benchmark {
    /// What is measured.
    fn name(&self) -> String;

    /// The least part of the floor's rate that the device must reach.
    fn goal(&self) -> f64;

    /// Operations of one pass.
    fn operations(&self) -> u32;

    /// Does a pass by system calls alone. Returns what it took.
    fn floor(&mut self) -> Duration;

    /// Does a pass by the device. Returns what it took.
    fn device(&mut self) -> Duration;
}

/// What came out.
pub struct BenchmarkResult {
    name: String,
    goal: f64,
    floor: f64,
    device: f64,
    ratio: f64,
}

impl BenchmarkResult {
    /// Prints what the columns are.
    pub fn print_head() {
        println!(
            "{:<44} {:>12} {:>12} {:>7} {:>6}",
            "", "floor", "device", "ratio", "goal"
        );
    }

    /// Prints one line.
    pub fn print(&self) {
        println!(
            "{:<44} {:>12.0} {:>12.0} {:>7.2} {:>6.2}",
            self.name, self.floor, self.device, self.ratio, self.goal
        );
    }

    /// The goal, if it was not reached.
    pub fn missed(&self) -> Option<String> {
        let Self {
            name, ratio, goal, ..
        } = self;
        (ratio < goal).then(|| format!("{name}: {ratio:.2} times the floor, not {goal}"))
    }
}

/// Has both sides take turns.
pub fn measure(contest: &mut dyn Benchmark, rounds: usize) -> BenchmarkResult {
    // The first passes touch all memory, and say how many make a round.
    contest.device();
    let once = contest.floor().max(Duration::from_nanos(1));
    let passes = u32::try_from(ROUND.as_nanos() / once.as_nanos()).unwrap().max(1);
    let operations = f64::from(contest.operations() * passes);
    let (mut floor, mut device, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds.max(1) {
        let (mut floor_took, mut device_took) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..passes {
            floor_took += contest.floor();
            device_took += contest.device();
        }
        floor.push(operations / floor_took.as_secs_f64());
        device.push(operations / device_took.as_secs_f64());
        ratio.push(floor_took.as_secs_f64() / device_took.as_secs_f64());
    }
    BenchmarkResult {
        name: contest.name(),
        goal: contest.goal(),
        floor: median(floor),
        device: median(device),
        ratio: median(ratio),
    }
}

/// The value in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
