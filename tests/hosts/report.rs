//! Parser of the report that host-init.sh writes, line by line.

use std::collections::BTreeMap;

/// First byte of a line of host-init.sh; no scenario prints it.
const MARK: u8 = 1;

/// Result of a scenario.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// True if the scenario ran and passed.
    pub passed: bool,
    /// Output of the scenario.
    pub output: String,
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
    /// Current scenario and its output.
    current: Option<(String, String)>,
    verdicts: BTreeMap<String, Verdict>,
}

impl Report {
    /// Parses one line, with or without its newline.
    pub fn add_line(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let Some(mark) = line.first().filter(|first| **first == MARK).map(|_| &text[1..]) else {
            if let Some((_, output)) = &mut self.current {
                output.push_str(&text);
            }
            return;
        };
        let fields: Vec<&str> = mark.split_whitespace().collect();
        match fields.as_slice() {
            ["up"] => self.is_up = true,
            ["done"] => self.is_done = true,
            ["begin", name] => self.current = Some(((*name).to_owned(), String::new())),
            ["end", name, status] => self.add_verdict(name, status),
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
            .map_or("the boot", |(name, _)| name.as_str());
        self.retries.push(format!("{name}: {error}"));
        self.is_up = false;
        self.current.take()
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
            },
        );
    }

    fn add_verdict(&mut self, name: &str, status: &str) {
        let Some((_, output)) = self.current.take().filter(|(current, _)| current == name) else {
            return;
        };
        // libtest also exits with 0 if no test has that name.
        let passed = status == "0" && output.contains("test result: ok. 1 passed");
        self.verdicts.insert(name.to_owned(), Verdict { passed, output });
    }
}

#[cfg(test)]
mod tests {
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
            "noise\n\x01up\n\x01begin a\ntest result: ok. 1 passed\n\x01end a 0\n\
             \x01begin b\ntest result: ok. 0 passed\n\x01end b 0\n\
             \x01begin c\ncause\ntest result: ok. 1 passed\n\x01end c 101\n",
        );
        assert!(report.is_up);
        assert!(report.verdict("a").unwrap().passed);
        assert!(!report.verdict("b").unwrap().passed, "it did not run");
        assert!(!report.verdict("c").unwrap().passed, "its status is not 0");
        assert!(report.verdict("c").unwrap().output.starts_with("cause\n"));
    }

    #[test]
    fn scenario_without_end_has_no_verdict() {
        let mut report = report("\x01up\n\x01begin a\nhalf");
        assert_eq!(report.verdict("a"), None);
        let interrupted = report.interrupt("no heartbeat");
        assert_eq!(interrupted, Some(("a".to_owned(), "half".to_owned())));
        assert_eq!(report.retries, ["a: no heartbeat"]);
        report.add_line(b"\x01end a 0\n");
        assert_eq!(report.verdict("a"), None, "an end without a beginning");
    }

    #[test]
    fn merged_report_has_verdicts_and_retries_of_both() {
        let mut all = report("\x01begin a\ntest result: ok. 1 passed\n\x01end a 0\n");
        let mut other = report("\x01begin b\n\x01end b 101\n\x01begin c\n");
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
            "\u{1}begin a\n",
            "cause\n",
            "\u{1}end a 101\n",
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
