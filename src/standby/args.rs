//! The arguments of `mayfly standby`.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use api::process::LoggerSettings;
use lexopt::Arg;
use log::LevelFilter;

/// Maximum of `--max-wakes`.
const MAX_WAKES: u32 = 10_000;
/// Maximum of `--timeout` in seconds.
const MAX_TIMEOUT: u32 = 86_400;
/// Maximum of `--shells`.
const MAX_SHELLS: u32 = 1000;

/// A command with its arguments.
#[derive(Debug)]
pub enum Command {
    /// Supervise instances.
    Supervise(Box<Args>),
    /// Print the help text.
    Help,
}

/// Arguments of a supervisor.
#[derive(Debug)]
pub struct Args {
    /// Path of the API socket.
    pub socket: PathBuf,
    /// Directory of the state.
    pub state: PathBuf,
    /// Maximum number of wakes at once.
    pub max_wakes: u32,
    /// Maximum memory of running instances in bytes.
    pub memory_limit: Option<u64>,
    /// Maximum time of a wake and of a suspend in seconds.
    pub timeout: u32,
    /// Maximum number of instances.
    pub max_instances: u32,
    /// Directory of the cgroups of limited instances.
    pub cgroup: Option<PathBuf>,
    /// Inherited descriptors of taps.
    pub taps: Vec<RawFd>,
    /// Number of shells for each shape.
    pub shells: u32,
    /// Program of the instances.
    pub mayfly: Option<PathBuf>,
    /// Program of jailed instances.
    pub jailer: Option<PathBuf>,
    /// Settings of the log.
    pub log: LoggerSettings,
}

/// Usage error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option is missing.
    #[error("missing {0}; run mayfly standby --help")]
    Missing(&'static str),
    /// An option is given twice.
    #[error("{0} is given twice; remove one")]
    Twice(&'static str),
    /// The value is invalid for its option.
    #[error("{option} {value:?}: expected {expected}")]
    Value {
        /// The option.
        option: &'static str,
        /// The given value.
        value: String,
        /// Description of valid values.
        expected: &'static str,
    },
    /// An option is unknown, or has no value.
    #[error("{0}; run mayfly standby --help")]
    Syntax(lexopt::Error),
}

/// Options with a value.
const OPTIONS: [&str; 12] = [
    "--api-sock",
    "--state-dir",
    "--max-wakes",
    "--memory-limit",
    "--timeout",
    "--max-instances",
    "--cgroup",
    "--shells",
    "--mayfly",
    "--jailer",
    "--log-level",
    "--log-file",
];

/// Values of the options, in the order of [`OPTIONS`].
#[derive(Default)]
struct Values([Option<OsString>; 12]);

impl Values {
    fn take(&mut self, option: &'static str) -> Option<OsString> {
        let index = OPTIONS.iter().position(|known| *known == option)?;
        self.0[index].take()
    }

    fn path(&mut self, option: &'static str) -> Option<PathBuf> {
        self.take(option).map(PathBuf::from)
    }

    /// Parses a number from `min` to `max`.
    fn number(
        &mut self,
        option: &'static str,
        [min, max, default]: [u32; 3],
        expected: &'static str,
    ) -> Result<u32, Error> {
        let Some(value) = self.take(option) else {
            return Ok(default);
        };
        let text = value.to_string_lossy().into_owned();
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| is_plain);
        number
            .filter(|number| (min..=max).contains(number))
            .ok_or(Error::Value {
                option,
                value: text,
                expected,
            })
    }
}

/// Parses `arguments`, without the name of the program.
///
/// # Errors
/// [`Error`] on a usage error.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Error> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut values = Values::default();
    let mut taps = Vec::new();
    while let Some(argument) = parser.next().map_err(Error::Syntax)? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            Arg::Long("tap-fd") => {
                let value = parser.value().map_err(Error::Syntax)?;
                taps.push(parse_descriptor(&value.to_string_lossy())?);
            }
            Arg::Long(name) => match OPTIONS.iter().position(|known| known[2..] == *name) {
                Some(index) => {
                    let value = parser.value().map_err(Error::Syntax)?;
                    if values.0[index].replace(value).is_some() {
                        return Err(Error::Twice(OPTIONS[index]));
                    }
                }
                None => return Err(Error::Syntax(argument.unexpected())),
            },
            other => return Err(Error::Syntax(other.unexpected())),
        }
    }
    let missing = Error::Missing;
    Ok(Command::Supervise(Box::new(Args {
        socket: values.path("--api-sock").ok_or(missing("--api-sock SOCKET"))?,
        state: values.path("--state-dir").ok_or(missing("--state-dir DIR"))?,
        max_wakes: values.number("--max-wakes", [1, MAX_WAKES, 8], "a number from 1 to 10000")?,
        memory_limit: values.take("--memory-limit").map(parse_size).transpose()?,
        timeout: values.number(
            "--timeout",
            [1, MAX_TIMEOUT, 30],
            "a number of seconds from 1 to 86400",
        )?,
        max_instances: values.number(
            "--max-instances",
            [1, u32::MAX, 1_000_000],
            "a number from 1 to 4294967295",
        )?,
        cgroup: values.path("--cgroup"),
        taps,
        shells: values.number("--shells", [0, MAX_SHELLS, 0], "a number from 0 to 1000")?,
        mayfly: values.path("--mayfly"),
        jailer: values.path("--jailer"),
        log: LoggerSettings {
            level: values.take("--log-level").map(parse_level).transpose()?,
            path: values.path("--log-file"),
            ..LoggerSettings::default()
        },
    })))
}

