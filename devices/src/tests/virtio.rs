//! Fixtures of virtio devices behind their transport, with a driver. The comparison includes guest memory.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use scratch::Temporary;
use snapshot::{Component, GuestMemory};
use vm_memory::{Bytes, GuestAddress};

use super::chips::separate;
use super::{Fixture, StateSetup};
use crate::bus::BusDevice;
use crate::limiter::Bucket;
use crate::testing::{ManualClock, net_on};
use crate::virtio::VirtioDevice;
use crate::virtio::block::{Block, CacheType, DiskConfig, IoEngine};
use crate::virtio::mmio::{Transport, registers as r};
use crate::virtio::net::{HEADER, Net};
use crate::virtio::testing::{Buffer, CountingInterrupt, FakeDriver, get, set};

const MEMORY: usize = 0x2_0000;
/// Queue size, small enough to fill half of it quickly.
const QUEUE: u16 = 8;
/// One operation per 100 ms.
const ONE_PER_100_MS: Option<Bucket> = Some(Bucket {
    size: 1,
    refill_time_ms: 100,
    one_time_burst: 0,
});

/// A device behind its transport, with its driver.
struct Board<D: VirtioDevice> {
    transport: Transport<D>,
    driver: FakeDriver,
    memory: GuestMemory,
    line: Arc<CountingInterrupt>,
    clock: ManualClock,
    next: u64,
}

impl<D: VirtioDevice> Board<D> {
    fn new(device: D, clock: ManualClock, queues: usize) -> Self {
        let driver = FakeDriver::new(MEMORY, &vec![QUEUE; queues]);
        let line = Arc::new(CountingInterrupt::default());
        let memory = driver.memory.clone();
        Self {
            transport: Transport::new(Box::new(device), memory.clone(), line.clone()),
            next: driver.buffers,
            driver,
            memory,
            line,
            clock,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.driver.read(0, MEMORY)
    }

    /// Copies the guest memory of `other`.
    fn with_memory_of(self, other: &Self) -> Self {
        self.memory.write_slice(&other.bytes(), GuestAddress(0)).unwrap();
        self
    }

    fn start(&mut self) {
        let running = r::ACKNOWLEDGE | r::DRIVER | r::FEATURES_OK | r::DRIVER_OK;
        assert_eq!(self.driver.start(&mut self.transport, 0), running);
        self.process_events();
    }

    /// Processes the events of all descriptors, as the event loop does.
    fn process_events(&mut self) {
        for watched in self.transport.watched_fds() {
            self.transport.process_event(watched.token);
        }
    }

    fn place(&mut self, data: &[u8]) -> u64 {
        let address = self.next;
        self.next += data.len() as u64;
        self.driver.write(address, data);
        address
    }

    fn notify(&mut self, queue: u32) {
        self.driver.notify(&mut self.transport, queue);
    }

    /// Applies an event and returns the number of interrupts.
    fn apply_event(&mut self, event: u16) -> u64 {
        match event % 4 {
            0 => self.process_events(),
            queue @ 1..3 => self.transport.notify(usize::from(queue - 1)),
            _ => self.clock.advance(Duration::from_micros(event.into())),
        }
        self.line.take().into()
    }

    /// Also processes the limiter timers, as on a host with a running clock.
    fn resume(&mut self) {
        self.transport.notify_restored();
        self.process_events();
        self.line.take();
    }

    /// Returns true if a used buffer notification is pending.
    fn is_interrupt_pending(&mut self) -> bool {
        self.line.take() > 0 && get(&mut self.transport, r::INTERRUPT_STATUS) == 1
    }

    fn configure_partially(&mut self) {
        set(&mut self.transport, r::STATUS, r::ACKNOWLEDGE | r::DRIVER);
        set(&mut self.transport, r::DRIVER_FEATURES, 0xffff);
        set(&mut self.transport, r::QUEUE_NUM, 4);
        set(&mut self.transport, r::QUEUE_DESC_HIGH, 0xfff);
    }

    fn break_queue(&mut self) {
        self.start();
        self.driver.queues[0].make_available(77);
        self.notify(0);
        assert_ne!(get(&mut self.transport, r::STATUS) & r::DEVICE_NEEDS_RESET, 0);
    }
}

pub(super) struct NetFixture {
    board: Board<Net>,
    /// Other end of the stream.
    peer: UnixStream,
}

impl NetFixture {
    fn with_clock(clock: ManualClock) -> Self {
        let (socket, peer) = UnixStream::pair().unwrap();
        let net = net_on(socket, Box::new(clock.clone()));
        Self {
            board: Board::new(net, clock, 2),
            peer,
        }
    }

