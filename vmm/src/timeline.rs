//! How long each phase of a start takes.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use devices::lock;

/// The thread that a phase ran on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// The thread that owns the VM.
    Main,
    /// The thread of a vCPU.
    Vcpu(u8),
}

/// A phase, or, with a length of zero, a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// What was done.
    pub name: &'static str,
    /// Who did it.
    pub lane: Lane,
    /// Start, counted from the origin of the timeline.
    pub start: Duration,
    /// Duration.
    pub length: Duration,
}

/// Collects phases. One that is switched off costs a branch a phase.
#[derive(Debug)]
pub struct Timeline {
    origin: Instant,
    spans: Option<Mutex<Vec<Span>>>,
}

impl Timeline {
    /// A timeline that begins at `origin` and records if `enabled`.
    pub fn new(origin: Instant, enabled: bool) -> Self {
        Self {
            origin,
            spans: enabled.then(|| Mutex::new(Vec::with_capacity(32))),
        }
    }

    /// Runs `phase` and records how long it took.
    pub fn measure<T>(&self, lane: Lane, name: &'static str, phase: impl FnOnce() -> T) -> T {
        let Some(spans) = &self.spans else { return phase() };
        let start = self.origin.elapsed();
        let result = phase();
        let length = self.origin.elapsed().saturating_sub(start);
        lock(spans).push(Span {
            name,
            lane,
            start,
            length,
        });
        result
    }

    /// Records this moment.
    pub fn mark(&self, lane: Lane, name: &'static str) {
        self.mark_at(lane, name, Instant::now());
    }

    /// Records a moment that was; once, however often it is told of it.
    pub fn mark_at(&self, lane: Lane, name: &'static str, moment: Instant) {
        let Some(spans) = &self.spans else { return };
        let span = Span {
            name,
            lane,
            start: moment.saturating_duration_since(self.origin),
            length: Duration::ZERO,
        };
        let mut spans = lock(spans);
        if !spans.contains(&span) {
            spans.push(span);
        }
    }

    /// Forgets all that has been recorded, because it came to nothing and is about to be done again.
    pub fn clear(&self) {
        if let Some(spans) = &self.spans {
            lock(spans).clear();
        }
    }

    /// What has been recorded, in the order of the starts.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = self
            .spans
            .as_ref()
            .map(|spans| lock(spans).clone())
            .unwrap_or_default();
        spans.sort_by_key(|span| (span.start, span.lane));
        spans
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{Lane, Timeline};

    #[test]
    fn phases_come_in_the_order_of_their_starts() {
        let timeline = Timeline::new(Instant::now(), true);
        let result = timeline.measure(Lane::Main, "outer", || {
            timeline.mark(Lane::Vcpu(0), "inner");
            7
        });
        let names: Vec<_> = timeline.spans().iter().map(|span| span.name).collect();
        assert_eq!((result, names), (7, vec!["outer", "inner"]));
    }

    #[test]
    fn nothing_is_recorded_when_switched_off() {
        let timeline = Timeline::new(Instant::now(), false);
        timeline.mark(Lane::Main, "moment");
        assert_eq!(timeline.measure(Lane::Main, "phase", || 1), 1);
        assert!(timeline.spans().is_empty());
    }
}
