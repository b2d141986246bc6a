//! Firecracker's command line, as orchestrators write it: flags only, no command.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::str::FromStr;

use api::http::HttpLimits;
use api::process::LoggerSettings;
use log::LevelFilter;

use crate::filters::{Filters, Isolation};

/// Default path of the API socket.
pub const SOCKET: &str = api::client::DEFAULT_SOCKET;

/// Release of Firecracker whose API mayfly serves. Clients compare the first two numbers.
pub const VERSION: &str = "1.17.0";

/// Exit status of Firecracker for a usage error.
const BAD_ARGUMENTS: u8 = 153;
/// Exit status of Firecracker for an unknown log level.
const BAD_LEVEL: u8 = 152;

/// Arguments of a server.
#[derive(Debug, PartialEq, Eq)]
pub struct FirecrackerArgs {
    /// Path of the API socket, if there is one.
    pub socket: Option<PathBuf>,
    /// Limits of the HTTP server.
    pub limits: HttpLimits,
    /// Name of the VM, which its log shows.
    pub id: String,
    /// Configuration file of the VM, which then starts at once.
    pub config_file: Option<PathBuf>,
    /// Settings of the log.
    pub log: LoggerSettings,
    /// File or FIFO of the metrics.
    pub metrics: Option<PathBuf>,
    /// Directory for a snapshot of a crash.
    pub crash_directory: Option<PathBuf>,
    /// Isolation of the process.
    pub isolation: Isolation,
    /// Accepted flags without an effect; the log warns of them.
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
            crash_directory: None,
            isolation: Isolation::default(),
            without_effect: Vec::new(),
        }
    }
}

/// A command with its arguments.
#[derive(Debug, PartialEq, Eq)]
pub enum FirecrackerCommand {
    /// Serve a VM.
    Serve(Box<FirecrackerArgs>),
    /// Print a help text.
    Help,
    /// Print the version.
    Version,
    /// Print the version of the snapshot format.
    SnapshotVersion,
    /// Print the format version of the state file at this path.
    DescribeSnapshot(PathBuf),
}

/// Usage error.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The flag is unknown.
    #[error("{0:?} is not a flag; run mayfly help firecracker")]
    Unknown(String),
    /// A flag is given twice.
    #[error("{0} is given twice; remove one")]
    Twice(&'static str),
    /// A flag has no value.
    #[error("missing value: {0} VALUE")]
    NoValue(&'static str),
    /// The value is invalid for its flag.
    #[error("{flag} {value:?}: {reason}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// The given value.
        value: String,
        /// Description of valid values.
        reason: &'static str,
    },
    /// The log level is unknown.
    #[error("--level {0:?}: expected Off, Error, Warning, Info, Debug or Trace")]
    Level(String),
    /// A flag requires another one.
    #[error("{flag} requires {required}; add it")]
    Requires {
        /// The flag.
        flag: &'static str,
        /// The missing flag.
        required: &'static str,
    },
    /// Two flags exclude each other.
    #[error("{0} excludes {1}; remove one")]
    Exclusive(&'static str, &'static str),
    /// mayfly does not support the flag.
    #[error("{flag} is unsupported: {reason}")]
    Unsupported {
        /// The flag.
        flag: &'static str,
        /// Cause, and the way out if there is one.
        reason: &'static str,
    },
}

impl Error {
    /// Returns the exit status of Firecracker for this error.
    pub fn status(&self) -> u8 {
        match self {
            Self::Level(_) => BAD_LEVEL,
            _ => BAD_ARGUMENTS,
        }
    }
}

