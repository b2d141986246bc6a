//! Server for all clients, with one descriptor for an event loop.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::message::{CONTINUE, Request, Response, SERVER, too_many};
use super::parser::{HttpLimits, KEPT_CAPACITY, Parser, RequestError, Step};
use super::socket::{Error, Socket};

/// Epoll data of the listening socket. For a connection, it is the index in `connections`.
const LISTENER: u64 = u64::MAX;

/// Maximum of accepted clients and of served descriptors in one call of [`Server::serve`].
const BATCH: usize = 16;

/// Size of the read buffer in bytes, shared by all clients.
const SCRATCH: usize = 16384;

/// Maximum time from the first to the last byte of a request. Checked at each event of the connection; a silent client
/// holds its place until another client needs it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Time without progress after a response, after which another client may take the place of the connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Executes requests, one at a time, in the order of each client.
pub trait Handler {
    /// Executes `request` without blocking.
    fn handle(&mut self, request: &Request) -> Reply;

    /// Handles the end of the client whose request is [pending](Reply::Pending).
    fn cancel(&mut self);

    /// Takes the connection of `request`, whose [response](Response::switch_to) changes its protocol and is sent.
    fn take_over(&mut self, request: &Request, stream: UnixStream) {
        let _ = (request, stream);
    }
}

/// Reply to a request.
#[derive(Debug)]
pub enum Reply {
    /// Response.
    Response(Response),
    /// The request executes. [`Server::respond`] gets its response; no other request becomes pending before.
    Pending,
    /// The request must wait until the pending one has its response, and is then handled again, unless its client disconnects.
    Busy,
}

/// HTTP server on a Unix socket.
///
/// The descriptor is readable while there is work for [`serve`](Self::serve).
pub struct Server {
    socket: Socket,
    epoll: Epoll,
    connections: Vec<Option<Watched>>,
    limits: HttpLimits,
    /// Header `Server` of the responses.
    name: &'static str,
    scratch: Box<[u8]>,
    /// Reserves a descriptor: at the descriptor limit, it is closed to accept and close a client. Otherwise the pending
    /// client would make the event loop spin.
    spare: Option<UnixListener>,
    /// Returns true for clients that are served.
    admits: fn(&UnixStream) -> bool,
    /// Returns the time. Tests replace it.
    clock: Box<dyn Fn() -> Instant>,
}

/// Connection, and the event for which its descriptor is watched.
struct Watched {
    connection: Connection,
    wait: Wait,
}

impl Server {
    /// Listens at `path`, and replaces a socket there without a listener. Clients can connect as soon as the path
    /// exists; they are served by [`serve`](Self::serve). Dropping the server removes the path, unless another
    /// file is there.
    ///
    /// # Errors
    /// All variants of [`Error`] but [`Error::Inherited`].
    pub fn bind(path: &Path, limits: HttpLimits) -> Result<Self, Error> {
        Self::new(Socket::bind(path)?, limits)
    }

    /// Serves the clients of the listening socket of another process, which removes its file.
    ///
    /// # Errors
    /// [`Error::Inherited`] and [`Error::Events`].
    pub fn from_listener(listener: UnixListener, limits: HttpLimits) -> Result<Self, Error> {
        Self::new(Socket::inherited(listener)?, limits)
    }

    fn new(socket: Socket, limits: HttpLimits) -> Result<Self, Error> {
        let epoll = Epoll::new().map_err(Error::Events)?;
        let event = EpollEvent::new(EventSet::IN, LISTENER);
        epoll
            .ctl(ControlOperation::Add, socket.as_raw_fd(), event)
            .map_err(Error::Events)?;
        Ok(Self {
            spare: socket.spare().ok(),
            socket,
            epoll,
            connections: Vec::new(),
            limits,
            name: SERVER,
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            admits: |_| true,
            clock: Box::new(Instant::now),
        })
    }

    /// Closes the connections of clients for which `admits` returns false. By default all are served.
    #[must_use]
    pub fn only_for(mut self, admits: fn(&UnixStream) -> bool) -> Self {
        self.admits = admits;
        self
    }

