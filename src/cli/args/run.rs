//! The options of `mayfly run`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use lexopt::Arg;
use vmm::config::{DeviceConfig, VmConfig};

use super::session::{self, Seen, SessionArgs, path, value};
use super::{Command, Error, lossy, syntax};
use crate::cli::help::Topic;

/// Options of `mayfly run`.
#[derive(Debug)]
pub struct RunArgs {
    /// The machine.
    pub config: VmConfig,
    /// What is told of it, and to whom.
    pub session: SessionArgs,
}

/// Reads the options of `mayfly run`.
pub(super) fn run(parser: &mut lexopt::Parser) -> Result<Command, Error> {
    let mut seen = Seen::default();
    let mut kernel = None;
    let mut run = RunArgs {
        config: VmConfig::new(PathBuf::new()),
        session: SessionArgs::default(),
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
                    .chain(&session::OPTIONS)
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

const OPTIONS: [&str; 10] = [
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
];

fn option(
    parser: &mut lexopt::Parser,
    run: &mut RunArgs,
    seen: &mut Seen,
    name: &'static str,
) -> Result<(), Error> {
    let config = &mut run.config;
    match name {
        "--disk" => {
            return value(parser, "run", name).map(|drive| config.devices.push(DeviceConfig::Drive(drive)));
        }
        "--net" => {
            return value(parser, "run", name).map(|net| config.devices.push(DeviceConfig::Interface(net)));
        }
        _ => seen.note(name)?,
    }
    match name {
        "--memory" => config.memory = value(parser, "run", name)?,
        "--cpus" => config.vcpus = value::<Count>(parser, "run", name)?.0,
        "--initrd" => config.initrd = Some(path(parser, "run")?),
        "--protocol" => config.protocol = Some(value(parser, "run", name)?),
        "--irqchip" => config.irqchip = value(parser, "run", name)?,
        "--no-acpi" => config.acpi = false,
        "--no-mptable" => config.mptable = false,
        "--no-device-arguments" => config.device_arguments = false,
        other => run.session.option(parser, "run", other)?,
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

/// The command line of the guest: its words with a blank in between, as a shell user would write them.
fn guest_arguments(words: Vec<OsString>) -> Result<String, Error> {
    let words: Result<Vec<_>, _> = words.into_iter().map(OsString::into_string).collect();
    words.map(|words| words.join(" ")).map_err(Error::GuestArgument)
}
