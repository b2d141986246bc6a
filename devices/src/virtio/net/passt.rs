//! A network for a user without privileges: passt, which turns frames into the host's own connections.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::stream::{self, Stream};
use super::words::StderrTail;

/// The first descriptor that is not standard input, output or error.
const FIRST: RawFd = 3;
/// The most descriptors that are closed one by one, where the kernel does not close them all at once.
const MAX_DESCRIPTORS: u64 = 1 << 16;

/// Why there is no passt.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not installed.
    #[error("passt is not installed; get it with `apt install passt`, or give the guest a tap interface")]
    Missing(#[source] io::Error),
    /// It is there, but did not start.
    #[error("cannot start passt")]
    Start(#[source] io::Error),
    /// There is no pair of sockets to talk to it, or to hear from it.
    #[error("cannot make the sockets for passt")]
    Pair(#[source] io::Error),
    /// The socket is of no use.
    #[error("cannot use the socket to passt")]
    Stream(#[source] stream::Error),
    /// It has ended.
    #[error("passt has ended with {status}: {said}")]
    Ended {
        /// How it has ended.
        status: ExitStatus,
        /// The first line of what it has said.
        said: String,
    },
}

/// A running passt, which ends with this.
#[derive(Debug)]
pub struct Passt {
    process: Child,
    last_words: StderrTail,
}

impl Passt {
    /// Starts Debian's passt for one guest, with `arguments`, such as `--tcp-ports 8080:80`, added to those that it needs.
    /// It gets one end of the stream and no other descriptor of this process.
    ///
    /// This does not wait for it to be ready: frames wait in the socket. When it ends, the link of the stream goes down, and
    /// the log has the first line of what it has said; see also [`check`](Self::check).
    ///
    /// # Errors
    /// All variants but [`Error::Ended`].
    pub fn start(arguments: &[String]) -> Result<(Self, Stream), Error> {
        Self::start_program("passt", arguments)
    }

    /// Whether it still runs. One that cannot do what its arguments ask for ends a few milliseconds after its start.
    ///
    /// # Errors
    /// [`Error::Ended`]
    pub fn check(&mut self) -> Result<(), Error> {
        // Fails only for a process that is not this one's child.
        let Ok(Some(status)) = self.process.try_wait() else {
            return Ok(());
        };
        let said = self.last_words.first_line();
        Err(Error::Ended {
            status,
            said: said.unwrap_or_else(|| "it has not said why".to_owned()),
        })
    }

    pub(super) fn start_program(program: &str, arguments: &[String]) -> Result<(Self, Stream), Error> {
        let (ours, theirs) = UnixStream::pair().map_err(Error::Pair)?;
        // A duplicate is above standard error, where some releases of passt want it. It is closed when an exec succeeds,
        // but for the one in the child.
        let theirs = OwnedFd::from(theirs).try_clone().map_err(Error::Pair)?;
        let descriptor = theirs.as_raw_fd();
        let (last_words, says) = StderrTail::pair().map_err(Error::Pair)?;
        let mut command = Command::new(program);
        command
            .args(["--foreground", "--quiet", "--fd", &descriptor.to_string()])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(says);
        // SAFETY: between fork and exec it makes system calls only.
        unsafe { command.pre_exec(move || pass_only(descriptor)) };
        let process = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::Missing(error),
            _ => Error::Start(error),
        })?;
        // From here on it is ended when something fails.
        let passt = Self {
            process,
            last_words: last_words.clone(),
        };
        let stream = Stream::named(ours, "passt".to_owned(), Some(last_words)).map_err(Error::Stream)?;
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

/// Has `descriptor` outlive the exec that follows, and no other but the standard ones: also one that was given to this
/// process and never made to close.
fn pass_only(descriptor: RawFd) -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: the call takes no pointer.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, FIRST, u32::MAX, flags) };
    if marked != 0 {
        mark_each();
    }
    // SAFETY: the call takes no pointer.
    match unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Before Linux 5.11, the kernel does not mark descriptors all at once.
fn mark_each() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes one `rlimit`, exclusively ours. It does not fail; there were no descriptors if it did.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let end = RawFd::try_from(limit.rlim_cur.min(MAX_DESCRIPTORS)).unwrap_or(RawFd::MAX);
    for descriptor in FIRST..end {
        // SAFETY: the call takes no pointer. It fails where nothing is open.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}
