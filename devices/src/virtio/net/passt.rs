//! A network for a user without privileges: passt, which turns frames into the host's own connections.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use super::stream::{self, Stream};

/// Why there is no passt.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not installed.
    #[error("passt is not installed; get it with `apt install passt`, or give the guest a tap interface")]
    Missing(#[source] io::Error),
    /// It is there, but did not start.
    #[error("cannot start passt")]
    Start(#[source] io::Error),
    /// There is no pair of sockets to talk to it.
    #[error("cannot make a pair of sockets for passt")]
    Pair(#[source] io::Error),
    /// The socket is of no use.
    #[error("cannot use the socket to passt")]
    Stream(#[source] stream::Error),
}

/// A running passt, which ends with this.
#[derive(Debug)]
pub struct Passt {
    process: Child,
}

impl Passt {
    /// Starts Debian's passt for one guest, with `arguments`, such as `--tcp-ports 8080:80`, added to those that it needs.
    ///
    /// # Errors
    /// All variants. What passt itself says goes to standard error, and its end shows as a link that goes down.
    pub fn start(arguments: &[String]) -> Result<(Self, Stream), Error> {
        Self::start_program("passt", arguments)
    }

    pub(super) fn start_program(program: &str, arguments: &[String]) -> Result<(Self, Stream), Error> {
        let (ours, theirs) = UnixStream::pair().map_err(Error::Pair)?;
        // Its end of the pair is standard input, the one descriptor that is passed on without further ado.
        let process = Command::new(program)
            .args(["--foreground", "--quiet", "--fd", "0"])
            .args(arguments)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Error::Missing(error),
                _ => Error::Start(error),
            })?;
        let passt = Self { process };
        let stream = Stream::new(ours).map_err(Error::Stream)?;
        Ok((passt, stream))
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // Fails when it has ended already. Killed or ended, the wait is short, and it leaves no zombie.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
