//! The command line of `mayfly ctl`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg;
use serde_json::{Map, Value, json};

use api::client::DEFAULT_SOCKET;

/// Default timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum timeout, in seconds.
const MAX_TIMEOUT: u64 = 3600;

/// A command, and the server that receives it.
#[derive(Debug, PartialEq)]
pub struct Ctl {
    /// Path of the API socket.
    pub socket: PathBuf,
    /// Timeout of each request.
    pub timeout: Duration,
    /// Print responses unchanged.
    pub json: bool,
    /// The command.
    pub command: CtlCommand,
}

/// A command of `mayfly ctl`.
#[derive(Debug, PartialEq)]
pub enum CtlCommand {
    /// Print the instance state, the size of the VM, vCPUs and devices.
    Status {
        /// Print the registers of the vCPUs too.
        registers: bool,
    },
    /// Print the configuration.
    Config,
    /// Print the metrics.
    Metrics,
    /// Start the VM.
    Start,
    /// Pause the VM.
    Pause,
    /// Resume the VM.
    Resume,
    /// Send Ctrl-Alt-Del to the guest.
    Stop,
    /// Write a line to the metrics file.
    FlushMetrics,
    /// Suspend the VM.
    Suspend,
    /// Cancel a suspend.
    CancelSuspend,
    /// Announce that the guest is ready.
    Ready,
    /// Attach to the serial console of the VM, or to that at this path.
    Console(Option<PathBuf>),
    /// Connect gdb on stdin and stdout with the VM.
    Gdb,
    /// Change a drive or an interface.
    Change {
        /// `drives` or `network-interfaces`.
        kind: &'static str,
        /// Name of the device.
        id: String,
        /// Body of the request.
        body: Value,
    },
    /// Print the instances of a supervisor.
    Instances,
    /// Print an instance of a supervisor.
    Instance(String),
    /// Wake or suspend an instance of a supervisor, and wait until it is in that state.
    SetInstance {
        /// Identifier.
        id: String,
        /// `wake` or `suspend`.
        change: &'static str,
    },
    /// Delete an instance of a supervisor.
    Delete(String),
    /// Send any request.
    Request {
        /// HTTP method.
        method: String,
        /// Path, with a query if there is one.
        path: String,
        /// Body of the request.
        body: RequestBody,
    },
}

/// Body of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum RequestBody {
    /// No body.
    None,
    /// This JSON text.
    Text(String),
    /// The content of stdin.
    Stdin,
}

/// Usage error of `mayfly ctl`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No command is given.
    #[error("missing command, such as status; run mayfly ctl --help")]
    NoCommand,
    /// The command is unknown.
    #[error("{0:?} is not a command of mayfly ctl; run mayfly ctl --help")]
    Command(String),
    /// An argument of the command is missing.
    #[error("missing {argument} for mayfly ctl {command}; run mayfly ctl --help")]
    Missing {
        /// The command.
        command: String,
        /// The missing argument.
        argument: &'static str,
    },
    /// An argument is unexpected.
    #[error("{argument:?} is an unexpected argument of mayfly ctl {command}; run mayfly ctl --help")]
    Unexpected {
        /// The command.
        command: String,
        /// The argument.
        argument: String,
    },
    /// The option belongs to another command.
    #[error("{option} is not an option of mayfly ctl {command}; run mayfly ctl --help")]
    Option {
        /// The command.
        command: String,
        /// The option.
        option: &'static str,
    },
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
    /// An argument is not UTF-8, as the API requires.
    #[error("argument {0:?} is not UTF-8; use UTF-8, as the API requires")]
    NotUtf8(OsString),
    /// An option is unknown, or has no value.
    #[error("{0}; run mayfly ctl --help")]
    Syntax(#[source] lexopt::Error),
}

/// Options of single commands, with the command.
const OPTIONS: [(&str, &str); 7] = [
    ("--path", "drive"),
    ("--bandwidth", "drive"),
    ("--ops", "drive"),
    ("--rx-bandwidth", "net"),
    ("--rx-ops", "net"),
    ("--tx-bandwidth", "net"),
    ("--tx-ops", "net"),
];

/// Argument of the commands for a supervisor.
const INSTANCE: &str = "the identifier of an instance";

/// Flag of a single command, with the command.
const REGISTERS: (&str, &str) = ("--registers", "status");

