//! Verdicts of the scenarios, from a few emulated hosts for all of them.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs, panic, thread};

use scratch::Directory;

use crate::aarch64::local;
use crate::contents;
use crate::kind::{AARCH64_GICV3, HostKind, KINDS, X86_64};
use crate::qemu::{self, Qemu};
use crate::report::Report;

/// Environment variable that is set on the emulated host.
const HOST_VARIABLE: &str = "MAYFLY_EMULATED_HOST";
/// Maximum number of boots. QEMU's emulation occasionally freezes, independent of the scenario. The last boot also repeats
/// failed scenarios.
const MAX_BOOTS: usize = 3;

/// Maximum number of hosts at the same time. Each emulates one processor, on one processor of this machine.
const MAX_HOSTS: usize = 2;

/// Maximum number of retries of one run: interrupted boots, and repeated scenarios. One or two are usual on a busy machine. More hide a
/// defect that shows now and then.
const MAX_RETRIES: usize = 4;

/// Number of scenarios in the list of the longest.
const LISTED: usize = 10;

/// Failure without any verdicts.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot list the scenarios")]
    List(#[source] io::Error),
    #[error("cannot assemble the files of the emulated host")]
    Contents(#[source] contents::Error),
    #[error("cannot run the emulated host")]
    Machine(#[source] qemu::Error),
}

/// All verdicts and retries, from the first test that needs one.
static HOST: LazyLock<Result<Report, Error>> = LazyLock::new(run_all);

/// Runs `scenario` on the emulated host. Elsewhere boots a host once for all scenarios and fails if this scenario failed.
/// `path` is the path of the test, with the name of the crate.
pub fn run(path: &str, scenario: impl FnOnce()) {
    let _ = observe(path, scenario);
}

/// Runs `scenario` as [`run`] does. Returns its output, or none on the emulated host.
pub fn observe(path: &str, scenario: impl FnOnce()) -> Option<&'static str> {
    if env::var_os(HOST_VARIABLE).is_some() {
        scenario();
        return None;
    }
    let name = path.split_once("::").map_or(path, |(_, name)| name);
    let report = HOST
        .as_ref()
        .unwrap_or_else(|error| panic!("{}", error_chain(error)));
    match report.verdict(name) {
        Some(verdict) if verdict.passed => Some(&verdict.output),
        Some(verdict) => panic!("on the emulated host:\n{}", verdict.output),
        None => panic!("the emulated host did not run {name}"),
    }
}

fn error_chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn run_all() -> Result<Report, Error> {
    let start = Instant::now();
    let scenarios = selected_scenarios().map_err(Error::List)?;
    let mut report = Report::default();
    for boot in 1..=MAX_BOOTS {
        // The emulation of nested paging occasionally injects a spurious fault into a guest.
        if boot == MAX_BOOTS {
            for (name, output) in report.take_failed() {
                print_notice(&format!("{name} failed and runs again:\n{output}"));
            }
        }
        let left = undecided_scenarios(&scenarios, &report);
        let hosts = match boot {
            1 => thread::available_parallelism().map_or(1, |count| count.get().min(MAX_HOSTS)),
            // Without the load of another: a scenario may have missed a deadline.
            _ => 1,
        };
        run_on_hosts(&left, hosts, boot, &mut report)?;
    }
    print_summary(&scenarios, &report, start.elapsed().as_secs());
    Ok(report)
}

/// Prints the number of passed scenarios of each kind of host, and the retries.
fn print_summary(scenarios: &[String], report: &Report, seconds: u64) {
    for kind in &KINDS {
        let names: Vec<&String> = scenarios.iter().filter(|name| kind.has_scenario(name)).collect();
        let verdicts = names.iter().filter_map(|name| report.verdict(name));
        let passed = verdicts.filter(|verdict| verdict.passed).count();
        if !names.is_empty() {
            print_notice(&format!(
                "{}: {passed} of {} scenarios passed",
                kind.name,
                names.len()
            ));
        }
    }
    print_local_tests(scenarios, report);
    print_longest(scenarios, report);
    let (count, list) = (report.retries.len(), report.retries.join(", "));
    print_notice(&format!(
        "{} scenarios in {seconds} s, {count} retries of at most {MAX_RETRIES}{}{list}",
        scenarios.len(),
        if count == 0 { "" } else { ": " }
    ));
}

/// Prints the scenarios that took longest, with their times.
fn print_longest(scenarios: &[String], report: &Report) {
    let timed = |name: &String| {
        report
            .verdict(name)
            .map(|verdict| (verdict.duration, name.clone()))
    };
    let mut times: Vec<(Duration, String)> = scenarios.iter().filter_map(timed).collect();
    times.sort_unstable();
    let longest = times.iter().rev().take(LISTED);
    let list: Vec<String> = longest
        .map(|(duration, name)| format!("{name} {:.0} s", duration.as_secs_f64()))
        .collect();
    print_notice(&format!("longest scenarios: {}", list.join(", ")));
}

/// Prints the number of tests of tests/local that passed on a host, and those that are left out with their reasons.
fn print_local_tests(scenarios: &[String], report: &Report) {
    let verdicts = scenarios.iter().filter_map(|name| report.verdict(name));
    let outputs: Vec<&str> = verdicts.map(|verdict| verdict.output.as_str()).collect();
    let (count, omissions) = count_local_tests(&outputs);
    if count == 0 {
        return;
    }
    let tests = local::COUNT;
    print_notice(&format!("{}: {tests}{count} passed", AARCH64_GICV3.name));
    for omission in omissions {
        print_notice(omission);
    }
}

/// Returns the number of passed tests of tests/local in the outputs of scenarios, and each line about a test that is left out.
fn count_local_tests<'a>(outputs: &[&'a str]) -> (usize, BTreeSet<&'a str>) {
    let lines = || outputs.iter().flat_map(|output| output.lines());
    let counts = lines().filter_map(|line| line.strip_prefix(local::COUNT)?.parse::<usize>().ok());
    let omissions = lines().filter(|line| line.starts_with(local::OMISSION));
    (counts.sum(), omissions.collect())
}

