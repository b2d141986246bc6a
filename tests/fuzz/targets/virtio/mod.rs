//! virtio-mmio with a block or network device behind it, and a hostile driver.
//!
//! | module | contents |
//! |---|---|
//! | [`guest`] | driver side: guest memory, virtqueues, permitted effects of the device |
//! | [`block`], [`net`] | the devices and their backends |
//! | [`race`] | both devices while several CPUs change memory |
//!
//! At any point:
//!
//! - The device writes only to its used rings and to buffers that a descriptor makes device-writable.
//! - A used entry names a chain and at most the bytes of its device-writable buffers; the device has used no more chains than it
//!   has popped, and has at most the queue size in flight.
//! - A used chain sets the interrupt status, unless the driver has disabled that.
//! - The state saves and restores to an equal state.
//! - After a reset, the device executes a valid request.
//!
//! The first properties hold for queues in place. Once the driver moves queues by raw register writes, or lets the device write to
//! its own tables, they are suspended until the next start.

mod block;
mod guest;
mod net;
mod race;

use std::sync::Arc;

use devices::BusDevice;
use devices::limiter::Bucket;
use devices::virtio::VirtioDevice;
use devices::virtio::mmio::{Transport, registers as r};
use devices::virtio::testing::{Buffer, CountingInterrupt, FakeDriver, get, set};
use snapshot::{ArchiveReader, ArchiveWriter, Component};

use super::board::ManualClock;
use super::input::Input;
use guest::Guest;

pub const DICTIONARY: &[&[u8]] = &[
    b"\x08\0\0\0\0\0\0\0",
    b"\x0b\0\0\0\0\0\0\0",
    b"\x0d\0\0\0\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\0\0\x01\0",
];

pub use block::run as run_block;
pub use net::run as run_net;
pub use race::run as run_race;

/// Device with its backend.
trait Model: Sized {
    type Device: VirtioDevice;
    /// Number of virtqueues.
    const QUEUES: usize;

    /// Creates a device, and connects it to this backend in place of the previous device.
    fn create(&mut self, clock: ManualClock) -> Box<Self::Device>;

    /// Completes or suspends requests in flight.
    fn drain(_device: &mut Self::Device) {}

