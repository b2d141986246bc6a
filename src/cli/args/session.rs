//! The options of `mayfly run` and `mayfly restore` alike.

use std::ffi::{OsStr, OsString};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use api::process::LoggerSettings;
use vmm::config::SerialTarget;
use vmm::control::MAX_COOLDOWN_MS;
use vmm::debugger::DebugAddress;
use vmm::sampling::SampleSettings;

use super::error::{Error, lossy, syntax};
use super::firecracker::{self, CORE_ON_CRASH};
use crate::filters::{Filters, Isolation};

/// Options of the suspend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SuspendArgs {
    /// Directory of the generations.
    pub directory: Option<PathBuf>,
    /// Time for which an idle guest runs.
    pub idle_after: Option<Duration>,
    /// Processor time that an idle guest may use, in percent.
    pub max_cpu_percent: Option<u32>,
    /// A suspend ends the process without a snapshot.
    pub is_stateless: bool,
}

/// Options of the debugger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugArgs {
    /// Address of the listener for gdb.
    pub address: Option<DebugAddress>,
    /// The guest runs without gdb.
    pub is_running: bool,
    /// Other hosts may connect.
    pub is_public: bool,
}

/// Options of the profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProfileArgs {
    /// Path of the profile to write.
    pub path: Option<PathBuf>,
    /// Samples per second.
    pub frequency: Option<u32>,
}

impl ProfileArgs {
    /// Returns the settings of the samples, which have times with `has_moments`.
    pub fn settings(&self, has_moments: bool) -> SampleSettings {
        SampleSettings {
            frequency: self.frequency.unwrap_or(DEFAULT_FREQUENCY),
            has_moments,
        }
    }

    fn check(&self) -> Result<(), Error> {
        match self.frequency {
            Some(_) if self.path.is_none() => Err(Error::Requires(HZ, PROFILE)),
            _ => Ok(()),
        }
    }
}

/// Options for measurements, the API socket and the log.
#[derive(Debug)]
pub struct SessionArgs {
    /// Print the length of each phase.
    pub timings: bool,
    /// Path of a Chrome trace to write.
    pub trace: Option<PathBuf>,
    /// Options of the profile.
    pub profile: ProfileArgs,
    /// Path of the API socket.
    pub socket: Option<PathBuf>,
    /// Name of the VM.
    pub id: String,
    /// Settings of the log.
    pub log: LoggerSettings,
    /// Isolation of the process.
    pub isolation: Isolation,
    /// Options of the suspend.
    pub suspend: SuspendArgs,
    /// Directory for a snapshot of a crash.
    pub crash_directory: Option<PathBuf>,
    /// Options of the debugger.
    pub debug: DebugArgs,
    /// Other end of the guest's serial port.
    pub serial: SerialTarget,
}

impl Default for SessionArgs {
    fn default() -> Self {
        Self {
            timings: false,
            trace: None,
            profile: ProfileArgs::default(),
            socket: None,
            id: "anonymous-instance".into(),
            log: LoggerSettings::default(),
            isolation: Isolation::default(),
            suspend: SuspendArgs::default(),
            crash_directory: None,
            debug: DebugArgs::default(),
            serial: SerialTarget::default(),
        }
    }
}

/// Names of the options.
pub const OPTIONS: [&str; 21] = [
    SERIAL,
    "--timings",
    "--trace",
    PROFILE,
    HZ,
    "--api-sock",
    "--id",
    "--log-level",
    "--log-file",
    SUSPEND_TO,
    IDLE_AFTER,
    IDLE_CPU,
    STATELESS,
    CORE_ON_CRASH,
    GDB,
    GDB_NOWAIT,
    GDB_PUBLIC,
    "--no-seccomp",
    "--seccomp-filter",
    "--keep-capabilities",
    ALLOW,
];

/// Other end of the guest's serial port.
pub const SERIAL: &str = "--serial";
/// Path of the profile.
pub const PROFILE: &str = "--profile";
const HZ: &str = "--hz";
/// Samples per second: not a divisor of the usual 100 Hz timers.
const DEFAULT_FREQUENCY: u32 = 99;
/// Maximum number of samples per second.
const MAX_FREQUENCY: u64 = 1000;
const SUSPEND_TO: &str = "--suspend-to";
const IDLE_AFTER: &str = "--idle-after";
const IDLE_CPU: &str = "--idle-cpu";
const STATELESS: &str = "--stateless";
/// Address of the listener for gdb.
pub const GDB: &str = "--gdb";
const GDB_NOWAIT: &str = "--gdb-nowait";
/// Permission for gdb on other hosts.
pub const GDB_PUBLIC: &str = "--gdb-public";

/// Option that may be given several times.
const ALLOW: &str = "--allow";