    /// Sends `name` in the header `Server` of responses to clients that connect from now on. The default is that of Firecracker.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// Performs a batch of the pending work without blocking. The descriptor stays readable while work remains.
    ///
    /// All responses are sent when this function returns, except to clients that do not read.
    pub fn serve(&mut self, handler: &mut dyn Handler) {
        let mut events = [EpollEvent::default(); BATCH];
        // After a signal, the descriptor is still readable, so the event loop calls again.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            match event.data() {
                LISTENER => self.accept(handler),
                index => {
                    let index = usize::try_from(index).unwrap_or(usize::MAX);
                    if event.event_set().intersects(EventSet::HANG_UP | EventSet::ERROR) {
                        self.handle_hang_up(index, handler);
                    }
                    self.process(index, handler);
                }
            }
        }
    }

    /// Cancels the pending request of the client at `index`, or removes its request that waits for another one: the client has
    /// disconnected.
    fn handle_hang_up(&mut self, index: usize, handler: &mut dyn Handler) {
        let slot = self.connections.get(index).and_then(Option::as_ref);
        match slot.map(|watched| watched.connection.awaits) {
            Some(Awaits::Response { .. }) => handler.cancel(),
            Some(Awaits::Turn(_)) => self.connections[index] = None,
            Some(Awaits::Nothing) | None => {}
        }
    }

    /// Returns true if the connection at `index` waits for the response to its request.
    fn is_pending(&self, index: usize) -> bool {
        let slot = self.connections.get(index).and_then(Option::as_ref);
        slot.is_some_and(|watched| watched.connection.is_pending())
    }

    /// Sends the response to the pending request. Then executes the requests that wait for it, in the order of their arrival, until
    /// one is pending.
    pub fn respond(&mut self, response: &Response, handler: &mut dyn Handler) {
        let pending = (0..self.connections.len()).find(|index| self.is_pending(*index));
        let mut waiting: Vec<_> = self
            .connections
            .iter()
            .enumerate()
            .filter_map(busy_since)
            .collect();
        waiting.sort_unstable();
        if let Some(Some(watched)) = pending.and_then(|index| self.connections.get_mut(index)) {
            watched.connection.complete(response);
        }
        for index in waiting.into_iter().map(|(_, index)| index).chain(pending) {
            if let Some(Some(watched)) = self.connections.get_mut(index) {
                watched.connection.awaits = Awaits::Nothing;
            }
            self.process(index, handler);
        }
    }

    /// Accepts pending clients.
    fn accept(&mut self, handler: &mut dyn Handler) {
        for _ in 0..BATCH {
            match self.socket.accept() {
                Ok(stream) if !(self.admits)(&stream) => {}
                Ok(stream) if self.count_open() < self.limits.connections => self.admit(stream),
                Ok(stream) => {
                    self.evict(handler);
                    self.admit(stream);
                    // An eviction executes requests, so one call must not perform many.
                    return;
                }
                Err(error) if is_full(&error) => self.reject_one(),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) => {}
                Err(_) => return,
            }
        }
    }

    /// Accepts and closes a client at the descriptor limit.
    fn reject_one(&mut self) {
        drop(self.spare.take());
        drop(self.socket.accept());
        self.spare = self.socket.spare().ok();
    }

    /// Starts to serve a client, or rejects it at the limit.
    fn admit(&mut self, stream: UnixStream) {
        self.drop_ending();
        let start = if self.count_open() < self.limits.connections {
            Connection::new
        } else {
            Connection::reject
        };
        // A connection that cannot be watched is closed.
        let connection = start(stream, (self.limits, self.name), (self.clock)());
        let _ = connection.and_then(|connection| self.watch(connection));
    }

    /// Returns the number of clients that may send requests.
    fn count_open(&self) -> usize {
        let open = |watched: &&Watched| !watched.connection.is_ending();
        self.connections.iter().flatten().filter(open).count()
    }

    /// Frees a place, if possible: of clients that have disconnected, else of the oldest client that never completed a request,
    /// else of the client that is idle longest after its last response, for more than [`IDLE_TIMEOUT`].
    fn evict(&mut self, handler: &mut dyn Handler) {
        // The kernel may hold requests and hang-ups whose events are not yet processed.
        for index in 0..self.connections.len() {
            self.read_request(index, handler);
        }
        if self.count_open() < self.limits.connections {
            return;
        }
        let now = (self.clock)();
        let evictable = |(index, slot): (usize, &Option<Watched>)| {
            let connection = &slot.as_ref()?.connection;
            Some((connection.eviction_rank(now)?, index))
        };
        let oldest = self.connections.iter().enumerate().filter_map(evictable).min();
        if let Some((_, index)) = oldest
            && let Some(watched) = &mut self.connections[index]
        {
            log::debug!("api: evicted an idle client, because another client connects at the limit");
            let wait = match watched.connection.end_by_limit() {
                Ok(()) => Wait::Input,
                Err(_) => Wait::Nothing,
            };
            self.set_wait(index, wait);
        }
    }

    /// Serves the connection at `index` until the kernel holds no more of its bytes, or more than one request.
    fn read_request(&mut self, index: usize, handler: &mut dyn Handler) {
        let reads = (self.limits.head + self.limits.body) / SCRATCH + 1;
        for _ in 0..reads {
            self.process(index, handler);
            let slot = self.connections.get(index).and_then(Option::as_ref);
            if slot.is_none_or(|watched| !watched.connection.unread) {
                return;
            }
        }
    }

    /// Closes the connection that has been ending longest, if there are too many: clients that stay connected after their
    /// rejection must not accumulate.
    fn drop_ending(&mut self) {
        let ending = |(index, slot): (usize, &Option<Watched>)| {
            let connection = &slot.as_ref()?.connection;
            connection.is_ending().then_some((connection.active_at, index))
        };
        let ending = self.connections.iter().enumerate().filter_map(ending);
        let oldest = ending.clone().min();
        if ending.count() >= self.limits.connections
            && let Some((_, index)) = oldest
        {
            self.connections[index] = None;
        }
    }

    /// Adds a connection at a free index.
    fn watch(&mut self, connection: Connection) -> io::Result<()> {
        let wait = Wait::Input;
        let index = self.connections.iter().position(Option::is_none);
        let index = index.unwrap_or(self.connections.len());
        let event = EpollEvent::new(event_set(wait), index as u64);
        self.epoll
            .ctl(ControlOperation::Add, connection.as_raw_fd(), event)?;
        if index == self.connections.len() {
            self.connections.push(None);
        }
        self.connections[index] = Some(Watched { connection, wait });
        Ok(())
    }

    /// Serves the connection at `index`, and updates its watch.
    fn process(&mut self, index: usize, handler: &mut dyn Handler) {
        let Some(Some(watched)) = self.connections.get_mut(index) else {
            return;
        };
        let connection = &mut watched.connection;
        let mut wait = connection.process(&mut self.scratch, handler);
        if connection.is_overdue((self.clock)()) {
            connection.reject_request(&RequestError::Slow);
            wait = connection.process(&mut self.scratch, handler);
        }
        self.set_wait(index, wait);
    }

    /// Updates the watch of the connection at `index`.
    fn set_wait(&mut self, index: usize, wait: Wait) {
        let Some(Some(watched)) = self.connections.get_mut(index) else {
            return;
        };
        if wait == watched.wait {
            return;
        }
        watched.wait = wait;
        let event = EpollEvent::new(event_set(wait), index as u64);
        let file = watched.connection.as_raw_fd();
        if watched.connection.is_taken {
            // The new owner keeps the socket open, and its watch would stay.
            let _ = self.epoll.ctl(ControlOperation::Delete, file, event);
        }
        // Closing the descriptor also removes its watch.
        if wait == Wait::Nothing || self.epoll.ctl(ControlOperation::Modify, file, event).is_err() {
            self.connections[index] = None;
        }
    }
}

