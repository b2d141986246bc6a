//! The arguments of the snapshot commands.

use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg;
use vmm::config::{DriveBackend, NetOverride, OptionError};
use vmm::control::{
    DEFAULT_RECORD_LENGTH, DriveCheck, FirstFramesFile, LoadSnapshotParams, MAX_RECORD_MS, MEMORY_NAME,
    MemorySource, RecordOptions, STATE_NAME,
};

use super::error::{Error, syntax};
use super::firecracker::SOCKET;
use super::session::{self, GivenOptions, SessionArgs, path, value};

/// Arguments of `mayfly restore`.
#[derive(Debug)]
pub struct RestoreArgs {
    /// The snapshot and its overrides.
    pub params: LoadSnapshotParams,
    /// Socket of the shell that loads the snapshot, in place of this process.
    pub shell: Option<PathBuf>,
    /// Options of the session.
    pub session: SessionArgs,
}

/// Arguments of `mayfly snapshot`.
#[derive(Debug, PartialEq, Eq)]
pub struct SnapshotArgs {
    /// Path of the API socket of the VM.
    pub socket: PathBuf,
    /// Directory of the snapshot.
    pub directory: PathBuf,
    /// Create a diff snapshot.
    pub diff: bool,
}

const OPTIONS: [&str; 12] = [
    "--net",
    FIRST_FRAMES,
    "--disk",
    "--paused",
    "--realtime",
    "--untrusted",
    "--mask-cpu",
    "--ignore-drive-changes",
    "--shell",
    "--working-set",
    RECORD,
    LENGTH,
];
const FIRST_FRAMES: &str = "--first-frames";
const RECORD: &str = "--record-working-set";
const LENGTH: &str = "--record-ms";

/// Parses the arguments after `restore`. Returns nothing if they request help.
pub(super) fn parse_restore(parser: &mut lexopt::Parser) -> Result<Option<Box<RestoreArgs>>, Error> {
    let mut given = GivenOptions::default();
    let mut directory = None;
    let mut length = None;
    let mut restore = RestoreArgs {
        params: LoadSnapshotParams {
            resume: true,
            drive_check: DriveCheck::Reject,
            ..LoadSnapshotParams::new(PathBuf::new(), PathBuf::new())
        },
        shell: None,
        session: SessionArgs::default(),
    };
    while let Some(argument) = parser.next().map_err(syntax("restore"))? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            Arg::Value(path) if directory.is_none() => directory = Some(PathBuf::from(path)),
            Arg::Long(name) => {
                let mut known = OPTIONS.iter().chain(&session::OPTIONS);
                match known.find(|known| known.trim_start_matches("--") == name) {
                    Some(&LENGTH) => {
                        given.add(LENGTH)?;
                        length = Some(parse_length(parser)?);
                    }
                    Some(name) => parse_option(parser, &mut restore, &mut given, name)?,
                    None => return Err(syntax("restore")(argument.unexpected())),
                }
            }
            other => return Err(syntax("restore")(other.unexpected())),
        }
    }
    let directory = directory.ok_or(Error::NoDirectory("restore"))?;
    restore.params.state = directory.join(STATE_NAME);
    restore.params.memory = MemorySource::File(directory.join(MEMORY_NAME));
    restore.params.generations = Some(directory);
    set_length(&mut restore.params, length)?;
    restore.session.check()?;
    if restore.shell.is_some() && restore.session.debug.address.is_some() {
        return Err(Error::GdbInShell);
    }
    if restore.shell.is_some() && restore.session.profile.path.is_some() {
        return Err(Error::ProfileInShell);
    }
    Ok(Some(Box::new(restore)))
}

fn parse_option(
    parser: &mut lexopt::Parser,
    restore: &mut RestoreArgs,
    given: &mut GivenOptions,
    name: &'static str,
) -> Result<(), Error> {
    let params = &mut restore.params;
    match name {
        "--net" => {
            let (id, text) = parse_override(parser, name)?;
            let backend: Result<NetOverride, OptionError> = text.parse();
            let backend = backend.map_err(|error| Error::Value {
                option: name,
                value: text,
                reason: error.to_string(),
            })?;
            params.overrides.push((id, backend.into()));
            return Ok(());
        }
        "--disk" => {
            let (id, text) = parse_override(parser, name)?;
            params.overrides.push((id, parse_drive(&text).into()));
            return Ok(());
        }
        FIRST_FRAMES => {
            params.first_frames.push(parse_first_frames(parser)?);
            return Ok(());
        }
        _ => given.add(name)?,
    }
    match name {
        "--paused" => params.resume = false,
        "--realtime" => params.realtime = true,
        "--untrusted" => params.untrusted = true,
        "--mask-cpu" => params.mask_cpu = true,
        "--ignore-drive-changes" => params.drive_check = DriveCheck::Ignore,
        "--shell" => restore.shell = Some(path(parser, "restore")?),
        "--working-set" => params.working_set.prefetch = Some(path(parser, "restore")?),
        RECORD => {
            params.working_set.record = Some(RecordOptions {
                path: path(parser, "restore")?,
                length: DEFAULT_RECORD_LENGTH,
            });
        }
        other => restore.session.parse_option(parser, "restore", other)?,
    }
    Ok(())
}

