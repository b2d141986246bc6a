//! The command line of `mayfly ctl`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg;
use serde_json::{Value, json};

use super::limits::{self, TokenUnit};
use super::{Ctl, CtlCommand, RequestBody, units};

/// Where Firecracker has its socket unless it is told otherwise.
const SOCKET: &str = "/run/firecracker.socket";
/// How long a request may take unless the user has more patience.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that can be waited for, in seconds.
const MAX_TIMEOUT: u64 = 3600;

/// Why the command line makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No command.
    #[error("mayfly ctl needs a command, such as status: try mayfly ctl --help")]
    NoCommand,
    /// An unknown command.
    #[error("mayfly ctl has no command {0:?}: try mayfly ctl --help")]
    Command(String),
    /// A command without what it is about.
    #[error("mayfly ctl {command} needs {what}: try mayfly ctl --help")]
    Missing {
        /// The command.
        command: String,
        /// What it needs.
        what: &'static str,
    },
    /// A word too many.
    #[error("{word:?} is one word too many for mayfly ctl {command}")]
    Superfluous {
        /// The command.
        command: String,
        /// The word.
        word: String,
    },
    /// An option of another command.
    #[error("mayfly ctl {command} takes no {option}")]
    Option {
        /// The command.
        command: String,
        /// The option.
        option: &'static str,
    },
    /// An option given twice.
    #[error("{0} is there twice: which one counts?")]
    Twice(&'static str),
    /// A value that an option cannot have.
    #[error("{option} {value:?}: it is {expected}")]
    Value {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The API takes text.
    #[error("{0:?} is not UTF-8, as all that goes to the API has to be")]
    NotText(OsString),
    /// An unknown option, or one without its value.
    #[error("{0}: try mayfly ctl --help")]
    Syntax(#[source] lexopt::Error),
}

/// Options that some commands have, with their commands.
const OPTIONS: [(&str, &str); 7] = [
    ("--path", "drive"),
    ("--bandwidth", "drive"),
    ("--ops", "drive"),
    ("--rx-bandwidth", "net"),
    ("--rx-ops", "net"),
    ("--tx-bandwidth", "net"),
    ("--tx-ops", "net"),
];

/// Reads the words after `ctl`; nothing comes back when help is wanted.
///
/// # Errors
/// [`Error`], with the way out in its text.
pub fn parse(parser: &mut lexopt::Parser) -> Result<Option<Ctl>, Error> {
    let (mut socket, mut patience, mut json) = (None, None, false);
    let mut words = Vec::new();
    let mut options = Options(Vec::new());
    while let Some(argument) = parser.next().map_err(Error::Syntax)? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            Arg::Long("json") => json = true,
            Arg::Long("api-sock") => {
                let path = parser.value().map(PathBuf::from).map_err(Error::Syntax)?;
                once(&mut socket, path, "--api-sock")?;
            }
            Arg::Long("timeout") => once(&mut patience, seconds(&text(parser)?)?, "--timeout")?,
            Arg::Value(word) => words.push(word.into_string().map_err(Error::NotText)?),
            Arg::Long(name) => match OPTIONS.iter().find(|(known, _)| known[2..] == *name) {
                Some((name, _)) => options.add(name, text(parser)?)?,
                None => return Err(Error::Syntax(argument.unexpected())),
            },
            Arg::Short(_) => return Err(Error::Syntax(argument.unexpected())),
        }
    }
    let mut words = words.into_iter();
    let command = words.next().ok_or(Error::NoCommand)?;
    if command == "help" {
        return Ok(None);
    }
    let action = action(&command, &mut words, &mut options)?;
    if let Some(word) = words.next() {
        return Err(Error::Superfluous { command, word });
    }
    Ok(Some(Ctl {
        socket: socket.unwrap_or_else(|| SOCKET.into()),
        patience: patience.unwrap_or(TIMEOUT),
        json,
        action,
    }))
}

