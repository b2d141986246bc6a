//! The command line.

pub mod firecracker;
mod run;
mod session;
mod snapshot;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use lexopt::Arg;

use crate::cli::ctl::{self, args::Ctl};
use crate::cli::help::Topic;

pub use run::RunArgs;
pub use session::SessionArgs;
pub use snapshot::{RestoreArgs, SnapshotArgs};

/// Exit status for a command line that makes no sense.
const USAGE: u8 = 2;

/// What the user wants done.
#[derive(Debug)]
pub enum Command {
    /// Boot an image.
    Run(Box<RunArgs>),
    /// Say what booting an image would do.
    Inspect(PathBuf),
    /// Boot the embedded guest.
    Demo,
    /// Serve a VM behind a control socket, by the flags of Firecracker.
    Serve(Box<firecracker::FirecrackerArgs>),
    /// Make a VM of a snapshot.
    Restore(Box<RestoreArgs>),
    /// Make a snapshot of a VM.
    Snapshot(SnapshotArgs),
    /// Say what is in a snapshot.
    SnapshotInfo(PathBuf),
    /// Print the version of the format of snapshots.
    SnapshotVersion,
    /// Print the version of the format of a state file.
    DescribeSnapshot(PathBuf),
    /// Merge differences into a snapshot.
    SnapshotMerge(Vec<PathBuf>),
    /// Ask a running mayfly.
    Ctl(Box<Ctl>),
    /// Print a help text.
    Help(Topic),
    /// Print the version.
    Version,
    /// Print the version of Firecracker whose place mayfly takes.
    FirecrackerVersion,
}