/// Parses `PATH[,ro]`. Another comma is part of the path.
fn parse_drive(text: &str) -> DriveBackend {
    let read_only = text.strip_suffix(",ro");
    DriveBackend {
        path: read_only.unwrap_or(text).into(),
        read_only: read_only.is_some(),
    }
}

/// Parses `[ID=]NUMBER`.
fn parse_first_frames(parser: &mut lexopt::Parser) -> Result<FirstFramesFile, Error> {
    let text: String = value(parser, "restore", FIRST_FRAMES)?;
    let (interface, number) = match text.rsplit_once('=') {
        Some((id, number)) => (Some(id.to_owned()), number),
        None => (None, &text[..]),
    };
    match number.parse() {
        Ok(descriptor) if descriptor > 2 && interface.as_deref() != Some("") => Ok(FirstFramesFile {
            interface,
            descriptor,
        }),
        _ => Err(Error::Value {
            option: FIRST_FRAMES,
            value: text,
            reason: "expected [ID=]FD, with the ID of a network interface in the snapshot and a descriptor above 2"
                .into(),
        }),
    }
}

/// Parses the length of a recording.
fn parse_length(parser: &mut lexopt::Parser) -> Result<Duration, Error> {
    let text: String = value(parser, "restore", LENGTH)?;
    match text.parse() {
        Ok(number @ 1..=MAX_RECORD_MS) => Ok(Duration::from_millis(number)),
        _ => Err(Error::Value {
            option: LENGTH,
            value: text,
            reason: format!("expected a number of milliseconds from 1 to {MAX_RECORD_MS}"),
        }),
    }
}

/// Sets the length of the recording, and checks the options of the working set against each other.
fn set_length(params: &mut LoadSnapshotParams, length: Option<Duration>) -> Result<(), Error> {
    match (&mut params.working_set.record, length) {
        (None, Some(_)) => return Err(Error::Requires(LENGTH, RECORD)),
        (Some(record), Some(length)) => record.length = length,
        _ => {}
    }
    let working_set = &params.working_set;
    if working_set.record.is_some() && working_set.prefetch.is_some() {
        return Err(Error::Exclusive("--working-set", RECORD));
    }
    Ok(())
}

/// Parses `ID=VALUE`.
fn parse_override(parser: &mut lexopt::Parser, option: &'static str) -> Result<(String, String), Error> {
    let text: String = value(parser, "restore", option)?;
    let split = text
        .split_once('=')
        .filter(|(id, value)| !id.is_empty() && !value.is_empty());
    match split {
        Some((id, value)) => Ok((id.to_owned(), value.to_owned())),
        None => Err(Error::Value {
            option,
            value: text,
            reason: "expected ID=VALUE, with the ID of a device in the snapshot".into(),
        }),
    }
}

/// Parses the arguments after `snapshot`. Returns nothing if they request help.
pub(super) fn parse_snapshot(parser: &mut lexopt::Parser) -> Result<Option<SnapshotArgs>, Error> {
    let mut directory = None;
    let mut socket = None;
    let mut diff = false;
    while let Some(argument) = parser.next().map_err(syntax("snapshot"))? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            Arg::Value(path) if directory.is_none() => directory = Some(PathBuf::from(path)),
            Arg::Long("api-sock") => {
                if socket.replace(path(parser, "snapshot")?).is_some() {
                    return Err(Error::Twice("--api-sock"));
                }
            }
            Arg::Long("diff") => diff = true,
            other => return Err(syntax("snapshot")(other.unexpected())),
        }
    }
    Ok(Some(SnapshotArgs {
        socket: socket.unwrap_or_else(|| SOCKET.into()),
        directory: directory.ok_or(Error::NoDirectory("snapshot"))?,
        diff,
    }))
}

