//! The options of the commands for snapshots.

use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg;
use vmm::config::{NetBackend, OptionError};
use vmm::control::{DEFAULT_RECORD_LENGTH, LoadSnapshotParams, MAX_RECORD_MS, RecordOptions};

use super::firecracker::SOCKET;
use super::session::{self, Seen, SessionArgs, path, value};
use super::{Command, Error, syntax};
use crate::cli::help::Topic;
use crate::snapshot::{MEMORY, STATE};

/// Options of `mayfly restore`.
#[derive(Debug)]
pub struct RestoreArgs {
    /// The snapshot, and what is other than it was.
    pub thaw: LoadSnapshotParams,
    /// What is told of it, and to whom.
    pub session: SessionArgs,
}

/// Options of `mayfly snapshot`.
#[derive(Debug, PartialEq, Eq)]
pub struct SnapshotArgs {
    /// Path of the API socket of the VM.
    pub socket: PathBuf,
    /// Where the snapshot goes.
    pub folder: PathBuf,
    /// Only what differs from what the VM was restored from.
    pub diff: bool,
}

const FLAGS: [&str; 7] = [
    "--net",
    "--disk",
    "--paused",
    "--realtime",
    "--working-set",
    RECORD,
    LENGTH,
];
const RECORD: &str = "--record-working-set";
const LENGTH: &str = "--record-ms";

/// Reads the options of `mayfly restore`.
pub(super) fn restore(parser: &mut lexopt::Parser) -> Result<Command, Error> {
    let mut seen = Seen::default();
    let mut folder = None;
    let mut length = None;
    let mut restore = RestoreArgs {
        thaw: LoadSnapshotParams {
            resume: true,
            ..LoadSnapshotParams::new(PathBuf::new(), PathBuf::new())
        },
        session: SessionArgs::default(),
    };
    while let Some(argument) = parser.next().map_err(syntax("restore"))? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Restore)),
            Arg::Value(path) if folder.is_none() => folder = Some(PathBuf::from(path)),
            Arg::Long(name) => {
                let mut known = FLAGS.iter().chain(&session::OPTIONS);
                match known.find(|known| known.trim_start_matches("--") == name) {
                    Some(&LENGTH) => {
                        seen.note(LENGTH)?;
                        length = Some(milliseconds(parser)?);
                    }
                    Some(name) => option(parser, &mut restore, &mut seen, name)?,
                    None => return Err(syntax("restore")(argument.unexpected())),
                }
            }
            other => return Err(syntax("restore")(other.unexpected())),
        }
    }
    let folder = folder.ok_or(Error::NoFolder("restore"))?;
    restore.thaw.state = folder.join(STATE);
    restore.thaw.memory = vmm::control::MemorySource::File(folder.join(MEMORY));
    record(&mut restore.thaw, length)?;
    Ok(Command::Restore(Box::new(restore)))
}

fn option(
    parser: &mut lexopt::Parser,
    restore: &mut RestoreArgs,
    seen: &mut Seen,
    name: &'static str,
) -> Result<(), Error> {
    let thaw = &mut restore.thaw;
    match name {
        "--net" => {
            let (id, text) = assignment(parser, name)?;
            let backend: Result<NetBackend, OptionError> = text.parse();
            let backend = backend.map_err(|error| Error::Value {
                option: name,
                value: text,
                reason: error.to_string(),
            })?;
            thaw.overrides.push((id, backend.into()));
            return Ok(());
        }
        "--disk" => {
            let (id, file) = assignment(parser, name)?;
            thaw.overrides.push((id, PathBuf::from(file).into()));
            return Ok(());
        }
        _ => seen.note(name)?,
    }
    match name {
        "--paused" => restore.thaw.resume = false,
        "--realtime" => thaw.realtime = true,
        "--working-set" => thaw.working_set.prefetch = Some(path(parser, "restore")?),
        RECORD => {
            thaw.working_set.record = Some(RecordOptions {
                path: path(parser, "restore")?,
                length: DEFAULT_RECORD_LENGTH,
            });
        }
        other => restore.session.option(parser, "restore", other)?,
    }
    Ok(())
}

/// How long is recorded.
fn milliseconds(parser: &mut lexopt::Parser) -> Result<Duration, Error> {
    let text: String = value(parser, "restore", LENGTH)?;
    match text.parse() {
        Ok(number @ 1..=MAX_RECORD_MS) => Ok(Duration::from_millis(number)),
        _ => Err(Error::Value {
            option: LENGTH,
            value: text,
            reason: format!("it is a number of milliseconds from 1 to {MAX_RECORD_MS}"),
        }),
    }
}

/// Puts the length to the recording, which there must be then, and no set that is used.
fn record(thaw: &mut LoadSnapshotParams, length: Option<Duration>) -> Result<(), Error> {
    match (&mut thaw.working_set.record, length) {
        (None, Some(_)) => return Err(Error::Alone(LENGTH, RECORD)),
        (Some(record), Some(length)) => record.length = length,
        _ => {}
    }
    let first = &thaw.working_set;
    if first.record.is_some() && first.prefetch.is_some() {
        return Err(Error::Contrary("--working-set", RECORD));
    }
    Ok(())
}

