use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use snapshot::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::driver::FakeDriver;
use super::guarded::GuardedMemory;
use super::interrupt::CountingInterrupt;
use super::queue::{FakeQueue, INDIRECT, NEXT, RawDescriptor};
use super::registers::{get, set};
use crate::bus::BusDevice;
use crate::sync::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::mmio::{Transport, registers as r};

/// Threads that change guest memory.
const MUTATORS: u64 = 2;
/// Maximum time of one operation of the device. On a loaded machine, a thread may not run for many seconds.
const MAX_OPERATION: Duration = Duration::from_secs(180);
/// Descriptors of a slot of a descriptor table. A chain is written to one slot.
const SLOT: usize = 4;
/// Indirect tables, at the front of the buffers.
const TABLES: u64 = 4;
/// Bytes of an indirect table.
const TABLE: u64 = 0x100;
/// One of this number of changes is invalid. The device stops soon after it, until the next reset.
const INVALID: usize = 1 << 13;

/// A hostile guest with several CPUs.
///
/// Two threads write to descriptor tables, rings, indirect tables, headers and data, mostly plausible values. Another
/// notifies the device and serves its descriptors, as vCPU threads and the event loop do. A fourth resets it. A chain that
/// the device reads is a mixture of chains from different times.
pub struct Race {
    /// Seed of the order of all changes.
    pub seed: u64,
    /// Bytes of guest memory.
    pub size: u64,
    /// Chains that the threads write, each with its queue. The threads move most buffers, and link the descriptors.
    pub chains: Vec<(usize, Vec<RawDescriptor>)>,
    /// Data that the threads write at multiples of 16, such as headers of requests.
    pub data: Vec<Vec<u8>>,
    /// Features that the driver accepts.
    pub features: u64,
    /// Time between two resets.
    pub reset_interval: Duration,
    /// Duration of the race.
    pub duration: Duration,
}

/// Pseudorandom numbers, SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }

    fn u16(&mut self) -> u16 {
        let bytes = self.next().to_le_bytes();
        u16::from_le_bytes([bytes[0], bytes[1]])
    }
}

impl Race {
    /// Runs the race against `device` with queues of `queue_sizes` in `memory`, then resets it. `peer` acts outside the
    /// guest, after each notification. Returns the device, reset, with a driver whose queues are empty.
    ///
    /// # Panics
    /// Panics if a byte outside guest memory has changed, or an operation of the device takes longer than 180 s.
    pub fn run<D>(
        &self,
        memory: &GuardedMemory,
        device: Box<D>,
        queue_sizes: &[u16],
        mut peer: impl FnMut() + Send,
    ) -> (Transport<D>, FakeDriver)
    where
        D: VirtioDevice,
        Transport<D>: BusDevice,
    {
        let guest = memory.memory();
        let mut driver = FakeDriver::with_memory(guest.clone(), queue_sizes);
        let line = Arc::new(CountingInterrupt::default());
        let mut transport = Transport::new(device, guest.clone(), line);
        driver.start(&mut transport, self.features);
        let transport = Mutex::new(transport);
        let end = AtomicBool::new(false);
        let is_over = || end.load(Ordering::Relaxed);
        thread::scope(|scope| {
            for number in 0..MUTATORS {
                let (queues, buffers) = (&driver.queues, driver.buffers);
                let mut random = Random(self.seed ^ number << 32);
                scope.spawn(move || {
                    while !is_over() {
                        self.change(&mut random, guest, queues, buffers);
                    }
                });
            }
            scope.spawn(|| {
                while !is_over() {
                    operate(&transport, |transport| notify(transport, queue_sizes.len()));
                    peer();
                }
            });
            scope.spawn(|| {
                while !is_over() {
                    thread::sleep(self.reset_interval);
                    operate(&transport, |transport| {
                        set(transport, r::STATUS, 0);
                        for queue in &driver.queues {
                            store(guest, queue.available + 2, 0);
                            store(guest, queue.used + 2, 0);
                        }
                        driver.start(transport, self.features);
                    });
                }
            });
            let start = Instant::now();
            while start.elapsed() < self.duration {
                thread::sleep(Duration::from_millis(1));
            }
            end.store(true, Ordering::Relaxed);
        });
        let mut transport = transport.into_inner().unwrap();
        driver.reset(&mut transport);
        memory.check();
        (transport, driver)
    }

