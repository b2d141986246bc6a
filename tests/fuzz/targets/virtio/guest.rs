//! Driver side: guest memory, virtqueues, and the permitted effects of the device.

use devices::virtio::testing::{FakeDriver, FakeQueue, INDIRECT, NEXT, RawDescriptor, WRITE};

use super::super::input::Input;

/// Bytes of guest memory.
pub const MEMORY: usize = 0x8000;
/// Bytes of memory that are compared at once.
const BLOCK: usize = 256;
/// Queue size.
pub const QUEUE: u16 = 8;
/// First address of buffers of well-behaved requests.
const BUFFERS: u64 = 0x4000;
/// Feature bit EVENT_IDX.
const EVENT_IDX: u64 = 1 << 29;

/// Driver, and the permitted effects of the device since its start.
pub struct Guest {
    pub driver: FakeDriver,
    /// For each byte of memory, true if the device may write to it.
    writable: Vec<bool>,
    /// Maximum of device-writable bytes of each chain, by queue and head.
    capacities: Vec<[u64; QUEUE as usize]>,
    /// Used index of each queue.
    used: Vec<u16>,
    features: u64,
    is_checked: bool,
    /// Address of the next buffer.
    next: u64,
}

impl Guest {
    pub fn new(driver: FakeDriver) -> Self {
        let queues = driver.queues.len();
        Self {
            driver,
            writable: vec![false; MEMORY],
            capacities: vec![[0; QUEUE as usize]; queues],
            used: vec![0; queues],
            features: 0,
            is_checked: false,
            next: BUFFERS,
        }
    }

    /// Forgets the effects of a device that was reset.
    pub fn restart(&mut self, features: u64) {
        self.writable.fill(false);
        for queue in &self.driver.queues {
            let used = range(queue.used, queue.end() - queue.used);
            self.writable[used].fill(true);
        }
        self.capacities.fill([0; QUEUE as usize]);
        self.used.fill(0);
        self.features = features;
        self.is_checked = true;
    }

    /// Suspends the checks until the next start.
    pub fn suspend_checks(&mut self) {
        self.is_checked = false;
    }

    /// Returns the address of `data` in a new buffer. Buffers repeat once memory is full.
    pub fn place(&mut self, data: &[u8]) -> u64 {
        if self.next + data.len() as u64 > MEMORY as u64 {
            self.next = BUFFERS;
        }
        let address = self.next;
        self.next += data.len() as u64;
        self.driver.write(address, data);
        address
    }

    /// Makes a chain of `buffers` available, if descriptors are free.
    pub fn add(&mut self, queue: usize, buffers: &[devices::virtio::testing::Buffer]) {
        let queue = &mut self.driver.queues[queue];
        queue.collect_used();
        if queue.free_descriptors() >= buffers.len() {
            queue.add(buffers);
        }
    }

    /// Records the permitted effects of all descriptors. Returns the content of memory.
    pub fn observe(&mut self) -> Vec<u8> {
        let memory = self.driver.read(0, MEMORY);
        if self.is_checked {
            for index in 0..self.driver.queues.len() {
                self.record(index, &memory);
            }
        }
        memory
    }

    fn record(&mut self, index: usize, memory: &[u8]) {
        let queue = &self.driver.queues[index];
        let table = queue.descriptors;
        let mut tables = vec![range(table, queue.used - table)];
        let size = u64::from(QUEUE);
        for number in 0..size {
            let descriptor = descriptor_at(memory, table + 16 * number);
            if descriptor.flags & INDIRECT != 0 {
                let length = u64::from(descriptor.length).min(MEMORY as u64);
                tables.push(range(descriptor.address, length));
                for entry in 0..length / 16 {
                    let address = descriptor.address.saturating_add(16 * entry);
                    self.permit(descriptor_at(memory, address));
                }
            } else {
                self.permit(descriptor);
            }
        }
        for (head, capacity) in (0..).zip(&mut self.capacities[index]) {
            *capacity = chain_capacity(memory, table, size, head).max(*capacity);
        }
        // With a table that the device may overwrite, its descriptors can change during an operation.
        if tables
            .into_iter()
            .any(|table| self.writable[table].contains(&true))
        {
            self.is_checked = false;
        }
    }