/// Returns the time since which the connection of `slot` waits for another request, and its index.
fn busy_since((index, slot): (usize, &Option<Watched>)) -> Option<(Instant, usize)> {
    match slot.as_ref()?.connection.awaits {
        Awaits::Turn(since) => Some((since, index)),
        Awaits::Nothing | Awaits::Response { .. } => None,
    }
}

/// Events for which the descriptor of a connection is watched. The kernel always reports a hang-up.
fn event_set(wait: Wait) -> EventSet {
    match wait {
        Wait::Input => EventSet::IN,
        Wait::Output => EventSet::OUT,
        // One report of the hang-up: the connection stays until its pending request has a response.
        Wait::Request => EventSet::ONE_SHOT,
        Wait::Nothing => EventSet::empty(),
    }
}

impl AsRawFd for Server {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

/// Returns true if `error` is a lack of descriptors or memory, in the process or on the host.
fn is_full(error: &std::io::Error) -> bool {
    let full = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|number| full.contains(&number))
}

/// Memory in bytes that must be available before a request is executed: its many small allocations do not check for a failure, which
/// would end the VM.
const HEADROOM: usize = 32 << 10;

/// Returns false if the process lacks the memory to execute `request`. The strings in a body, and errors that quote them, take
/// several times the length of the body.
fn has_memory_for(request: &Request) -> bool {
    let needed = HEADROOM + 8 * request.body.len();
    Vec::<u8>::new().try_reserve_exact(needed).is_ok()
}

