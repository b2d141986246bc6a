//! Verdicts of the scenarios, from two emulated hosts for all of them.

use std::error::Error as _;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::Instant;
use std::{env, fs, panic, thread};

use scratch::Directory;

use crate::contents;
use crate::qemu::{self, Qemu};
use crate::report::Report;

/// Environment variable that is set on the emulated host.
const HOST_VARIABLE: &str = "MAYFLY_EMULATED_HOST";
/// Maximum number of boots. QEMU's emulation occasionally freezes, independent of the scenario. The last boot also repeats
/// failed scenarios.
const MAX_BOOTS: usize = 3;

/// Maximum number of hosts at the first boot. Each emulates one processor, on one processor of this machine.
const MAX_HOSTS: usize = 2;

/// Maximum number of retries of one run: interrupted boots, and repeated scenarios. One or two are usual on a busy machine. More hide a
/// defect that shows now and then.
const MAX_RETRIES: usize = 4;

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
    let seconds = start.elapsed().as_secs();
    let (count, list) = (report.retries.len(), report.retries.join(", "));
    print_notice(&format!(
        "{} scenarios in {seconds} s, {count} retries of at most {MAX_RETRIES}{}{list}",
        scenarios.len(),
        if count == 0 { "" } else { ": " }
    ));
    Ok(report)
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

/// Divides the scenarios in `left` among the number of `hosts`, which run at the same time.
fn run_on_hosts(left: &[String], hosts: usize, boot: usize, report: &mut Report) -> Result<(), Error> {
    let shares: Vec<Vec<String>> = (0..hosts)
        .map(|host| left.iter().skip(host).step_by(hosts).cloned().collect())
        .filter(|share: &Vec<String>| !share.is_empty())
        .collect();
    thread::scope(|scope| {
        let run = |share: &[String]| {
            let mut report = Report::default();
            run_on_host(share, boot, &mut report).map(|()| report)
        };
        let threads: Vec<_> = shares
            .iter()
            .map(|share| scope.spawn(move || run(share)))
            .collect();
        for thread in threads {
            #[allow(clippy::disallowed_methods, reason = "a host has limits of its own")]
            let share = thread.join();
            report.merge(share.unwrap_or_else(|payload| panic::resume_unwind(payload))?);
        }
        Ok(())
    })
}

/// Boots a host for the scenarios in `left`. Prints a notice if it ends early; the last boot then fails the rest.
fn run_on_host(left: &[String], boot: usize, report: &mut Report) -> Result<(), Error> {
    // Not in the temporary directory: the files take about 200 MB.
    let directory = Directory::new_in(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let files = directory.path("initramfs");
    let console = directory.path("console.log");
    contents::write(&files, left).map_err(Error::Contents)?;

    let mut machine = Qemu::boot(&contents::kernel(), &files, &console).map_err(Error::Machine)?;
    let Err(error) = machine.collect(report) else {
        return Ok(());
    };
    drop(machine);
    let console = fs::read(&console).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let (current, output) = report.interrupt(&error.to_string()).unwrap_or_default();
    print_notice(&format!("{error}, in {current:?}, on boot {boot} of {MAX_BOOTS}"));
    if boot < MAX_BOOTS {
        return Ok(());
    }
    for name in undecided_scenarios(left, report) {
        let printed = if name == current { &output } else { "" };
        report.fail(&name, format!("{error}\n{printed}\n--- console ---\n{console}"));
    }
    Ok(())
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
    use super::{HOST, MAX_RETRIES, check_retries};

    /// Waits for the scenarios of this run, if there are any.
    #[test]
    fn emulated_host_needs_few_retries() {
        // Each scenario reports an error of the host.
        if let Ok(report) = HOST.as_ref() {
            check_retries(&report.retries).unwrap();
        }
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
