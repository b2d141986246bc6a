//! The command line: [`parse`] turns it into a [`Command`].
//!
//! | module | contents |
//! |---|---|
//! | `run`, `snapshot` | the arguments of `mayfly run` and of the snapshot commands |
//! | `image` | the names of images in OCI layouts |
//! | `shell` | the arguments of `mayfly shell` |
//! | `session` | the options of `mayfly run` and `mayfly restore` alike |
//! | `firecracker` | Firecracker's command line |
//! | `error` | usage errors |

mod error;
pub mod firecracker;
mod image;
mod run;
mod session;
mod shell;
mod snapshot;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use error::{lossy, syntax};
use firecracker::FirecrackerCommand;
use lexopt::Arg;

use crate::cli::help::Topic;
use crate::sibling;

pub use error::Error;
pub use firecracker::CORE_ON_CRASH;
pub use run::RunArgs;
pub use session::{DebugArgs, GDB_PUBLIC, SessionArgs, SuspendArgs};
pub use shell::{ShellArgs, ShellSocket};
pub use snapshot::{RestoreArgs, SnapshotArgs};

/// Returns the command line of another program, which parses its arguments, if `arguments` belong to one.
fn sibling(arguments: &[OsString]) -> Option<Command> {
    let (name, first) = match arguments.first()?.to_str()? {
        "standby" => (sibling::STANDBY, 1),
        "core" | "ctl" | "doctor" => (sibling::TOOLS, 0),
        _ => return None,
    };
    Some(Command::Sibling(name, arguments[first..].to_vec()))
}

