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

use super::client::{Client, MAX_READ};
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
/// Time in which clients receive the last output after the end of the VM. The buffer of a socket takes it at once, unless its client
/// stalls.
const END_TIMEOUT: Duration = Duration::from_millis(500);
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
        ThreadRole::Console.enter_or_log();
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
    /// The writer sends nothing more, but not all of its input is read.
    is_writer_ending: bool,
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
            is_writer_ending: false,
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
        polled.extend(self.clients.iter().map(|client| {
            let events = self.wanted_events(client);
            // The hang-up of a client without wanted events is of interest only after the end of its input.
            let is_ignored = events == 0 && (!client.input_ended() || client.output_ended());
            let file = if is_ignored { -1 } else { client.file().as_raw_fd() };
            pollfd(file, events)
        }));
    }

    /// Returns the events of `client` for which there is work.
    fn wanted_events(&self, client: &Client) -> libc::c_short {
        let write = if client.is_behind(self.history.end()) {
            libc::POLLOUT
        } else {
            0
        };
        match self.accepts_input(client) {
            // The end of the input is known before it is read.
            true => write | libc::POLLIN | libc::POLLRDHUP,
            false => write,
        }
    }

    /// Returns true if input of `client` is read now: for the guest, or to drop it.
    fn accepts_input(&self, client: &Client) -> bool {
        let is_possible = match self.has_other_writer(client) {
            // The input of the next writer waits for the rest of that of the last one.
            true => !self.is_writer_ending,
            false => self.input.len() < INPUT_CAPACITY,
        };
        !client.input_ended() && is_possible
    }

    /// Returns true if the input of another client than `client` goes to the guest.
    fn has_other_writer(&self, client: &Client) -> bool {
        !client.is_writer() && self.clients.iter().any(Client::is_writer)
    }

    /// Reads and writes the files of `polled` that are ready, each once.
    fn exchange(&mut self, polled: &[libc::pollfd]) {
        let Some((&[port, source], clients)) = polled.split_first_chunk::<FIXED>() else {
            return;
        };
        if let Some(writer) = self.clients.iter().position(Client::is_writer) {
            self.note_end_of_writer(&clients[writer]);
        }
        // The oldest client first: the first one that sends becomes the writer.
        for (index, client) in clients.iter().enumerate() {
            self.serve_client(index, client);
        }
        self.clients
            .retain(|client| !client.input_ended() || !client.output_ended());
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

    /// Notes if the writer has ended its input. A writer that was not polled is as before.
    fn note_end_of_writer(&mut self, polled: &libc::pollfd) {
        if polled.fd >= 0 {
            self.is_writer_ending = polled.revents & (libc::POLLRDHUP | libc::POLLHUP) != 0;
        }
    }

    /// Handles the events of a client.
    fn serve_client(&mut self, index: usize, polled: &libc::pollfd) {
        let (asked, events) = (polled.events, polled.revents);
        if events & libc::POLLIN != 0 {
            self.read_client(index);
            if self.clients[index].is_writer() {
                self.note_end_of_writer(polled);
            }
        }
        let client = &mut self.clients[index];
        if events & libc::POLLOUT != 0 {
            client.write(&self.history);
        }
        if events & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 {
            client.end_output();
            // Input that was not asked for may still be there.
            if asked & libc::POLLIN != 0 && events & libc::POLLIN == 0 {
                client.end_input();
            }
        }
    }

    /// Reads input of a client: for the guest, if no other client is the writer.
    fn read_client(&mut self, index: usize) {
        // Another client may have become the writer, or have filled the buffer, since the poll.
        if !self.accepts_input(&self.clients[index]) {
            return;
        }
        let has_other = self.has_other_writer(&self.clients[index]);
        let room = match has_other {
            true => MAX_READ,
            false => MAX_READ.min(INPUT_CAPACITY - self.input.len()),
        };
        let mut buffer = [0; MAX_READ];
        let client = &mut self.clients[index];
        match client.read(&mut buffer[..room]) {
            [] => {}
            _ if has_other => client.inform(),
            bytes => {
                client.set_writer();
                self.input.extend(bytes);
                self.write_input();
            }
        }
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
                let number = error.raw_os_error();
                if matches!(
                    number,
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
                ) {
                    self.accept_at = Some(Instant::now() + ACCEPT_PAUSE);
                }
                return;
            }
        };
        let file = Arc::new(file);
        if self.clients.len() < MAX_CLIENTS {
            self.clients.push(Client::new(file, self.history.start()));
        } else {
            let mut client = Client::new(file, self.history.end());
            client.notify(&format!("{MAX_CLIENTS} clients are attached; detach one"));
            client.write(&self.history);
        }
    }

    /// Makes the terminal a client, if a program has it open.
    fn attach_terminal(&mut self) {
        let Source::Pty(files) = &self.source else { return };
        // Each open is one event. A full queue of events has no effect: the first one suffices.
        let _ = (&files.opened).read(&mut [0; CHUNK_SIZE]);
        let mut polled = [pollfd(files.master.as_raw_fd(), libc::POLLIN)];
        poll(&mut polled, Some(Instant::now()));
        // A program may have closed it again, and have left input.
        let is_open = polled[0].revents & libc::POLLHUP == 0 || polled[0].revents & libc::POLLIN != 0;
        let is_attached = self.clients.first().is_some_and(|client| !client.output_ended());
        if is_open && !is_attached {
            self.clients.clear();
            self.clients
                .push(Client::new(files.master.clone(), self.history.start()));
        }
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