/// Parses the arguments after `ctl`. Returns nothing if they request help.
///
/// # Errors
/// [`Error`] on a usage error.
pub fn parse(parser: &mut lexopt::Parser) -> Result<Option<Ctl>, Error> {
    let (mut socket, mut timeout, mut json) = (None, None, false);
    let mut arguments = Vec::new();
    let mut options = Options {
        values: Vec::new(),
        registers: false,
    };
    while let Some(argument) = parser.next().map_err(Error::Syntax)? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            Arg::Long("json") => json = true,
            Arg::Long(name) if name == &REGISTERS.0[2..] => options.registers = true,
            Arg::Long("api-sock") => {
                let path = parser.value().map(PathBuf::from).map_err(Error::Syntax)?;
                set_once(&mut socket, path, "--api-sock")?;
            }
            Arg::Long("timeout") => set_once(&mut timeout, seconds(&text(parser)?)?, "--timeout")?,
            Arg::Value(argument) => arguments.push(argument.into_string().map_err(Error::NotUtf8)?),
            Arg::Long(name) => match OPTIONS.iter().find(|(known, _)| known[2..] == *name) {
                Some((name, _)) => options.add(name, text(parser)?)?,
                None => return Err(Error::Syntax(argument.unexpected())),
            },
            Arg::Short(_) => return Err(Error::Syntax(argument.unexpected())),
        }
    }
    let mut arguments = arguments.into_iter();
    let name = arguments.next().ok_or(Error::NoCommand)?;
    if name == "help" {
        return Ok(None);
    }
    let command = command(&name, &mut arguments, &mut options)?;
    if let Some(argument) = arguments.next() {
        return Err(Error::Unexpected {
            command: name,
            argument,
        });
    }
    Ok(Some(Ctl {
        socket: socket.unwrap_or_else(|| DEFAULT_SOCKET.into()),
        timeout: timeout.unwrap_or(TIMEOUT),
        json,
        command,
    }))
}

fn command(
    name: &str,
    arguments: &mut impl Iterator<Item = String>,
    options: &mut Options,
) -> Result<CtlCommand, Error> {
    options.check_command(name)?;
    let mut next = |argument| {
        arguments
            .next()
            .filter(|word| !word.is_empty())
            .ok_or(Error::Missing {
                command: name.to_owned(),
                argument,
            })
    };
    Ok(match name {
        "status" => CtlCommand::Status {
            registers: options.registers,
        },
        "config" => CtlCommand::Config,
        "metrics" => CtlCommand::Metrics,
        "start" => CtlCommand::Start,
        "pause" => CtlCommand::Pause,
        "resume" => CtlCommand::Resume,
        "stop" => CtlCommand::Stop,
        "flush-metrics" => CtlCommand::FlushMetrics,
        "suspend" => match arguments.next() {
            None => CtlCommand::Suspend,
            Some(id) if id.is_empty() => {
                return Err(Error::Missing {
                    command: name.to_owned(),
                    argument: INSTANCE,
                });
            }
            Some(id) => CtlCommand::SetInstance {
                id,
                change: "suspend",
            },
        },
        "wake" => CtlCommand::SetInstance {
            id: next(INSTANCE)?,
            change: "wake",
        },
        "instances" => CtlCommand::Instances,
        "instance" => CtlCommand::Instance(next(INSTANCE)?),
        "delete" => CtlCommand::Delete(next(INSTANCE)?),
        "cancel-suspend" => CtlCommand::CancelSuspend,
        "ready" => CtlCommand::Ready,
        "console" => CtlCommand::Console(arguments.next().map(PathBuf::from)),
        "gdb" => CtlCommand::Gdb,
        "drive" => drive(next("the name of a drive")?, options)?,
        "net" => net(next("the name of a network interface")?, options)?,
        "request" => CtlCommand::Request {
            method: next("a method, such as GET,")?.to_ascii_uppercase(),
            path: next("a path, such as /machine-config,")?,
            body: match arguments.next() {
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
    if let Some(path) = options.remove("--path") {
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
            argument: "a change, such as --rx-bandwidth,",
        });
    }
    let kind = "network-interfaces";
    Ok(CtlCommand::Change { kind, id, body })
}

/// Options of single commands.
struct Options {
    /// Options with their values, in the given order.
    values: Vec<(&'static str, String)>,
    /// The flag [`REGISTERS`] is given.
    registers: bool,
}

impl Options {
    fn add(&mut self, name: &'static str, value: String) -> Result<(), Error> {
        if self.values.iter().any(|(known, _)| *known == name) {
            return Err(Error::Twice(name));
        }
        self.values.push((name, value));
        Ok(())
    }

    /// Fails if an option belongs to a command other than `command`.
    fn check_command(&self, command: &str) -> Result<(), Error> {
        let known = |name: &str| OPTIONS.contains(&(name, command)) || REGISTERS == (name, command);
        let flag = self.registers.then_some(REGISTERS.0);
        let mut given = self.values.iter().map(|(name, _)| *name).chain(flag);
        match given.find(|name| !known(name)) {
            None => Ok(()),
            Some(option) => Err(Error::Option {
                command: command.to_owned(),
                option,
            }),
        }
    }

    fn remove(&mut self, name: &str) -> Option<String> {
        let index = self.values.iter().position(|(known, _)| *known == name)?;
        Some(self.values.remove(index).1)
    }

    fn limiter(&mut self, bandwidth: &'static str, operations: &'static str) -> Result<Option<Value>, Error> {
        let expected = "SIZE/MILLISECONDS, SIZE/MILLISECONDS/BURST or off, with sizes such as 10M";
        let bytes = self.bucket(bandwidth, TokenUnit::Bytes, expected)?;
        let expected = "NUMBER/MILLISECONDS, NUMBER/MILLISECONDS/BURST or off";
        let operations = self.bucket(operations, TokenUnit::Operations, expected)?;
        Ok(limiter(bytes, operations))
    }

    fn bucket(
        &mut self,
        option: &'static str,
        unit: TokenUnit,
        expected: &'static str,
    ) -> Result<Option<Value>, Error> {
        let Some(value) = self.remove(option) else {
            return Ok(None);
        };
        match parse_bucket(&value, unit) {
            Some(bucket) => Ok(Some(bucket)),
            None => Err(Error::Value {
                option,
                value,
                expected,
            }),
        }
    }
}

fn set_once<T>(slot: &mut Option<T>, value: T, option: &'static str) -> Result<(), Error> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Error::Twice(option)),
    }
}

fn text(parser: &mut lexopt::Parser) -> Result<String, Error> {
    let value = parser.value().map_err(Error::Syntax)?;
    value.into_string().map_err(Error::NotUtf8)
}

fn seconds(text: &str) -> Result<Duration, Error> {
    let seconds = parse_count(text).filter(|seconds| (1..=MAX_TIMEOUT).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| Error::Value {
        option: "--timeout",
        value: text.to_owned(),
        expected: "a number of seconds from 1 to 3600",
    })
}

/// Unit of the tokens of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenUnit {
    Bytes,
    Operations,
}

/// Parses `AMOUNT/MILLISECONDS[/BURST]` or `off` into a token bucket of the API.
fn parse_bucket(text: &str, unit: TokenUnit) -> Option<Value> {
    // The API removes a limit whose size and time are 0.
    if text == "off" {
        return Some(json!({"size": 0, "refill_time": 0}));
    }
    let amount = match unit {
        TokenUnit::Bytes => parse_size,
        TokenUnit::Operations => parse_count,
    };
    let mut parts = text.split('/');
    let size = amount(parts.next()?)?;
    let time = parts.next()?;
    let refill_time = parse_count(time.strip_suffix("ms").unwrap_or(time))?;
    let mut bucket = json!({"size": size, "refill_time": refill_time});
    if let Some(burst) = parts.next() {
        bucket["one_time_burst"] = amount(burst)?.into();
    }
    parts.next().is_none().then_some(bucket)
}

/// Returns a rate limiter of the API with the given buckets, or nothing if there are none.
fn limiter(bandwidth: Option<Value>, operations: Option<Value>) -> Option<Value> {
    let mut limiter = Map::new();
    limiter.extend(bandwidth.map(|bucket| ("bandwidth".to_owned(), bucket)));
    limiter.extend(operations.map(|bucket| ("ops".to_owned(), bucket)));
    (!limiter.is_empty()).then_some(Value::Object(limiter))
}

/// Parses a number of bytes with an optional suffix K, M, G or T, powers of 1024.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return None,
    };
    parse_count(digits)?.checked_mul(1 << shift)
}

