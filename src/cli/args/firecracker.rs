//! The command line of Firecracker, which orchestrators write: flags only, no command.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::str::FromStr;

use api::http::HttpLimits;
use api::process::LoggerSettings;
use log::LevelFilter;

/// Where the socket is when nobody says so.
pub const SOCKET: &str = "/run/firecracker.socket";

/// The release of Firecracker whose API this is. Clients look at the first two numbers.
pub const VERSION: &str = "1.14.0";

/// Exit status of Firecracker for a command line that makes no sense.
const BAD_ARGUMENTS: u8 = 153;
/// Exit status of Firecracker for a log level that does not exist.
const BAD_LEVEL: u8 = 152;

/// What is to be served, and how.
#[derive(Debug, PartialEq, Eq)]
pub struct FirecrackerArgs {
    /// Path of the control socket; none for none.
    pub socket: Option<PathBuf>,
    /// Limits of the control socket.
    pub limits: HttpLimits,
    /// Name of the VM, which is in its log.
    pub id: String,
    /// File that configures the VM, which then starts at once.
    pub config_file: Option<PathBuf>,
    /// The log.
    pub log: LoggerSettings,
    /// File or FIFO for metrics.
    pub metrics: Option<PathBuf>,
    /// Options that are taken and change nothing, to be told to the log.
    pub without_effect: Vec<&'static str>,
}

