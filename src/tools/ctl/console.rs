//! The serial console of a VM on stdin and stdout.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use serde_json::Value;

use super::request::Error;
use crate::logging::print_message;
use crate::terminal::escape::{EscapeAction, EscapeFilter};
use crate::terminal::{self, InputKind, Terminal};

/// Bytes of one read.
const CHUNK_SIZE: usize = 4096;
/// Reads of input that wait for the guest.
const MAX_WAITING: usize = 16;
/// Key after Ctrl-A that detaches.
const DETACH: u8 = b'd';

const KEYS: &str = "\r\n\
    Ctrl-A d       detach; the guest runs on\r\n\
    Ctrl-A h       show this help\r\n\
    Ctrl-A Ctrl-A  send one Ctrl-A to the guest\r\n";

/// Place of a console.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place(PathBuf);

impl Place {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Returns the place of the console in the response to `GET /vm/status`.
    ///
    /// # Errors
    /// [`Error::NoConsole`] if clients cannot attach to it.
    pub(super) fn find(status: &Value) -> Result<Self, Error> {
        let name = status["console"].as_str().unwrap_or("unknown");
        let path = name.strip_prefix("unix:").or_else(|| name.strip_prefix("pty:"));
        path.map(|path| Self(path.into()))
            .ok_or_else(|| Error::NoConsole(name.to_owned()))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Console {
            path: self.0.clone(),
            source,
        }
    }

    /// Connects to the socket, or opens the terminal.
    fn open(&self) -> io::Result<Connection> {
        let kind = self.0.metadata()?.file_type();
        if kind.is_socket() {
            return UnixStream::connect(&self.0).map(Connection::Socket);
        }
        if !kind.is_char_device() {
            return Err(io::Error::other("the file is neither a socket nor a terminal"));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        options.open(&self.0).map(Connection::Terminal)
    }
}

/// Open console.
enum Connection {
    Socket(UnixStream),
    Terminal(File),
}

impl Connection {
    /// Duplicates the descriptor.
    fn file(&self) -> io::Result<File> {
        let descriptor: io::Result<OwnedFd> = match self {
            Self::Socket(stream) => stream.as_fd().try_clone_to_owned(),
            Self::Terminal(file) => file.as_fd().try_clone_to_owned(),
        };
        descriptor.map(File::from)
    }

    /// Declares the end of the input: another client may have it.
    fn end_input(&self) {
        if let Self::Socket(stream) = self {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }
}

/// Copies stdin to the console at `place`, and its output to stdout, until the user detaches or the console ends.
///
/// # Errors
/// [`Error::Console`] if the console cannot be opened, or stdin or stdout fails.
pub(super) fn attach(place: &Place) -> Result<Vec<u8>, Error> {
    let connection = place.open().map_err(|source| place.failed(source))?;
    let mut output = connection.file().map_err(|source| place.failed(source))?;
    let terminal = match InputKind::of(io::stdin().as_fd()) {
        InputKind::Terminal => {
            print_message("attached to the console; Ctrl-A d detaches, Ctrl-A h lists the keys");
            let entered = terminal::restore_at_signals().and_then(|()| Terminal::enter(io::stdin().as_fd()));
            Some(entered.map_err(|error| Error::Terminal(Box::new(error)))?)
        }
        // Its input would stop this process.
        InputKind::Background => return copy_output(place, &mut output),
        InputKind::File => None,
    };
    let (sender, receiver) = sync_channel(MAX_WAITING);
    let has_keys = terminal.is_some();
    thread::spawn(move || match has_keys {
        true => read_keys(&sender),
        false => read_file(&sender),
    });
    thread::spawn(move || write_input(&connection, &receiver));
    let copied = copy_output(place, &mut output);
    drop(terminal);
    if has_keys {
        print_message("the console has ended");
    }
    copied
}

/// Reads keys, and detaches at the escape key. Input that the guest does not take is dropped, as a terminal drops it.
fn read_keys(sender: &SyncSender<Vec<u8>>) {
    let mut escape = EscapeFilter::new(DETACH);
    let mut bytes = [0; CHUNK_SIZE];
    while let Ok(count @ 1..) = io::stdin().read(&mut bytes) {
        let mut input = Vec::with_capacity(count + 1);
        // Byte by byte: `feed` returns the last action only.
        for byte in &bytes[..count] {
            match escape.feed(&[*byte], &mut input) {
                None => {}
                Some(EscapeAction::Help) => eprint!("{KEYS}"),
                Some(EscapeAction::Quit) => detach(),
            }
        }
        if !input.is_empty() {
            let _ = sender.try_send(input);
        }
    }
}

/// Ends the process; another thread waits for output.
fn detach() -> ! {
    vmm::emergency::restore();
    eprintln!();
    print_message("detached");
    process::exit(0)
}

/// Reads a file or pipe, and waits for the guest.
fn read_file(sender: &SyncSender<Vec<u8>>) {
    let mut bytes = [0; CHUNK_SIZE];
    loop {
        match io::stdin().read(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(count @ 1..) if sender.send(bytes[..count].to_vec()).is_ok() => {}
            _ => return,
        }
    }
}

/// Writes the input to the console, until its end.
fn write_input(connection: &Connection, receiver: &Receiver<Vec<u8>>) {
    let Ok(mut file) = connection.file() else { return };
    for bytes in receiver {
        if file.write_all(&bytes).is_err() {
            return;
        }
    }
    connection.end_input();
}

/// Copies the output to stdout, until its end or that of the reader of stdout.
fn copy_output(place: &Place, output: &mut File) -> Result<Vec<u8>, Error> {
    let mut bytes = [0; CHUNK_SIZE];
    let mut stdout = io::stdout().lock();
    loop {
        let count = match output.read(&mut bytes) {
            Ok(0) => return Ok(Vec::new()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // The VM has ended: its side of the terminal is closed, or it has not read all input.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(Vec::new()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Vec::new()),
            Err(error) => return Err(place.failed(error)),
        };
        let printed = stdout.write_all(&bytes[..count]).and_then(|()| stdout.flush());
        match printed {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Vec::new()),
            result => result.map_err(Error::Stdout)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::Place;

    #[test]
    fn place_is_found_in_status() {
        for (console, path) in [
            ("unix:/run/a:b", Some("/run/a:b")),
            ("pty:/dev/pts/3", Some("/dev/pts/3")),
            ("stdio", None),
            ("file:/tmp/log", None),
        ] {
            let place = Place::find(&json!({ "console": console }));
            assert_eq!(
                place.ok(),
                path.map(|path| Place::new(Path::new(path))),
                "{console}"
            );
        }
        let error = Place::find(&json!({})).unwrap_err().to_string();
        assert!(error.contains("unknown"), "{error}");
    }
}