/// `NAME=VALUE`
fn assignment(parser: &mut lexopt::Parser, option: &'static str) -> Result<(String, String), Error> {
    let text: String = value(parser, "restore", option)?;
    let split = text
        .split_once('=')
        .filter(|(name, value)| !name.is_empty() && !value.is_empty());
    match split {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(Error::Value {
            option,
            value: text,
            reason: "it is the name that the device had, =, and what it is to be on now".into(),
        }),
    }
}

/// Reads the options of `mayfly snapshot`.
pub(super) fn take(parser: &mut lexopt::Parser) -> Result<Command, Error> {
    let mut folder = None;
    let mut take = SnapshotArgs {
        socket: SOCKET.into(),
        folder: PathBuf::new(),
        diff: false,
    };
    while let Some(argument) = parser.next().map_err(syntax("snapshot"))? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Snapshot)),
            Arg::Value(path) if folder.is_none() => folder = Some(PathBuf::from(path)),
            Arg::Long("api-sock") => take.socket = path(parser, "snapshot")?,
            Arg::Long("diff") => take.diff = true,
            other => return Err(syntax("snapshot")(other.unexpected())),
        }
    }
    take.folder = folder.ok_or(Error::NoFolder("snapshot"))?;
    Ok(Command::Snapshot(take))
}

/// Reads the folders of `mayfly snapshot-info` and `mayfly snapshot-merge`, at least as many as `least`.
pub(super) fn folders(
    parser: &mut lexopt::Parser,
    command: &'static str,
    least: usize,
) -> Result<Option<Vec<PathBuf>>, Error> {
    let mut folders = Vec::new();
    while let Some(argument) = parser.next().map_err(syntax(command))? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            Arg::Value(path) => folders.push(PathBuf::from(path)),
            other => return Err(syntax(command)(other.unexpected())),
        }
    }
    match folders.len() >= least {
        true => Ok(Some(folders)),
        false => Err(Error::NoFolder(command)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Command, parse};
    use std::path::PathBuf;

    use vmm::config::NetBackend;
    use vmm::control::WorkingSetOptions;

    fn words(line: &str) -> Result<Command, String> {
        parse("mayfly".as_ref(), line.split_whitespace().map(Into::into)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_snapshot_is_a_folder_and_its_devices_have_names() {
        let Command::Restore(restore) =
            words("restore /s --net eth0=tap:t1 --disk root=/a=b --paused --id x").unwrap()
        else {
            panic!("no restore");
        };
        assert_eq!(restore.thaw.state.to_str(), Some("/s/state"));
        let overrides = [
            ("eth0".into(), NetBackend::Tap("t1".into()).into()),
            ("root".into(), PathBuf::from("/a=b").into()),
        ];
        assert_eq!(restore.thaw.overrides, overrides);
        assert!(!restore.thaw.resume && !restore.thaw.realtime && restore.session.id == "x");
    }

    #[test]
    fn first_touches_are_recorded_or_prepared() {
        let thaw = |line: &str| match words(line).unwrap() {
            Command::Restore(restore) => restore.thaw.working_set,
            other => panic!("{line} is {other:?}"),
        };
        assert_eq!(thaw("restore /s"), WorkingSetOptions::default());
        let set = thaw("restore /s --working-set /w");
        assert_eq!((set.prefetch, set.record), (Some("/w".into()), None));
        for (line, milliseconds) in [
            ("restore /s --record-working-set /w", 100),
            ("restore /s --record-working-set /w --record-ms 7", 7),
            ("restore /s --record-ms=7 --record-working-set=/w", 7),
        ] {
            let record = thaw(line).record.unwrap();
            assert_eq!(record.path.to_str(), Some("/w"));
            assert_eq!(record.length.as_millis(), milliseconds, "{line}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (line, text) in [
            ("restore", "needs the folder of a snapshot"),
            ("restore a b", "unexpected argument"),
            ("restore a --net tap0", "the name that the device had"),
            ("restore a --net n=bridge:b", "tap:NAME"),
            (
                "restore a --net n=user,mac=02:00:00:00:00:01",
                "no option \"mac\"",
            ),
            ("restore a --disk =x", "the name that the device had"),
            ("restore a --paused --paused", "--paused is there twice"),
            (
                "restore a --record-ms 5",
                "--record-ms goes with --record-working-set",
            ),
            (
                "restore a --record-working-set w --working-set w",
                "--working-set and --record-working-set",
            ),
            ("restore a --working-set", "missing argument"),
            (
                "restore a --record-working-set w --record-ms 0",
                "from 1 to 600000",
            ),
            (
                "restore a --record-working-set w --record-ms 600001",
                "from 1 to 600000",
            ),
            ("restore a --record-ms x", "from 1 to 600000"),
            ("snapshot", "needs the folder of a snapshot"),
            ("snapshot a --full", "invalid option"),
            ("snapshot-info", "needs the folder of a snapshot"),
            ("snapshot-merge a", "needs the folder of a snapshot"),
        ] {
            let said = words(line).unwrap_err();
            assert!(said.contains(text), "{line}: {said}");
        }
    }
}