/// Maximum number of requests that one client executes before other clients.
const REQUESTS: usize = 16;

/// Maximum length of pending responses in bytes; above it, the requests of the client wait until it reads.
const MAX_PENDING: usize = 16384;

/// Event for which a connection waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// Bytes from the client.
    Input,
    /// Room for responses, or the next batch.
    Output,
    /// The end of a request, of this client or of another one.
    Request,
    /// None: the connection has ended.
    Nothing,
}

/// Event that a connection awaits before it executes the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    /// None.
    Nothing,
    /// The response to its request, for HEAD without the body. The connection ends after the `last` one.
    Response { head_only: bool, last: bool },
    /// The end of the request of another client, since this time.
    Turn(Instant),
}

/// Phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requests are accepted.
    Open,
    /// The client has sent all requests, and pending responses are sent.
    Ended,
    /// No request is accepted. The end is signalled after the pending responses.
    Closing,
    /// The end is signalled, and input is discarded. Closing with unread input would reset the connection and drop
    /// responses that the client has not read.
    Draining,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// Header `Server` of its responses.
    name: &'static str,
    parser: Parser,
    phase: Phase,
    /// Pending responses; the first `sent` bytes are sent.
    output: Vec<u8>,
    sent: usize,
    /// True if the parser may hold complete requests.
    more: bool,
    /// True if the last read filled its buffer, so that the kernel may hold more bytes.
    unread: bool,
    /// True after the first response.
    answered: bool,
    accepted_at: Instant,
    /// Time of the last progress: accepted, bytes of responses sent, first byte of an incomplete request received.
    active_at: Instant,
    /// True if bytes of responses were sent after the last update of `active_at`.
    progressed: bool,
    /// True if a request was incomplete at the last update of `active_at`.
    partial: bool,
    awaits: Awaits,
    /// Request that is handled next, and true if it is the last one.
    held: Option<(Request, bool)>,
    /// The handler has taken the socket.
    is_taken: bool,
}

