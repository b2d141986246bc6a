mod echo;
mod hostile;
mod random;
mod registers;
mod snapshots;
mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use echo::{Echo, SIZES, Seen};

use super::Transport;
use super::registers as r;
use crate::virtio::testing::{Buffer, CountingInterrupt, FakeDriver, Used, get, set};

const MEMORY: usize = 0x2_0000;
const READY: u32 = r::ACKNOWLEDGE | r::DRIVER | r::FEATURES_OK | r::DRIVER_OK;

/// An echo device behind its transport, in its reset state, with a driver.
struct Fixture {
    driver: FakeDriver,
    transport: Transport<Echo>,
    seen: Arc<Seen>,
    line: Arc<CountingInterrupt>,
}

impl Fixture {
    fn new() -> Self {
        Self::with(FakeDriver::new(MEMORY, &SIZES))
    }

    /// Creates another device on the memory of `driver`.
    fn with(driver: FakeDriver) -> Self {
        let seen = Arc::new(Seen::default());
        let line = Arc::new(CountingInterrupt::default());
        let device = Box::new(Echo::new(Arc::clone(&seen)));
        let transport = Transport::new(
            device,
            driver.memory.clone(),
            Arc::<CountingInterrupt>::clone(&line),
        );
        Self {
            driver,
            transport,
            seen,
            line,
        }
    }

    fn started() -> Self {
        let mut fixture = Self::new();
        assert_eq!(fixture.start(), READY);
        fixture
    }

    fn start(&mut self) -> u32 {
        self.driver.start(&mut self.transport, 0)
    }

    fn get(&mut self, offset: u64) -> u32 {
        get(&mut self.transport, offset)
    }

    fn set(&mut self, offset: u64, value: u32) {
        set(&mut self.transport, offset, value);
    }

    fn notify(&mut self, queue: u32) {
        self.driver.notify(&mut self.transport, queue);
    }

    /// Sends `text` through `queue` and expects its echo.
    fn expect_echo(&mut self, queue: u32, text: &[u8]) {
        let (from, to) = (self.driver.buffers, self.driver.buffers + 0x100);
        let length = u32::try_from(text.len()).unwrap();
        self.driver.write(from, text);
        self.driver.write(to, &vec![0; text.len()]);
        let index = usize::try_from(queue).unwrap();
        let head =
            self.driver.queues[index].add(&[Buffer::readable(from, length), Buffer::writable(to, length)]);
        self.notify(queue);
        let used = self.driver.queues[index].collect_used();
        assert_eq!(
            used,
            [Used {
                head: head.into(),
                length
            }]
        );
        assert_eq!(self.driver.read(to, text.len()), text);
    }

    /// Resets, starts and uses the device, like a driver after DEVICE_NEEDS_RESET.
    fn expect_recovery(&mut self) {
        self.driver.reset(&mut self.transport);
        assert_eq!((self.get(r::STATUS), self.get(r::INTERRUPT_STATUS)), (0, 0));
        assert_eq!(self.start(), READY);
        self.line.take();
        for queue in [0, 1] {
            self.expect_echo(queue, b"after the reset");
        }
        assert_eq!(self.line.take(), 2);
    }
}

fn count(counter: &AtomicU32) -> u32 {
    counter.load(Ordering::SeqCst)
}
