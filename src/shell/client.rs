//! `mayfly restore --shell`: loads a snapshot into a shell, and waits for the end of its VM.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use vmm::config::{DeviceBackend, NetBackend, NetOverride};
use vmm::control::{LoadSnapshotError, LoadSnapshotParams};

use super::message::{self, Reply, Request};
use crate::process;
use crate::terminal::{InputKind, SavedModes};

/// Failure to load a snapshot into a shell.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the snapshot cannot be used.
    #[error(transparent)]
    Load(LoadSnapshotError),
    /// The shell does not accept connections.
    #[error("cannot connect to the shell at {}; start one with mayfly shell", path.display())]
    Connect {
        /// Path of its socket.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file of this process cannot be passed.
    #[error("cannot open {file}")]
    Open {
        /// Name of the file.
        file: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The descriptor of an interface or of first frames is closed.
    #[error("cannot pass descriptor {number} to the shell; open it before")]
    Descriptor {
        /// Number of the descriptor.
        number: RawFd,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// An argument is not UTF-8.
    #[error("cannot send argument {0:?} to a shell: it is not UTF-8; rename the file")]
    Argument(OsString),
    /// The request cannot be sent.
    #[error("cannot send the request to the shell")]
    Send(#[source] message::Error),
    /// The shell refuses the snapshot.
    #[error("the shell refuses the snapshot: {0}")]
    Refused(String),
    /// The shell has ended, or serves another client.
    #[error(
        "the shell has ended without an exit status, or has loaded another snapshot; start one with mayfly shell"
    )]
    Ended,
    /// The reply is invalid.
    #[error("cannot read the reply of the shell")]
    Reply(#[source] message::Error),
}

/// Loads the snapshot of `params` into the shell at `socket`, with the `arguments` of `mayfly restore`. Returns the exit status of
/// its VM.
///
/// # Errors
/// [`Error`]
pub fn restore(
    socket: &Path,
    params: &LoadSnapshotParams,
    arguments: impl Iterator<Item = OsString>,
) -> Result<u8, Error> {
    let mut stream = UnixStream::connect(socket).map_err(|source| Error::Connect {
        path: socket.to_owned(),
        source,
    })?;
    let arguments = arguments.map(|argument| argument.into_string().map_err(Error::Argument));
    let stdin = io::stdin();
    let modes = SavedModes::of(stdin.as_fd());
    send(&mut stream, params, arguments.collect::<Result<_, _>>()?)?;
    let reply = Reply::receive(&mut stream);
    if let (Err(_), Some(modes)) = (&reply, modes) {
        // A killed shell leaves the terminal in raw mode.
        modes.restore();
    }
    match reply {
        Ok(Reply::Status(status)) => Ok(status),
        Ok(Reply::Signal(signal)) => Ok(process::exit_by_signal(signal)),
        Ok(Reply::Refused(reason)) => Err(Error::Refused(reason)),
        Err(message::Error::Ended | message::Error::Socket { .. }) => Err(Error::Ended),
        Err(error) => Err(Error::Reply(error)),
    }
}

/// Sends the request with all files. They are closed then: a lock of a disk must end with the VM.
fn send(stream: &mut UnixStream, params: &LoadSnapshotParams, arguments: Vec<String>) -> Result<(), Error> {
    // First: a number that is closed must not get another file.
    let descriptors: Result<Vec<_>, _> = descriptors(params)
        .map(|number| match process::duplicate(number) {
            Ok(descriptor) => Ok((number, descriptor)),
            Err(source) => Err(Error::Descriptor { number, source }),
        })
        .collect();
    let descriptors = descriptors?;
    let open = |file, path| File::open(path).map_err(|source| Error::Open { file, source });
    let files = params.open_files().map_err(Error::Load)?;
    let directory = process::working_directory().map_err(|source| Error::Open {
        file: "the working directory",
        source,
    })?;
    let null = open("/dev/null", "/dev/null")?;
    let stdin = io::stdin();
    let stdin = match InputKind::of(stdin.as_fd()) {
        // Its keys are for the foreground.
        InputKind::Background => null.as_fd(),
        InputKind::File | InputKind::Terminal => stdin.as_fd(),
    };
    let request = Request {
        arguments,
        standard: [
            stdin.as_raw_fd(),
            io::stdout().as_raw_fd(),
            io::stderr().as_raw_fd(),
        ],
        directory: directory.as_raw_fd(),
        files: files
            .iter()
            .map(|(path, file)| (path.clone(), file.as_raw_fd()))
            .collect(),
        descriptors: descriptors
            .iter()
            .map(|(number, descriptor)| (*number, descriptor.as_raw_fd()))
            .collect(),
        is_detached: false,
    };
    request.send(stream).map_err(Error::Send)
}

/// Returns the numbers of the descriptors that `params` name.
fn descriptors(params: &LoadSnapshotParams) -> impl Iterator<Item = RawFd> {
    let taps = params.overrides.iter().filter_map(|(_, backend)| match backend {
        DeviceBackend::Interface(NetOverride {
            backend: NetBackend::Descriptor(number),
            ..
        }) => Some(*number),
        _ => None,
    });
    taps.chain(params.first_frames.iter().map(|file| file.descriptor))
}
