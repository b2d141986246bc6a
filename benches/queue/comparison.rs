//! Alternating measurement of a device and its floor.

use std::time::Duration;

/// Approximate time of one round on each side.
const ROUND: Duration = Duration::from_millis(4);

/// Device and its floor.
pub trait Benchmark {
    /// Returns the name of the benchmark.
    fn name(&self) -> String;

    /// Returns the minimum ratio of the device's rate to the floor's.
    fn goal(&self) -> f64;

    /// Returns the number of operations of one pass.
    fn operations(&self) -> u32;

    /// Runs one pass with system calls alone. Returns its duration.
    fn floor(&mut self) -> Duration;

    /// Runs one pass on the device. Returns its duration.
    fn device(&mut self) -> Duration;
}

/// Result of a benchmark.
pub struct BenchmarkResult {
    name: String,
    goal: f64,
    floor: f64,
    device: f64,
    ratio: f64,
}

impl BenchmarkResult {
    /// Prints the table header.
    pub fn print_head() {
        println!(
            "{:<48} {:>12} {:>12} {:>7} {:>6}",
            "", "floor", "device", "ratio", "goal"
        );
    }

    /// Prints one row.
    pub fn print(&self) {
        println!(
            "{:<48} {:>12.0} {:>12.0} {:>7.2} {:>6.2}",
            self.name, self.floor, self.device, self.ratio, self.goal
        );
    }

    /// Returns the goal if it is missed.
    pub fn missed(&self) -> Option<String> {
        let Self {
            name, ratio, goal, ..
        } = self;
        (ratio < goal).then(|| format!("{name}: ratio {ratio:.2}, goal {goal}"))
    }
}

/// Measures both sides alternately.
pub fn measure(benchmark: &mut dyn Benchmark, rounds: usize) -> BenchmarkResult {
    // The first passes touch all memory, and calibrate the number of passes of a round.
    benchmark.device();
    let once = benchmark.floor().max(Duration::from_nanos(1));
    let passes = u32::try_from(ROUND.as_nanos() / once.as_nanos()).unwrap().max(1);
    let operations = f64::from(benchmark.operations() * passes);
    let (mut floor, mut device, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds.max(1) {
        let (mut floor_time, mut device_time) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..passes {
            floor_time += benchmark.floor();
            device_time += benchmark.device();
        }
        floor.push(operations / floor_time.as_secs_f64());
        device.push(operations / device_time.as_secs_f64());
        ratio.push(floor_time.as_secs_f64() / device_time.as_secs_f64());
    }
    BenchmarkResult {
        name: benchmark.name(),
        goal: benchmark.goal(),
        floor: median(floor),
        device: median(device),
        ratio: median(ratio),
    }
}

/// Returns the median.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