    /// Applies an event outside the guest.
    fn apply_event(&mut self, device: &mut Self::Device, input: &mut Input<'_>);

    /// Adds a request of a well-behaved driver.
    fn add_request(&mut self, guest: &mut Guest, input: &mut Input<'_>);

    /// Executes a valid request on the restarted device and checks its effect and the backend.
    fn check_recovery(&mut self, scene: &mut Scene<Self>)
    where
        Transport<Self::Device>: BusDevice + Component;
}

/// Limit of a throttled device: one packet or request per 100 ms.
const ONE_PER_100_MS: Bucket = Bucket {
    size: 1,
    refill_time_ms: 100,
    one_time_burst: 0,
};

/// Status of a running device.
const RUNNING: u32 = r::ACKNOWLEDGE | r::DRIVER | r::FEATURES_OK | r::DRIVER_OK;

/// Transport with its guest.
struct Scene<M: Model> {
    transport: Transport<M::Device>,
    guest: Guest,
    line: Arc<CountingInterrupt>,
    clock: ManualClock,
}

impl<M: Model> Scene<M>
where
    Transport<M::Device>: BusDevice + Component,
{
    fn new(model: &mut M) -> Self {
        let clock = ManualClock::default();
        let driver = FakeDriver::new(guest::MEMORY, &vec![guest::QUEUE; M::QUEUES]);
        let line = Arc::new(CountingInterrupt::default());
        Self {
            transport: Transport::new(model.create(clock.clone()), driver.memory.clone(), line.clone()),
            guest: Guest::new(driver),
            line,
            clock,
        }
    }

    /// Performs an operation of the device and checks its effects.
    fn operate(&mut self, operation: impl FnOnce(&mut Transport<M::Device>)) {
        let before = self.guest.observe();
        operation(&mut self.transport);
        let states = self.transport.device().queue_states();
        let states: Vec<_> = states
            .iter()
            .map(|state| (state.next_avail, state.next_used))
            .collect();
        let status = get(&mut self.transport, r::INTERRUPT_STATUS);
        self.guest.check_effects(&before, &states, status);
    }

    /// Resets the device and starts it with `features`.
    fn restart(&mut self, features: u64) {
        let Self { transport, guest, .. } = self;
        guest.driver.reset(transport);
        guest.restart(features);
        let status = guest.driver.start(transport, features);
        assert_eq!(status, RUNNING, "the device does not start after a reset");
        self.operate(|_| {});
    }

    /// Processes the events of all descriptors, as the event loop does.
    fn process_events(&mut self) {
        self.operate(|transport| {
            for watched in transport.watched_fds() {
                transport.process_event(watched.token);
            }
        });
    }

    fn notify(&mut self, queue: u32) {
        self.operate(|transport| set(transport, r::QUEUE_NOTIFY, queue));
    }

    /// Replaces the device by one with its saved state.
    fn reload(&mut self, model: &mut M) {
        self.operate(|transport| M::drain(transport.device_mut()));
        let saved = save(&self.transport);
        assert!(save(&self.transport) == saved, "a save changes the state");
        let memory = self.guest.driver.memory.clone();
        self.clock = self.clock.separate();
        self.transport = Transport::new(model.create(self.clock.clone()), memory, self.line.clone());
        let mut reader = ArchiveReader::parse(&saved).expect("saved sections can be parsed");
        self.transport
            .restore_section("device", &mut reader)
            .unwrap_or_else(|error| panic!("cannot restore the device: {error:?}"));
        reader.finish().expect("all sections were restored");
        assert!(save(&self.transport) == saved, "the restored state differs");
        self.operate(Transport::notify_restored);
    }

    /// Writes any register. Queues may be elsewhere afterwards.
    fn write_register(&mut self, offset: u64, data: &[u8]) {
        if offset != r::QUEUE_NOTIFY && offset != r::INTERRUPT_ACK {
            self.guest.suspend_checks();
        }
        self.operate(|transport| transport.write(offset, data));
    }

    /// Performs the next step of `input`.
    fn step(&mut self, model: &mut M, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0..=2 => self.notify(u32::from(input.u8()) % 3),
            3 => self.process_events(),
            4 => {
                let offset = u64::from(input.u8()) * 4;
                self.write_register(offset, &input.u32().to_le_bytes());
            }
            5 => {
                let mut data = vec![0; 1 << (input.u8() % 4)];
                let offset = u64::from(input.u16()) % 0x200;
                self.transport.read(offset, &mut data);
            }
            6 => {
                let features = u64::from(input.u32());
                self.restart(features);
            }
            7 => self.reload(model),
            8 => self.clock.advance(input.duration()),
            9 => {
                model.apply_event(self.transport.device_mut(), input);
                self.process_events();
            }
            10 => self.operate(|transport| set(transport, r::INTERRUPT_ACK, 3)),
            11 | 12 => model.add_request(&mut self.guest, input),
            _ => self.guest.step(input),
        }
    }
}

fn save(component: &dyn Component) -> Vec<u8> {
    let mut writer = ArchiveWriter::new();
    component
        .save_section("device", &mut writer)
        .unwrap_or_else(|error| panic!("cannot save the device: {error:?}"));
    writer.into_bytes()
}

/// Applies all steps of `input` to a started device, then checks that it works after a reset.
fn run<M: Model>(mut model: M, input: &mut Input<'_>)
where
    Transport<M::Device>: BusDevice + Component,
{
    let mut scene = Scene::new(&mut model);
    let features = u64::from(input.u32());
    scene.restart(features);
    while !input.is_empty() {
        scene.step(&mut model, input);
    }
    scene.restart(0);
    model.check_recovery(&mut scene);
}

/// Returns a readable or writable buffer.
fn buffer(address: u64, length: u32, writable: bool) -> Buffer {
    Buffer {
        address,
        length,
        writable,
    }
}
