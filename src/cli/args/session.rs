//! The options of `mayfly run` and `mayfly restore` alike.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::str::FromStr;

use api::process::LoggerSettings;

use super::error::{Error, lossy, syntax};
use super::firecracker;
use crate::filters::{Filters, Isolation};

/// Options for measurements, the API socket and the log.
#[derive(Debug)]
pub struct SessionArgs {
    /// Print the length of each phase.
    pub timings: bool,
    /// Path of a Chrome trace to write.
    pub trace: Option<PathBuf>,
    /// Path of the API socket.
    pub socket: Option<PathBuf>,
    /// Name of the VM.
    pub id: String,
    /// Settings of the log.
    pub log: LoggerSettings,
    /// Isolation of the process.
    pub isolation: Isolation,
}

impl Default for SessionArgs {
    fn default() -> Self {
        Self {
            timings: false,
            trace: None,
            socket: None,
            id: "anonymous-instance".into(),
            log: LoggerSettings::default(),
            isolation: Isolation::default(),
        }
    }
}

/// Names of the options.
pub const OPTIONS: [&str; 10] = [
    "--timings",
    "--trace",
    "--api-sock",
    "--id",
    "--log-level",
    "--log-file",
    "--no-seccomp",
    "--seccomp-filter",
    "--keep-capabilities",
    ALLOW,
];

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
            "--api-sock" => self.socket = Some(path(parser, command)?),
            "--log-file" => self.log.path = Some(path(parser, command)?),
            name => parse_isolation(&mut self.isolation, parser, command, name)?,
        }
        Ok(())
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

/// Parses the value of `option` of `command`.
pub fn value<T: FromStr>(
    parser: &mut lexopt::Parser,
    command: &'static str,
    option: &'static str,
) -> Result<T, Error>
where
    T::Err: std::fmt::Display,
{
    let text = lossy(&parser.value().map_err(syntax(command))?);
    text.parse().map_err(|error: T::Err| Error::Value {
        option,
        value: text,
        reason: error.to_string(),
    })
}
