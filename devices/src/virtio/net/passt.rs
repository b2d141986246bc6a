//! User-mode network without privileges: passt translates frames to connections of the host.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::stream::{self, StderrExcerpt, Stream};
use crate::thread_role;

/// First descriptor after the standard ones.
const FIRST_DESCRIPTOR: RawFd = 3;
/// Maximum number of descriptors to mark one by one, if the kernel lacks `CLOSE_RANGE_CLOEXEC`.
const MAX_DESCRIPTORS: u64 = 1 << 16;
/// Limit of the wait for the end of passt in milliseconds.
const END_TIMEOUT: libc::c_int = 1000;

/// Error of a passt process.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// passt is not installed.
    #[error(
        "cannot start passt: it is not installed; install it with `apt install passt`, or use a tap interface"
    )]
    Missing(#[source] io::Error),
    /// The filters of this process would restrict passt too.
    #[error(
        "cannot start passt: this process has restricted its system calls already; use `mayfly restore`, or replace the interface by \
         a tap in `network_overrides`"
    )]
    Restricted,
    /// passt does not start.
    #[error("cannot start passt")]
    Start(#[source] io::Error),
    /// The socket pairs for frames or for standard error cannot be created.
    #[error("cannot create the sockets for passt")]
    Pair(#[source] io::Error),
    /// The socket for frames cannot be used.
    #[error("cannot use the socket of passt")]
    Stream(#[source] stream::Error),
    /// passt has exited.
    #[error("passt exited with {status}: {stderr}")]
    Ended {
        /// Exit status.
        status: ExitStatus,
        /// First and last line of its standard error.
        stderr: String,
    },
}

/// Running passt process; dropping it ends the process.
#[derive(Debug)]
pub struct Passt {
    process: Child,
    /// The process, for a signal that cannot reach another one: filters refuse kill(2).
    descriptor: OwnedFd,
    /// End of this process for frames.
    socket: UnixStream,
    stderr: StderrExcerpt,
}

impl Passt {
    /// Starts passt for one guest with the required options and `arguments`, such as `--tcp-ports 8080:80`.
    /// passt receives one end of the stream and no other descriptor of this process.
    ///
    /// This does not wait until passt is ready: frames wait in the socket. When passt exits, the link of the
    /// stream goes down, and the log shows the first and the last line of its standard error; see also
    /// [`check`](Self::check).
    ///
    /// # Errors
    /// Fails with any variant except [`Error::Ended`].
    pub fn start(arguments: &[String]) -> Result<(Self, Stream), Error> {
        Self::start_program("passt", arguments)
    }

    /// Checks that passt still runs. A passt that rejects its arguments exits a few milliseconds after its
    /// start.
    ///
    /// # Errors
    /// [`Error::Ended`] if passt has exited.
    pub fn check(&mut self) -> Result<(), Error> {
        // Fails only for a process that is not a child.
        let Ok(Some(status)) = self.process.try_wait() else {
            return Ok(());
        };
        let lines = self.stderr.lines();
        Err(Error::Ended {
            status,
            stderr: lines.unwrap_or_else(|| "standard error is empty".to_owned()),
        })
    }

    pub(super) fn start_program(program: &str, arguments: &[String]) -> Result<(Self, Stream), Error> {
        if !thread_role::can_start_programs() {
            return Err(Error::Restricted);
        }
        let (ours, theirs) = UnixStream::pair().map_err(Error::Pair)?;
        let socket = ours.try_clone().map_err(Error::Pair)?;
        // Some releases of passt require a descriptor above standard error, which `try_clone` guarantees. The
        // duplicate is close-on-exec; `keep_only` clears that flag in the child alone.
        let theirs = OwnedFd::from(theirs).try_clone().map_err(Error::Pair)?;
        let descriptor = theirs.as_raw_fd();
        let (stderr, stderr_end) = StderrExcerpt::pair().map_err(Error::Pair)?;
        let mut command = Command::new(program);
        command
            .args(["--foreground", "--quiet", "--fd", &descriptor.to_string()])
            .args(arguments)
            // A signal of the terminal is for the VM, which ends passt.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr_end);
        // SAFETY: between fork and exec, the closure only makes system calls; it allocates nothing and takes no
        // lock.
        unsafe { command.pre_exec(move || keep_only(descriptor)) };
        let process = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::Missing(error),
            _ => Error::Start(error),
        })?;
        let opened = open_process(&process).map_err(Error::Start)?;
        // From here on, an error drops `passt`, which ends the process.
        let passt = Self {
            process,
            descriptor: opened,
            socket,
            stderr: stderr.clone(),
        };
        let stream = Stream::with_name(ours, "passt".to_owned(), Some(stderr)).map_err(Error::Stream)?;
        Ok((passt, stream))
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let descriptor = self.descriptor.as_raw_fd();
        // Fails if the process has already exited, and for the passt of root: it takes another user, which this process cannot signal
        // without capabilities.
        // SAFETY: the call takes a null pointer: no further information.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                descriptor,
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        // passt exits at the end of its socket.
        let _ = self.socket.shutdown(Shutdown::Both);
        let mut end = libc::pollfd {
            fd: descriptor,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `end` is one structure that is valid for writes.
        unsafe { libc::poll(&raw mut end, 1, END_TIMEOUT) };
        // Leaves no zombie.
        let _ = self.process.try_wait();
    }
}

/// Opens a descriptor of `process`, which has not been waited for.
fn open_process(process: &Child) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers alone.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, process.id(), 0) };
    match RawFd::try_from(descriptor) {
        // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
        Ok(descriptor @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Keeps only `descriptor` and the standard ones open across the next exec. The exec then also closes
/// descriptors that this process has inherited without the close-on-exec flag.
fn keep_only(descriptor: RawFd) -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: the call takes no pointer, and only sets flags of descriptors.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, FIRST_DESCRIPTOR, u32::MAX, flags) };
    if marked != 0 {
        set_close_on_exec();
    }
    // SAFETY: the call takes no pointer.
    match unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the close-on-exec flag of each descriptor, for Linux before 5.11.
fn set_close_on_exec() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes one `rlimit`, which `limit` exclusively is. It cannot fail; the limit would
    // stay 0.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let end = RawFd::try_from(limit.rlim_cur.min(MAX_DESCRIPTORS)).unwrap_or(RawFd::MAX);
    for descriptor in FIRST_DESCRIPTOR..end {
        // SAFETY: the call takes no pointer. It fails for a descriptor that is not open.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}
