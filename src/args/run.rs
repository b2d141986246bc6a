//! The options of `mayfly run`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::str::FromStr;

use api::http::Limits;
use api::logger::LoggerSettings;
use lexopt::Arg;
use vmm::config::VmConfig;

use super::{Command, Error, lossy, syntax};
use crate::firecracker;
use crate::help::Topic;
use crate::serve::Front;

/// Options of `mayfly run`.
#[derive(Debug)]
pub struct Run {
    /// The machine.
    pub config: VmConfig,
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

impl Run {
    /// The way to the VM from outside, if one is wanted.
    pub fn front(&self) -> Option<Front<'_>> {
        let wanted = self.socket.is_some() || self.log != LoggerSettings::default();
        wanted.then(|| Front {
            socket: self.socket.as_deref(),
            limits: Limits::default(),
            id: &self.id,
            log: &self.log,
        })
    }
}

/// Reads the options of `mayfly run`.
pub(super) fn run(parser: &mut lexopt::Parser) -> Result<Command, Error> {
    let mut seen = Seen::default();
    let mut kernel = None;
    let mut run = Run {
        config: VmConfig::new(PathBuf::new()),
        timings: false,
        trace: None,
        socket: None,
        id: "anonymous-instance".into(),
        log: LoggerSettings::default(),
    };
    loop {
        // Everything after the first lone -- is the guest's, further ones included.
        if let Some(raw) = parser.try_raw_args()
            && raw.peek().is_some_and(|word| word == "--")
        {
            let words: Vec<_> = parser.raw_args().map_err(syntax("run"))?.skip(1).collect();
            run.config.cmdline = guest_arguments(words)?;
            break;
        }
        let Some(argument) = parser.next().map_err(syntax("run"))? else {
            break;
        };
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Run)),
            Arg::Value(path) if kernel.is_none() => kernel = Some(PathBuf::from(path)),
            Arg::Value(word) => return Err(Error::Superfluous(lossy(&word))),
            Arg::Short('m') => option(parser, &mut run, &mut seen, "--memory")?,
            Arg::Long(name) => {
                let name = OPTIONS
                    .iter()
                    .find(|known| known.trim_start_matches("--") == name);
                match name {
                    Some(name) => option(parser, &mut run, &mut seen, name)?,
                    None => return Err(syntax("run")(argument.unexpected())),
                }
            }
            Arg::Short(_) => return Err(syntax("run")(argument.unexpected())),
        }
    }
    run.config.kernel = kernel.ok_or(Error::NoKernel("run"))?;
    Ok(Command::Run(Box::new(run)))
}

const OPTIONS: [&str; 16] = [
    "--memory",
    "--cpus",
    "--initrd",
    "--protocol",
    "--irqchip",
    "--no-acpi",
    "--no-mptable",
    "--no-device-arguments",
    "--disk",
    "--net",
    "--timings",
    "--trace",
    "--api-sock",
    "--id",
    "--log-level",
    "--log-file",
];

#[derive(Default)]
struct Seen(Vec<&'static str>);

impl Seen {
    fn note(&mut self, option: &'static str) -> Result<(), Error> {
        if self.0.contains(&option) {
            return Err(Error::Twice(option));
        }
        self.0.push(option);
        Ok(())
    }
}

fn option(
    parser: &mut lexopt::Parser,
    run: &mut Run,
    seen: &mut Seen,
    name: &'static str,
) -> Result<(), Error> {
    let config = &mut run.config;
    match name {
        "--disk" => return value(parser, name).map(|drive| config.drives.push(drive)),
        "--net" => return value(parser, name).map(|net| config.nets.push(net)),
        _ => seen.note(name)?,
    }
    match name {
        "--memory" => config.memory = value(parser, name)?,
        "--cpus" => config.vcpus = value::<Count>(parser, name)?.0,
        "--initrd" => config.initrd = Some(path(parser)?),
        "--protocol" => config.protocol = Some(value(parser, name)?),
        "--irqchip" => config.irqchip = value(parser, name)?,
        "--no-acpi" => config.acpi = false,
        "--no-mptable" => config.mptable = false,
        "--no-device-arguments" => config.device_arguments = false,
        "--timings" => run.timings = true,
        "--trace" => run.trace = Some(path(parser)?),
        "--api-sock" => run.socket = Some(path(parser)?),
        "--log-file" => run.log.path = Some(path(parser)?),
        "--id" => run.id = checked(parser, name, firecracker::id)?,
        "--log-level" => run.log.level = Some(checked(parser, name, firecracker::level)?),
        other => unreachable!("{other} is not in OPTIONS"),
    }
    Ok(())
}

/// A number, whose error says that one is needed.
struct Count(u32);

impl FromStr for Count {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        text.parse().map(Self).map_err(|_| "a number is needed")
    }
}

fn path(parser: &mut lexopt::Parser) -> Result<PathBuf, Error> {
    parser.value().map(PathBuf::from).map_err(syntax("run"))
}

fn value<T: FromStr>(parser: &mut lexopt::Parser, option: &'static str) -> Result<T, Error>
where
    T::Err: std::fmt::Display,
{
    let text = lossy(&parser.value().map_err(syntax("run"))?);
    text.parse().map_err(|error: T::Err| Error::Value {
        option,
        value: text,
        reason: error.to_string(),
    })
}

/// A value that `check` accepts, for the reason that it gives.
fn checked<T>(
    parser: &mut lexopt::Parser,
    option: &'static str,
    check: impl FnOnce(&OsStr) -> Result<T, &'static str>,
) -> Result<T, Error> {
    let text = parser.value().map_err(syntax("run"))?;
    check(&text).map_err(|reason| Error::Value {
        option,
        value: lossy(&text),
        reason: reason.into(),
    })
}

/// The command line of the guest: its words with a blank in between, as a shell user would write them.
fn guest_arguments(words: Vec<OsString>) -> Result<String, Error> {
    let words: Result<Vec<_>, _> = words.into_iter().map(OsString::into_string).collect();
    words.map(|words| words.join(" ")).map_err(Error::GuestArgument)
}
