//! The arguments of `mayfly shell`.

use std::os::fd::RawFd;
use std::path::PathBuf;

use lexopt::Arg;
use vmm::config::MemorySize;

use super::error::{Error, lossy, syntax};
use super::run::Count;
use super::session::{GivenOptions, parse_isolation, path, value};
use crate::filters::Isolation;

/// Socket on which a shell waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShellSocket {
    /// Path at which it listens.
    Path(PathBuf),
    /// Connected socket that it has inherited.
    Descriptor(RawFd),
}

/// Arguments of `mayfly shell`.
#[derive(Debug, PartialEq, Eq)]
pub struct ShellArgs {
    /// Socket for the request.
    pub socket: ShellSocket,
    /// Directory of a snapshot with the shape of the VM.
    pub snapshot: Option<PathBuf>,
    /// Guest memory.
    pub memory: Option<MemorySize>,
    /// Number of vCPUs.
    pub vcpus: Option<u32>,
    /// Isolation of the process.
    pub isolation: Isolation,
}

/// Options of the isolation.
const ISOLATION: [&str; 4] = [
    "--no-seccomp",
    "--seccomp-filter",
    "--keep-capabilities",
    "--allow",
];

/// Parses the arguments after `shell`. Returns nothing if they request help.
pub(super) fn parse(parser: &mut lexopt::Parser) -> Result<Option<ShellArgs>, Error> {
    let mut given = GivenOptions::default();
    let (mut socket, mut snapshot, mut memory, mut vcpus) = (None, None, None, None);
    let mut isolation = Isolation::default();
    while let Some(argument) = parser.next().map_err(syntax("shell"))? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            Arg::Value(path) if socket.is_none() => socket = Some(parse_socket(path.into())?),
            Arg::Long("for") => {
                given.add("--for")?;
                snapshot = Some(path(parser, "shell")?);
            }
            Arg::Short('m') | Arg::Long("memory") => {
                given.add("--memory")?;
                memory = Some(value(parser, "shell", "--memory")?);
            }
            Arg::Long("cpus") => {
                given.add("--cpus")?;
                vcpus = Some(value::<Count>(parser, "shell", "--cpus")?.0);
            }
            Arg::Long(name) if let Some(option) = ISOLATION.iter().find(|option| option[2..] == *name) => {
                given.add(option)?;
                parse_isolation(&mut isolation, parser, "shell", option)?;
            }
            other => return Err(syntax("shell")(other.unexpected())),
        }
    }
    Ok(Some(ShellArgs {
        socket: socket.ok_or(Error::NoSocket)?,
        snapshot,
        memory,
        vcpus,
        isolation,
    }))
}

/// Parses a path or `fd:NUMBER`.
fn parse_socket(path: PathBuf) -> Result<ShellSocket, Error> {
    let text = lossy(path.as_os_str());
    let Some(number) = text.strip_prefix("fd:") else {
        return Ok(ShellSocket::Path(path));
    };
    match number.parse() {
        Ok(number @ 3..) => Ok(ShellSocket::Descriptor(number)),
        _ => Err(Error::Value {
            option: "SOCKET",
            value: text,
            reason: "expected a path, or fd:NUMBER with a descriptor above 2".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::{ShellArgs, ShellSocket};

    fn parse(line: &str) -> Result<ShellArgs, String> {
        let parsed = super::super::parse("mayfly".as_ref(), line.split_whitespace().map(Into::into));
        match parsed {
            Ok(Command::Shell(args)) => Ok(args),
            Ok(other) => panic!("{line} is {other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn socket_is_path_or_descriptor() {
        let plain = parse("shell /run/s").unwrap();
        assert_eq!(plain.socket, ShellSocket::Path("/run/s".into()));
        assert_eq!((plain.snapshot, plain.memory, plain.vcpus), (None, None, None));
        let inherited = parse("shell fd:3 --memory 64M --cpus 2 --for /snapshot").unwrap();
        assert_eq!(inherited.socket, ShellSocket::Descriptor(3));
        assert_eq!(inherited.memory.unwrap().bytes(), 64 << 20);
        assert_eq!(
            (inherited.vcpus, inherited.snapshot),
            (Some(2), Some("/snapshot".into()))
        );
    }

    #[test]
    fn usage_errors_name_the_argument() {
        for (line, text) in [
            ("shell", "missing the path of a socket"),
            ("shell fd:2", "descriptor above 2"),
            ("shell fd:x", "descriptor above 2"),
            ("shell a b", "unexpected argument"),
            ("shell a --cpus x", "--cpus \"x\": expected a number from 1 to 32"),
            ("shell a --memory 1 --memory 2", "--memory is given twice"),
            ("shell a --disk x", "invalid option"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(text), "{line}: {message}");
        }
    }
}