impl Default for FirecrackerArgs {
    fn default() -> Self {
        Self {
            socket: Some(SOCKET.into()),
            limits: HttpLimits::default(),
            id: "anonymous-instance".into(),
            config_file: None,
            log: LoggerSettings::default(),
            metrics: None,
            without_effect: Vec::new(),
        }
    }
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum FirecrackerCommand {
    /// Serve a VM.
    Serve(Box<FirecrackerArgs>),
    /// Print a help text.
    Help,
    /// Print the version.
    Version,
    /// Print the version of the format of snapshots.
    SnapshotVersion,
    /// Print the version of the format of the state file at this path.
    DescribeSnapshot(PathBuf),
}

/// Why the flags make no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nobody knows this flag.
    #[error("found argument {0:?}, which is no flag: try mayfly help firecracker")]
    Unknown(String),
    /// A flag twice.
    #[error("the flag {0} is there twice: which one counts?")]
    Twice(&'static str),
    /// A flag without its value.
    #[error("the flag {0} needs a value: {0} VALUE")]
    NoValue(&'static str),
    /// A value that a flag cannot have.
    #[error("{flag} {value:?}: {reason}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        reason: &'static str,
    },
    /// A log level that does not exist.
    #[error("--level {0:?}: it is Off, Error, Warning, Info, Debug or Trace")]
    Level(String),
    /// A flag that only makes sense with another one.
    #[error("the flag {flag} needs the flag {needed}")]
    Needs {
        /// The flag.
        flag: &'static str,
        /// What is missing.
        needed: &'static str,
    },
    /// A part of Firecracker that mayfly does not have.
    #[error("{flag} is not part of mayfly: {reason}")]
    Missing {
        /// The flag.
        flag: &'static str,
        /// Why, or what to do.
        reason: &'static str,
    },
}

impl Error {
    /// The exit status that Firecracker's callers expect.
    pub fn status(&self) -> u8 {
        match self {
            Self::Level(_) => BAD_LEVEL,
            _ => BAD_ARGUMENTS,
        }
    }
}

/// Flags that take a value, then those that take none.
const VALUED: [&str; 15] = [
    "--api-sock",
    "--id",
    "--config-file",
    "--log-path",
    "--level",
    "--module",
    "--metrics-path",
    "--http-api-max-payload-size",
    "--mmds-size-limit",
    "--metadata",
    "--seccomp-filter",
    "--start-time-us",
    "--start-time-cpu-us",
    "--parent-cpu-time-us",
    "--describe-snapshot",
];
const PLAIN: [&str; 7] = [
    "--no-api",
    "--no-seccomp",
    "--show-level",
    "--show-log-origin",
    "--boot-timer",
    "--enable-pci",
    "--snapshot-version",
];

/// Whether a command line that begins with `first` is Firecracker's: it has flags and no command. `disguised` is whether mayfly
/// was called by Firecracker's name.
pub fn is_firecracker_command(disguised: bool, first: Option<&OsStr>) -> bool {
    match first {
        None => disguised,
        Some(first) if disguised => first.as_encoded_bytes().starts_with(b"-"),
        Some(first) => is_flag(first) && first != "--help" && first != "--version",
    }
}

/// Reads the flags, without the name of the program.
///
/// # Errors
/// [`Error`]
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<FirecrackerCommand, Error> {
    let mut options = FirecrackerArgs::default();
    let mut seen: Vec<&'static str> = Vec::new();
    let mut described = None;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let known = |flags: &[&'static str]| flags.iter().copied().find(|flag| argument == *flag);
        if argument == "--help" || argument == "-h" {
            return Ok(FirecrackerCommand::Help);
        }
        if argument == "--version" {
            return Ok(FirecrackerCommand::Version);
        }
        let (flag, value) = if let Some(flag) = known(&PLAIN) {
            (flag, None)
        } else if let Some(flag) = known(&VALUED) {
            let value = arguments.next().filter(|value| !is_flag(value));
            (flag, Some(value.ok_or(Error::NoValue(flag))?))
        } else {
            return Err(Error::Unknown(argument.to_string_lossy().into_owned()));
        };
        if seen.contains(&flag) {
            return Err(Error::Twice(flag));
        }
        seen.push(flag);
        match value {
            Some(value) if flag == "--describe-snapshot" => described = Some(value.into()),
            Some(value) => take_value(&mut options, flag, value)?,
            None => take_plain(&mut options, flag)?,
        }
    }
    let has = |flag| seen.contains(&flag);
    if has("--snapshot-version") {
        return Ok(FirecrackerCommand::SnapshotVersion);
    }
    if let Some(path) = described {
        return Ok(FirecrackerCommand::DescribeSnapshot(path));
    }
    if has("--no-api") && !has("--config-file") {
        return Err(Error::Needs {
            flag: "--no-api",
            needed: "--config-file",
        });
    }
    if has("--no-api") {
        options.socket = None;
    }
    Ok(FirecrackerCommand::Serve(Box::new(options)))
}

fn is_flag(value: &OsStr) -> bool {
    value.as_encoded_bytes().starts_with(b"--")
}

fn take_plain(options: &mut FirecrackerArgs, flag: &'static str) -> Result<(), Error> {
    match flag {
        // Whatever the others say, before it or behind it.
        "--no-api" | "--snapshot-version" => {}
        "--show-level" => options.log.show_level = Some(true),
        "--show-log-origin" => options.log.show_origin = Some(true),
        // There are no filters to be left out.
        "--no-seccomp" => {}
        "--boot-timer" => options.without_effect.push(flag),
        _ => {
            return Err(Error::Missing {
                flag,
                reason: "its devices are memory-mapped",
            });
        }
    }
    Ok(())
}

fn take_value(options: &mut FirecrackerArgs, flag: &'static str, value: OsString) -> Result<(), Error> {
    match flag {
        "--api-sock" => options.socket = Some(value.into()),
        "--config-file" => options.config_file = Some(value.into()),
        "--log-path" => options.log.path = Some(value.into()),
        "--metrics-path" => options.metrics = Some(value.into()),
        "--id" => {
            options.id = id(&value).map_err(|reason| Error::Value {
                flag,
                value: value.to_string_lossy().into_owned(),
                reason,
            })?;
        }
        "--level" => {
            let level = level(&value);
            let level = level.map_err(|_| Error::Level(value.to_string_lossy().into_owned()))?;
            options.log.level = Some(level);
        }
        "--module" => options.log.module = Some(value.to_string_lossy().into_owned()),
        "--http-api-max-payload-size" => options.limits.body = number(flag, &value)?,
        // Without MMDS there is nothing to be limited.
        "--mmds-size-limit" => {
            number::<usize>(flag, &value)?;
        }
        // When the jailer began and what it used: mayfly counts from its own start.
        "--start-time-us" | "--start-time-cpu-us" | "--parent-cpu-time-us" => {
            number::<u64>(flag, &value)?;
        }
        "--metadata" => {
            return Err(Error::Missing {
                flag,
                reason: "it has no metadata service (MMDS)",
            });
        }
        _ => {
            return Err(Error::Missing {
                flag,
                reason: "it does not load filters; leave the flag out, or say --no-seccomp",
            });
        }
    }
    Ok(())
}

/// The name of a VM.
///
/// # Errors
/// What is a name.
pub fn id(value: &OsStr) -> Result<String, &'static str> {
    let right = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    let text = value
        .to_str()
        .filter(|text| text.bytes().all(|byte| right(&byte)));
    let text = text.filter(|text| (1..=64).contains(&text.len()));
    text.map(str::to_owned)
        .ok_or("it is 1 to 64 letters, digits and hyphens")
}

/// A log level, in any case, by Firecracker's names and by those of the log crate.
///
/// # Errors
/// What there is.
pub fn level(value: &OsStr) -> Result<LevelFilter, &'static str> {
    let text = value.to_string_lossy();
    if text.eq_ignore_ascii_case("warning") {
        return Ok(LevelFilter::Warn);
    }
    text.parse()
        .map_err(|_| "it is Off, Error, Warning, Info, Debug or Trace")
}

fn number<T: FromStr>(flag: &'static str, value: &OsStr) -> Result<T, Error> {
    let text = value.to_string_lossy();
    text.parse().map_err(|_| Error::Value {
        flag,
        value: text.into_owned(),
        reason: "a number is needed",
    })
}

#[cfg(test)]
mod tests;
