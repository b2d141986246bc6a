//! Requests to random instances in an open loop: the time of each request is fixed in advance, whatever the responses do.
//!
//! The guest returns a datagram with the number of those that it has served. Each response must have source address, payload and number
//! of the instance that was asked, so that no other instance, and no other state of it, can have answered.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Port of the guest that returns its counters.
const STATUS: u16 = 15;
/// Bytes of a payload: the address of the instance, and the number of the request.
const PAYLOAD: usize = 8;
/// Place of the number of served datagrams after the payload: behind the identity record and the number of pings.
const SERVED: usize = 88 + 4;
/// Maximum number of responses that wait in the socket, in bytes of their buffers.
const RECEIVE_BUFFER: libc::c_int = 64 << 20;
/// Number of reported wrong responses.
const MAX_REPORTED: usize = 5;

/// Ends all loads.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// An instance with its requests that have no response yet.
#[derive(Default)]
struct Instance {
    /// Requests since the start.
    sent: u32,
    pending: Vec<Pending>,
    /// A request was lost, so that the number of the guest is unknown.
    is_retired: bool,
}

struct Pending {
    /// Number of the request, which its payload has.
    number: u32,
    due: Instant,
}

/// Result of a load.
#[derive(Default)]
pub struct Outcome {
    /// Number of requests.
    pub requests: usize,
    /// Times of the responses, from the moment at which the request was due.
    pub times: Vec<Duration>,
    /// Number of requests without a response.
    pub lost: usize,
    /// Number of responses that are not those of their requests.
    pub wrong: usize,
    /// Number of responses before that to an earlier request to the same instance.
    pub reordered: usize,
    /// Descriptions of the first wrong responses and lost requests.
    pub reports: Vec<String>,
}

impl Outcome {
    /// Returns the given percentile of the times.
    pub fn percentile(&mut self, percent: f64) -> Duration {
        self.times.sort_unstable();
        let last = self.times.len().saturating_sub(1);
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index, far below the limits"
        )]
        let index = (percent / 100.0 * last as f64).ceil() as usize;
        self.times.get(index).copied().unwrap_or_default()
    }

    fn add_wrong(&mut self, report: String) {
        self.wrong += 1;
        self.report(report);
    }

    fn report(&mut self, report: String) {
        if self.reports.len() < MAX_REPORTED {
            self.reports.push(report);
        }
    }
}

/// Client of instances at adjacent addresses.
pub struct Load {
    socket: UdpSocket,
    first: Ipv4Addr,
    instances: Vec<Instance>,
    /// State of a generator of pseudo-random numbers.
    random: u64,
}