    /// Makes one change.
    fn change(&self, random: &mut Random, memory: &GuestMemory, queues: &[FakeQueue], buffers: u64) {
        let queue = &queues[random.below(queues.len())];
        let size = u64::from(queue.size());
        let is_invalid = random.below(INVALID) == 0;
        match random.below(16) {
            0..=4 => self.write_chain(random, queues, buffers, is_invalid),
            5 | 6 => {
                let head = if is_invalid {
                    random.u16()
                } else {
                    (random.u16() % queue.size()) & !3
                };
                store(memory, queue.available + 4 + 2 * (random.next() % size), head);
            }
            7..=11 => add_available(random, memory, queue, is_invalid),
            12 => store(memory, queue.available, random.u16() & 1),
            13 => queue.set_used_event(queue.used_index().wrapping_add(random.u16() % 4)),
            // Entries of the used ring, and `avail_event`.
            14 => store(
                memory,
                queue.used + 4 + 2 * (random.next() % (4 * size + 1)),
                random.u16(),
            ),
            _ => self.change_data(random, memory, buffers),
        }
    }

    /// Writes a chain to a slot of its queue, or to an indirect table.
    fn write_chain(&self, random: &mut Random, queues: &[FakeQueue], buffers: u64, is_invalid: bool) {
        let Some((number, chain)) = self.chains.get(random.below(self.chains.len())) else {
            return;
        };
        let queue = &queues[number % queues.len()];
        let (table, first) = match random.below(4) {
            0 => (buffers + TABLE * (random.next() % TABLES), 0),
            _ => {
                let slot = random.below(usize::from(queue.size()) / SLOT);
                (queue.descriptors, u16::try_from(slot * SLOT).unwrap())
            }
        };
        for (index, descriptor) in (first..).zip(chain.iter().take(SLOT)) {
            let mut descriptor = *descriptor;
            if descriptor.flags & INDIRECT != 0 {
                descriptor.address = buffers + TABLE * (random.next() % TABLES);
            } else if random.below(8) > 0 {
                descriptor.address = self.buffer(random, buffers, descriptor.length.into());
            }
            if descriptor.flags & NEXT != 0 {
                descriptor.next = index + 1;
            }
            if is_invalid {
                descriptor.address = random.next();
                descriptor.flags ^= random.u16() & 7;
                descriptor.next = random.u16() % (queue.size() + 1);
            }
            queue.write_descriptor(table + 16 * u64::from(index), descriptor);
        }
    }

    /// Returns the address of a buffer of `length` bytes, if memory is large enough.
    fn buffer(&self, random: &mut Random, buffers: u64, length: u64) -> u64 {
        let room = self.size.saturating_sub(buffers + length).max(16);
        buffers + ((random.next() % room) & !0xf)
    }

    fn change_data(&self, random: &mut Random, memory: &GuestMemory, buffers: u64) {
        let address = GuestAddress(self.buffer(random, buffers + TABLE * TABLES, 0));
        let random_bytes = random.next().to_le_bytes();
        let data = match random.below(8) {
            0 => &random_bytes[..],
            _ => self
                .data
                .get(random.below(self.data.len()))
                .map_or(&random_bytes[..], Vec::as_slice),
        };
        // Data that does not fit is cut off.
        let _ = memory.write(data, address);
    }
}

/// Makes up to 3 more entries of the available ring available, if the queue has room.
fn add_available(random: &mut Random, memory: &GuestMemory, queue: &FakeQueue, is_invalid: bool) {
    let index = GuestAddress(queue.available + 2);
    let available: u16 = memory.load(index, Ordering::Relaxed).unwrap();
    let next = available.wrapping_add(random.u16() % 3 + 1);
    if is_invalid {
        memory.store(random.u16(), index, Ordering::Relaxed).unwrap();
    } else if next.wrapping_sub(queue.used_index()) <= queue.size() {
        memory.store(next, index, Ordering::Release).unwrap();
    }
}

fn store(memory: &GuestMemory, address: u64, value: u16) {
    memory
        .store(value, GuestAddress(address), Ordering::Relaxed)
        .unwrap();
}

/// Notifies all queues and processes all descriptors.
fn notify<D: VirtioDevice>(transport: &mut Transport<D>, queues: usize)
where
    Transport<D>: BusDevice,
{
    for queue in 0..queues {
        transport.notify(queue);
    }
    for watched in transport.watched_fds() {
        transport.process_event(watched.token);
    }
    let pending = get(transport, r::INTERRUPT_STATUS);
    set(transport, r::INTERRUPT_ACK, pending);
}

/// Performs an operation with the lock of the device, and checks its duration.
fn operate<T>(transport: &Mutex<T>, operation: impl FnOnce(&mut T)) {
    let mut transport = lock(transport);
    let start = Instant::now();
    operation(&mut transport);
    let duration = start.elapsed();
    assert!(
        duration < MAX_OPERATION,
        "an operation of the device took {duration:?}"
    );
}
