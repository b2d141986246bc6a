//! The verdicts of the scenarios, from an emulated host that is booted once for all of them.

use std::error::Error as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Instant;
use std::{env, fs};

use crate::contents;
use crate::qemu::{self, Qemu};
use crate::report::Report;

/// Set inside the emulated host.
const INSIDE: &str = "MAYFLY_EMULATED_HOST";
/// QEMU's emulation freezes as a whole now and then, without fault of what runs in it; the last boot is for what has failed.
const BOOTS: usize = 3;

/// Why there are no verdicts at all.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot list the scenarios")]
    List(#[source] io::Error),
    #[error("cannot make {path:?}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot put the emulated host's files together")]
    Contents(#[source] contents::Error),
    #[error("cannot run the emulated host")]
    Machine(#[source] qemu::Error),
}

/// All verdicts, made by whichever test asks first.
static HOST: LazyLock<Result<Report, Error>> = LazyLock::new(all_verdicts);

/// Runs `scenario` when this is the emulated host. Anywhere else boots one for all scenarios, once, and gives this
/// scenario's verdict. `path` is the test's path, the crate's name included.
pub fn run(path: &str, scenario: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        return scenario();
    }
    let name = path.split_once("::").map_or(path, |(_, name)| name);
    let report = HOST.as_ref().unwrap_or_else(|error| panic!("{}", chain(error)));
    match report.verdict(name) {
        Some(verdict) if verdict.passed => {}
        Some(verdict) => panic!("on the emulated host:\n{}", verdict.output),
        None => panic!("the emulated host was not asked to run {name}"),
    }
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn all_verdicts() -> Result<Report, Error> {
    let start = Instant::now();
    let scenarios = selected().map_err(Error::List)?;
    let mut report = Report::default();
    for boot in 1..=BOOTS {
        // The emulation of nested paging also gives a guest a fault that it has no part in, now and then.
        if boot == BOOTS {
            for (name, output) in report.appeal() {
                say(&format!("{name} failed and has another try:\n{output}"));
            }
        }
        let left = undecided(&scenarios, &report);
        if !left.is_empty() {
            run_in_machine(&left, boot, &mut report)?;
        }
    }
    let seconds = start.elapsed().as_secs();
    say(&format!("{} scenarios in {seconds} s", scenarios.len()));
    Ok(report)
}

/// Boots the host for the scenarios that are `left`. When it ends before they have, says so; the last boot then decides
/// against them.
fn run_in_machine(left: &[String], boot: usize, report: &mut Report) -> Result<(), Error> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulated-host");
    fs::create_dir_all(&directory).map_err(|source| Error::Directory {
        path: directory.clone(),
        source,
    })?;
    let files = directory.join("initramfs");
    let console = directory.join("console.log");
    contents::write(&files, left).map_err(Error::Contents)?;

    let mut machine = Qemu::boot(&contents::kernel(), &files, &console).map_err(Error::Machine)?;
    let Err(why) = machine.follow(report) else {
        return Ok(());
    };
    drop(machine);
    let console = fs::read(&console).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let (current, output) = report.interrupt().unwrap_or_default();
    say(&format!("{why}, in {current:?}, on boot {boot} of {BOOTS}"));
    if boot < BOOTS {
        return Ok(());
    }
    for name in undecided(left, report) {
        let printed = if name == current { &output } else { "" };
        report.fail(&name, format!("{why}\n{printed}\n--- its console ---\n{console}"));
    }
    Ok(())
}

fn undecided(scenarios: &[String], report: &Report) -> Vec<String> {
    let mut left = scenarios.to_vec();
    left.retain(|name| report.verdict(name).is_none());
    left
}

/// The scenarios among the tests that this process was asked to run: those in a module of their own, not in `tests`.
fn selected() -> io::Result<Vec<String>> {
    let listed = Command::new(env::current_exe()?)
        .args(env::args_os().skip(1))
        .args(["--list", "--format", "terse"])
        .output()?;
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

/// Says something about the host that must be seen although all tests pass: print macros are captured, this is not.
fn say(what: &str) {
    let _ = writeln!(io::stderr(), "emulated host: {what}");
}
