//! Thread between the serial port and the clients of its console.
//!
//! It receives the output of the guest by a socket, keeps the last bytes of it, and writes them to each client as fast as that
//! client reads. The input of one client at a time goes to the guest: that of the first client that sends, until it ends its input.
//!
//! All files are nonblocking, and all buffers are bounded.

use std::any::Any;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::ptr::null_mut;
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

use devices::serial::SerialOutput;
use devices::thread_role::ThreadRole;

use super::client::{Client, ClientInput, MAX_READ};
use super::history::History;
use super::pty::PtyFiles;
use crate::vm::Console;

/// Maximum number of clients.
pub(super) const MAX_CLIENTS: usize = 16;
/// Maximum number of bytes of input that the guest has not taken.
const INPUT_CAPACITY: usize = 4096;
/// Maximum number of bytes of one read of the output.
const CHUNK_SIZE: usize = 16 << 10;
/// Bytes of stack of the thread.
const STACK_SIZE: usize = 128 << 10;
/// Time in which clients receive the last output after the end of the VM. The buffer of a socket takes it at once.
const END_TIMEOUT: Duration = Duration::from_millis(50);
/// Time for a program to read the last output from a pseudoterminal, which loses it when this process closes its side.
const PTY_LINGER: Duration = Duration::from_millis(20);
/// Time without new clients at the limit of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Origin of clients.
#[derive(Debug)]
pub(super) enum Source {
    /// Each connection is a client.
    Listener(UnixListener),
    /// The programs that have opened the terminal are one client.
    Pty(PtyFiles),
}

/// Starts the thread. Returns a console whose guard waits for the thread. `end` stays open until then.
///
/// # Errors
/// Fails at the limits of descriptors, threads and memory.
pub(super) fn start(source: Source, end: Box<dyn Any + Send>) -> io::Result<Console> {
    let (port, relay) = UnixStream::pair()?;
    port.set_nonblocking(true)?;
    relay.set_nonblocking(true)?;
    let output = SerialOutput::new(port.try_clone()?.into()).map_err(io::Error::other)?;
    let input = port.try_clone()?.into();
    let relay = Relay::new(OwnedFd::from(relay).into(), source)?;
    let thread = Builder::new().name("console".to_owned()).stack_size(STACK_SIZE);
    thread.spawn(move || {
        ThreadRole::Worker.enter_or_log();
        relay.run();
    })?;
    Ok(Console {
        output,
        input: Some(input),
        filter: None,
        guard: Some(Box::new(RelayGuard { port, _end: end })),
    })
}

/// Ends the relay when dropped, after the clients have received the last output.
struct RelayGuard {
    port: UnixStream,
    /// With the file of the socket.
    _end: Box<dyn Any + Send>,
}

impl Drop for RelayGuard {
    fn drop(&mut self) {
        // SAFETY: the call takes no pointer. It fails only if the relay has ended.
        unsafe { libc::shutdown(self.port.as_raw_fd(), libc::SHUT_WR) };
        // The relay closes its side at its end.
        let deadline = Instant::now() + 2 * END_TIMEOUT + PTY_LINGER;
        let mut polled = [pollfd(self.port.as_raw_fd(), 0)];
        while polled[0].revents & libc::POLLHUP == 0 && Instant::now() < deadline {
            poll(&mut polled, Some(deadline));
        }
    }
}

/// State of the thread.
#[derive(Debug)]
pub(super) struct Relay {
    /// Serial port, a socket.
    port: File,
    source: Source,
    clients: Vec<Client>,
    history: History,
    /// Input that the guest has not taken.
    input: VecDeque<u8>,
    /// Time of the next accept, at the limit of descriptors.
    accept_at: Option<Instant>,
    /// Time of the end, once the VM has ended.
    deadline: Option<Instant>,
}

/// Number of polled files before those of the clients: the serial port and the source.
const FIXED: usize = 2;

impl Relay {
    fn new(port: File, source: Source) -> io::Result<Self> {
        Ok(Self {
            port,
            source,
            clients: Vec::new(),
            history: History::new()?,
            input: VecDeque::new(),
            accept_at: None,
            deadline: None,
        })
    }

    fn run(mut self) {
        // A program may have opened the terminal already.
        self.attach_terminal();
        let mut polled = Vec::new();
        while !self.is_finished() {
            self.list_files(&mut polled);
            poll(&mut polled, self.deadline.or(self.accept_at));
            self.exchange(&polled);
        }
        let has_terminal = matches!(self.source, Source::Pty(_)) && !self.clients.is_empty();
        if has_terminal {
            poll(&mut [], Some(Instant::now() + PTY_LINGER));
        }
    }

    /// Returns true after the end of the VM, if all clients have received all output, or there is no more time.
    fn is_finished(&self) -> bool {
        self.deadline.is_some_and(|deadline| {
            let end = self.history.end();
            let is_late = Instant::now() >= deadline;
            is_late || !self.clients.iter().any(|client| client.is_behind(end))
        })
    }