/// Checks the number of `retries`.
fn check_retries(retries: &[String]) -> Result<(), String> {
    if retries.len() <= MAX_RETRIES {
        return Ok(());
    }
    Err(format!(
        "{} retries exceed the limit of {MAX_RETRIES}: a defect that shows now and then may hide in them; find the cause of \
         each, or run the tests on a less busy machine: {}",
        retries.len(),
        retries.join(", ")
    ))
}

/// Scenarios for one boot of a host.
struct Share {
    kind: &'static HostKind,
    scenarios: Vec<String>,
}

/// Divides the scenarios in `left` into shares for one boot each. Those of x86_64, which take longest, go to `hosts` hosts.
fn divide(left: &[String], hosts: usize) -> Vec<Share> {
    let mut shares = Vec::new();
    for kind in &KINDS {
        let all: Vec<&String> = left.iter().filter(|name| kind.has_scenario(name)).collect();
        let boots = if *kind == X86_64 { hosts } else { 1 };
        for boot in 0..boots {
            let share = all.iter().skip(boot).step_by(boots);
            let scenarios: Vec<String> = share.map(|name| (*name).clone()).collect();
            if !scenarios.is_empty() {
                shares.push(Share { kind, scenarios });
            }
        }
    }
    shares
}

/// Runs the scenarios in `left`, on `hosts` hosts at the same time.
fn run_on_hosts(left: &[String], hosts: usize, boot: usize, report: &mut Report) -> Result<(), Error> {
    let shares = Mutex::new(divide(left, hosts).into_iter());
    thread::scope(|scope| {
        let run = || {
            let mut report = Report::default();
            loop {
                let share = shares.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(share) = share else {
                    return Ok(report);
                };
                report.merge(run_on_host(&share, boot)?);
            }
        };
        let threads: Vec<_> = (0..hosts).map(|_| scope.spawn(run)).collect();
        for thread in threads {
            #[allow(clippy::disallowed_methods, reason = "a host has limits of its own")]
            let share = thread.join();
            report.merge(share.unwrap_or_else(|payload| panic::resume_unwind(payload))?);
        }
        Ok(())
    })
}