fn action(
    command: &str,
    words: &mut impl Iterator<Item = String>,
    options: &mut Options,
) -> Result<CtlCommand, Error> {
    options.belong_to(command)?;
    let mut next = |what| {
        words
            .next()
            .filter(|word| !word.is_empty())
            .ok_or(Error::Missing {
                command: command.to_owned(),
                what,
            })
    };
    Ok(match command {
        "status" => CtlCommand::Status,
        "config" => CtlCommand::Config,
        "metrics" => CtlCommand::Metrics,
        "start" => CtlCommand::Start,
        "pause" => CtlCommand::Pause,
        "resume" => CtlCommand::Resume,
        "stop" => CtlCommand::Stop,
        "flush-metrics" => CtlCommand::FlushMetrics,
        "drive" => drive(next("the name of a drive")?, options)?,
        "net" => net(next("the name of a network interface")?, options)?,
        "request" => CtlCommand::Request {
            method: next("a method, such as GET")?.to_ascii_uppercase(),
            path: next("a path, such as /machine-config")?,
            body: match words.next() {
                None => RequestBody::None,
                Some(body) if body == "-" => RequestBody::Stdin,
                Some(body) => RequestBody::Text(body),
            },
        },
        other => return Err(Error::Command(other.to_owned())),
    })
}

fn drive(id: String, options: &mut Options) -> Result<CtlCommand, Error> {
    let mut body = json!({ "drive_id": id });
    if let Some(path) = options.take("--path") {
        body["path_on_host"] = path.into();
    }
    if let Some(limiter) = options.limiter("--bandwidth", "--ops")? {
        body["rate_limiter"] = limiter;
    }
    let kind = "drives";
    Ok(CtlCommand::Change { kind, id, body })
}

fn net(id: String, options: &mut Options) -> Result<CtlCommand, Error> {
    let mut body = json!({ "iface_id": id });
    for (key, bandwidth, operations) in [
        ("rx_rate_limiter", "--rx-bandwidth", "--rx-ops"),
        ("tx_rate_limiter", "--tx-bandwidth", "--tx-ops"),
    ] {
        if let Some(limiter) = options.limiter(bandwidth, operations)? {
            body[key] = limiter;
        }
    }
    if body.as_object().is_none_or(|body| body.len() == 1) {
        return Err(Error::Missing {
            command: "net".to_owned(),
            what: "something to change, such as --rx-bandwidth",
        });
    }
    let kind = "network-interfaces";
    Ok(CtlCommand::Change { kind, id, body })
}

/// Options with their values, of which each is taken once.
struct Options(Vec<(&'static str, String)>);

impl Options {
    fn add(&mut self, name: &'static str, value: String) -> Result<(), Error> {
        if self.0.iter().any(|(known, _)| *known == name) {
            return Err(Error::Twice(name));
        }
        self.0.push((name, value));
        Ok(())
    }

    /// Refuses options of commands other than `command`.
    fn belong_to(&self, command: &str) -> Result<(), Error> {
        let known = |name: &str| OPTIONS.contains(&(name, command));
        match self.0.iter().find(|(name, _)| !known(name)) {
            None => Ok(()),
            Some((option, _)) => Err(Error::Option {
                command: command.to_owned(),
                option,
            }),
        }
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let place = self.0.iter().position(|(known, _)| *known == name)?;
        Some(self.0.remove(place).1)
    }

    fn limiter(&mut self, bandwidth: &'static str, operations: &'static str) -> Result<Option<Value>, Error> {
        let expected = "SIZE/MILLISECONDS, SIZE/MILLISECONDS/BURST or off, with sizes such as 10M";
        let bytes = self.bucket(bandwidth, TokenUnit::Bytes, expected)?;
        let expected = "NUMBER/MILLISECONDS, NUMBER/MILLISECONDS/BURST or off";
        let operations = self.bucket(operations, TokenUnit::Operations, expected)?;
        Ok(limits::limiter(bytes, operations))
    }

    fn bucket(
        &mut self,
        option: &'static str,
        tokens: TokenUnit,
        expected: &'static str,
    ) -> Result<Option<Value>, Error> {
        let Some(value) = self.take(option) else {
            return Ok(None);
        };
        match limits::bucket(&value, tokens) {
            Some(bucket) => Ok(Some(bucket)),
            None => Err(Error::Value {
                option,
                value,
                expected,
            }),
        }
    }
}

fn once<T>(place: &mut Option<T>, value: T, option: &'static str) -> Result<(), Error> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Error::Twice(option)),
    }
}

fn text(parser: &mut lexopt::Parser) -> Result<String, Error> {
    let value = parser.value().map_err(Error::Syntax)?;
    value.into_string().map_err(Error::NotText)
}

fn seconds(text: &str) -> Result<Duration, Error> {
    let seconds = units::count(text).filter(|seconds| (1..=MAX_TIMEOUT).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| Error::Value {
        option: "--timeout",
        value: text.to_owned(),
        expected: "a number of seconds from 1 to 3600",
    })
}
