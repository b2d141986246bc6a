use std::hint;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use snapshot::GuestMemory;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::driver::FakeDriver;
use super::queue::{Buffer, FakeQueue};
use crate::virtio::queue::Virtqueue;

/// Queue size. Small, so that both sides meet at the ends of the rings all the time.
const SIZE: u16 = 8;
/// Descriptors of a chain.
const CHAIN: usize = 2;
/// Bytes of a request, and of a reply.
const LENGTH: u32 = 8;
/// Maximum time without a notification. On a loaded machine, a thread may not run for many seconds.
const MAX_SILENCE: Duration = Duration::from_secs(60);
/// Looks at an event between two calls that yield the processor.
const SPINS: u32 = 200;
/// Suppresses notifications in the flags of a ring.
const SUPPRESS: u16 = 1;

/// Driver and device of one virtqueue on two threads, which share nothing but guest memory and notifications.
///
/// The driver has the barriers that virtio 1.2 §2.7 requires, and the device those of [`Virtqueue`].
#[derive(Clone, Copy, Debug)]
pub struct Stress {
    /// Both sides use `used_event` and `avail_event`.
    pub event_idx: bool,
    /// Time after which the driver adds no chain.
    pub duration: Duration,
}

/// Result of a [`Stress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StressCounts {
    /// Chains that the device used.
    pub chains: u64,
    /// Available buffer notifications.
    pub available: u64,
    /// Used buffer notifications.
    pub used: u64,
}

/// A notification. A look at it without effect orders nothing.
#[derive(Default)]
struct Event(AtomicBool);

impl Event {
    fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Waits for the notification and takes it. Returns false if `is_over`.
    fn wait(&self, name: &str, is_over: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        loop {
            for _ in 0..SPINS {
                if self.0.load(Ordering::Relaxed) {
                    self.0.swap(false, Ordering::Acquire);
                    return true;
                }
                hint::spin_loop();
            }
            if is_over() {
                return false;
            }
            assert!(start.elapsed() < MAX_SILENCE, "a {name} notification is lost");
            thread::yield_now();
        }
    }
}

/// Ends both threads, also after a panic of one.
struct EndGuard<'a>(&'a AtomicBool);

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Stress {
    /// Runs both threads.
    ///
    /// # Panics
    /// Panics if a notification is lost, or one side sees a stale descriptor, entry or buffer.
    pub fn run(self) -> StressCounts {
        let FakeDriver {
            memory,
            mut queues,
            buffers,
        } = FakeDriver::new(0x1_0000, &[SIZE]);
        let mut queue = queues[0].device_side();
        queue.set_event_idx(self.event_idx);
        let shared = Shared::default();
        let mut device = Device {
            queue: Virtqueue::new(queue),
            memory: &memory,
            shared: &shared,
            served: 0,
            notifications: 0,
        };
        let mut driver = Driver {
            queue: &mut queues[0],
            memory: &memory,
            buffers,
            shared: &shared,
            event_idx: self.event_idx,
            added: 0,
            collected: 0,
            notifications: 0,
        };
        thread::scope(|scope| {
            scope.spawn(|| device.run());
            driver.run(self.duration);
        });
        assert_eq!(device.served, driver.collected);
        StressCounts {
            chains: device.served,
            available: driver.notifications,
            used: device.notifications,
        }
    }
}

/// What the threads share beside guest memory.
#[derive(Default)]
struct Shared {
    available: Event,
    used: Event,
    end: AtomicBool,
}

impl Shared {
    fn is_over(&self) -> bool {
        self.end.load(Ordering::Relaxed)
    }
}

/// Reply to the request `number`.
fn reply(number: u64) -> u64 {
    number.rotate_left(32) ^ 0x5555
}

struct Device<'a> {
    queue: Virtqueue,
    memory: &'a GuestMemory,
    shared: &'a Shared,
    served: u64,
    notifications: u64,
}