impl SessionArgs {
    /// Parses the value of the option `name` of `command`. `name` is in [`OPTIONS`].
    pub fn parse_option(
        &mut self,
        parser: &mut lexopt::Parser,
        command: &'static str,
        name: &'static str,
    ) -> Result<(), Error> {
        match name {
            "--timings" => self.timings = true,
            "--id" => self.id = checked(parser, command, name, firecracker::parse_id)?,
            "--log-level" => {
                self.log.level = Some(checked(parser, command, name, firecracker::parse_level)?);
            }
            "--trace" => self.trace = Some(path(parser, command)?),
            PROFILE => self.profile.path = Some(path(parser, command)?),
            HZ => {
                let frequency = number(parser, command, name, 1..=MAX_FREQUENCY, "samples per second")?;
                self.profile.frequency = u32::try_from(frequency).ok();
            }
            "--api-sock" => self.socket = Some(path(parser, command)?),
            "--log-file" => self.log.path = Some(path(parser, command)?),
            SERIAL => self.serial = value(parser, command, name)?,
            SUSPEND_TO => self.suspend.directory = Some(path(parser, command)?),
            IDLE_AFTER => {
                let milliseconds = number(parser, command, name, 1..=MAX_COOLDOWN_MS, "milliseconds")?;
                self.suspend.idle_after = Some(Duration::from_millis(milliseconds));
            }
            IDLE_CPU => {
                let percent = number(parser, command, name, 1..=100, "percent")?;
                self.suspend.max_cpu_percent = u32::try_from(percent).ok();
            }
            CORE_ON_CRASH => self.crash_directory = Some(path(parser, command)?),
            STATELESS => self.suspend.is_stateless = true,
            GDB => self.debug.address = Some(value(parser, command, name)?),
            GDB_NOWAIT => self.debug.is_running = true,
            GDB_PUBLIC => self.debug.is_public = true,
            name => parse_isolation(&mut self.isolation, parser, command, name)?,
        }
        Ok(())
    }
}

impl SessionArgs {
    /// Checks the options against each other.
    pub fn check(&self) -> Result<(), Error> {
        self.debug.check()?;
        self.profile.check()?;
        self.suspend.check()
    }
}

impl DebugArgs {
    fn check(&self) -> Result<(), Error> {
        let required = [(self.is_running, GDB_NOWAIT), (self.is_public, GDB_PUBLIC)];
        match required.into_iter().find(|(is_given, _)| *is_given) {
            Some((_, option)) if self.address.is_none() => Err(Error::Requires(option, GDB)),
            _ => Ok(()),
        }
    }
}

impl SuspendArgs {
    /// Checks the options against each other.
    fn check(&self) -> Result<(), Error> {
        if self.directory.is_some() && self.is_stateless {
            return Err(Error::Stateless);
        }
        if self.idle_after.is_some() && self.directory.is_none() && !self.is_stateless {
            return Err(Error::Requires(IDLE_AFTER, SUSPEND_TO));
        }
        if self.max_cpu_percent.is_some() && self.idle_after.is_none() {
            return Err(Error::Requires(IDLE_CPU, IDLE_AFTER));
        }
        Ok(())
    }
}

/// Parses the value of `option` of `command`, a number of `unit` in `range`.
fn number(
    parser: &mut lexopt::Parser,
    command: &'static str,
    option: &'static str,
    range: RangeInclusive<u64>,
    unit: &'static str,
) -> Result<u64, Error> {
    let text: String = value(parser, command, option)?;
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(Error::Value {
            option,
            value: text,
            reason: format!(
                "expected a number of {unit} from {} to {}",
                range.start(),
                range.end()
            ),
        }),
    }
}

/// Parses the value of the option `name` of the isolation, which is in [`OPTIONS`].
pub fn parse_isolation(
    isolation: &mut Isolation,
    parser: &mut lexopt::Parser,
    command: &'static str,
    name: &'static str,
) -> Result<(), Error> {
    let filters = match name {
        "--keep-capabilities" => {
            isolation.keep_capabilities = true;
            return Ok(());
        }
        ALLOW => {
            isolation.allowed.push(path(parser, command)?);
            return Ok(());
        }
        "--no-seccomp" => Filters::Off,
        "--seccomp-filter" => Filters::File(path(parser, command)?),
        other => unreachable!("{other} is not in OPTIONS"),
    };
    if isolation.filters != Filters::Own {
        return Err(Error::Filters);
    }
    isolation.filters = filters;
    Ok(())
}

/// Options that are given already.
#[derive(Default)]
pub struct GivenOptions(Vec<&'static str>);

impl GivenOptions {
    /// Adds `option`; fails if it is given twice.
    pub fn add(&mut self, option: &'static str) -> Result<(), Error> {
        if option != ALLOW && self.0.contains(&option) {
            return Err(Error::Twice(option));
        }
        self.0.push(option);
        Ok(())
    }
}

/// Parses the value of `option` of `command` by `check`, whose error describes valid values.
fn checked<T>(
    parser: &mut lexopt::Parser,
    command: &'static str,
    option: &'static str,
    check: fn(&OsStr) -> Result<T, &'static str>,
) -> Result<T, Error> {
    let text = parser.value().map_err(syntax(command))?;
    check(&text).map_err(|reason| Error::Value {
        option,
        value: lossy(&text),
        reason: reason.into(),
    })
}

/// Returns the value of an option of `command` as a path, which need not be UTF-8.
pub fn path(parser: &mut lexopt::Parser, command: &'static str) -> Result<PathBuf, Error> {
    parser.value().map(PathBuf::from).map_err(syntax(command))
}

/// Returns the value of `option` as text: the configuration of a VM, which clients read and snapshots save, is UTF-8.
pub fn utf8(option: &'static str, value: OsString) -> Result<String, Error> {
    value.into_string().map_err(|value| Error::NotUtf8(option, value))
}

/// Parses the value of `option` of `command`.
pub fn value<T: FromStr>(
    parser: &mut lexopt::Parser,
    command: &'static str,
    option: &'static str,
) -> Result<T, Error>
where
    T::Err: std::fmt::Display,
{
    let text = utf8(option, parser.value().map_err(syntax(command))?)?;
    text.parse().map_err(|error: T::Err| Error::Value {
        option,
        value: text,
        reason: error.to_string(),
    })
}
