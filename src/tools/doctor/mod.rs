//! `mayfly doctor`: the needs of mayfly that this host meets or lacks, each with the remedy.

mod check;
mod host;

use std::fmt::Write as _;

use lexopt::Arg;
use serde_json::{Value, json};
use vmm::arch::{Native, Platform};

use check::{Check, State};

use crate::process;

/// Format of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A table.
    Table,
    /// JSON.
    Json,
}

/// Usage error.
#[derive(Debug, thiserror::Error)]
#[error("{0}; run mayfly doctor --help")]
pub struct Error(#[source] lexopt::Error);

/// Parses the arguments after the command. Returns `None` for a request of help.
///
/// # Errors
/// [`Error`] on a usage error.
pub fn parse(parser: &mut lexopt::Parser) -> Result<Option<Format>, Error> {
    let mut format = Format::Table;
    while let Some(argument) = parser.next().map_err(Error)? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            Arg::Long("json") => format = Format::Json,
            other => return Err(Error(other.unexpected())),
        }
    }
    Ok(Some(format))
}

/// All checks of a host.
pub struct Report {
    kernel: String,
    checks: Vec<Check>,
}

/// Checks this host.
pub fn examine() -> Report {
    Report {
        kernel: host::kernel(),
        checks: host::checks(),
    }
}

impl Report {
    /// Returns true if mayfly can run a guest.
    fn can_run(&self) -> bool {
        let is_missing =
            |check: &Check| check.state == State::Missing && host::NECESSARY.contains(&check.name);
        !self.checks.iter().any(is_missing)
    }

    /// Returns the exit status.
    pub fn status(&self) -> u8 {
        if self.can_run() {
            process::SUCCESS
        } else {
            process::FAILURE
        }
    }

    /// Returns the text of the report.
    pub fn text(&self, format: Format) -> String {
        match format {
            Format::Table => self.table(),
            Format::Json => format!("{:#}\n", self.json()),
        }
    }

    fn table(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{:<12} {:<8} {}",
                check.name,
                check.state.name(),
                check.detail
            );
            if let Some(remedy) = &check.remedy {
                let _ = writeln!(text, "{:21} {remedy}", "");
            }
        }
        text.push_str(match self.can_run() {
            true => "mayfly can run guests on this host\n",
            false => "mayfly cannot run guests on this host\n",
        });
        text
    }

    fn json(&self) -> Value {
        let check = |check: &Check| {
            json!({
                "name": check.name,
                "state": check.state.name(),
                "detail": check.detail,
                "remedy": check.remedy,
            })
        };
        json!({
            "can_run": self.can_run(),
            "version": env!("CARGO_PKG_VERSION"),
            "architecture": Native::ARCHITECTURE.to_string(),
            "kernel": self.kernel,
            "checks": self.checks.iter().map(check).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Check, Format, Report, State, examine, host};
    use crate::help::DOCTOR;

    fn report(checks: Vec<Check>) -> Report {
        Report {
            kernel: "6.1".into(),
            checks,
        }
    }

    #[test]
    fn only_necessary_checks_prevent_guests() {
        let tun = Check::missing("tun", "no /dev/net/tun", "load it");
        let report_without_tun = report(vec![Check::ok("kvm", "API version 12"), tun.clone()]);
        assert_eq!(report_without_tun.status(), 0);
        let table = report_without_tun.text(Format::Table);
        assert_eq!(
            table,
            "kvm          ok       API version 12\n\
             tun          missing  no /dev/net/tun\n\
             \u{20}                     load it\n\
             mayfly can run guests on this host\n"
        );
        let without_kvm = report(vec![Check::missing("kvm", "no /dev/kvm", "load it"), tun]);
        assert_eq!(without_kvm.status(), 1);
        assert!(
            without_kvm
                .text(Format::Table)
                .ends_with("cannot run guests on this host\n")
        );
        let limited = report(vec![Check::limited("memory", "little", "add it")]);
        assert_eq!(limited.status(), 0);
    }

    #[test]
    fn json_has_all_checks() {
        let json = report(vec![Check::ok("kvm", "API version 12")]).json();
        assert_eq!(json["can_run"], true);
        assert_eq!(json["checks"][0]["state"], "ok");
        assert!(json["checks"][0]["remedy"].is_null());
    }

    #[test]
    fn each_problem_of_this_host_has_a_remedy() {
        let report = examine();
        let names: Vec<&str> = report.checks.iter().map(|check| check.name).collect();
        for name in host::NECESSARY {
            assert!(names.contains(&name), "{name}");
        }
        for check in &report.checks {
            assert!(
                DOCTOR.to_lowercase().contains(check.name.trim_end_matches('s')),
                "{}",
                check.name
            );
            assert_eq!(check.remedy.is_none(), check.state == State::Ok, "{check:?}");
            assert!(!check.detail.is_empty(), "{check:?}");
        }
    }

    #[test]
    fn help_fits_the_terminal() {
        assert!(DOCTOR.lines().all(|line| line.len() <= 120));
    }
}
