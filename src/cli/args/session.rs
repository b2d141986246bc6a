//! The options that `mayfly run` and `mayfly restore` have in common.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::str::FromStr;

use api::http::HttpLimits;
use api::process::LoggerSettings;

use super::firecracker;
use super::{Error, lossy, syntax};
use crate::serve::ApiOptions;

/// What is told of a VM, and who may ask for more.
#[derive(Debug)]
pub struct SessionArgs {
    /// Print how long each phase took.
    pub timings: bool,
    /// Write the phases as a Chrome trace.
    pub trace: Option<PathBuf>,
    /// Path of a control socket.
    pub socket: Option<PathBuf>,
    /// Name of the VM.
    pub id: String,
    /// The log.
    pub log: LoggerSettings,
}

impl Default for SessionArgs {
    fn default() -> Self {
        Self {
            timings: false,
            trace: None,
            socket: None,
            id: "anonymous-instance".into(),
            log: LoggerSettings::default(),
        }
    }
}

/// Their names.
pub const OPTIONS: [&str; 6] = [
    "--timings",
    "--trace",
    "--api-sock",
    "--id",
    "--log-level",
    "--log-file",
];

impl SessionArgs {
    /// The way to the VM from outside, if one is wanted.
    pub fn front(&self) -> Option<ApiOptions<'_>> {
        let wanted = self.socket.is_some() || self.log != LoggerSettings::default();
        wanted.then(|| ApiOptions {
            socket: self.socket.as_deref(),
            limits: HttpLimits::default(),
            id: &self.id,
            log: &self.log,
        })
    }

    /// Takes the value of the option `name`, one of [`OPTIONS`], of `command`.
    pub fn option(
        &mut self,
        parser: &mut lexopt::Parser,
        command: &'static str,
        name: &'static str,
    ) -> Result<(), Error> {
        match name {
            "--timings" => self.timings = true,
            "--id" => self.id = checked(parser, command, name, firecracker::id)?,
            "--log-level" => self.log.level = Some(checked(parser, command, name, firecracker::level)?),
            "--trace" => self.trace = Some(path(parser, command)?),
            "--api-sock" => self.socket = Some(path(parser, command)?),
            "--log-file" => self.log.path = Some(path(parser, command)?),
            other => unreachable!("{other} is not in OPTIONS"),
        }
        Ok(())
    }
}

/// Options that were there.
#[derive(Default)]
pub struct Seen(Vec<&'static str>);

impl Seen {
    /// Notes one that may be there once.
    pub fn note(&mut self, option: &'static str) -> Result<(), Error> {
        if self.0.contains(&option) {
            return Err(Error::Twice(option));
        }
        self.0.push(option);
        Ok(())
    }
}

/// The value of `option` of `command` as `check` reads it.
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

/// A path, of any bytes.
pub fn path(parser: &mut lexopt::Parser, command: &'static str) -> Result<PathBuf, Error> {
    parser.value().map(PathBuf::from).map_err(syntax(command))
}

/// The value of `option` of `command`.
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