    /// Adds `count` receive buffers without notifying the device.
    fn add_buffers(&mut self, count: usize) {
        for _ in 0..count {
            let address = self.board.place(&[0; 200]);
            self.board.driver.queues[0].add(&[Buffer::writable(address, 200)]);
        }
    }

    /// Sends `count` packets to the driver.
    fn receive(&mut self, count: u8) {
        for number in 0..count {
            self.peer.write_all(&60_u32.to_be_bytes()).unwrap();
            self.peer.write_all(&[number; 60]).unwrap();
        }
        self.board.process_events();
    }

    /// Adds `count` packets of the driver to its queue without notifying the device.
    fn add_packets(&mut self, count: u8) {
        for number in 0..count {
            let packet = [&[0; HEADER][..], &[number; 60]].concat();
            let address = self.board.place(&packet);
            self.board.driver.queues[1].add(&[Buffer::readable(address, 72)]);
        }
    }

    fn used(&self, queue: usize) -> u16 {
        self.board.driver.queues[queue].used_index()
    }
}

impl Fixture for NetFixture {
    const TYPES: &'static [&'static str] = &["Net", "Transport"];
    const REGISTERS: u64 = 0x110;
    const STATES: &'static [StateSetup<Self>] = &[
        ("partially configured", |fixture| {
            fixture.board.configure_partially()
        }),
        ("running", |fixture| fixture.board.start()),
        ("needs reset", |fixture| fixture.board.break_queue()),
        ("queues half full, interrupt pending", |fixture| {
            fixture.add_buffers(6);
            fixture.board.start();
            fixture.receive(3);
            fixture.add_packets(4);
            assert_eq!((fixture.used(0), fixture.used(1)), (3, 0));
            assert!(fixture.board.is_interrupt_pending());
        }),
        ("rx packet throttled", |fixture| {
            fixture
                .board
                .transport
                .device_mut()
                .receive_limiter_mut()
                .update(None, ONE_PER_100_MS);
            fixture.add_buffers(4);
            fixture.board.start();
            fixture.receive(2);
            fixture.board.clock.advance(Duration::from_micros(50_001));
            assert_eq!(fixture.used(0), 1);
            assert!(fixture.board.transport.device().receive_limiter().is_throttled());
        }),
        ("tx packet throttled", |fixture| {
            fixture
                .board
                .transport
                .device_mut()
                .transmit_limiter_mut()
                .update(None, ONE_PER_100_MS);
            fixture.board.start();
            fixture.add_packets(3);
            fixture.board.notify(1);
            assert_eq!(fixture.used(1), 1);
            assert!(fixture.board.transport.device().transmit_limiter().is_throttled());
        }),
        ("acknowledged", |fixture| {
            fixture.board.start();
            fixture.add_packets(1);
            fixture.board.notify(1);
            assert!(fixture.board.is_interrupt_pending());
            set(&mut fixture.board.transport, r::INTERRUPT_ACK, 1);
        }),
    ];

    fn new() -> Self {
        Self::with_clock(ManualClock::default())
    }

    fn fresh_copy(&self) -> Self {
        let Self { board, peer } = Self::with_clock(separate(&self.board.clock));
        let board = board.with_memory_of(&self.board);
        Self { board, peer }
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.board.transport
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(&mut self.board.transport)
    }

    fn apply_event(&mut self, event: u16) -> u64 {
        self.board.apply_event(event)
    }

    fn resume(&mut self) {
        self.board.resume();
    }

    fn memory(&self) -> Vec<u8> {
        self.board.bytes()
    }
}

const SECTOR: usize = 512;
const SECTORS: usize = 16;
const IN: u32 = 0;
const OUT: u32 = 1;