    fn permit(&mut self, descriptor: RawDescriptor) {
        if descriptor.flags & WRITE != 0 {
            self.writable[range(descriptor.address, descriptor.length.into())].fill(true);
        }
    }

    /// Checks the effects of an operation of the device, since memory was `before`. `states` are the next indices of available and
    /// used ring of each queue.
    pub fn check_effects(&mut self, before: &[u8], states: &[(u16, u16)], interrupt_status: u32) {
        if !self.is_checked || states.is_empty() {
            return;
        }
        let memory = self.driver.read(0, MEMORY);
        for start in (0..MEMORY).step_by(BLOCK) {
            if before[start..start + BLOCK] != memory[start..start + BLOCK] {
                self.check_writes(before, &memory, start);
            }
        }
        let mut is_used = false;
        for (index, state) in states.iter().enumerate() {
            is_used |= self.check_used(index, *state);
        }
        let is_quiet = self.features & EVENT_IDX != 0 || self.is_interrupt_disabled();
        assert!(
            !is_used || is_quiet || interrupt_status & 1 == 1,
            "the device used a chain without an interrupt"
        );
    }

    /// Checks the changed bytes of the block at `start`.
    fn check_writes(&self, before: &[u8], memory: &[u8], start: usize) {
        for address in start..start + BLOCK {
            assert!(
                before[address] == memory[address] || self.writable[address],
                "the device wrote to {address:#x}, which is in no device-writable buffer"
            );
        }
    }

    fn is_interrupt_disabled(&self) -> bool {
        let flags = |queue: &FakeQueue| self.driver.read(queue.available, 2);
        self.driver.queues.iter().any(|queue| flags(queue) != [0, 0])
    }

    /// Checks the new entries of the used ring. Returns true if there are any.
    fn check_used(&mut self, index: usize, (next_available, next_used): (u16, u16)) -> bool {
        let queue = &self.driver.queues[index];
        let in_flight = next_available.wrapping_sub(next_used);
        assert!(
            in_flight <= QUEUE,
            "queue {index} has {in_flight} chains in flight"
        );
        assert_eq!(queue.used_index(), next_used, "used index of queue {index}");
        let first = self.used[index];
        let count = next_used.wrapping_sub(first);
        for number in count.saturating_sub(QUEUE)..count {
            let slot = u64::from(first.wrapping_add(number) % QUEUE);
            let entry = self.driver.read(queue.used + 4 + 8 * slot, 8);
            let [head, length] = [0, 4].map(|at| u32::from_le_bytes(array(&entry[at..])));
            let capacity = usize::try_from(head)
                .ok()
                .and_then(|head| self.capacities[index].get(head));
            let capacity = capacity.unwrap_or_else(|| panic!("queue {index} used the invalid head {head}"));
            assert!(
                u64::from(length) <= *capacity,
                "queue {index} used {length} bytes of chain {head}, which has {capacity}"
            );
        }
        self.used[index] = next_used;
        count > 0
    }