impl Connection {
    /// Creates the connection of a client to a server with these limits and this name, accepted at `now`.
    ///
    /// # Errors
    /// The error of the kernel if the socket cannot be made non-blocking.
    fn new(stream: UnixStream, (limits, name): (HttpLimits, &'static str), now: Instant) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            name,
            parser: Parser::new(limits),
            phase: Phase::Open,
            output: Vec::new(),
            sent: 0,
            more: false,
            unread: false,
            answered: false,
            accepted_at: now,
            active_at: now,
            progressed: false,
            partial: false,
            awaits: Awaits::Nothing,
            held: None,
            is_taken: false,
        })
    }

    /// Rejects a client above the limit at once.
    ///
    /// # Errors
    /// The error of the kernel if the socket cannot be made non-blocking, or the client is disconnected.
    fn reject(stream: UnixStream, server: (HttpLimits, &'static str), now: Instant) -> io::Result<Self> {
        let mut connection = Self::new(stream, server, now)?;
        connection.end_by_limit()?;
        Ok(connection)
    }

    /// Ends the connection with the response to clients above the limit.
    ///
    /// # Errors
    /// Fails if the client is disconnected, or has not read earlier responses.
    fn end_by_limit(&mut self) -> io::Result<()> {
        if !self.output.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.output.extend_from_slice(too_many(self.name).as_bytes());
        if !self.flush()? {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.close();
        self.end_output()
    }

    /// Returns the order of the connections that may be evicted at `now`, the first one first, or `None` for others.
    fn eviction_rank(&self, now: Instant) -> Option<(bool, Instant)> {
        if self.is_ending() || self.awaits != Awaits::Nothing {
            None
        } else if !self.answered {
            Some((false, self.accepted_at))
        } else {
            let idle = now.saturating_duration_since(self.active_at) > IDLE_TIMEOUT;
            idle.then_some((true, self.active_at))
        }
    }

    /// Updates the time of the last progress. Returns true if the client has not completed a request in time.
    fn is_overdue(&mut self, now: Instant) -> bool {
        let partial = self.phase == Phase::Open && self.parser.is_partial();
        if mem::take(&mut self.progressed) || (partial && !self.partial) {
            self.active_at = now;
        }
        self.partial = partial;
        // The rest of the request may wait in the kernel, behind responses that the client has not read, or behind its own request.
        let waits = !self.unread && !self.more && self.output.is_empty() && self.awaits == Awaits::Nothing;
        partial && waits && now.saturating_duration_since(self.active_at) > REQUEST_TIMEOUT
    }

    /// Returns true if no more requests are accepted.
    fn is_ending(&self) -> bool {
        self.phase != Phase::Open
    }

    /// Returns true if the request of the client executes.
    fn is_pending(&self) -> bool {
        matches!(self.awaits, Awaits::Response { .. })
    }

    /// Adds the response to the pending request.
    fn complete(&mut self, response: &Response) {
        if let Awaits::Response { head_only, last } = std::mem::replace(&mut self.awaits, Awaits::Nothing) {
            self.add_response(response, head_only, last);
            // The parser may hold the next request.
            self.more = self.phase == Phase::Open;
        }
    }

    /// Performs a batch of work without blocking: at most one read, into `scratch`, and the requests in it.
    fn process(&mut self, scratch: &mut [u8], handler: &mut dyn Handler) -> Wait {
        match self.advance(scratch, handler) {
            Ok(wait) => wait,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Wait::Input,
            // The client is disconnected.
            Err(_) => Wait::Nothing,
        }
    }

    fn advance(&mut self, scratch: &mut [u8], handler: &mut dyn Handler) -> io::Result<Wait> {
        // Requests of a client that does not read responses must not accumulate responses here.
        if !self.flush()? {
            return Ok(Wait::Output);
        }
        if self.awaits != Awaits::Nothing {
            return Ok(Wait::Request);
        }
        match self.phase {
            Phase::Open => {
                if !self.more && self.held.is_none() {
                    self.read(scratch)?;
                }
                self.execute(handler);
            }
            Phase::Draining => {
                let ended = self.receive(scratch)? == 0;
                return Ok(if ended { Wait::Nothing } else { Wait::Input });
            }
            Phase::Ended | Phase::Closing => {}
        }
        if !self.flush()? || self.more {
            return Ok(Wait::Output);
        }
        match self.phase {
            Phase::Open if self.awaits != Awaits::Nothing => Ok(Wait::Request),
            Phase::Open => Ok(Wait::Input),
            Phase::Closing => {
                self.end_output()?;
                Ok(Wait::Input)
            }
            Phase::Ended | Phase::Draining => Ok(Wait::Nothing),
        }
    }

    fn read(&mut self, scratch: &mut [u8]) -> io::Result<()> {
        // Before the read, which fails without pending bytes.
        self.unread = false;
        let count = self.receive(scratch)?;
        self.unread = count == scratch.len();
        if count > 0 {
            if let Err(error) = self.parser.feed(&scratch[..count]) {
                self.reject_request(&error);
            }
            return Ok(());
        }
        if self.parser.is_partial() && !self.parser.is_discarding() {
            self.reject_request(&RequestError::Truncated);
        }
        self.phase = Phase::Ended;
        Ok(())
    }

    /// Reads once, again after a signal.
    fn receive(&mut self, scratch: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(scratch) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Executes a batch of the pending requests.
    fn execute(&mut self, handler: &mut dyn Handler) {
        let mut remaining = REQUESTS;
        self.more = false;
        while self.phase == Phase::Open {
            if remaining == 0 || self.output.len() > MAX_PENDING {
                self.more = true;
                return;
            }
            let held = self.held.take();
            let held = held.map(|(request, last)| Ok(Step::Request { request, last }));
            match held.unwrap_or_else(|| self.parser.next()) {
                Ok(Step::Incomplete) => return,
                Ok(Step::Continue) => self.output.extend_from_slice(CONTINUE),
                Ok(Step::Request { request, .. }) if !has_memory_for(&request) => {
                    self.reject_request(&RequestError::NoMemory(HEADROOM));
                }
                Ok(Step::Rejected { error, last }) => {
                    remaining -= 1;
                    self.answered = true;
                    let response = Response::invalid_request(error.status(), &error.text());
                    self.add_response(&response, false, last);
                }
                Ok(Step::Request { request, last }) => {
                    remaining -= 1;
                    self.answered = true;
                    let head_only = request.method.name() == "HEAD";
                    match handler.handle(&request) {
                        Reply::Response(response) if response.is_switch() => {
                            return self.switch(&response, &request, handler);
                        }
                        Reply::Response(response) => self.add_response(&response, head_only, last),
                        Reply::Pending => return self.awaits = Awaits::Response { head_only, last },
                        Reply::Busy => {
                            self.held = Some((request, last));
                            return self.awaits = Awaits::Turn(Instant::now());
                        }
                    }
                }
                Err(error) => self.reject_request(&error),
            }
        }
    }

    /// Sends `response` to `request`, and passes the socket to the handler. The connection ends without it.
    fn switch(&mut self, response: &Response, request: &Request, handler: &mut dyn Handler) {
        self.add_response(response, false, false);
        // A client that does not read even this response is none for the other protocol.
        if matches!(self.flush(), Ok(true))
            && let Ok(stream) = self.stream.try_clone()
            && stream.set_nonblocking(false).is_ok()
        {
            self.is_taken = true;
            handler.take_over(request, stream);
        }
        self.phase = Phase::Ended;
    }

    fn add_response(&mut self, response: &Response, head_only: bool, last: bool) {
        if let Err(length) = response.write(&mut self.output, self.name, head_only) {
            // The request was executed. The client must not take the response to its next request for this one.
            self.reject_request(&RequestError::NoMemory(length));
        }
        // Firecracker keeps the connection open after `Connection: close`. A client that reads until the end, as in HTTP/1.0, would
        // wait forever.
        if last {
            self.close();
        }
    }

    /// Sends the reason and ends the connection, because the start of the next request is unknown.
    fn reject_request(&mut self, error: &RequestError) {
        let text = error.text();
        log::debug!("api: rejected a request: {text}");
        // Without memory for the response, the end of the connection must suffice.
        let response = Response::invalid_request(error.status(), &text).closing();
        let _ = response.write(&mut self.output, self.name, false);
        self.close();
    }

    /// Stops accepting requests, and releases their memory.
    fn close(&mut self) {
        self.phase = Phase::Closing;
        self.parser.clear();
    }

    /// Signals the end to the client.
    fn end_output(&mut self) -> io::Result<()> {
        self.phase = Phase::Draining;
        self.output = Vec::new();
        self.stream.shutdown(Shutdown::Write)
    }

    /// Sends pending responses. Returns true if all are sent.
    fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.sent += count;
                    self.progressed = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.output.shrink_to(KEPT_CAPACITY);
        self.sent = 0;
        Ok(true)
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