impl Device<'_> {
    fn run(&mut self) {
        let _end = EndGuard(&self.shared.end);
        loop {
            self.queue.disable_notification(self.memory).unwrap();
            while self.serve() {
                if self.queue.needs_notification(self.memory).unwrap() {
                    self.notifications += 1;
                    self.shared.used.set();
                }
            }
            let has_more = self.queue.enable_notification(self.memory).unwrap();
            if !has_more && !self.shared.available.wait("driver", || self.shared.is_over()) {
                return;
            }
        }
    }

    /// Serves an available chain. Returns false if there is none.
    fn serve(&mut self) -> bool {
        let Some(chain) = self.queue.pop_chain(self.memory).unwrap() else {
            return false;
        };
        let head = chain.head();
        let addresses: Vec<GuestAddress> = chain.map(|descriptor| descriptor.addr()).collect();
        assert_eq!(addresses.len(), CHAIN, "descriptors of chain {}", self.served);
        let number: u64 = self.memory.read_obj(addresses[0]).unwrap();
        assert_eq!(number, self.served, "stale request");
        self.memory.write_obj(reply(number), addresses[1]).unwrap();
        self.queue.add_used(self.memory, &[(head, LENGTH)]).unwrap();
        self.served += 1;
        true
    }
}

struct Driver<'a> {
    queue: &'a mut FakeQueue,
    memory: &'a GuestMemory,
    buffers: u64,
    shared: &'a Shared,
    event_idx: bool,
    added: u64,
    collected: u64,
    notifications: u64,
}

impl Driver<'_> {
    fn run(&mut self, duration: Duration) {
        let _end = EndGuard(&self.shared.end);
        let start = Instant::now();
        let mut is_over = false;
        while !is_over || self.collected < self.added {
            // One to four chains at once. The time is read now and then: it takes as long as a chain.
            let count = if is_over { 0 } else { 1 + self.added % 4 };
            for _ in 0..count {
                if self.queue.free_descriptors() >= CHAIN {
                    self.add();
                }
            }
            if !self.wait_used() {
                return;
            }
            is_over |= self.collected % 64 < 4 && start.elapsed() >= duration;
        }
    }

    fn add(&mut self) {
        // A place of its own for each chain of the queue. The requests are used in order.
        let address = self.buffers + 2 * u64::from(LENGTH) * (self.added % u64::from(SIZE));
        self.memory.write_obj(self.added, GuestAddress(address)).unwrap();
        let old = self.queue.next_available();
        self.queue.add(&[
            Buffer::readable(address, LENGTH),
            Buffer::writable(address + u64::from(LENGTH), LENGTH),
        ]);
        self.added += 1;
        fence(Ordering::SeqCst);
        let is_expected = match self.event_idx {
            true => self.queue.available_event() == old,
            false => self.queue.used_flags() & SUPPRESS == 0,
        };
        if is_expected {
            self.notifications += 1;
            self.shared.available.set();
        }
    }

    /// Waits for used chains and collects them. Returns false if the device has ended.
    fn wait_used(&mut self) -> bool {
        self.set_flags(SUPPRESS);
        while !self.collect() {
            self.queue
                .set_used_event(u16::try_from(self.collected & 0xffff).unwrap());
            self.set_flags(0);
            fence(Ordering::SeqCst);
            let is_empty = self.queue.used_index() == u16::try_from(self.collected & 0xffff).unwrap();
            if is_empty && !self.shared.used.wait("device", || self.shared.is_over()) {
                return false;
            }
        }
        true
    }

    fn set_flags(&self, flags: u16) {
        let address = GuestAddress(self.queue.available);
        self.memory
            .store(flags.to_le(), address, Ordering::Relaxed)
            .unwrap();
    }

    /// Collects the used chains. Returns false if there is none.
    fn collect(&mut self) -> bool {
        let used = self.queue.collect_used();
        for entry in &used {
            assert_eq!(entry.length, LENGTH, "stale used entry");
            let address = self.buffers + 2 * u64::from(LENGTH) * (self.collected % u64::from(SIZE));
            let address = GuestAddress(address + u64::from(LENGTH));
            let answer: u64 = self.memory.read_obj(address).unwrap();
            assert_eq!(answer, reply(self.collected), "stale reply");
            self.collected += 1;
        }
        !used.is_empty()
    }
}
