//! Packets to and from a tap.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::MonotonicClock;
use devices::limiter::Limiter;
use devices::virtio::mmio::Transport;
use devices::virtio::net::{AddressMap, HEADER, MAX_PACKET, Net, NetSetup, Tap, features};
use devices::virtio::testing::{Buffer, CountingInterrupt, FakeDriver};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::comparison::Benchmark;
use super::namespace::Sender;

const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const QUEUE: u16 = 256;
/// Bytes of a buffer.
const PAGE: usize = 4096;
const ETHERNET: usize = 14;
/// Features of a driver that uses all offloads.
const FEATURES: u64 = features::CSUM
    | features::GUEST_CSUM
    | features::HOST_TSO4
    | features::GUEST_TSO4
    | features::MRG_RXBUF
    | features::EVENT_IDX;

/// Packets of a benchmark.
#[derive(Clone, Copy)]
pub struct Shape {
    name: &'static str,
    goal: f64,
    /// Bytes of a frame.
    frame: usize,
    /// Packets of one notification.
    packets: u32,
    /// The frames are TCP segments, as a rewriter of addresses requires.
    has_ip: bool,
}

impl Shape {
    fn with_ip(self) -> Self {
        Self { has_ip: true, ..self }
    }
}

/// Minimum ratio of the rate with a rewriter of addresses to the rate without it.
const REWRITER_GOAL: f64 = 0.95;
const SOURCE: [u8; 4] = [10, 0, 0, 1];
const DESTINATION: [u8; 4] = [10, 0, 0, 2];
const SOURCE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const DESTINATION_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Addresses of packets from the driver: their source is that of the guest.
const OUTBOUND: AddressMap = AddressMap {
    guest_ip: Ipv4Addr::new(10, 0, 0, 1),
    ip: Ipv4Addr::new(10, 0, 7, 1),
    guest_mac: SOURCE_MAC,
    mac: [2, 0, 0, 0, 7, 1],
    pass_ipv6: false,
};
/// Addresses of packets to the driver: their destination is that of the network.
const INBOUND: AddressMap = AddressMap {
    guest_ip: Ipv4Addr::new(10, 0, 7, 2),
    ip: Ipv4Addr::new(10, 0, 0, 2),
    guest_mac: [2, 0, 0, 0, 7, 2],
    mac: DESTINATION_MAC,
    pass_ipv6: false,
};

/// Benchmarks of each direction. The ratio of packets equals the ratio of bits.
pub const SHAPES: [Shape; 2] = [
    Shape {
        name: "64-byte frames, batches of 100",
        goal: 0.7,
        frame: 64,
        packets: 100,
        has_ip: false,
    },
    Shape {
        name: "60 kB GSO frames, batches of 12",
        goal: 0.4,
        frame: 60_000,
        packets: 12,
        has_ip: true,
    },
];

/// Notifies `queue` and runs the event loop of its device until `count` more chains are used.
///
/// Returns the duration without the work of the driver on the used chains.
pub fn notify_and_wait(
    transport: &mut Transport,
    driver: &mut FakeDriver,
    queue: u32,
    count: usize,
) -> Duration {
    let index = usize::try_from(queue).unwrap();
    let before = driver.queues[index].used_index();
    let all = before.wrapping_add(u16::try_from(count).unwrap());
    let start = Instant::now();
    driver.notify(transport, queue);
    while driver.queues[index].used_index() != all {
        process_events(transport);
    }
    let elapsed = start.elapsed();
    while driver.queues[index].pop_used().is_some() {}
    elapsed
}