/// Uses a file of its own; I/O engine async if `ASYNC`, sync otherwise.
pub(super) struct DiskFixture<const ASYNC: bool> {
    board: Board<Block>,
    disk: Temporary,
}

impl<const ASYNC: bool> DiskFixture<ASYNC> {
    fn with_disk(content: &[u8], clock: ManualClock) -> Self {
        let disk = Temporary::with(content);
        let config = DiskConfig {
            id: "disk".to_owned(),
            path: disk.path().to_owned(),
            read_only: false,
            shared: false,
            allow_empty: false,
            cache: CacheType::Writeback,
            engine: if ASYNC { IoEngine::Async } else { IoEngine::Sync },
            bandwidth: None,
            operations: None,
        };
        let block = Block::open(&config, Box::new(clock.clone())).unwrap();
        Self {
            board: Board::new(block, clock, 1),
            disk,
        }
    }

    /// Adds a request for one sector without notifying the device.
    fn add(&mut self, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        let header = self.board.place(&header);
        let data = self.board.place(&[0x5a; SECTOR]);
        let status = self.board.place(&[0xaa]);
        let data = Buffer {
            address: data,
            length: 512,
            writable: kind == IN,
        };
        self.board.driver.queues[0].add(&[Buffer::readable(header, 16), data, Buffer::writable(status, 1)]);
    }

    fn used(&self) -> u16 {
        self.board.driver.queues[0].used_index()
    }
}

impl<const ASYNC: bool> Fixture for DiskFixture<ASYNC> {
    const TYPES: &'static [&'static str] = &["Block", "Transport"];
    const REGISTERS: u64 = 0x140;
    const STATES: &'static [StateSetup<Self>] = &[
        ("partially configured", |fixture| {
            fixture.board.configure_partially()
        }),
        ("running", |fixture| fixture.board.start()),
        ("needs reset", |fixture| fixture.board.break_queue()),
        ("available, not notified", |fixture| {
            fixture.board.start();
            fixture.add(OUT, 3);
            fixture.add(IN, 3);
        }),
        ("in flight", |fixture| {
            fixture.board.start();
            fixture.add(OUT, 3);
            fixture.add(IN, 4);
            fixture.board.notify(0);
        }),
        ("used, interrupt pending", |fixture| {
            fixture.board.start();
            fixture.add(IN, 4);
            fixture.board.notify(0);
            fixture.drain();
            assert_eq!(fixture.used(), 1);
            assert!(fixture.board.is_interrupt_pending());
        }),
        ("throttled", |fixture| {
            fixture
                .board
                .transport
                .device_mut()
                .update_limiter(None, ONE_PER_100_MS);
            fixture.board.start();
            fixture.add(OUT, 3);
            fixture.add(IN, 3);
            fixture.board.notify(0);
            fixture.drain();
            assert_eq!(fixture.used(), 1);
            fixture.board.clock.advance(Duration::from_micros(50_001));
        }),
        ("acknowledged", |fixture| {
            fixture.board.start();
            fixture.add(IN, 4);
            fixture.board.notify(0);
            fixture.drain();
            set(&mut fixture.board.transport, r::INTERRUPT_ACK, 1);
        }),
    ];

    fn new() -> Self {
        Self::with_disk(&[0xd5; SECTORS * SECTOR], ManualClock::default())
    }

    fn fresh_copy(&self) -> Self {
        let Self { board, disk } =
            Self::with_disk(&fs::read(self.disk.path()).unwrap(), separate(&self.board.clock));
        let board = board.with_memory_of(&self.board);
        Self { board, disk }
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.board.transport
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(&mut self.board.transport)
    }

    fn apply_event(&mut self, event: u16) -> u64 {
        self.board.apply_event(event);
        0
    }

    /// Waits for the disk of a busy host: no request is suspended.
    fn drain(&mut self) {
        let block = self.board.transport.device_mut();
        scratch::wait_until("the requests in flight", || {
            block.complete_requests();
            !block.has_requests_in_flight()
        });
        block.drain();
    }

    fn resume(&mut self) {
        self.board.resume();
    }

    /// Includes the disk.
    fn memory(&self) -> Vec<u8> {
        let mut all = self.board.bytes();
        all.extend(fs::read(self.disk.path()).unwrap());
        all
    }
}