/// Why the command line makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The flags of Firecracker make no sense.
    #[error(transparent)]
    Firecracker(firecracker::Error),
    /// No command.
    #[error("no command: try mayfly --help")]
    NoCommand,
    /// An unknown command.
    #[error("there is no command {0:?}: try mayfly --help")]
    Command(String),
    /// No image.
    #[error("mayfly {0} needs the path of an image: mayfly {0} KERNEL")]
    NoKernel(&'static str),
    /// No snapshot, or too few.
    #[error("mayfly {0} needs the folder of a snapshot: try mayfly {0} --help")]
    NoFolder(&'static str),
    /// A second image, or words that were meant for the guest.
    #[error("{0:?} is one word too many; what is meant for the guest comes after a lone --")]
    Superfluous(String),
    /// A value that an option cannot have.
    #[error("{option} {value:?}: {reason}")]
    Value {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// An option given twice.
    #[error("{0} is there twice: which one counts?")]
    Twice(&'static str),
    /// An option without the one that it belongs to.
    #[error("{0} goes with {1}")]
    Alone(&'static str, &'static str),
    /// Two options of which one makes the other senseless.
    #[error("{0} and {1} cannot both be there: what is made ready would be recorded as touched")]
    Contrary(&'static str, &'static str),
    /// A guest argument that is not UTF-8.
    #[error("the guest argument {0:?} is not printable ASCII")]
    GuestArgument(OsString),
    /// The words after `ctl` make no sense.
    #[error(transparent)]
    Ctl(ctl::args::Error),
    /// An unknown option, or one without its value.
    #[error("{source}: try mayfly {command} --help")]
    Syntax {
        /// The command, or nothing.
        command: &'static str,
        /// What the parser said.
        source: lexopt::Error,
    },
}

impl Error {
    /// The exit status that it deserves.
    pub fn status(&self) -> u8 {
        match self {
            Self::Firecracker(error) => error.status(),
            _ => USAGE,
        }
    }
}

/// Reads the command line of `program`, as which mayfly was called.
///
/// # Errors
/// [`Error`], with the way out in its text.
pub fn parse(program: &OsStr, arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Error> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let disguised = Path::new(program).file_name() == Some(OsStr::new("firecracker"));
    if !firecracker::is_firecracker_command(disguised, arguments.first().map(OsString::as_os_str)) {
        return own(arguments);
    }
    match firecracker::parse(arguments).map_err(Error::Firecracker)? {
        firecracker::FirecrackerCommand::Serve(options) => Ok(Command::Serve(options)),
        firecracker::FirecrackerCommand::Help => Ok(Command::Help(Topic::Firecracker)),
        firecracker::FirecrackerCommand::Version if disguised => Ok(Command::FirecrackerVersion),
        firecracker::FirecrackerCommand::Version => Ok(Command::Version),
        firecracker::FirecrackerCommand::SnapshotVersion => Ok(Command::SnapshotVersion),
        firecracker::FirecrackerCommand::DescribeSnapshot(path) => Ok(Command::DescribeSnapshot(path)),
    }
}

fn own(arguments: Vec<OsString>) -> Result<Command, Error> {
    let mut parser = lexopt::Parser::from_args(arguments);
    match parser.next().map_err(syntax(""))? {
        None => Err(Error::NoCommand),
        Some(Arg::Short('h') | Arg::Long("help")) => Ok(Command::Help(Topic::Mayfly)),
        Some(Arg::Short('V') | Arg::Long("version")) => Ok(Command::Version),
        Some(Arg::Value(command)) => match command.to_str() {
            Some("run") => run::run(&mut parser),
            Some("inspect") => inspect(&mut parser),
            Some("demo") => demo(&mut parser),
            Some("ctl") => ctl(&mut parser),
            Some("restore") => snapshot::restore(&mut parser),
            Some("snapshot") => snapshot::take(&mut parser),
            Some("snapshot-info") => snapshot_info(&mut parser),
            Some("snapshot-merge") => snapshot_merge(&mut parser),
            Some("help") => help(&mut parser),
            _ => Err(Error::Command(lossy(&command))),
        },
        Some(other) => Err(syntax("")(other.unexpected())),
    }
}

fn snapshot_info(parser: &mut lexopt::Parser) -> Result<Command, Error> {
    let mut folders = snapshot::folders(parser, "snapshot-info", 1)?.unwrap_or_default();
    match (folders.pop(), folders.first()) {
        (None, _) => Ok(Command::Help(Topic::Snapshot)),
        (Some(folder), None) => Ok(Command::SnapshotInfo(folder)),
        (_, Some(more)) => Err(Error::Superfluous(more.display().to_string())),
    }
}

fn snapshot_merge(parser: &mut lexopt::Parser) -> Result<Command, Error> {
    let folders = snapshot::folders(parser, "snapshot-merge", 2)?;
    Ok(folders.map_or(Command::Help(Topic::Snapshot), Command::SnapshotMerge))
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

fn ctl(parser: &mut lexopt::Parser) -> Result<Command, Error> {
    let ctl = ctl::args::parse(parser).map_err(Error::Ctl)?;
    Ok(ctl.map_or(Command::Help(Topic::Ctl), |ctl| Command::Ctl(Box::new(ctl))))
}

fn help(parser: &mut lexopt::Parser) -> Result<Command, Error> {
    match parser.next().map_err(syntax(""))? {
        None => Ok(Command::Help(Topic::Mayfly)),
        Some(Arg::Value(command)) => match command.to_str() {
            Some("run") => Ok(Command::Help(Topic::Run)),
            Some("inspect") => Ok(Command::Help(Topic::Inspect)),
            Some("demo") => Ok(Command::Help(Topic::Demo)),
            Some("firecracker") => Ok(Command::Help(Topic::Firecracker)),
            Some("ctl") => Ok(Command::Help(Topic::Ctl)),
            Some("restore") => Ok(Command::Help(Topic::Restore)),
            Some("snapshot" | "snapshot-info" | "snapshot-merge") => Ok(Command::Help(Topic::Snapshot)),
            _ => Err(Error::Command(lossy(&command))),
        },
        Some(other) => Err(syntax("")(other.unexpected())),
    }
}

fn syntax(command: &'static str) -> impl FnOnce(lexopt::Error) -> Error {
    move |source| Error::Syntax { command, source }
}

fn lossy(word: &OsString) -> String {
    word.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::{Command, Error, RunArgs, parse};
    use crate::cli::help::Topic;

    fn words(line: &str) -> Result<Command, Error> {
        parse("mayfly".as_ref(), line.split_whitespace().map(Into::into))
    }

    fn run(line: &str) -> RunArgs {
        match words(line).unwrap() {
            Command::Run(run) => *run,
            other => panic!("{line} is {other:?}"),
        }
    }

    fn error(line: &str) -> String {
        words(line).unwrap_err().to_string()
    }

    #[test]
    fn options_come_before_or_after_the_image() {
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
    fn the_guest_gets_all_after_the_first_lone_dashes() {
        let config = run("run k -- netdev.ip=1.2.3.4/24 -- /app --help [ ]").config;
        assert_eq!(config.cmdline, "netdev.ip=1.2.3.4/24 -- /app --help [ ]");
        assert_eq!(run("run k --").config.cmdline, "");
    }

    #[test]
    fn wrong_words_are_named() {
        for (line, text) in [
            ("", "no command: try mayfly --help"),
            ("start k", "there is no command \"start\": try mayfly --help"),
            ("run", "mayfly run needs the path of an image: mayfly run KERNEL"),
            (
                "run --memory 1M",
                "mayfly run needs the path of an image: mayfly run KERNEL",
            ),
            (
                "run k l",
                "\"l\" is one word too many; what is meant for the guest comes after a lone --",
            ),
            (
                "run k --id a_b",
                "--id \"a_b\": it is 1 to 64 letters, digits and hyphens",
            ),
            (
                "run k --log-level loud",
                "--log-level \"loud\": it is Off, Error, Warning, Info, Debug or Trace",
            ),
            ("run k --cpus x", "--cpus \"x\": a number is needed"),
            (
                "run k --cpus 1 --cpus 2",
                "--cpus is there twice: which one counts?",
            ),
            (
                "run k --irqchip none",
                "--irqchip \"none\": \"none\" is no interrupt controller: it is split or kernel",
            ),
            ("run k --bogus", "invalid option '--bogus': try mayfly run --help"),
            (
                "run k --memory",
                "missing argument for option '--memory': try mayfly run --help",
            ),
            (
                "inspect",
                "mayfly inspect needs the path of an image: mayfly inspect KERNEL",
            ),
            (
                "inspect a b",
                "unexpected argument \"b\": try mayfly inspect --help",
            ),
            ("demo x", "unexpected argument \"x\": try mayfly demo --help"),
        ] {
            assert_eq!(error(line), text, "{line}");
        }
    }

    #[test]
    fn help_is_everywhere() {
        for (line, topic) in [
            ("--help", Topic::Mayfly),
            ("help", Topic::Mayfly),
            ("run --help", Topic::Run),
            ("run k -h", Topic::Run),
            ("help run", Topic::Run),
            ("inspect --help", Topic::Inspect),
            ("demo --help", Topic::Demo),
            ("ctl drive --help", Topic::Ctl),
            ("help ctl", Topic::Ctl),
        ] {
            assert!(
                matches!(words(line), Ok(Command::Help(found)) if found == topic),
                "{line}"
            );
        }
    }
}
