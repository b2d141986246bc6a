//! Parser of the report that host-init.sh writes, line by line.

use std::collections::BTreeMap;
use std::time::Duration;

/// First byte of a line of host-init.sh; no scenario prints it.
const MARK: u8 = 1;

/// Result of a scenario.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// True if the scenario ran and passed.
    pub passed: bool,
    /// Output of the scenario.
    pub output: String,
    /// Time between its marks.
    pub duration: Duration,
}

/// A scenario without an end so far.
struct Current {
    name: String,
    output: String,
    /// Uptime of the host at its begin.
    since: Duration,
}

/// Report of the host so far.
#[derive(Default)]
pub struct Report {
    /// True once the host runs scenarios.
    pub is_up: bool,
    /// True once the host has run all scenarios.
    pub is_done: bool,
    /// Scenarios that ran again, with the reason.
    pub retries: Vec<String>,
    current: Option<Current>,
    verdicts: BTreeMap<String, Verdict>,
}

impl Report {
    /// Parses one line, with or without its newline.
    pub fn add_line(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let Some(mark) = line.first().filter(|first| **first == MARK).map(|_| &text[1..]) else {
            if let Some(current) = &mut self.current {
                current.output.push_str(&text);
            }
            return;
        };
        let fields: Vec<&str> = mark.split_whitespace().collect();
        match fields.as_slice() {
            ["up"] => self.is_up = true,
            ["done"] => self.is_done = true,
            ["begin", name, uptime] => {
                self.current = Some(Current {
                    name: (*name).to_owned(),
                    output: String::new(),
                    since: parse_uptime(uptime),
                });
            }
            ["end", name, status, uptime] => self.add_verdict(name, status, parse_uptime(uptime)),
            _ => {}
        }
    }

    /// Adds verdicts and retries of another host.
    pub fn merge(&mut self, other: Self) {
        self.verdicts.extend(other.verdicts);
        self.retries.extend(other.retries);
    }

    /// Returns the verdict of an ended scenario.
    pub fn verdict(&self, name: &str) -> Option<&Verdict> {
        self.verdicts.get(name)
    }

    /// Drops the current scenario after the end of its host by `error`, which is one retry. Returns its name and output.
    pub fn interrupt(&mut self, error: &str) -> Option<(String, String)> {
        let name = self
            .current
            .as_ref()
            .map_or("the boot", |current| current.name.as_str());
        self.retries.push(format!("{name}: {error}"));
        self.is_up = false;
        self.current.take().map(|current| (current.name, current.output))
    }

    /// Removes the verdicts of failed scenarios, which another boot repeats: one retry each. Returns names and output.
    pub fn take_failed(&mut self) -> Vec<(String, String)> {
        let failed: Vec<String> = self
            .verdicts
            .iter()
            .filter(|(_, verdict)| !verdict.passed)
            .map(|(name, _)| name.clone())
            .collect();
        self.retries
            .extend(failed.iter().map(|name| format!("{name}: failed")));
        failed
            .into_iter()
            .filter_map(|name| self.verdicts.remove(&name).map(|verdict| (name, verdict.output)))
            .collect()
    }

    /// Adds a failed verdict for a scenario that did not end.
    pub fn fail(&mut self, name: &str, output: String) {
        self.verdicts.insert(
            name.to_owned(),
            Verdict {
                passed: false,
                output,
                duration: Duration::ZERO,
            },
        );
    }

    fn add_verdict(&mut self, name: &str, status: &str, uptime: Duration) {
        let Some(current) = self.current.take().filter(|current| current.name == name) else {
            return;
        };
        // libtest also exits with 0 if no test has that name.
        let passed = status == "0" && current.output.contains("test result: ok. 1 passed");
        let verdict = Verdict {
            passed,
            output: current.output,
            duration: uptime.saturating_sub(current.since),
        };
        self.verdicts.insert(name.to_owned(), verdict);
    }
}

/// Parses seconds with a fraction. The line may be damaged: the time is only printed.
fn parse_uptime(text: &str) -> Duration {
    let seconds = text.parse().ok();
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Report;

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        for line in text.split_inclusive('\n') {
            report.add_line(line.as_bytes());
        }
        report
    }

    #[test]
    fn scenario_passes_with_status_0_and_one_passed_test() {
        let report = report(
            "noise\n\x01up\n\x01begin a 1.25\ntest result: ok. 1 passed\n\x01end a 0 3.50\n\
             \x01begin b 4\ntest result: ok. 0 passed\n\x01end b 0 4\n\
             \x01begin c 4\ncause\ntest result: ok. 1 passed\n\x01end c 101 x\n",
        );
        assert!(report.is_up);
        assert!(report.verdict("a").unwrap().passed);
        assert_eq!(report.verdict("a").unwrap().duration, Duration::from_millis(2250));
        assert!(!report.verdict("b").unwrap().passed, "it did not run");
        assert!(!report.verdict("c").unwrap().passed, "its status is not 0");
        assert!(report.verdict("c").unwrap().output.starts_with("cause\n"));
    }

    #[test]
    fn scenario_without_end_has_no_verdict() {
        let mut report = report("\x01up\n\x01begin a 1\nhalf");
        assert_eq!(report.verdict("a"), None);
        let interrupted = report.interrupt("no heartbeat");
        assert_eq!(interrupted, Some(("a".to_owned(), "half".to_owned())));
        assert_eq!(report.retries, ["a: no heartbeat"]);
        report.add_line(b"\x01end a 0 2\n");
        assert_eq!(report.verdict("a"), None, "an end without a beginning");
    }

    #[test]
    fn merged_report_has_verdicts_and_retries_of_both() {
        let mut all = report("\x01begin a 1\ntest result: ok. 1 passed\n\x01end a 0 2\n");
        let mut other = report("\x01begin b 1\n\x01end b 101 2\n\x01begin c 3\n");
        other.interrupt("no heartbeat");
        all.merge(other);
        assert!(all.verdict("a").unwrap().passed && !all.verdict("b").unwrap().passed);
        assert_eq!(all.verdict("c"), None);
        assert_eq!(all.retries, ["c: no heartbeat"]);
    }

    #[test]
    fn take_failed_keeps_passed_verdicts() {
        let mut report = Report::default();
        for line in [
            "\u{1}up\n",
            "\u{1}begin a 1\n",
            "cause\n",
            "\u{1}end a 101 2\n",
            "\u{1}done\n",
        ] {
            report.add_line(line.as_bytes());
        }
        report.fail("b", "gone".into());
        let taken = report.take_failed();
        assert_eq!(
            taken.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(report.retries, ["a: failed", "b: failed"]);
        assert!(taken[0].1.contains("cause") && report.verdict("a").is_none());
        assert!(report.take_failed().is_empty());
    }
}