/// A command with its arguments.
#[derive(Debug)]
pub enum Command {
    /// Boot an image.
    Run(Box<RunArgs>),
    /// Describe an image.
    Inspect(PathBuf),
    /// Boot the embedded guest.
    Demo,
    /// Serve a VM over an API socket, with Firecracker's flags.
    Serve(Box<firecracker::FirecrackerArgs>),
    /// Load a snapshot.
    Restore(Box<RestoreArgs>),
    /// Make a VM and wait for a snapshot to load into it.
    Shell(ShellArgs),
    /// Create a snapshot.
    Snapshot(SnapshotArgs),
    /// Describe a snapshot.
    SnapshotInfo(PathBuf),
    /// Print the version of the snapshot format.
    SnapshotVersion,
    /// Print the format version of a state file.
    DescribeSnapshot(PathBuf),
    /// Merge diff snapshots into the first snapshot.
    SnapshotMerge(Vec<PathBuf>),
    /// Become another program, with these arguments.
    Sibling(&'static str, Vec<OsString>),
    /// Print a help text.
    Help(Topic),
    /// Print the version.
    Version,
    /// Print all versions as JSON.
    Versions,
    /// Print the version of Firecracker that mayfly replaces.
    FirecrackerVersion,
}

/// Parses the command line. `program` is the name by which mayfly was called.
///
/// # Errors
/// [`Error`] on a usage error.
pub fn parse(program: &OsStr, arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Error> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let as_firecracker = Path::new(program).file_name() == Some(OsStr::new("firecracker"));
    if !firecracker::is_firecracker_command(as_firecracker, arguments.first().map(OsString::as_os_str)) {
        return parse_command(arguments).map_err(|error| match error {
            // Firecracker has no commands.
            Error::Command(word) if as_firecracker => Error::Firecracker(firecracker::Error::Unknown(word)),
            error => error,
        });
    }
    match firecracker::parse(arguments).map_err(Error::Firecracker)? {
        FirecrackerCommand::Serve(options) => Ok(Command::Serve(options)),
        FirecrackerCommand::Help => Ok(Command::Help(Topic::Firecracker)),
        FirecrackerCommand::Version if as_firecracker => Ok(Command::FirecrackerVersion),
        FirecrackerCommand::Version => Ok(Command::Version),
        FirecrackerCommand::SnapshotVersion => Ok(Command::SnapshotVersion),
        FirecrackerCommand::DescribeSnapshot(path) => Ok(Command::DescribeSnapshot(path)),
    }
}

fn parse_command(arguments: Vec<OsString>) -> Result<Command, Error> {
    if let Some(command) = sibling(&arguments) {
        return Ok(command);
    }
    if image::is_named(&arguments)
        && let Some(arguments) = image::parse(&arguments)
    {
        return Ok(Command::Sibling(sibling::TOOLS, arguments));
    }
    let mut parser = lexopt::Parser::from_args(arguments);
    match parser.next().map_err(Error::TopLevel)? {
        None => Err(Error::NoCommand),
        Some(Arg::Short('h') | Arg::Long("help")) => Ok(Command::Help(Topic::Mayfly)),
        Some(Arg::Short('V') | Arg::Long("version")) => Ok(Command::Version),
        Some(Arg::Value(command)) => match command.to_str() {
            Some("run") => Ok(run::parse(&mut parser)?.map_or(Command::Help(Topic::Run), Command::Run)),
            Some("inspect") => inspect(&mut parser),
            Some("demo") => demo(&mut parser),
            Some("version") => version(&mut parser),
            Some("restore") => {
                let restore = snapshot::parse_restore(&mut parser)?;
                Ok(restore.map_or(Command::Help(Topic::Restore), Command::Restore))
            }
            Some("shell") => {
                let shell = shell::parse(&mut parser)?;
                Ok(shell.map_or(Command::Help(Topic::Shell), Command::Shell))
            }
            Some("snapshot") => {
                let snapshot = snapshot::parse_snapshot(&mut parser)?;
                Ok(snapshot.map_or(Command::Help(Topic::Snapshot), Command::Snapshot))
            }
            Some("snapshot-info") => snapshot_info(&mut parser),
            Some("snapshot-merge") => snapshot_merge(&mut parser),
            Some("help") => help(&mut parser),
            _ => Err(Error::Command(lossy(&command))),
        },
        Some(other) => Err(Error::TopLevel(other.unexpected())),
    }
}

fn snapshot_info(parser: &mut lexopt::Parser) -> Result<Command, Error> {
    let directories = snapshot::parse_directories(parser, "snapshot-info", 1)?.unwrap_or_default();
    let mut directories = directories.into_iter();
    match (directories.next(), directories.next()) {
        (None, _) => Ok(Command::Help(Topic::Snapshot)),
        (Some(directory), None) => Ok(Command::SnapshotInfo(directory)),
        (_, Some(second)) => {
            let unexpected = lexopt::Error::UnexpectedArgument(second.into());
            Err(syntax("snapshot-info")(unexpected))
        }
    }
}

fn snapshot_merge(parser: &mut lexopt::Parser) -> Result<Command, Error> {
    let directories = snapshot::parse_directories(parser, "snapshot-merge", 2)?;
    Ok(directories.map_or(Command::Help(Topic::Snapshot), Command::SnapshotMerge))
}

fn inspect(parser: &mut lexopt::Parser) -> Result<Command, Error> {
    let mut kernel = None;
    while let Some(argument) = parser.next().map_err(syntax("inspect"))? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Inspect)),
            Arg::Value(path) if kernel.is_none() => kernel = Some(PathBuf::from(path)),
            other => return Err(syntax("inspect")(other.unexpected())),
        }
    }
    kernel.map(Command::Inspect).ok_or(Error::NoKernel("inspect"))
}

fn demo(parser: &mut lexopt::Parser) -> Result<Command, Error> {
    match parser.next().map_err(syntax("demo"))? {
        None => Ok(Command::Demo),
        Some(Arg::Short('h') | Arg::Long("help")) => Ok(Command::Help(Topic::Demo)),
        Some(other) => Err(syntax("demo")(other.unexpected())),
    }
}

fn version(parser: &mut lexopt::Parser) -> Result<Command, Error> {
    let mut command = Command::Version;
    while let Some(argument) = parser.next().map_err(syntax("version"))? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Version)),
            Arg::Long("json") => command = Command::Versions,
            other => return Err(syntax("version")(other.unexpected())),
        }
    }
    Ok(command)
}

