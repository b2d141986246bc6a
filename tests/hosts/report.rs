//! What the emulated host says about the scenarios: host-init.sh writes it, line by line.

use std::collections::BTreeMap;

/// Starts a line of host-init.sh; no scenario prints it.
const MARK: u8 = 1;

/// What came of one scenario.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it ran and held.
    pub passed: bool,
    /// All that it printed.
    pub output: String,
}

/// What was said so far.
#[derive(Default)]
pub struct Report {
    /// Whether the host has come up.
    pub up: bool,
    /// Whether it has run all that it was asked to.
    pub done: bool,
    /// The scenario under way, and what it has printed.
    current: Option<(String, String)>,
    verdicts: BTreeMap<String, Verdict>,
}

impl Report {
    /// Takes one line, its newline included or not.
    pub fn line(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let Some(said) = line.first().filter(|first| **first == MARK).map(|_| &text[1..]) else {
            if let Some((_, output)) = &mut self.current {
                output.push_str(&text);
            }
            return;
        };
        let words: Vec<&str> = said.split_whitespace().collect();
        match words.as_slice() {
            ["up"] => self.up = true,
            ["done"] => self.done = true,
            ["begin", name] => self.current = Some(((*name).to_owned(), String::new())),
            ["end", name, status] => self.end(name, status),
            _ => {}
        }
    }

    /// The verdict on a scenario, once it has ended.
    pub fn verdict(&self, name: &str) -> Option<&Verdict> {
        self.verdicts.get(name)
    }

    /// Forgets the scenario under way, since its host is gone; gives its name and what it had printed.
    pub fn interrupt(&mut self) -> Option<(String, String)> {
        self.up = false;
        self.current.take()
    }

    /// Takes the verdicts back that went against a scenario, so that another boot can decide; gives names and output.
    pub fn appeal(&mut self) -> Vec<(String, String)> {
        (self.up, self.done) = (false, false);
        let failed: Vec<String> = self
            .verdicts
            .iter()
            .filter(|(_, verdict)| !verdict.passed)
            .map(|(name, _)| name.clone())
            .collect();
        failed
            .into_iter()
            .filter_map(|name| self.verdicts.remove(&name).map(|verdict| (name, verdict.output)))
            .collect()
    }

    /// Decides against a scenario that could not end.
    pub fn fail(&mut self, name: &str, output: String) {
        self.verdicts.insert(
            name.to_owned(),
            Verdict {
                passed: false,
                output,
            },
        );
    }

    fn end(&mut self, name: &str, status: &str) {
        let Some((_, output)) = self.current.take().filter(|(current, _)| current == name) else {
            return;
        };
        // The status alone is also 0 when no test of that name was found.
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
            report.line(line.as_bytes());
        }
        report
    }

    #[test]
    fn a_scenario_passes_when_it_ran_and_ended_well() {
        let report = report(
            "noise\n\x01up\n\x01begin a\ntest result: ok. 1 passed\n\x01end a 0\n\
             \x01begin b\ntest result: ok. 0 passed\n\x01end b 0\n\
             \x01begin c\nwhy\ntest result: ok. 1 passed\n\x01end c 101\n",
        );
        assert!(report.up);
        assert!(report.verdict("a").unwrap().passed);
        assert!(!report.verdict("b").unwrap().passed, "it did not run");
        assert!(!report.verdict("c").unwrap().passed, "its status says otherwise");
        assert!(report.verdict("c").unwrap().output.starts_with("why\n"));
    }

    #[test]
    fn a_scenario_without_an_end_has_no_verdict() {
        let mut report = report("\x01up\n\x01begin a\nhalf");
        assert_eq!(report.verdict("a"), None);
        assert_eq!(report.interrupt(), Some(("a".to_owned(), "half".to_owned())));
        report.line(b"\x01end a 0\n");
        assert_eq!(report.verdict("a"), None, "an end without its beginning");
    }

    #[test]
    fn an_appeal_takes_back_what_failed_only() {
        let mut report = Report::default();
        for line in [
            "\u{1}up\n",
            "\u{1}begin a\n",
            "why\n",
            "\u{1}end a 101\n",
            "\u{1}done\n",
        ] {
            report.line(line.as_bytes());
        }
        report.fail("b", "gone".into());
        let taken = report.appeal();
        assert_eq!(
            taken.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert!(taken[0].1.contains("why") && report.verdict("a").is_none() && !report.done);
        assert!(report.appeal().is_empty());
    }
}