/// Boots a host for `share`. Prints a notice if it ends early; the last boot then fails the rest.
fn run_on_host(share: &Share, boot: usize) -> Result<Report, Error> {
    let mut report = Report::default();
    let (kind, left) = (share.kind, &share.scenarios);
    // Not in the temporary directory: the files take about 200 MB.
    let directory = Directory::new_in(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let files = directory.path("initramfs");
    let console = directory.path("console.log");
    contents::write(kind, &files, left).map_err(Error::Contents)?;

    let mut machine = Qemu::boot(kind, &files, &console).map_err(Error::Machine)?;
    let Err(error) = machine.collect(&mut report) else {
        return Ok(report);
    };
    drop(machine);
    let console = fs::read(&console).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let (current, output) = report.interrupt(&error.to_string()).unwrap_or_default();
    print_notice(&format!(
        "{}: {error}, in {current:?}, on boot {boot} of {MAX_BOOTS}",
        kind.name
    ));
    if boot < MAX_BOOTS {
        return Ok(report);
    }
    for name in undecided_scenarios(left, &report) {
        let printed = if name == current { &output } else { "" };
        report.fail(&name, format!("{error}\n{printed}\n--- console ---\n{console}"));
    }
    Ok(report)
}

fn undecided_scenarios(scenarios: &[String], report: &Report) -> Vec<String> {
    let mut left = scenarios.to_vec();
    left.retain(|name| report.verdict(name).is_none());
    left
}

/// Returns the scenarios among the selected tests: those outside of `tests` modules.
fn selected_scenarios() -> io::Result<Vec<String>> {
    let mut list = Command::new(env::current_exe()?);
    list.args(env::args_os().skip(1))
        .args(["--list", "--format", "terse"]);
    let listed = scratch::run(&mut list);
    if !listed.status.success() {
        return Err(io::Error::other(
            String::from_utf8_lossy(&listed.stderr).into_owned(),
        ));
    }
    let scenarios = String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .filter(|name| !name.contains("::tests::"))
        .map(str::to_owned)
        .collect();
    Ok(scenarios)
}

/// Prints a notice even if all tests pass: libtest captures the print macros, but not writes to stderr.
fn print_notice(text: &str) {
    let _ = writeln!(io::stderr(), "emulated host: {text}");
}

#[cfg(test)]
mod tests {
    use super::{HOST, MAX_RETRIES, check_retries, count_local_tests, divide};

    /// Waits for the scenarios of this run, if there are any.
    #[test]
    fn emulated_host_needs_few_retries() {
        // Each scenario reports an error of the host.
        if let Ok(report) = HOST.as_ref() {
            check_retries(&report.retries).unwrap();
        }
    }

    #[test]
    fn scenarios_are_divided_by_kind_and_host() {
        let left = ["a", "aarch64::b::gic2::c", "d", "e", "aarch64::b::gic3::c", "f"].map(str::to_owned);
        let shares: Vec<_> = divide(&left, 2)
            .into_iter()
            .map(|share| (share.kind.name, share.scenarios.join(" ")))
            .collect();
        let expected = [
            ("x86_64", "a e"),
            ("x86_64", "d f"),
            ("aarch64 with GICv3", "aarch64::b::gic3::c"),
            ("aarch64 with GICv2", "aarch64::b::gic2::c"),
        ];
        assert_eq!(shares, expected.map(|(name, list)| (name, list.to_owned())));
    }

    #[test]
    fn local_tests_are_counted_and_omissions_listed_once() {
        let output = "test result: ok. 7 passed\ntests of tests/local: 7\nleft out: b: no disk\n";
        let (count, omissions) = count_local_tests(&[output, "left out: a: slow\n", output]);
        assert_eq!(count, 14);
        let expected = ["left out: a: slow", "left out: b: no disk"];
        assert_eq!(omissions.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn retries_above_limit_fail_with_reason() {
        let mut retries = vec!["a: failed".to_owned(); MAX_RETRIES];
        check_retries(&retries).unwrap();
        retries.push("b: no heartbeat".to_owned());
        let error = check_retries(&retries).unwrap_err();
        assert!(
            error.contains("exceed the limit") && error.ends_with("b: no heartbeat"),
            "{error}"
        );
    }
}
