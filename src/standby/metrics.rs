//! Metrics in the text format of Prometheus.

use std::fmt::Write as _;
use std::time::Duration;

/// Upper bounds of the buckets of a duration in microseconds.
const BOUNDS: [u64; 9] = [
    500, 1000, 2000, 5000, 10_000, 50_000, 200_000, 1_000_000, 10_000_000,
];

/// Durations by their length.
#[derive(Debug, Default)]
pub struct Durations {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum_us: u64,
}

impl Durations {
    /// Adds a duration.
    pub fn add(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        for (bucket, bound) in self.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(us <= bound);
        }
        self.count += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    fn write(&self, text: &mut String, name: &str, about: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {about}\n# TYPE {name} histogram");
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            let _ = writeln!(text, "{name}_bucket{{le=\"{}\"}} {bucket}", seconds(bound));
        }
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(
            text,
            "{name}_sum {}\n{name}_count {}",
            seconds(self.sum_us),
            self.count
        );
    }
}

fn seconds(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64()
}

/// Cause of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The process cannot be started.
    Start,
    /// The process has ended before its guest ran.
    Load,
    /// The process has not answered in time.
    Timeout,
    /// The guest has ended without a suspend.
    Guest,
    /// A tap cannot be opened.
    Tap,
    /// There is no memory.
    Memory,
    /// A shell has ended before its request.
    Shell,
    /// The guest cannot be suspended.
    Suspend,
}

impl Failure {
    const ALL: [(Self, &'static str); 8] = [
        (Self::Start, "start"),
        (Self::Load, "load"),
        (Self::Timeout, "timeout"),
        (Self::Guest, "guest"),
        (Self::Tap, "tap"),
        (Self::Memory, "memory"),
        (Self::Shell, "shell"),
        (Self::Suspend, "suspend"),
    ];
}

/// Events since the start of the supervisor.
#[derive(Debug, Default)]
pub struct Counters {
    /// Wakes by a frame.
    pub wakes_by_frame: u64,
    /// Wakes by a request.
    pub wakes_by_request: u64,
    /// Instances whose processes have ended with a suspend.
    pub suspends: u64,
    /// Suspends that the supervisor has requested for memory.
    pub suspends_for_memory: u64,
    /// Running instances that were found at the start.
    pub found: u64,
    /// Wakes in a shell.
    pub shell_wakes: u64,
    /// Requests that were rejected.
    pub rejected: u64,
    dropped_frames: u64,
    /// Time from the event that wakes an instance until its guest runs.
    pub wake_times: Durations,
    failures: [u64; Failure::ALL.len()],
}

impl Counters {
    /// Counts a failure.
    pub fn fail(&mut self, failure: Failure) {
        self.failures[failure as usize] += 1;
    }

    /// Counts `count` first frames that no guest gets.
    pub fn drop_frames(&mut self, count: usize) {
        self.dropped_frames += count as u64;
    }

    /// Writes the counters of events.
    fn write_events(&self, text: &mut String) {
        for (name, about, rows) in [
            (
                "mayfly_standby_wakes_total",
                "Wakes by their cause.",
                vec![
                    ("{cause=\"frame\"}", self.wakes_by_frame),
                    ("{cause=\"request\"}", self.wakes_by_request),
                ],
            ),
            (
                "mayfly_standby_shell_wakes_total",
                "Wakes in a shell.",
                vec![("", self.shell_wakes)],
            ),
            (
                "mayfly_standby_suspends_total",
                "Ends of processes by a suspend.",
                vec![("", self.suspends)],
            ),
            (
                "mayfly_standby_memory_suspends_total",
                "Suspends that the supervisor has requested for memory.",
                vec![("", self.suspends_for_memory)],
            ),
            (
                "mayfly_standby_found_total",
                "Running instances found at the start.",
                vec![("", self.found)],
            ),
            (
                "mayfly_standby_rejected_total",
                "Rejected requests.",
                vec![("", self.rejected)],
            ),
            (
                "mayfly_standby_dropped_frames_total",
                "First frames that no guest got: of boots, and of wakes that have failed or were given up.",
                vec![("", self.dropped_frames)],
            ),
        ] {
            let _ = writeln!(text, "# HELP {name} {about}\n# TYPE {name} counter");
            for (labels, value) in rows {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        }
    }

    /// Returns the text. `gauges` are names, descriptions, labels and values of the present.
    pub fn text(&self, gauges: &[(&str, &str, String, u64)]) -> String {
        let mut text = String::new();
        let mut last = "";
        for (name, about, labels, value) in gauges {
            if *name != last {
                let _ = writeln!(text, "# HELP {name} {about}\n# TYPE {name} gauge");
                last = name;
            }
            let _ = writeln!(text, "{name}{labels} {value}");
        }
        self.write_events(&mut text);
        let name = "mayfly_standby_failures_total";
        let _ = writeln!(
            text,
            "# HELP {name} Failures by their cause.\n# TYPE {name} counter"
        );
        for (failure, label) in Failure::ALL {
            let _ = writeln!(
                text,
                "{name}{{cause=\"{label}\"}} {}",
                self.failures[failure as usize]
            );
        }
        let about = "Time from the event that wakes an instance until its guest runs.";
        self.wake_times
            .write(&mut text, "mayfly_standby_wake_seconds", about);
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Counters, Failure};

    #[test]
    fn each_counter_has_help_and_type() {
        let mut counters = Counters::default();
        counters.fail(Failure::Guest);
        counters.wake_times.add(Duration::from_micros(1500));
        let gauges = [
            ("g", "A gauge.", "{a=\"b\"}".to_owned(), 7),
            ("g", "A gauge.", String::new(), 8),
        ];
        let text = counters.text(&gauges);
        assert!(text.contains("# TYPE g gauge\ng{a=\"b\"} 7\ng 8\n"), "{text}");
        assert!(text.contains("mayfly_standby_failures_total{cause=\"guest\"} 1\n"));
        assert!(text.contains("mayfly_standby_wake_seconds_bucket{le=\"0.001\"} 0\n"));
        assert!(text.contains("mayfly_standby_wake_seconds_bucket{le=\"0.002\"} 1\n"));
        assert!(text.contains("mayfly_standby_wake_seconds_sum 0.0015\n"));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end));
            assert!(
                text.contains(&format!("# TYPE {} ", base.unwrap_or(name))),
                "{line}"
            );
        }
    }
}
