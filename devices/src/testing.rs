//! Checks for device models, and test doubles of clocks and interrupt lines.

use std::cell::RefCell;
use std::fmt::Debug;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::{Strategy, any};
use snapshot::{ArchiveReader, ArchiveWriter, Component, Persist};

use crate::bus::BusDevice;
use crate::clock::Clock;
use crate::interrupt::Interrupt;
use crate::limiter::Limiter;
use crate::sync::lock;
use crate::virtio::net::{Net, NetSetup, Stream};

/// Creates a network device on `socket` without limits.
pub(crate) fn net_on(socket: UnixStream, clock: Box<dyn Clock>) -> Net {
    let unlimited = || Limiter::new(None, None).unwrap();
    let net = Net::new(NetSetup {
        mac: [2, 0, 0, 0, 0, 7],
        mtu: None,
        backend: Box::new(Stream::new(socket).unwrap()),
        addresses: None,
        receive_limiter: unlimited(),
        transmit_limiter: unlimited(),
        clock,
    });
    net.unwrap()
}

/// Asserts that a fresh device restores the state of `device` and saves it unchanged, directly and as a section.
pub(crate) fn check_round_trip<T>(device: &T, fresh: impl Fn() -> T)
where
    T: Persist,
    T::State: Debug + PartialEq,
{
    let state = device.save().unwrap();
    let mut direct = fresh();
    direct.restore(device.save().unwrap()).unwrap();
    assert_eq!(direct.save().unwrap(), state);

    let archive = |component: &dyn Component| {
        let mut writer = ArchiveWriter::new();
        component.save_section("device", &mut writer).unwrap();
        writer.into_bytes()
    };
    let bytes = archive(device);
    let mut erased = fresh();
    let mut reader = ArchiveReader::parse(&bytes).unwrap();
    Component::restore_section(&mut erased, "device", &mut reader).unwrap();
    reader.finish().unwrap();
    assert_eq!(archive(&erased), bytes);
}

/// One access of a guest.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    Read { offset: u64, length: usize },
    Write { offset: u64, data: Vec<u8> },
}

/// Generates accesses of every width within `length` addresses.
pub(crate) fn accesses(length: u64) -> impl Strategy<Value = Vec<Access>> {
    let access = (any::<bool>(), 0..length, 0_u32..4, any::<[u8; 8]>()).prop_map(
        move |(read, offset, width, data)| {
            let room = usize::try_from(length - offset).unwrap();
            let width = (1_usize << width).min(room);
            match read {
                true => Access::Read {
                    offset,
                    length: width,
                },
                false => Access::Write {
                    offset,
                    data: data[..width].to_vec(),
                },
            }
        },
    );
    proptest::collection::vec(access, 0..64)
}

/// Applies `accesses` to `device`.
pub(crate) fn replay(device: &mut dyn BusDevice, accesses: &[Access]) {
    for access in accesses {
        match access {
            Access::Read { offset, length } => device.read(*offset, &mut vec![0; *length]),
            Access::Write { offset, data } => device.write(*offset, data),
        }
    }
}

/// An interrupt line that counts rising edges.
#[derive(Debug, Default)]
pub(crate) struct EdgeCounter {
    level: Mutex<bool>,
    edges: AtomicU32,
}

impl EdgeCounter {
    /// Returns the number of edges since the last call.
    pub(crate) fn take(&self) -> u32 {
        self.edges.swap(0, Ordering::SeqCst)
    }
}

impl Interrupt for EdgeCounter {
    fn set_level(&self, asserted: bool) {
        let mut level = lock(&self.level);
        if asserted && !*level {
            self.edges.fetch_add(1, Ordering::SeqCst);
        }
        *level = asserted;
    }
}

/// A clock that only [`advance`](Self::advance) moves. Clones share the time.
#[derive(Clone, Debug, Default)]
pub(crate) struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Advances the time by `duration`.
    pub(crate) fn advance(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap();
        self.0.fetch_add(nanoseconds, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

thread_local! {
    /// Messages of this thread during [`capture_log`].
    static MESSAGES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct CapturingLog;

impl log::Log for CapturingLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        MESSAGES.with_borrow_mut(|messages| messages.push(record.args().to_string()));
    }

    fn flush(&self) {}
}

/// Returns the warnings and errors that this thread logs in `action`.
pub(crate) fn capture_log(action: impl FnOnce()) -> Vec<String> {
    // Fails if another test has set it before.
    let _ = log::set_logger(&CapturingLog);
    log::set_max_level(log::LevelFilter::Warn);
    MESSAGES.take();
    action();
    MESSAGES.take()
}