impl Load {
    /// Creates a client at `from` of `count` instances from the address `first` on. No datagram may have reached them before.
    ///
    /// # Errors
    /// Fails if `from` is no address of this host, or the caller is not root.
    pub fn new(from: Ipv4Addr, first: Ipv4Addr, count: u32) -> io::Result<Self> {
        let socket = UdpSocket::bind((from, 0))?;
        socket.set_nonblocking(true)?;
        let size = RECEIVE_BUFFER;
        let length = libc::socklen_t::try_from(size_of_val(&size)).map_err(io::Error::other)?;
        // SAFETY: the kernel reads `length` bytes, the size of the value.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const size).cast(),
                length,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            socket,
            first,
            instances: (0..count).map(|_| Instance::default()).collect(),
            random: 0x9e37_79b9_7f4a_7c15,
        })
    }

    /// Sends `rate` requests a second for `duration`, then waits at most `drain` for the last responses.
    ///
    /// # Errors
    /// Fails if a datagram cannot be sent, or at a signal.
    pub fn run(&mut self, rate: f64, duration: Duration, drain: Duration) -> io::Result<Outcome> {
        let interval = Duration::from_secs_f64(1.0 / rate);
        let start = Instant::now();
        let (mut due, end) = (start, start + duration);
        let mut outcome = Outcome::default();
        while due < end {
            while due <= Instant::now() && due < end {
                let number = self.choose();
                self.send(number, due)?;
                outcome.requests += 1;
                due += interval;
            }
            self.receive_until(due.min(end), &mut outcome)?;
        }
        self.finish(end + drain, &mut outcome)?;
        Ok(outcome)
    }

    /// Sends one request to each of the instances `numbers`, and waits for each response at most `timeout`.
    ///
    /// # Errors
    /// Fails if a datagram cannot be sent, or at a signal.
    pub fn run_each(
        &mut self,
        numbers: impl Iterator<Item = u32>,
        timeout: Duration,
        mut next: impl FnMut() -> io::Result<bool>,
    ) -> io::Result<Outcome> {
        let mut outcome = Outcome::default();
        for number in numbers {
            if !next()? {
                break;
            }
            let due = Instant::now();
            self.send(number, due)?;
            outcome.requests += 1;
            self.finish(due + timeout, &mut outcome)?;
            if outcome.lost > 0 {
                break;
            }
        }
        Ok(outcome)
    }

    /// Returns the number of a random instance.
    fn choose(&mut self) -> u32 {
        loop {
            // xorshift64 of Marsaglia.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let index = self.random % self.instances.len() as u64;
            let number = u32::try_from(index).unwrap_or_default();
            if !self.instances[number as usize].is_retired {
                return number;
            }
        }
    }

    fn send(&mut self, number: u32, due: Instant) -> io::Result<()> {
        let instance = &mut self.instances[number as usize];
        let address = Ipv4Addr::from(u32::from(self.first) + number);
        let mut payload = [0; PAYLOAD];
        payload[..4].copy_from_slice(&address.octets());
        payload[4..].copy_from_slice(&instance.sent.to_be_bytes());
        self.socket.send_to(&payload, (address, STATUS))?;
        let number = instance.sent;
        instance.pending.push(Pending { number, due });
        instance.sent += 1;
        Ok(())
    }

    /// Receives responses until `end`.
    fn receive_until(&mut self, end: Instant, outcome: &mut Outcome) -> io::Result<()> {
        let mut buffer = [0; 512];
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => self.accept(&buffer[..length], from, outcome),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if INTERRUPTED.load(Ordering::Relaxed) {
                        return Err(io::Error::other("ended by a signal"));
                    }
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(());
                    }
                    self.wait(left)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if Instant::now() >= end {
                return Ok(());
            }
        }
    }

    /// Waits for a response, at most `limit`.
    fn wait(&self, limit: Duration) -> io::Result<()> {
        let mut event = libc::pollfd {
            fd: self.socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let limit = libc::timespec {
            tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        // SAFETY: the kernel reads and writes one `pollfd`, and reads the time; there is no signal mask.
        let result = unsafe { libc::ppoll(&raw mut event, 1, &raw const limit, std::ptr::null()) };
        match result {
            -1 if io::Error::last_os_error().kind() != ErrorKind::Interrupted => {
                Err(io::Error::last_os_error())
            }
            _ => Ok(()),
        }
    }

    /// Checks a response.
    fn accept(&mut self, response: &[u8], from: SocketAddr, outcome: &mut Outcome) {
        let number = match from.ip() {
            IpAddr::V4(address) => u32::from(address).wrapping_sub(u32::from(self.first)),
            IpAddr::V6(_) => u32::MAX,
        };
        let Some(instance) = self.instances.get_mut(number as usize) else {
            return outcome.add_wrong(format!("{from} is not the address of an instance"));
        };
        if instance.is_retired {
            // A response after the limit.
            return;
        }
        let word = |at: usize| {
            let bytes = response.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_be_bytes(bytes))
        };
        let (address, request, served) = (word(0), word(4), word(PAYLOAD + SERVED));
        let index = instance
            .pending
            .iter()
            .position(|pending| Some(pending.number) == request);
        let is_known = address == Some(u32::from(self.first) + number) && from.port() == STATUS;
        // Requests to one instance may overtake each other; its numbers follow the order in which it serves them.
        let is_expected = served.is_some_and(|served| {
            let first = instance.pending.first().map_or(0, |pending| pending.number);
            (first..instance.sent).contains(&served)
        });
        let Some(index) = index.filter(|_| is_known && is_expected) else {
            return outcome.add_wrong(format!(
                "{from} answers request {request:?} of address {address:?}, and has served {served:?}; {} were sent",
                instance.sent
            ));
        };
        outcome.reordered += usize::from(index > 0);
        outcome.times.push(instance.pending.remove(index).due.elapsed());
    }

    /// Receives responses until there are all, at most until `end`. The rest is lost.
    fn finish(&mut self, end: Instant, outcome: &mut Outcome) -> io::Result<()> {
        while outcome.times.len() < outcome.requests && Instant::now() < end {
            let next = Instant::now() + Duration::from_millis(1);
            self.receive_until(next.min(end), outcome)?;
        }
        for (address, instance) in (u32::from(self.first)..).zip(&mut self.instances) {
            for pending in &instance.pending {
                outcome.lost += 1;
                outcome.report(format!(
                    "{} does not answer request {}; {} were sent",
                    Ipv4Addr::from(address),
                    pending.number,
                    instance.sent
                ));
            }
            instance.is_retired |= !instance.pending.is_empty();
            instance.pending.clear();
        }
        Ok(())
    }
}