/// Parses a number of decimal digits only: `str::parse` accepts a plus sign too.
fn parse_count(digits: &str) -> Option<u64> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use serde_json::json;

    use super::{TokenUnit, limiter, parse_bucket, parse_size};

    #[test]
    fn buckets_are_parsed() {
        let bytes = |text| parse_bucket(text, TokenUnit::Bytes);
        let operations = |text| parse_bucket(text, TokenUnit::Operations);
        assert_eq!(
            bytes("10M/100"),
            Some(json!({"size": 10 << 20, "refill_time": 100}))
        );
        assert_eq!(
            bytes("1K/5ms/2K"),
            Some(json!({"size": 1024, "refill_time": 5, "one_time_burst": 2048}))
        );
        assert_eq!(
            operations("50/1000"),
            Some(json!({"size": 50, "refill_time": 1000}))
        );
        assert_eq!(bytes("off"), Some(json!({"size": 0, "refill_time": 0})));
        for text in ["", "10M", "10M/", "/1", "1/2/3/4", "1/2/", "x/1", "1/1K", "1/1s"] {
            assert_eq!(bytes(text), None, "{text}");
        }
        assert_eq!(operations("1K/1000"), None, "operations have no suffixes");
    }

    #[test]
    fn limiter_has_given_buckets_only() {
        assert_eq!(limiter(None, None), None);
        assert_eq!(limiter(None, Some(json!(1))), Some(json!({"ops": 1})));
    }

    #[test]
    fn sizes_have_suffixes() {
        for (text, count) in [
            ("0", 0),
            ("12", 12),
            ("1k", 1024),
            ("10M", 10 << 20),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(parse_size(text), Some(count), "{text}");
        }
        for text in ["", "M", "-1", "+1", "1.5M", "1 M", "1Q", "99999999999T", "1é"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_rejected(text in any::<String>()) {
            let _ = parse_size(&text);
        }
    }
}
