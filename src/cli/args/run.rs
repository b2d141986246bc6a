//! The arguments of `mayfly run`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use lexopt::Arg;
use vmm::arch::{Architecture, Native, Platform};
use vmm::config::{DeviceConfig, VmConfig};

use super::error::{Error, lossy, syntax};
use super::session::{self, GivenOptions, SessionArgs, utf8, value};

/// Arguments of `mayfly run`.
#[derive(Debug)]
pub struct RunArgs {
    /// Configuration of the VM.
    pub config: VmConfig,
    /// Options of the session.
    pub session: SessionArgs,
    /// A command line is given, which may be empty.
    pub has_guest_arguments: bool,
}

/// Parses the arguments after `run`. Returns nothing if they request help.
pub(super) fn parse(parser: &mut lexopt::Parser) -> Result<Option<Box<RunArgs>>, Error> {
    let mut given = GivenOptions::default();
    let mut kernel = None;
    let mut run = RunArgs {
        config: VmConfig::new(PathBuf::new()),
        session: SessionArgs::default(),
        has_guest_arguments: false,
    };
    loop {
        // lexopt drops a lone --; guest arguments keep any further one.
        if let Some(raw) = parser.try_raw_args()
            && raw.peek().is_some_and(|argument| argument == "--")
        {
            let arguments: Vec<_> = parser.raw_args().map_err(syntax("run"))?.skip(1).collect();
            run.config.cmdline = join_guest_arguments(arguments)?;
            run.has_guest_arguments = true;
            break;
        }
        let Some(argument) = parser.next().map_err(syntax("run"))? else {
            break;
        };
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            Arg::Value(path) if kernel.is_none() => kernel = Some(utf8("KERNEL", path)?.into()),
            Arg::Value(argument) => return Err(Error::Unexpected(lossy(&argument))),
            Arg::Short('m') => parse_option(parser, &mut run, &mut given, "--memory")?,
            Arg::Long(name) => {
                let name = OPTIONS
                    .iter()
                    .chain(&session::OPTIONS)
                    .find(|known| known.trim_start_matches("--") == name);
                match name {
                    Some(name) => parse_option(parser, &mut run, &mut given, name)?,
                    None => return Err(syntax("run")(argument.unexpected())),
                }
            }
            Arg::Short(_) => return Err(syntax("run")(argument.unexpected())),
        }
    }
    run.config.kernel = kernel.ok_or(Error::NoKernel("run"))?;
    run.session.check()?;
    Ok(Some(Box::new(run)))
}

const OPTIONS: [&str; 13] = [
    "--memory",
    "--cpus",
    "--initrd",
    "--protocol",
    "--machine",
    "--gic",
    "--cpu-features",
    "--irqchip",
    "--no-acpi",
    "--no-mptable",
    "--no-device-arguments",
    "--disk",
    "--net",
];

fn parse_option(
    parser: &mut lexopt::Parser,
    run: &mut RunArgs,
    given: &mut GivenOptions,
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
        _ => given.add(name)?,
    }
    check_architecture(name, Native::ARCHITECTURE)?;
    match name {
        "--memory" => config.memory = value(parser, "run", name)?,
        "--cpus" => config.vcpus = value::<Count>(parser, "run", name)?.0,
        "--initrd" => config.initrd = Some(value(parser, "run", name)?),
        "--protocol" => config.protocol = Some(value(parser, "run", name)?),
        "--machine" => config.memory_map = Some(value(parser, "run", name)?),
        "--gic" => config.gic = Some(value(parser, "run", name)?),
        "--cpu-features" => config.cpu_features = value(parser, "run", name)?,
        "--irqchip" => config.irqchip = value(parser, "run", name)?,
        "--no-acpi" => config.acpi = false,
        "--no-mptable" => config.mptable = false,
        "--no-device-arguments" => config.device_arguments = false,
        other => run.session.parse_option(parser, "run", other)?,
    }
    Ok(())
}

/// Checks that a machine of `architecture` has option `name`.
fn check_architecture(name: &'static str, architecture: Architecture) -> Result<(), Error> {
    let required = match name {
        "--irqchip" | "--no-acpi" | "--no-mptable" | "--no-device-arguments" => Architecture::X86_64,
        "--machine" | "--gic" => Architecture::Aarch64,
        _ => return Ok(()),
    };
    if architecture != required {
        return Err(Error::Architecture {
            option: name,
            required,
            architecture,
        });
    }
    Ok(())
}

/// A number with an error text of its own: that of `u32` does not name the expected value.
pub(super) struct Count(pub(super) u32);

impl FromStr for Count {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        text.parse()
            .map(Self)
            .map_err(|_| "expected a number from 1 to 32")
    }
}

/// Joins guest arguments by spaces into a command line.
fn join_guest_arguments(arguments: Vec<OsString>) -> Result<String, Error> {
    let arguments: Result<Vec<_>, _> = arguments.into_iter().map(OsString::into_string).collect();
    let arguments = arguments.map_err(Error::GuestArgument)?;
    Ok(arguments.join(" "))
}

#[cfg(test)]
mod tests {
    use super::{Count, check_architecture};
    use vmm::arch::Architecture::{Aarch64, X86_64};
    use vmm::config::MAX_VCPUS;

    #[test]
    fn invalid_count_names_the_limit() {
        let error = "x".parse::<Count>().err().unwrap();
        assert!(error.ends_with(&format!(" to {MAX_VCPUS}")), "{error}");
    }

    #[test]
    fn options_of_other_architecture_are_rejected() {
        for (name, own, other) in [
            ("--irqchip", X86_64, Aarch64),
            ("--no-acpi", X86_64, Aarch64),
            ("--no-mptable", X86_64, Aarch64),
            ("--no-device-arguments", X86_64, Aarch64),
            ("--machine", Aarch64, X86_64),
            ("--gic", Aarch64, X86_64),
        ] {
            assert!(check_architecture(name, own).is_ok(), "{name}");
            assert!(check_architecture(name, other).is_err(), "{name}");
        }
        for name in ["--memory", "--cpu-features"] {
            for architecture in [Aarch64, X86_64] {
                assert!(check_architecture(name, architecture).is_ok(), "{name}");
            }
        }
        let error = check_architecture("--gic", X86_64).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--gic is an option of aarch64 machines, and this machine is x86_64; remove it"
        );
    }
}
