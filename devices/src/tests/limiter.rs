//! Fixture of the rate limiter.

use std::time::Duration;

use snapshot::Component;

use super::chips::separate;
use super::{Fixture, StateSetup};
use crate::bus::BusDevice;
use crate::clock::Clock;
use crate::testing::ManualClock;
use crate::{Bucket, Limiter};

/// Its only visible effect is the result of `consume`.
pub(super) struct LimiterFixture {
    device: Limiter,
    clock: ManualClock,
}

const LIMIT: Option<Bucket> = Some(Bucket {
    size: 1000,
    refill_time_ms: 100,
    one_time_burst: 50,
});

impl Fixture for LimiterFixture {
    const TYPES: &'static [&'static str] = &["Limiter"];
    const REGISTERS: u64 = 0;
    const STATES: &'static [StateSetup<Self>] = &[
        ("full", |fixture| fixture.device.update(LIMIT, LIMIT)),
        ("half full", |fixture| {
            fixture.device.update(LIMIT, None);
            fixture.apply_event(600);
        }),
        ("throttled", |fixture| {
            fixture.device.update(LIMIT, None);
            fixture.apply_event(900);
            fixture.apply_event(900);
            assert!(fixture.device.is_throttled());
        }),
        ("in debt", |fixture| {
            fixture.device.update(LIMIT, None);
            fixture.apply_event(10_000);
        }),
        ("between two tokens", |fixture| {
            fixture.device.update(LIMIT, None);
            fixture.apply_event(1000);
            fixture.clock.advance(Duration::from_nanos(150_001));
            fixture.apply_event(0);
        }),
    ];

    fn new() -> Self {
        Self {
            device: Limiter::new(None, None).unwrap(),
            clock: ManualClock::default(),
        }
    }

    fn fresh_copy(&self) -> Self {
        Self {
            clock: separate(&self.clock),
            ..Self::new()
        }
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.device
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        None
    }

    fn apply_event(&mut self, event: u16) -> u64 {
        let passed = self.device.consume(event.into(), self.clock.now());
        self.clock
            .advance(Duration::from_micros(u64::from(event) % 7_000));
        passed.into()
    }

    /// Devices fill the buckets before a save.
    fn drain(&mut self) {
        self.device.fill(self.clock.now());
    }
}
