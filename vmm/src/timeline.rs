//! Duration of each phase of a start, and the samples of the guest on the same time axis.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use devices::lock;

use crate::sampling::{SampleSettings, Sampler};

/// Thread of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Main thread, which owns the VM.
    Main,
    /// vCPU thread.
    Vcpu(u8),
}

/// Phase, or, with a length of zero, an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Name of the phase.
    pub name: &'static str,
    /// Thread that ran the phase.
    pub lane: Lane,
    /// Time from the start of the timeline to the start of the phase.
    pub start: Duration,
    /// Duration of the phase.
    pub length: Duration,
}

/// Record of phases. If disabled, its cost is one branch per phase.
#[derive(Debug)]
pub struct Timeline {
    started_at: Instant,
    /// Nanoseconds from `started_at` to the start of the timeline that [`spans`](Self::spans) returns.
    origin: AtomicU64,
    spans: Option<Mutex<Vec<Span>>>,
    /// `None` without a profile.
    sampler: Option<Box<Sampler>>,
}

impl Timeline {
    /// Creates a timeline that starts at `started_at` and records if `enabled`.
    pub fn new(started_at: Instant, enabled: bool) -> Self {
        Self {
            started_at,
            origin: AtomicU64::new(0),
            spans: enabled.then(|| Mutex::new(Vec::with_capacity(32))),
            sampler: None,
        }
    }

    /// Adds a sampler: vCPU threads that start afterwards sample the guest.
    #[must_use]
    pub fn with_sampler(self, settings: SampleSettings) -> Self {
        Self {
            sampler: Some(Box::new(Sampler::new(settings, self.started_at))),
            ..self
        }
    }

    /// Returns the sampler; `None` without a profile.
    pub fn sampler(&self) -> Option<&Sampler> {
        self.sampler.as_deref()
    }

    /// Runs `phase` and records its duration.
    pub fn measure<T>(&self, lane: Lane, name: &'static str, phase: impl FnOnce() -> T) -> T {
        let Some(spans) = &self.spans else { return phase() };
        let start = self.started_at.elapsed();
        let result = phase();
        let length = self.started_at.elapsed().saturating_sub(start);
        lock(spans).push(Span {
            name,
            lane,
            start,
            length,
        });
        result
    }

    /// Records the current instant.
    pub fn mark(&self, lane: Lane, name: &'static str) {
        self.mark_at(lane, name, Instant::now());
    }

    /// Records a past instant. A repeated call with the same arguments has no effect.
    pub fn mark_at(&self, lane: Lane, name: &'static str, instant: Instant) {
        let Some(spans) = &self.spans else { return };
        let span = Span {
            name,
            lane,
            start: instant.saturating_duration_since(self.started_at),
            length: Duration::ZERO,
        };
        let mut spans = lock(spans);
        if !spans.contains(&span) {
            spans.push(span);
        }
    }

    /// Removes all spans, for a start that failed and is repeated.
    pub fn clear(&self) {
        if let Some(spans) = &self.spans {
            lock(spans).clear();
        }
    }

    /// Removes all spans, and restarts the timeline at `instant`.
    pub fn restart(&self, instant: Instant) {
        self.clear();
        let origin = instant.saturating_duration_since(self.started_at);
        let nanos = u64::try_from(origin.as_nanos()).unwrap_or(u64::MAX);
        // Relaxed: the thread that restarts the timeline also reads it, or starts the thread that does.
        self.origin.store(nanos, Ordering::Relaxed);
    }

    /// Returns the spans sorted by start.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = self
            .spans
            .as_ref()
            .map(|spans| lock(spans).clone())
            .unwrap_or_default();
        let origin = Duration::from_nanos(self.origin.load(Ordering::Relaxed));
        for span in &mut spans {
            span.start = span.start.saturating_sub(origin);
        }
        spans.sort_by_key(|span| (span.start, span.lane));
        spans
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Lane, Timeline};

    #[test]
    fn spans_are_sorted_by_start() {
        let timeline = Timeline::new(Instant::now(), true);
        let result = timeline.measure(Lane::Main, "outer", || {
            timeline.mark(Lane::Vcpu(0), "inner");
            7
        });
        let names: Vec<_> = timeline.spans().iter().map(|span| span.name).collect();
        assert_eq!((result, names), (7, vec!["outer", "inner"]));
    }

    #[test]
    fn restarted_timeline_has_only_later_spans() {
        let start = Instant::now();
        let timeline = Timeline::new(start, true);
        timeline.mark(Lane::Main, "before");
        let restart = start + Duration::from_secs(5);
        timeline.restart(restart);
        timeline.mark_at(Lane::Main, "after", restart + Duration::from_secs(2));
        let spans = timeline.spans();
        assert_eq!((spans.len(), spans[0].start), (1, Duration::from_secs(2)));
    }

    #[test]
    fn disabled_timeline_records_no_span() {
        let timeline = Timeline::new(Instant::now(), false);
        timeline.mark(Lane::Main, "moment");
        assert_eq!(timeline.measure(Lane::Main, "phase", || 1), 1);
        assert!(timeline.spans().is_empty());
    }
}