    /// Lists the files to poll.
    fn list_files(&mut self, polled: &mut Vec<libc::pollfd>) {
        polled.clear();
        let has_ended = self.deadline.is_some();
        let output = if has_ended { 0 } else { libc::POLLIN };
        let input = if self.input.is_empty() { 0 } else { libc::POLLOUT };
        let port = if has_ended { -1 } else { self.port.as_raw_fd() };
        polled.push(pollfd(port, output | input));
        self.accept_at = self.accept_at.filter(|time| Instant::now() < *time);
        let source = match &self.source {
            Source::Listener(listener) => listener.as_raw_fd(),
            Source::Pty(files) => files.opened.as_raw_fd(),
        };
        let is_idle = has_ended || self.accept_at.is_some();
        polled.push(pollfd(if is_idle { -1 } else { source }, libc::POLLIN));
        let has_room = self.input.len() < INPUT_CAPACITY;
        let has_writer = self.clients.iter().any(Client::is_writer);
        let end = self.history.end();
        polled.extend(self.clients.iter().map(|client| {
            // Input of other clients than the writer is read to drop it.
            let may_read = !client.input_ended() && (has_room || (has_writer && !client.is_writer()));
            let read = if may_read { libc::POLLIN } else { 0 };
            let write = if client.is_behind(end) { libc::POLLOUT } else { 0 };
            // A client that has detached keeps its input until the guest has taken it.
            let is_ignored = !may_read && !client.input_ended() && write == 0;
            let file = if is_ignored { -1 } else { client.file().as_raw_fd() };
            pollfd(file, read | write)
        }));
    }

    /// Reads and writes the files of `polled` that are ready, each once.
    fn exchange(&mut self, polled: &[libc::pollfd]) {
        let Some((&[port, source], clients)) = polled.split_first_chunk::<FIXED>() else {
            return;
        };
        // From the last: a client may be removed.
        for (index, client) in clients.iter().enumerate().rev() {
            if client.revents != 0 && !self.serve_client(index, client.revents) {
                self.clients.remove(index);
            }
        }
        if port.revents & libc::POLLOUT != 0 {
            self.write_input();
        }
        if port.revents & !libc::POLLOUT != 0 {
            self.read_output();
        }
        if source.revents != 0 {
            match self.source {
                Source::Listener(_) => self.accept(),
                Source::Pty(_) => self.attach_terminal(),
            }
        }
    }

    /// Handles the `events` of a client. Returns false if it has detached.
    fn serve_client(&mut self, index: usize, events: libc::c_short) -> bool {
        if events & libc::POLLIN != 0 {
            return self.read_client(index);
        }
        if events & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 {
            return false;
        }
        self.clients[index].write(&self.history).is_ok()
    }

    /// Reads input of a client: for the guest, if no other client is the writer. Returns false if the client has detached.
    fn read_client(&mut self, index: usize) -> bool {
        let has_other = self.clients.iter().any(Client::is_writer) && !self.clients[index].is_writer();
        let room = match has_other {
            true => MAX_READ,
            false => MAX_READ.min(INPUT_CAPACITY - self.input.len()),
        };
        if room == 0 {
            return true;
        }
        let mut buffer = [0; MAX_READ];
        let client = &mut self.clients[index];
        match client.read(&mut buffer[..room]) {
            ClientInput::Detached => return false,
            ClientInput::Nothing | ClientInput::Ended => {}
            ClientInput::Bytes(_) if has_other => client.inform(),
            ClientInput::Bytes(bytes) => {
                client.set_writer();
                self.input.extend(bytes);
                self.write_input();
            }
        }
        true
    }

    /// Passes input to the serial port, which takes it as the guest does.
    fn write_input(&mut self) {
        let bytes = self.input.make_contiguous();
        if let Ok(written) = self.port.write(bytes) {
            self.input.drain(..written);
        }
    }

    /// Takes output of the guest, or notices the end of the VM.
    fn read_output(&mut self) {
        let mut buffer = [0; CHUNK_SIZE];
        match self.port.read(&mut buffer) {
            Ok(count @ 1..) => self.history.push(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Ok(_) | Err(_) => self.deadline = Some(Instant::now() + END_TIMEOUT),
        }
    }

    /// Accepts a client, or rejects it if there are too many.
    fn accept(&mut self) {
        let Source::Listener(listener) = &self.source else {
            return;
        };
        let file = match accept(listener) {
            Ok(file) => file,
            Err(error) => {
                if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
                    self.accept_at = Some(Instant::now() + ACCEPT_PAUSE);
                }
                return;
            }
        };
        let mut client = Client::new(Arc::new(file), self.history.start());
        if self.clients.len() < MAX_CLIENTS {
            self.clients.push(client);
        } else {
            client.notify(&format!("{MAX_CLIENTS} clients are attached; detach one"));
            let _ = client.write(&self.history);
        }
    }

    /// Makes the terminal a client, if a program has it open.
    fn attach_terminal(&mut self) {
        let Source::Pty(files) = &self.source else { return };
        // Each open is one event. A full queue of events has no effect: the first one suffices.
        let _ = (&files.opened).read(&mut [0; CHUNK_SIZE]);
        let mut polled = [pollfd(files.master.as_raw_fd(), 0)];
        poll(&mut polled, Some(Instant::now()));
        if !self.clients.is_empty() || polled[0].revents & libc::POLLHUP != 0 {
            return;
        }
        self.clients
            .push(Client::new(files.master.clone(), self.history.start()));
    }
}

fn pollfd(fd: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}

/// Waits for one of `files`, at most until `deadline`.
fn poll(files: &mut [libc::pollfd], deadline: Option<Instant>) {
    let timeout = deadline.map_or(-1, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up: zero for a rest below 1 ms would become a busy loop.
        i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    });
    let count = files.len() as libc::nfds_t;
    // SAFETY: `files` are `count` pollfds, valid and exclusively borrowed during the call.
    let ready = unsafe { libc::poll(files.as_mut_ptr(), count, timeout) };
    if ready < 0 {
        // A signal, or no memory: no file is ready.
        files.iter_mut().for_each(|file| file.revents = 0);
    }
}

/// Accepts a client whose file does not block.
fn accept(listener: &UnixListener) -> io::Result<File> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no address is requested.
    let client = unsafe { libc::accept4(listener.as_raw_fd(), null_mut(), null_mut(), flags) };
    if client < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(client) }))
}
