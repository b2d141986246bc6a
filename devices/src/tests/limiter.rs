//! The rate limiter.

use std::time::Duration;

use snapshot::Component;

use super::chips::apart;
use super::{Bench, Stage};
use crate::bus::BusDevice;
use crate::clock::Clock;
use crate::testing::ManualClock;
use crate::{Bucket, Limiter};

/// What it lets pass is all that there is to see of it.
pub(super) struct LimiterBench {
    device: Limiter,
    clock: ManualClock,
}

const LIMIT: Option<Bucket> = Some(Bucket {
    size: 1000,
    refill_time_ms: 100,
    one_time_burst: 50,
});

impl Bench for LimiterBench {
    const OF: &'static [&'static str] = &["Limiter"];
    const REGISTERS: u64 = 0;
    const STAGES: &'static [Stage<Self>] = &[
        ("full", |bench| bench.device.update(LIMIT, LIMIT)),
        ("half full", |bench| {
            bench.device.update(LIMIT, None);
            bench.happens(600);
        }),
        ("throttled", |bench| {
            bench.device.update(LIMIT, None);
            bench.happens(900);
            bench.happens(900);
            assert!(bench.device.is_throttled());
        }),
        ("owing", |bench| {
            bench.device.update(LIMIT, None);
            bench.happens(10_000);
        }),
        ("between two tokens", |bench| {
            bench.device.update(LIMIT, None);
            bench.happens(1000);
            bench.clock.advance(Duration::from_nanos(150_001));
            bench.happens(0);
        }),
    ];

    fn new() -> Self {
        Self {
            device: Limiter::new(None, None).unwrap(),
            clock: ManualClock::default(),
        }
    }

    fn another(&self) -> Self {
        Self {
            clock: apart(&self.clock),
            ..Self::new()
        }
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.device
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        None
    }

    fn happens(&mut self, what: u16) -> u64 {
        let passed = self.device.consume(what.into(), self.clock.now());
        self.clock.advance(Duration::from_micros(u64::from(what) % 7_000));
        passed.into()
    }

    /// Devices save what is there by then.
    fn quiet(&mut self) {
        self.device.fill(self.clock.now());
    }
}