/// Parses the number of an inherited descriptor, beside the standard ones.
fn parse_descriptor(text: &str) -> Result<RawFd, Error> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|number| is_plain && *number > 2);
    number.ok_or_else(|| Error::Value {
        option: "--tap-fd",
        value: text.to_owned(),
        expected: "the number of an inherited descriptor above 2",
    })
}

/// Parses a size with an optional suffix K, M, G or T, powers of 1024.
fn parse_size(value: OsString) -> Result<u64, Error> {
    let text = value.to_string_lossy().into_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        "T" => Some(40),
        _ => None,
    };
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: Option<u64> = digits.parse().ok().filter(|_| is_plain);
    let size = number
        .zip(shift)
        .and_then(|(number, shift)| number.checked_mul(1 << shift));
    size.filter(|size| *size > 0).ok_or(Error::Value {
        option: "--memory-limit",
        value: text,
        expected: "a size such as 8G, 512M or 1048576",
    })
}

fn parse_level(value: OsString) -> Result<LevelFilter, Error> {
    let text = value.to_string_lossy().into_owned();
    let level = match text.to_ascii_lowercase().as_str() {
        "warning" => Some(LevelFilter::Warn),
        other => other.parse().ok(),
    };
    level.ok_or(Error::Value {
        option: "--log-level",
        value: text,
        expected: "Off, Error, Warning, Info, Debug or Trace",
    })
}

#[cfg(test)]
mod tests {
    use super::{Args, Command, OPTIONS};
    use crate::help::TEXT;

    fn parse(line: &str) -> Result<Args, String> {
        match super::parse(line.split_whitespace().map(Into::into)) {
            Ok(Command::Supervise(args)) => Ok(*args),
            Ok(Command::Help) => panic!("{line} requests help"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn options_have_defaults() {
        let args = parse("--api-sock s --state-dir d").unwrap();
        assert_eq!((args.max_wakes, args.shells, args.memory_limit), (8, 0, None));
        let args = parse("--api-sock s --state-dir=d --max-wakes 3 --memory-limit 2G --shells 4").unwrap();
        assert_eq!(
            (args.max_wakes, args.shells, args.memory_limit),
            (3, 4, Some(2 << 30))
        );
    }

    #[test]
    fn usage_errors_name_the_argument() {
        for (line, text) in [
            ("", "missing --api-sock SOCKET"),
            ("--api-sock s", "missing --state-dir DIR"),
            ("--api-sock s --api-sock t", "--api-sock is given twice"),
            (
                "--api-sock s --state-dir d --max-wakes 0",
                "--max-wakes \"0\": expected a number from 1",
            ),
            (
                "--api-sock s --state-dir d --max-wakes +1",
                "--max-wakes \"+1\": expected",
            ),
            (
                "--api-sock s --state-dir d --tap-fd 2",
                "--tap-fd \"2\": expected the number of an inherited",
            ),
            (
                "--api-sock s --state-dir d --timeout 0",
                "--timeout \"0\": expected a number of seconds",
            ),
            (
                "--api-sock s --state-dir d --memory-limit 1Q",
                "--memory-limit \"1Q\": expected a size",
            ),
            (
                "--api-sock s --state-dir d --memory-limit 0",
                "--memory-limit \"0\": expected a size",
            ),
            (
                "--api-sock s --state-dir d --log-level loud",
                "--log-level \"loud\": expected Off",
            ),
            ("--fast", "invalid option '--fast'; run mayfly standby --help"),
            ("x", "unexpected argument \"x\""),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.starts_with(text), "{line}: {message}");
        }
    }

    #[test]
    fn help_lists_each_option_and_fits_the_terminal() {
        for option in OPTIONS {
            assert!(TEXT.contains(option), "{option}");
        }
        assert!(TEXT.lines().all(|line| line.len() <= 120));
    }
}