/// Waits once for events and processes them.
fn process_events(transport: &mut Transport) {
    let sources = transport.watched_fds();
    let mut watched: Vec<libc::pollfd> = sources
        .iter()
        .map(|source| libc::pollfd {
            fd: source.descriptor,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    // SAFETY: the kernel reads and writes the entries of `watched`; the length is theirs.
    let ready = unsafe { libc::poll(watched.as_mut_ptr(), watched.len() as libc::nfds_t, 10_000) };
    assert!(ready > 0, "no event within 10 s: {}", io::Error::last_os_error());
    for (source, watched) in sources.iter().zip(watched) {
        if watched.revents != 0 {
            transport.process_event(source.token);
        }
    }
}

/// Device on a tap, and the tap.
struct Interface {
    tap: OwnedFd,
    sender: Sender,
    transport: Transport,
    driver: FakeDriver,
}

impl Interface {
    fn new(addresses: Option<AddressMap>) -> Self {
        let tap = Tap::open("").unwrap_or_else(|error| panic!("cannot create a tap: {error}"));
        let sender = Sender::to(tap.name());
        let tap_fd = tap.as_fd().try_clone_to_owned().unwrap();
        let setup = NetSetup {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: None,
            backend: Box::new(tap),
            addresses,
            receive_limiter: Limiter::new(None, None).unwrap(),
            transmit_limiter: Limiter::new(None, None).unwrap(),
            clock: Box::new(MonotonicClock::new()),
        };
        let net = Net::new(setup).unwrap();
        let driver = FakeDriver::new(16 << 20, &[QUEUE; 2]);
        let line = Arc::new(CountingInterrupt::default());
        let mut transport: Transport = Transport::new(Box::new(net), driver.memory.clone(), line);
        driver.start(&mut transport, FEATURES);
        Self {
            tap: tap_fd,
            sender,
            transport,
            driver,
        }
    }

    /// Returns the iovec of `length` bytes of the driver's memory at `address`.
    fn iovec(&self, address: u64, length: usize) -> libc::iovec {
        let base = self.driver.memory.get_host_address(GuestAddress(address));
        libc::iovec {
            iov_base: base.unwrap().cast(),
            iov_len: length,
        }
    }
}

/// Returns a packet for the interface: plain Ethernet of an experimental type, a short TCP segment, or one to
/// segment further. Its address is another host's, so the kernel drops it early.
fn packet(Shape { frame, has_ip, .. }: Shape, header: usize) -> Vec<u8> {
    let mut packet = vec![0; header + frame];
    let body = &mut packet[header..];
    body[..6].copy_from_slice(&DESTINATION_MAC);
    body[6..12].copy_from_slice(&SOURCE_MAC);
    if !has_ip {
        body[12..14].copy_from_slice(&[0x88, 0xb5]);
        return packet;
    }
    body[12..14].copy_from_slice(&[8, 0]);
    let internet = &mut body[ETHERNET..];
    let length = u16::try_from(internet.len()).unwrap().to_be_bytes();
    internet[..12].copy_from_slice(&[0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 6, 0, 0]);
    internet[12..16].copy_from_slice(&SOURCE);
    internet[16..20].copy_from_slice(&DESTINATION);
    if frame <= 1514 {
        return packet;
    }
    internet[20 + 12] = 5 << 4;
    // NEEDS_CSUM, TCPV4; length of the headers, segment size, start and offset of the checksum.
    packet[..2].copy_from_slice(&[1, 1]);
    for (at, value) in [(2, 54_u16), (4, 1448), (6, 34), (8, 16)] {
        packet[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    packet
}

/// Packets from the driver to the tap: a buffer for the header, and the frame in pages.
pub struct Transmit {
    shape: Shape,
    interface: Interface,
    heads: Vec<u16>,
    iovecs: Vec<libc::iovec>,
}

impl Transmit {
    /// Creates a device on a new tap.
    pub fn new(shape: Shape) -> Self {
        Self::with_addresses(shape, None)
    }

    fn with_addresses(shape: Shape, addresses: Option<AddressMap>) -> Self {
        let mut interface = Interface::new(addresses);
        let driver = &mut interface.driver;
        let packet = packet(shape, HEADER);
        let (header, frame) = (driver.buffers, driver.buffers + 0x1000);
        driver.write(header, &packet[..HEADER]);
        driver.write(frame, &packet[HEADER..]);
        let mut buffers = vec![Buffer::readable(header, u32::try_from(HEADER).unwrap())];
        let mut at = frame;
        for chunk in packet[HEADER..].chunks(PAGE) {
            buffers.push(Buffer::readable(at, u32::try_from(chunk.len()).unwrap()));
            at += chunk.len() as u64;
        }
        let queue = &mut driver.queues[usize::try_from(TRANSMIT).unwrap()];
        let heads = (0..shape.packets).map(|_| queue.add(&buffers)).collect();
        let iovecs = buffers
            .iter()
            .map(|buffer| interface.iovec(buffer.address, usize::try_from(buffer.length).unwrap()))
            .collect();
        let count = usize::try_from(shape.packets).unwrap();
        notify_and_wait(&mut interface.transport, &mut interface.driver, TRANSMIT, count);
        Self {
            shape,
            interface,
            heads,
            iovecs,
        }
    }
}

impl Transmit {
    /// Returns the transport of the device.
    pub fn transport(&mut self) -> &mut Transport {
        &mut self.interface.transport
    }
}

impl Benchmark for Transmit {
    fn name(&self) -> String {
        format!("net, transmit: {}", self.shape.name)
    }

    fn goal(&self) -> f64 {
        self.shape.goal
    }

    fn operations(&self) -> u32 {
        self.shape.packets
    }

    fn floor(&mut self) -> Duration {
        let count = i32::try_from(self.iovecs.len()).unwrap();
        let tap = self.interface.tap.as_raw_fd();
        let start = Instant::now();
        for _ in 0..self.shape.packets {
            // SAFETY: `iovecs` describe the driver's memory.
            let sent = unsafe { libc::writev(tap, self.iovecs.as_ptr(), count) };
            assert!(sent > 0, "writev: {}", io::Error::last_os_error());
        }
        start.elapsed()
    }

    fn device(&mut self) -> Duration {
        let Interface {
            transport, driver, ..
        } = &mut self.interface;
        for head in &self.heads {
            driver.queues[usize::try_from(TRANSMIT).unwrap()].make_available(*head);
        }
        notify_and_wait(transport, driver, TRANSMIT, self.heads.len())
    }
}

/// Packets from the tap to the driver, in buffers of one page. The packets are in the tap before the
/// measurement.
pub struct Receive {
    shape: Shape,
    interface: Interface,
    packet: Vec<u8>,
    /// Buffer for a packet of maximum length.
    buffer: libc::iovec,
    /// Number of buffers per packet.
    buffers_per_packet: usize,
}

impl Receive {
    /// Creates a device on a new tap.
    pub fn new(shape: Shape) -> Self {
        Self::with_addresses(shape, None)
    }

    fn with_addresses(shape: Shape, addresses: Option<AddressMap>) -> Self {
        let mut interface = Interface::new(addresses);
        let at = interface.driver.buffers;
        let addresses: Vec<u64> = (0..u64::from(QUEUE)).map(|index| at + index * 4096).collect();
        let queue = &mut interface.driver.queues[usize::try_from(RECEIVE).unwrap()];
        for address in &addresses {
            queue.add(&[Buffer::writable(*address, 4096)]);
        }
        let buffers_per_packet = (HEADER + shape.frame).div_ceil(PAGE);
        let buffer = interface.iovec(at, MAX_PACKET);
        Self {
            shape,
            interface,
            // The header of the socket has no `num_buffers`.
            packet: packet(shape, HEADER - 2),
            buffer,
            buffers_per_packet,
        }
    }

    fn fill(&self) {
        for _ in 0..self.shape.packets {
            self.interface.sender.send(&self.packet);
        }
    }
}

impl Benchmark for Receive {
    fn name(&self) -> String {
        format!("net, receive: {}", self.shape.name)
    }

    fn goal(&self) -> f64 {
        self.shape.goal
    }

    fn operations(&self) -> u32 {
        self.shape.packets
    }

    fn floor(&mut self) -> Duration {
        self.fill();
        let tap = self.interface.tap.as_raw_fd();
        let mut received = 0;
        let start = Instant::now();
        loop {
            // SAFETY: `buffer` is in the driver's memory, and the device does not access it now.
            let length = unsafe { libc::readv(tap, &raw const self.buffer, 1) };
            if length < 0 {
                break;
            }
            assert_eq!(usize::try_from(length), Ok(HEADER + self.shape.frame));
            received += 1;
        }
        let elapsed = start.elapsed();
        assert_eq!(received, self.shape.packets);
        elapsed
    }

    fn device(&mut self) -> Duration {
        self.fill();
        let count = usize::try_from(self.shape.packets).unwrap() * self.buffers_per_packet;
        let Interface {
            transport, driver, ..
        } = &mut self.interface;
        let queue = usize::try_from(RECEIVE).unwrap();
        let source = transport.watched_fds()[0].token;
        let start = Instant::now();
        transport.process_event(source);
        let elapsed = start.elapsed();
        let mut used = 0;
        while let Some(chain) = driver.queues[queue].pop_used() {
            driver.queues[queue].make_available(u16::try_from(chain.head).unwrap());
            used += 1;
        }
        assert_eq!(used, count);
        elapsed
    }
}

/// Device with a rewriter of addresses; its floor is the same device without one.
pub struct Rewriter<B> {
    without: B,
    with: B,
}

impl Rewriter<Transmit> {
    /// Creates two devices, each on a new tap.
    pub fn transmit(shape: Shape) -> Self {
        let shape = shape.with_ip();
        Self {
            without: Transmit::new(shape),
            with: Transmit::with_addresses(shape, Some(OUTBOUND)),
        }
    }
}

impl Rewriter<Receive> {
    /// Creates two devices, each on a new tap.
    pub fn receive(shape: Shape) -> Self {
        let shape = shape.with_ip();
        Self {
            without: Receive::new(shape),
            with: Receive::with_addresses(shape, Some(INBOUND)),
        }
    }
}

impl<B: Benchmark> Benchmark for Rewriter<B> {
    fn name(&self) -> String {
        self.with.name().replace("net,", "net, rewriter,")
    }

    fn goal(&self) -> f64 {
        REWRITER_GOAL
    }

    fn operations(&self) -> u32 {
        self.with.operations()
    }

    fn floor(&mut self) -> Duration {
        self.without.device()
    }

    fn device(&mut self) -> Duration {
        self.with.device()
    }
}
