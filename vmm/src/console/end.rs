//! The other end of the guest's serial port, open.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::error::Error;
use super::file::SerialFile;
use super::pty::Pty;
use super::relay::{self, Source};
use crate::config::SerialTarget;
use crate::private_socket::PrivateSocket;
use crate::vm::Console;

/// Open end of the guest's serial port, for any number of starts. Its drop removes the file of a socket.
#[derive(Clone)]
pub struct SerialEnd(Arc<Kind>);

enum Kind {
    File(SerialFile),
    Socket(PrivateSocket),
    Pty(Pty),
}

impl SerialEnd {
    /// Opens `target`. Returns nothing for stdin and stdout, which the caller opens.
    ///
    /// # Errors
    /// [`Error`]
    pub fn open(target: &SerialTarget) -> Result<Option<Self>, Error> {
        let kind = match target {
            SerialTarget::Stdio => return Ok(None),
            SerialTarget::File(path) => Kind::File(SerialFile::open(path)?),
            SerialTarget::Unix(path) => Kind::Socket(listen(path)?),
            SerialTarget::Pty => Kind::Pty(Pty::open()?),
        };
        Ok(Some(Self(Arc::new(kind))))
    }

    /// Returns the name by which a user finds this end, in the form of [`SerialTarget`], with the path of a pseudoterminal.
    pub fn name(&self) -> String {
        match &*self.0 {
            Kind::File(file) => format!("file:{}", file.path().display()),
            Kind::Socket(socket) => format!("unix:{}", socket.path().display()),
            Kind::Pty(pty) => format!("pty:{}", pty.path().display()),
        }
    }

    /// Returns the console of a VM at this end.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Relay`].
    pub fn console(&self) -> Result<Console, Error> {
        let source = match &*self.0 {
            Kind::File(file) => return file.console(),
            Kind::Socket(socket) => socket.try_clone().map(Source::Listener),
            Kind::Pty(pty) => pty.source().map(Source::Pty),
        };
        source
            .and_then(|source| relay::start(source, Box::new(self.clone())))
            .map_err(Error::Relay)
    }
}

fn listen(path: &Path) -> Result<PrivateSocket, Error> {
    PrivateSocket::bind(path).map_err(|source| match source.kind() {
        ErrorKind::AddrInUse => Error::InUse(path.to_owned()),
        _ => Error::Listen {
            path: path.to_owned(),
            source,
        },
    })
}
