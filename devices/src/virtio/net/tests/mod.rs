//! Tests of the device with a driver without a guest, mostly on a backend without a network.

mod addresses;
mod attach;
mod device;
mod fake;
mod first_frames;
mod hostile;
mod link;
mod offloads;
mod passt;
mod receive;
mod stream;
mod tap;
mod transmit;

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use self::fake::{FakeBackend, FakeNetwork};
use super::{Backend, HEADER, Net, NetSetup};
use crate::limiter::{Bucket, Limiter};
use crate::sync::lock;
use crate::testing::ManualClock;
use crate::virtio::testing::{Buffer, CountingInterrupt, FakeDriver};
use crate::virtio::{VirtioDevice, VirtioInterrupt};

const READABLE: u32 = 0;
const WRITABLE: u32 = 1;
const RECEIVE_TIMER: u32 = 2;
const TRANSMIT_TIMER: u32 = 3;
const BACKLOG: u32 = 4;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// Bytes of guest memory.
const MEMORY: usize = 4 << 20;

/// Bucket with one token and a refill time of two weeks.
const ONE: Bucket = Bucket {
    size: 1,
    refill_time_ms: 1_209_600_000,
    one_time_burst: 0,
};

fn unlimited() -> Limiter {
    Limiter::new(None, None).unwrap()
}

fn setup(backend: Box<dyn Backend>) -> NetSetup {
    NetSetup {
        mac: MAC,
        mtu: Some(1400),
        backend,
        addresses: None,
        receive_limiter: unlimited(),
        transmit_limiter: unlimited(),
        clock: Box::new(ManualClock::default()),
    }
}

/// Device, driver and their connection.
struct Fixture {
    driver: FakeDriver,
    net: Net,
    line: Arc<CountingInterrupt>,
    interrupt: Arc<VirtioInterrupt>,
    features: u64,
    next_buffer: u64,
}

impl Fixture {
    fn new(setup: NetSetup, features: u64, queue_sizes: [u16; 2]) -> Self {
        let driver = FakeDriver::logged(MEMORY, &queue_sizes);
        let line = Arc::new(CountingInterrupt::default());
        let mut net = Net::new(setup).unwrap();
        let activation = driver.activation(features, line.clone());
        let interrupt = activation.interrupt.clone();
        net.activate(activation);
        // The first batch after the activation has no work; it runs here so that tests see only later ones.
        net.process_event(BACKLOG);
        line.take();
        Self {
            next_buffer: driver.buffers,
            driver,
            net,
            line,
            interrupt,
            features,
        }
    }

    fn with_network(features: u64) -> (Self, Arc<Mutex<FakeNetwork>>) {
        let (backend, network) = FakeBackend::new();
        (Self::new(setup(backend), features, [16, 16]), network)
    }

    /// Allocates `length` bytes for a buffer, never the same twice.
    fn memory(&mut self, length: usize) -> u64 {
        let address = self.next_buffer;
        self.next_buffer += length as u64;
        address
    }

    /// Makes a receive buffer of `length` bytes available without a notification.
    fn add_buffer(&mut self, length: usize) -> u64 {
        let address = self.memory(length);
        let buffer = Buffer::writable(address, u32::try_from(length).unwrap());
        self.driver.queues[0].add(&[buffer]);
        address
    }

    /// Makes `packet` available in the transmit queue as one buffer, without a notification.
    fn add_packet(&mut self, packet: &[u8]) {
        let address = self.memory(packet.len());
        self.driver.write(address, packet);
        let buffer = Buffer::readable(address, u32::try_from(packet.len()).unwrap());
        self.driver.queues[1].add(&[buffer]);
    }

    /// Resets and activates the device.
    fn restart(&mut self) {
        self.net.reset();
        for queue in &mut self.driver.queues {
            queue.clear();
        }
        let activation = self.driver.activation(self.features, self.line.clone());
        self.interrupt = activation.interrupt.clone();
        self.net.activate(activation);
        self.net.process_event(BACKLOG);
        self.line.take();
    }

    /// Returns the lengths of the used chains of `queue`.
    fn used(&mut self, queue: usize) -> Vec<u32> {
        let used = self.driver.queues[queue].collect_used();
        used.iter().map(|used| used.length).collect()
    }

    /// Processes the event `token` if it is pending. Returns true if it was.
    fn process_pending(&mut self, token: u32) -> bool {
        let ready = is_readable(self.descriptor(token), 0);
        if ready {
            self.net.process_event(token);
        }
        ready
    }

    /// Waits up to a minute for the event `token`, and processes it.
    fn await_event(&mut self, token: u32) {
        assert!(is_readable(self.descriptor(token), 60_000));
        self.net.process_event(token);
    }

    fn descriptor(&self, token: u32) -> RawFd {
        let watched_fds = self.net.watched_fds();
        let watched = watched_fds.iter().find(|watched| watched.token == token);
        watched.unwrap().descriptor
    }
}

fn is_readable(descriptor: RawFd, milliseconds: i32) -> bool {
    let mut poll = libc::pollfd {
        fd: descriptor,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` is one pollfd, valid and exclusively borrowed during the call.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) == 1 }
}

/// Returns a packet with an empty header and a frame of `length` bytes that depend on `seed`.
fn packet(seed: u8, length: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER];
    packet.extend((0..length).map(|at| u8::try_from((at * 31 + usize::from(seed)) % 251).unwrap()));
    packet
}

/// Returns `packet` as the driver receives it in `buffers` buffers.
fn received(packet: &[u8], buffers: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[10] = buffers;
    packet
}

/// Returns the number of packets that wait in the fake network.
fn waiting(network: &Mutex<FakeNetwork>) -> usize {
    lock(network).inbound.len()
}