/// Option of mayfly with the directory for a snapshot of a crash.
pub const CORE_ON_CRASH: &str = "--core-on-crash";
/// Flag of mayfly that may be given several times.
const ALLOW: &str = "--allow";
/// Flags with a value.
const VALUED: [&str; 17] = [
    ALLOW,
    CORE_ON_CRASH,
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
/// Flags without a value.
const PLAIN: [&str; 8] = [
    "--no-api",
    "--no-seccomp",
    "--keep-capabilities",
    "--show-level",
    "--show-log-origin",
    "--boot-timer",
    "--enable-pci",
    "--snapshot-version",
];

/// Returns true if a command line that begins with `first` is Firecracker's: flags without a command. `as_firecracker` is true
/// if mayfly was called by Firecracker's name.
pub fn is_firecracker_command(as_firecracker: bool, first: Option<&OsStr>) -> bool {
    match first {
        None => as_firecracker,
        Some(first) if as_firecracker => first.as_encoded_bytes().starts_with(b"-"),
        Some(first) => is_flag(first) && first != "--help" && first != "--version",
    }
}

/// Parses the flags, without the name of the program.
///
/// # Errors
/// [`Error`] on a usage error.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<FirecrackerCommand, Error> {
    let mut options = FirecrackerArgs::default();
    let mut given: Vec<&'static str> = Vec::new();
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
        if flag != ALLOW && given.contains(&flag) {
            return Err(Error::Twice(flag));
        }
        given.push(flag);
        match value {
            Some(value) if flag == "--describe-snapshot" => described = Some(value.into()),
            Some(value) => set_value(&mut options, flag, value)?,
            None => set_flag(&mut options, flag)?,
        }
    }
    let has = |flag| given.contains(&flag);
    if has("--snapshot-version") {
        return Ok(FirecrackerCommand::SnapshotVersion);
    }
    if let Some(path) = described {
        return Ok(FirecrackerCommand::DescribeSnapshot(path));
    }
    if has("--no-seccomp") && has("--seccomp-filter") {
        return Err(Error::Exclusive("--no-seccomp", "--seccomp-filter"));
    }
    if has("--no-api") && !has("--config-file") {
        return Err(Error::Requires {
            flag: "--no-api",
            required: "--config-file",
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

fn set_flag(options: &mut FirecrackerArgs, flag: &'static str) -> Result<(), Error> {
    match flag {
        // `parse` evaluates both last: they override flags before and after them.
        "--no-api" | "--snapshot-version" => {}
        "--show-level" => options.log.show_level = Some(true),
        "--show-log-origin" => options.log.show_origin = Some(true),
        "--no-seccomp" => options.isolation.filters = Filters::Off,
        "--keep-capabilities" => options.isolation.keep_capabilities = true,
        "--boot-timer" => options.without_effect.push(flag),
        _ => {
            return Err(Error::Unsupported {
                flag,
                reason: "devices of mayfly are memory-mapped; remove the flag",
            });
        }
    }
    Ok(())
}

fn set_value(options: &mut FirecrackerArgs, flag: &'static str, value: OsString) -> Result<(), Error> {
    match flag {
        "--api-sock" => options.socket = Some(value.into()),
        "--config-file" => options.config_file = Some(value.into()),
        "--log-path" => options.log.path = Some(value.into()),
        "--metrics-path" => options.metrics = Some(value.into()),
        "--id" => {
            options.id = parse_id(&value).map_err(|reason| Error::Value {
                flag,
                value: value.to_string_lossy().into_owned(),
                reason,
            })?;
        }
        "--level" => {
            let level = parse_level(&value);
            let level = level.map_err(|_| Error::Level(value.to_string_lossy().into_owned()))?;
            options.log.level = Some(level);
        }
        "--module" => options.log.module = Some(value.to_string_lossy().into_owned()),
        "--http-api-max-payload-size" => options.limits.body = parse_number(flag, &value)?,
        // The value is checked only: mayfly has no MMDS.
        "--mmds-size-limit" => {
            parse_number::<usize>(flag, &value)?;
        }
        // The value is checked only: mayfly measures from its own start, not from the jailer's.
        "--start-time-us" | "--start-time-cpu-us" | "--parent-cpu-time-us" => {
            parse_number::<u64>(flag, &value)?;
        }
        "--metadata" => {
            return Err(Error::Unsupported {
                flag,
                reason: "mayfly has no metadata service (MMDS); remove the flag",
            });
        }
        CORE_ON_CRASH => options.crash_directory = Some(value.into()),
        ALLOW => options.isolation.allowed.push(value.into()),
        _ => options.isolation.filters = Filters::File(value.into()),
    }
    Ok(())
}

/// Parses the name of a VM.
///
/// # Errors
/// A description of valid names.
pub fn parse_id(value: &OsStr) -> Result<String, &'static str> {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    let text = value
        .to_str()
        .filter(|text| text.bytes().all(|byte| allowed(&byte)));
    let text = text.filter(|text| (1..=64).contains(&text.len()));
    text.map(str::to_owned)
        .ok_or("expected 1 to 64 letters, digits and hyphens")
}

/// Parses a log level, in any case, by Firecracker's names and those of the log crate.
///
/// # Errors
/// A description of valid levels.
pub fn parse_level(value: &OsStr) -> Result<LevelFilter, &'static str> {
    let text = value.to_string_lossy();
    if text.eq_ignore_ascii_case("warning") {
        return Ok(LevelFilter::Warn);
    }
    text.parse()
        .map_err(|_| "expected Off, Error, Warning, Info, Debug or Trace")
}

fn parse_number<T: FromStr>(flag: &'static str, value: &OsStr) -> Result<T, Error> {
    let text = value.to_string_lossy();
    text.parse().map_err(|_| Error::Value {
        flag,
        value: text.into_owned(),
        reason: "expected a number",
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use log::LevelFilter;

    use super::{FirecrackerArgs, FirecrackerCommand, SOCKET, parse};

    fn parse_line(line: &str) -> Result<FirecrackerCommand, (String, u8)> {
        let parsed = parse(line.split_whitespace().map(Into::into));
        parsed.map_err(|error| (error.to_string(), error.status()))
    }

    fn options(line: &str) -> FirecrackerArgs {
        match parse_line(line).unwrap() {
            FirecrackerCommand::Serve(options) => *options,
            other => panic!("{line} is {other:?}"),
        }
    }

    #[test]
    fn command_lines_of_clients_are_accepted() {
        for line in [
            "--api-sock S --id ID --no-seccomp",
            "--no-api --config-file /tmp/fc.json",
            "--no-api --config-file /tmp/fc.json --no-seccomp",
            "--api-sock /tmp/c.sock --no-seccomp --config-file /tmp/fc.json",
            "--id 1 --start-time-us 1 --start-time-cpu-us 2 --parent-cpu-time-us 3 --api-sock /run/firecracker.socket",
            "--id UID --boot-timer --no-api --config-file P",
            "--api-sock P --log-path L --level Debug --show-level --show-log-origin --module m --metrics-path M",
            "--http-api-max-payload-size 100000 --mmds-size-limit 1",
        ] {
            options(line);
        }
        let args = options("--api-sock S --id a-1 --level warning --log-path L");
        assert_eq!(
            (args.socket, args.id.as_str(), args.log.level, args.log.path),
            (
                Some(PathBuf::from("S")),
                "a-1",
                Some(LevelFilter::Warn),
                Some("L".into())
            )
        );
        assert_eq!(options("").socket, Some(SOCKET.into()));
        assert_eq!(options("--no-api --config-file f").socket, None);
        assert_eq!(options("--no-api --config-file f --api-sock s").socket, None);
        assert_eq!(parse_line("--id x --version"), Ok(FirecrackerCommand::Version));
        assert_eq!(parse_line("--id x -h"), Ok(FirecrackerCommand::Help));
    }

    #[test]
    fn usage_errors_name_the_flag() {
        for (line, text, status) in [
            ("--bogus", "\"--bogus\" is not a flag", 153),
            ("run", "\"run\" is not a flag", 153),
            ("--api-sock=/x", "\"--api-sock=/x\" is not a flag", 153),
            ("--id a --id b", "--id is given twice", 153),
            ("--id", "missing value: --id VALUE", 153),
            ("--id --no-api", "missing value: --id VALUE", 153),
            ("--id a_b", "1 to 64 letters", 153),
            ("--level loud", "Off, Error, Warning", 152),
            ("--no-api", "--no-api requires --config-file", 153),
            ("--metadata f", "no metadata service", 153),
            ("--enable-pci", "memory-mapped", 153),
            ("--no-seccomp --seccomp-filter f", "excludes", 153),
            ("--start-time-us x", "expected a number", 153),
            (
                "--describe-snapshot",
                "missing value: --describe-snapshot VALUE",
                153,
            ),
            ("--snapshot-version --id a_b", "1 to 64 letters", 153),
        ] {
            let (message, code) = parse_line(line).unwrap_err();
            assert!(message.contains(text), "{line}: {message}");
            assert_eq!(code, status, "{line}");
        }
    }

    #[test]
    fn snapshot_versions_are_requested() {
        assert_eq!(
            parse_line("--snapshot-version"),
            Ok(FirecrackerCommand::SnapshotVersion)
        );
        for line in ["--describe-snapshot /s", "--id x --describe-snapshot /s --no-api"] {
            assert_eq!(
                parse_line(line),
                Ok(FirecrackerCommand::DescribeSnapshot("/s".into()))
            );
        }
        // Firecracker gives --snapshot-version precedence.
        assert_eq!(
            parse_line("--describe-snapshot /s --snapshot-version"),
            Ok(FirecrackerCommand::SnapshotVersion)
        );
    }
}
