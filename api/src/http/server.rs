//! All clients, behind one descriptor.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::Handler;
use super::connection::{Connection, Wait};
use super::error::Error;
use super::limits::HttpLimits;
use super::socket::Socket;

/// What the listening socket is called among the watched descriptors; the others are called by their place.
const LISTENER: u64 = u64::MAX;

/// Clients that are let in, and descriptors that are looked after, in one turn.
const BATCH: usize = 16;

/// Bytes that are read at once, of whichever client.
const SCRATCH: usize = 16384;

/// An HTTP server on a unix socket.
///
/// Its descriptor is readable whenever there is work for [`serve`](Self::serve).
pub struct Server {
    socket: Socket,
    epoll: Epoll,
    connections: Vec<Option<Watched>>,
    limits: HttpLimits,
    scratch: Box<[u8]>,
    /// Given up for a moment when the process has no descriptor left, or a client that nobody can let in would make the
    /// event loop spin.
    spare: Option<UnixListener>,
}

/// A connection and what its descriptor is watched for.
struct Watched {
    connection: Connection,
    wait: Wait,
}

impl Server {
    /// Listens at `path`, and replaces a socket there that nobody listens at. From the moment at which the path appears
    /// clients can connect; they are answered when [`serve`](Self::serve) is called. The path is removed when the server
    /// is dropped, unless it is another's by then.
    ///
    /// # Errors
    /// All variants.
    pub fn bind(path: &Path, limits: HttpLimits) -> Result<Self, Error> {
        let epoll = Epoll::new().map_err(Error::Events)?;
        let socket = Socket::bind(path)?;
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
            scratch: vec![0; SCRATCH].into_boxed_slice(),
        })
    }

    /// Does what can be done now, a bounded piece of it, and never blocks. What is left keeps the descriptor readable.
    ///
    /// Answers are on their way when this returns, but for clients that do not read.
    pub fn serve(&mut self, handler: &mut dyn Handler) {
        let mut events = [EpollEvent::default(); BATCH];
        // Interrupted by a signal, there is another turn at once.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            match event.data() {
                LISTENER => self.accept(),
                place => self.process(usize::try_from(place).unwrap_or(usize::MAX), handler),
            }
        }
    }

    /// Lets clients in that wait at the door.
    fn accept(&mut self) {
        for _ in 0..BATCH {
            match self.socket.accept() {
                Ok(stream) => self.admit(stream),
                Err(error) if is_full(&error) => self.turn_out(),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) => {}
                Err(_) => return,
            }
        }
    }

    /// Lets one client in and out again, there being no descriptor for it.
    fn turn_out(&mut self) {
        drop(self.spare.take());
        drop(self.socket.accept());
        self.spare = self.socket.spare().ok();
    }

    fn admit(&mut self, stream: UnixStream) {
        let is_ending = |place: &Option<Watched>| {
            place
                .as_ref()
                .is_some_and(|watched| watched.connection.is_ending())
        };
        let open = self.connections.iter().flatten().count();
        let ending = self.connections.iter().filter(|place| is_ending(place)).count();
        let limit = self.limits.connections;
        // Clients that take long to go do not add up.
        if ending >= limit
            && let Some(place) = self.connections.iter_mut().find(|place| is_ending(place))
        {
            *place = None;
        }
        let connection = if open - ending < limit {
            Connection::new(stream, self.limits)
        } else {
            Connection::turn_away(stream, self.limits)
        };
        // A client that cannot be watched cannot be served.
        let _ = connection.and_then(|connection| self.watch(connection));
    }

    /// Finds a place for a connection.
    fn watch(&mut self, connection: Connection) -> io::Result<()> {
        let wait = Wait::Input;
        let place = self.connections.iter().position(Option::is_none);
        let place = place.unwrap_or(self.connections.len());
        let event = EpollEvent::new(interest(wait), place as u64);
        self.epoll
            .ctl(ControlOperation::Add, connection.as_raw_fd(), event)?;
        if place == self.connections.len() {
            self.connections.push(None);
        }
        self.connections[place] = Some(Watched { connection, wait });
        Ok(())
    }

    /// Gives the connection at `place` its turn, and watches it for what it then waits for.
    fn process(&mut self, place: usize, handler: &mut dyn Handler) {
        let Some(Some(watched)) = self.connections.get_mut(place) else {
            return;
        };
        let wait = watched.connection.process(&mut self.scratch, handler);
        if wait == watched.wait {
            return;
        }
        watched.wait = wait;
        let event = EpollEvent::new(interest(wait), place as u64);
        let file = watched.connection.as_raw_fd();
        // Closing its descriptor ends the watch.
        if wait == Wait::Nothing || self.epoll.ctl(ControlOperation::Modify, file, event).is_err() {
            self.connections[place] = None;
        }
    }
}

/// What the descriptor of a connection is watched for; that its other end has gone always shows.
fn interest(wait: Wait) -> EventSet {
    match wait {
        Wait::Input => EventSet::IN,
        Wait::Output => EventSet::OUT,
        Wait::Nothing => EventSet::empty(),
    }
}

impl AsRawFd for Server {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

/// Whether there is no descriptor or memory for one more client, here or on the whole host.
fn is_full(error: &std::io::Error) -> bool {
    let full = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|number| full.contains(&number))
}

#[cfg(test)]
mod tests;