/// Parses the directories after `snapshot-info` and `snapshot-merge`, at least `min` of them. Returns nothing if the
/// arguments request help.
pub(super) fn parse_directories(
    parser: &mut lexopt::Parser,
    command: &'static str,
    min: usize,
) -> Result<Option<Vec<PathBuf>>, Error> {
    let mut directories = Vec::new();
    while let Some(argument) = parser.next().map_err(syntax(command))? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            Arg::Value(path) => directories.push(PathBuf::from(path)),
            other => return Err(syntax(command)(other.unexpected())),
        }
    }
    match directories.len() >= min {
        true => Ok(Some(directories)),
        false => Err(Error::NoDirectory(command)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::Command;
    use vmm::config::{DriveBackend, NetBackend};
    use vmm::control::{FirstFramesFile, WorkingSetOptions};

    fn parse(line: &str) -> Result<Command, String> {
        super::super::parse("mayfly".as_ref(), line.split_whitespace().map(Into::into))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn restore_overrides_devices_by_id() {
        let Command::Restore(restore) =
            parse("restore /s --net eth0=tap:t1 --disk root=/a=b --paused --id x").unwrap()
        else {
            panic!("no restore");
        };
        assert_eq!(restore.params.state.to_str(), Some("/s/state"));
        let overrides = [
            ("eth0".into(), NetBackend::Tap("t1".into()).into()),
            ("root".into(), PathBuf::from("/a=b").into()),
        ];
        assert_eq!(restore.params.overrides, overrides);
        assert!(!restore.params.resume && !restore.params.realtime && restore.session.id == "x");
        assert!(!restore.params.untrusted && !restore.params.mask_cpu);
    }

    #[test]
    fn drive_override_ends_with_access() {
        let line = "restore /s --untrusted --mask-cpu --disk a=/x,ro --disk b=/y,z --disk c=/d,ro,";
        let Command::Restore(restore) = parse(line).unwrap() else {
            panic!("no restore");
        };
        let drive = |path: &str, read_only| DriveBackend {
            path: path.into(),
            read_only,
        };
        let overrides = [
            ("a".into(), drive("/x", true).into()),
            ("b".into(), drive("/y,z", false).into()),
            ("c".into(), drive("/d,ro,", false).into()),
        ];
        assert_eq!(restore.params.overrides, overrides);
        assert!(restore.params.untrusted && restore.params.mask_cpu);
    }

    #[test]
    fn first_frames_have_interface_and_descriptor() {
        let Command::Restore(restore) = parse("restore /s --first-frames 7 --first-frames=eth=0=12").unwrap()
        else {
            panic!("no restore");
        };
        let file = |interface: Option<&str>, descriptor| FirstFramesFile {
            interface: interface.map(str::to_owned),
            descriptor,
        };
        assert_eq!(
            restore.params.first_frames,
            [file(None, 7), file(Some("eth=0"), 12)]
        );
        for text in ["2", "x", "-1", "=7", "eth0=", "eth0"] {
            let error = parse(&format!("restore /s --first-frames={text}")).unwrap_err();
            assert!(error.contains("expected [ID=]FD"), "{error}");
        }
    }

    #[test]
    fn working_set_is_used_or_recorded() {
        let working_set = |line: &str| match parse(line).unwrap() {
            Command::Restore(restore) => restore.params.working_set,
            other => panic!("{line} is {other:?}"),
        };
        assert_eq!(working_set("restore /s"), WorkingSetOptions::default());
        let set = working_set("restore /s --working-set /w");
        assert_eq!((set.prefetch, set.record), (Some("/w".into()), None));
        for (line, milliseconds) in [
            ("restore /s --record-working-set /w", 100),
            ("restore /s --record-working-set /w --record-ms 7", 7),
            ("restore /s --record-ms=7 --record-working-set=/w", 7),
        ] {
            let record = working_set(line).record.unwrap();
            assert_eq!(record.path.to_str(), Some("/w"));
            assert_eq!(record.length.as_millis(), milliseconds, "{line}");
        }
    }

    #[test]
    fn usage_errors_name_the_argument() {
        for (line, text) in [
            ("restore", "missing the directory of a snapshot"),
            ("restore a b", "unexpected argument"),
            ("restore a --net tap0", "expected ID=VALUE"),
            ("restore a --net n=bridge:b", "tap:NAME"),
            (
                "restore a --net n=user,mac=02:00:00:00:00:01",
                "mac requires guest-ip",
            ),
            ("restore a --disk =x", "expected ID=VALUE"),
            ("restore a --paused --paused", "--paused is given twice"),
            (
                "restore a --record-ms 5",
                "--record-ms requires --record-working-set",
            ),
            (
                "restore a --record-working-set w --working-set w",
                "--working-set and --record-working-set exclude",
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
            ("snapshot", "missing the directory of a snapshot"),
            ("snapshot a --full", "invalid option"),
            (
                "snapshot a --api-sock b --api-sock c",
                "--api-sock is given twice; remove one",
            ),
            ("snapshot-info", "missing the directory of a snapshot"),
            ("snapshot-merge a", "missing the directory of a snapshot"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(text), "{line}: {message}");
        }
    }
}