fn help(parser: &mut lexopt::Parser) -> Result<Command, Error> {
    let topic = match parser.next().map_err(Error::TopLevel)? {
        None | Some(Arg::Short('h') | Arg::Long("help")) => Topic::Mayfly,
        Some(Arg::Value(command)) => match command.to_str() {
            Some("help") => Topic::Mayfly,
            Some("run") => Topic::Run,
            Some("inspect") => Topic::Inspect,
            Some("demo") => Topic::Demo,
            Some("version") => Topic::Version,
            Some("firecracker") => Topic::Firecracker,
            Some("restore") => Topic::Restore,
            Some("shell") => Topic::Shell,
            Some("snapshot" | "snapshot-info" | "snapshot-merge") => Topic::Snapshot,
            _ => {
                let sibling = sibling(&[command.clone(), "--help".into()]);
                return sibling.ok_or(Error::Command(lossy(&command)));
            }
        },
        Some(other) => return Err(Error::TopLevel(other.unexpected())),
    };
    match parser.next().map_err(Error::TopLevel)? {
        None => Ok(Command::Help(topic)),
        Some(extra) => Err(Error::TopLevel(extra.unexpected())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Command, Error, RunArgs, SuspendArgs};
    use crate::cli::help::Topic;

    fn parse(line: &str) -> Result<Command, Error> {
        super::parse("mayfly".as_ref(), line.split_whitespace().map(Into::into))
    }

    fn run(line: &str) -> RunArgs {
        match parse(line).unwrap() {
            Command::Run(run) => *run,
            other => panic!("{line} is {other:?}"),
        }
    }

    fn error(line: &str) -> String {
        parse(line).unwrap_err().to_string()
    }

    #[test]
    fn suspend_has_place_unless_stateless() {
        let suspend = |line: &str| run(line).session.suspend;
        assert_eq!(suspend("run k"), SuspendArgs::default());
        let all = suspend("run k --suspend-to /d --idle-after 7 --idle-cpu 9");
        assert_eq!(
            all,
            SuspendArgs {
                directory: Some("/d".into()),
                idle_after: Some(Duration::from_millis(7)),
                max_cpu_percent: Some(9),
                is_stateless: false,
            }
        );
        assert!(suspend("run k --stateless --idle-after 1").is_stateless);
        for (line, text) in [
            (
                "run k --idle-after 1",
                "--idle-after requires --suspend-to; add it",
            ),
            (
                "run k --suspend-to /d --idle-cpu 1",
                "--idle-cpu requires --idle-after; add it",
            ),
            (
                "restore s --suspend-to /d --stateless",
                "--suspend-to and --stateless exclude each other: a stateless suspend creates no snapshot; remove one",
            ),
            (
                "run k --stateless --idle-after x",
                "--idle-after \"x\": expected a number of milliseconds from 1 to 86400000",
            ),
            (
                "run k --stateless --idle-after 1 --idle-cpu 101",
                "--idle-cpu \"101\": expected a number of percent from 1 to 100",
            ),
        ] {
            assert_eq!(error(line), text, "{line}");
        }
    }

    #[test]
    fn options_precede_or_follow_the_image() {
        for line in [
            "run --memory 64M --cpus 2 k",
            "run k --cpus=2 -m64M",
            "run --cpus 2 k --memory=64M",
        ] {
            let config = run(line).config;
            assert_eq!((config.vcpus, config.memory.bytes()), (2, 64 << 20), "{line}");
            assert_eq!(config.kernel.to_str(), Some("k"));
        }
    }

    #[test]
    fn guest_arguments_follow_first_lone_dashes() {
        let config = run("run k -- netdev.ip=1.2.3.4/24 -- /app --help [ ]").config;
        assert_eq!(config.cmdline, "netdev.ip=1.2.3.4/24 -- /app --help [ ]");
        assert_eq!(run("run k --").config.cmdline, "");
    }

    #[test]
    fn unknown_command_of_firecracker_has_its_status() {
        let status = |program: &str| {
            let parsed = super::parse(program.as_ref(), ["start".into()]);
            parsed.unwrap_err().status()
        };
        assert_eq!(status("/usr/bin/firecracker"), 153);
        assert_eq!(status("/usr/bin/mayfly"), 2);
    }

    #[test]
    fn usage_errors_name_the_argument() {
        for (line, text) in [
            ("", "missing command; run mayfly --help"),
            ("start k", "\"start\" is not a command; run mayfly --help"),
            ("run", "missing the path of an image; run mayfly run KERNEL"),
            (
                "run --memory 1M",
                "missing the path of an image; run mayfly run KERNEL",
            ),
            (
                "run k l",
                "\"l\" is an unexpected argument; guest arguments follow a lone --",
            ),
            (
                "run k --id a_b",
                "--id \"a_b\": expected 1 to 64 letters, digits and hyphens",
            ),
            (
                "run k --log-level loud",
                "--log-level \"loud\": expected Off, Error, Warning, Info, Debug or Trace",
            ),
            ("run k --cpus x", "--cpus \"x\": expected a number from 1 to 32"),
            (
                "run k --cpus 4294967296",
                "--cpus \"4294967296\": expected a number from 1 to 32",
            ),
            ("run k --cpus 1 --cpus 2", "--cpus is given twice; remove one"),
            (
                "run k --irqchip none",
                "--irqchip \"none\": \"none\" is not an interrupt controller mode: use split or kernel",
            ),
            ("run k --bogus", "invalid option '--bogus'; run mayfly run --help"),
            (
                "run k --memory",
                "missing argument for option '--memory'; run mayfly run --help",
            ),
            (
                "inspect",
                "missing the path of an image; run mayfly inspect KERNEL",
            ),
            (
                "inspect a b",
                "unexpected argument \"b\"; run mayfly inspect --help",
            ),
            (
                "snapshot-info a b",
                "unexpected argument \"b\"; run mayfly snapshot-info --help",
            ),
            ("demo x", "unexpected argument \"x\"; run mayfly demo --help"),
            (
                "version x",
                "unexpected argument \"x\"; run mayfly version --help",
            ),
            ("help --run", "invalid option '--run'; run mayfly --help"),
            ("help run x", "unexpected argument \"x\"; run mayfly --help"),
            ("help run --x", "invalid option '--x'; run mayfly --help"),
        ] {
            assert_eq!(error(line), text, "{line}");
        }
    }

    #[test]
    fn profile_has_file_and_valid_frequency() {
        let Ok(Command::Run(run)) = parse("run k --profile p --trace t") else {
            panic!("no command");
        };
        let settings = run.session.profile.settings(true);
        assert_eq!((settings.frequency, settings.has_moments), (99, true));
        for (line, text) in [
            (
                "run k --profile p --hz 0",
                "--hz \"0\": expected a number of samples per second from 1 to 1000",
            ),
            (
                "run k --profile p --hz 1001",
                "--hz \"1001\": expected a number of samples per second from 1 to 1000",
            ),
            ("run k --hz 10", "--hz requires --profile; add it"),
            (
                "restore d --shell s --profile p",
                "--profile and --shell exclude each other: the vCPU threads of a shell start without a timer for samples; remove one",
            ),
        ] {
            assert_eq!(error(line), text, "{line}");
        }
    }

    #[test]
    fn help_is_accepted_anywhere() {
        for (line, topic) in [
            ("--help", Topic::Mayfly),
            ("help", Topic::Mayfly),
            ("help help", Topic::Mayfly),
            ("help --help", Topic::Mayfly),
            ("help -h", Topic::Mayfly),
            ("run --help", Topic::Run),
            ("run k -h", Topic::Run),
            ("help run", Topic::Run),
            ("inspect --help", Topic::Inspect),
            ("demo --help", Topic::Demo),
            ("version --json --help", Topic::Version),
            ("restore s --help", Topic::Restore),
            ("snapshot-merge a b -h", Topic::Snapshot),
        ] {
            assert!(
                matches!(parse(line), Ok(Command::Help(found)) if found == topic),
                "{line}"
            );
        }
    }
}