    /// Performs a step of a hostile driver on memory and rings.
    pub fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        let index = usize::from(kind >> 7) % self.driver.queues.len();
        match kind % 8 {
            0..=2 => {
                let number = u16::from(input.u8()) % QUEUE;
                let descriptor = descriptor(input);
                self.driver.queues[index].set_descriptor(number, descriptor);
            }
            3 => self.driver.queues[index].make_available(u16::from(input.u8()) % (QUEUE + 1)),
            4 => {
                let current = self.driver.queues[index].next_available();
                let distance = u16::from(input.u8()).wrapping_sub(64);
                self.driver.queues[index].set_available_index(current.wrapping_add(distance));
            }
            5 => self.driver.queues[index].set_used_event(input.u16()),
            6 => {
                let table = u64::from(input.u16() & 0xfff0);
                let count = u64::from(input.u8() % 12);
                for entry in (0..count).filter(|entry| table + 16 * entry + 16 <= MEMORY as u64) {
                    let descriptor = descriptor(input);
                    self.driver.queues[index].write_descriptor(table + 16 * entry, descriptor);
                    self.check_overlap(table, 16 * count);
                }
            }
            _ => {
                let address = u64::from(input.u16());
                let length = usize::from(input.u8()).min(MEMORY - range(address, 0).start);
                let data = input.bytes(length);
                self.driver.write(address, data);
                self.check_overlap(address, data.len() as u64);
            }
        }
    }

    /// Suspends the checks after a write of the driver to a used ring, which the checks read.
    fn check_overlap(&mut self, address: u64, length: u64) {
        let overlaps = |queue: &FakeQueue| address < queue.end() && address + length > queue.used;
        if self.driver.queues.iter().any(overlaps) {
            self.is_checked = false;
        }
    }
}

/// Reads a descriptor that is often valid.
pub fn descriptor(input: &mut Input<'_>) -> RawDescriptor {
    let (kind, address) = (input.u8(), u64::from(input.u16()));
    let address = match kind >> 5 {
        0 => address + MEMORY as u64,
        1 => u64::MAX - address,
        _ => address,
    };
    let length = u32::from(input.u16());
    RawDescriptor {
        address,
        length: if kind & 0x18 == 0x18 {
            length << 16 | length
        } else {
            length
        },
        flags: u16::from(kind & (NEXT | WRITE | INDIRECT).to_le_bytes()[0]),
        next: u16::from(input.u8()) % (QUEUE + 1),
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[..N]);
    array
}

/// Returns the part of `length` bytes from `address` that is inside memory.
fn range(address: u64, length: u64) -> std::ops::Range<usize> {
    let clamp = |address: u64| usize::try_from(address).unwrap_or(MEMORY).min(MEMORY);
    clamp(address)..clamp(address.saturating_add(length))
}

/// Returns the descriptor at `address`; zeros outside memory.
fn descriptor_at(memory: &[u8], address: u64) -> RawDescriptor {
    let range = range(address, 16);
    if range.len() < 16 {
        return RawDescriptor::default();
    }
    let bytes = &memory[range];
    RawDescriptor {
        address: u64::from_le_bytes(array(bytes)),
        length: u32::from_le_bytes(array(&bytes[8..])),
        flags: u16::from_le_bytes(array(&bytes[12..])),
        next: u16::from_le_bytes(array(&bytes[14..])),
    }
}

/// Returns the device-writable bytes of the chain from `head` in a table of `size` entries at `table`.
fn chain_capacity(memory: &[u8], table: u64, size: u64, head: u16) -> u64 {
    let (mut total, mut next) = (0, head);
    for _ in 0..size {
        if u64::from(next) >= size {
            break;
        }
        let descriptor = descriptor_at(memory, table + 16 * u64::from(next));
        if descriptor.flags & INDIRECT != 0 {
            let entries = u64::from(descriptor.length) / 16;
            return total + table_capacity(memory, descriptor.address, entries.min(MEMORY as u64 / 16));
        }
        if descriptor.flags & WRITE != 0 {
            total += u64::from(descriptor.length);
        }
        if descriptor.flags & NEXT == 0 {
            break;
        }
        next = descriptor.next;
    }
    total
}

/// Returns the device-writable bytes of all entries of an indirect table.
fn table_capacity(memory: &[u8], table: u64, entries: u64) -> u64 {
    let entry = |number| descriptor_at(memory, table.saturating_add(16 * number));
    let writable = (0..entries).map(entry).filter(|entry| entry.flags & WRITE != 0);
    writable.map(|entry| u64::from(entry.length)).sum()
}
