//! Detection of an idle guest.
//!
//! A guest is idle if for all of the cool-down its vCPU threads have used little processor time, and no drive request and no
//! [counted](devices::virtio::net) frame has been transferred. Each transfer, and processor time beyond the limit, begins a new window; a
//! window of the length of the cool-down ends the search. The caller samples at intervals of an eighth of the cool-down.

use std::time::{Duration, Instant};

/// Minimum interval of samples.
const MIN_INTERVAL: Duration = Duration::from_millis(1);
/// Maximum interval of samples.
const MAX_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum time without transfers after which a guest that uses a processor is found to poll.
const MIN_POLLING: Duration = Duration::from_secs(1);

/// Reason why a guest is not idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusyReason {
    /// The guest has not announced that it is ready.
    NotReady,
    /// The vCPUs use more processor time than an idle guest, or are not halted.
    Cpu,
    /// A frame was transferred, or waits for the guest.
    Frame,
    /// A drive request was executed, or is in flight.
    Drive,
    /// The vCPUs use a processor all the time, although nothing is transferred.
    Polling,
}

/// Counters of a running guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Processor time of all vCPU threads.
    pub cpu: Duration,
    /// Counted frames.
    pub frames: u64,
    /// Ended drive requests.
    pub requests: u64,
    /// The guest is ready.
    pub is_ready: bool,
}

/// Detector of an idle guest.
#[derive(Clone, Debug)]
pub struct IdleDetector {
    cooldown: Duration,
    /// Maximum processor time in the cool-down.
    max_cpu: Duration,
    /// Begin of the window, and processor time then.
    since: Instant,
    base: Duration,
    /// Last sample and its time; `None` before the first one.
    last: Option<(Instant, Sample)>,
    /// Begin of the window of the search for a guest that polls, and processor time then.
    polling_window: (Instant, Duration),
    /// The last such window has found one.
    is_polling: bool,
    /// Last reason, and the time at which it was last found.
    reason: Option<(Instant, BusyReason)>,
}

impl IdleDetector {
    /// Returns a detector whose first window begins `now`. The vCPUs may use `max_cpu_percent` of the time.
    pub fn new(cooldown: Duration, max_cpu_percent: u32, now: Instant) -> Self {
        Self {
            cooldown,
            max_cpu: cooldown.saturating_mul(max_cpu_percent) / 100,
            since: now,
            base: Duration::ZERO,
            last: None,
            polling_window: (now, Duration::ZERO),
            is_polling: false,
            reason: None,
        }
    }

    /// Returns true if the guest is idle at `sample`. The first window begins with the first sample.
    pub fn update(&mut self, now: Instant, sample: Sample) -> bool {
        let Some((_, last)) = self.last.replace((now, sample)) else {
            self.base = sample.cpu;
            self.polling_window = (now, sample.cpu);
            if !sample.is_ready {
                self.set_busy(now, sample, BusyReason::NotReady);
            }
            return false;
        };
        let transfer = if !last.is_ready {
            // The cool-down begins when the guest is ready.
            Some(BusyReason::NotReady)
        } else if sample.frames != last.frames {
            Some(BusyReason::Frame)
        } else {
            (sample.requests != last.requests).then_some(BusyReason::Drive)
        };
        if let Some(reason) = transfer {
            (self.polling_window, self.is_polling) = ((now, sample.cpu), false);
            self.set_busy(now, sample, reason);
            return false;
        }
        self.search_polling(now, sample);
        if sample.cpu.saturating_sub(self.base) > self.max_cpu {
            let reason = match self.is_polling {
                true => BusyReason::Polling,
                false => BusyReason::Cpu,
            };
            self.set_busy(now, sample, reason);
            return false;
        }
        now.saturating_duration_since(self.since) >= self.cooldown
    }

    fn set_busy(&mut self, now: Instant, sample: Sample, reason: BusyReason) {
        (self.since, self.base) = (now, sample.cpu);
        self.reason = Some((now, reason));
    }

    /// Records that the guest, idle by its counters, is busy `now`. The window stays.
    pub fn postpone(&mut self, now: Instant, reason: BusyReason) {
        self.reason = Some((now, reason));
    }

    fn search_polling(&mut self, now: Instant, sample: Sample) {
        let (since, base) = self.polling_window;
        let length = now.saturating_duration_since(since);
        if length >= self.cooldown.max(MIN_POLLING) {
            // Half of a processor: other processes of the host may need the rest.
            self.is_polling = sample.cpu.saturating_sub(base) * 2 > length;
            self.polling_window = (now, sample.cpu);
        }
    }

    /// Returns true if the vCPUs have used a processor for a cool-down, at least for a second, without a transfer.
    pub fn is_polling(&self) -> bool {
        self.is_polling
    }

    /// Returns the interval of samples.
    fn interval(&self) -> Duration {
        (self.cooldown / 8).clamp(MIN_INTERVAL, MAX_INTERVAL)
    }

    /// Returns the time until the next sample.
    pub fn next_sample(&self, now: Instant) -> Duration {
        if self.busy().is_some() {
            return self.interval();
        }
        let rest = self
            .cooldown
            .saturating_sub(now.saturating_duration_since(self.since));
        rest.clamp(MIN_INTERVAL, self.interval())
    }

    /// Returns the reason for which the guest was busy at the last sample.
    pub fn busy(&self) -> Option<BusyReason> {
        let (last, _) = self.last?;
        let (at, reason) = self.reason?;
        (at == last).then_some(reason)
    }

    /// Returns the last reason, also of a guest that is idle since then.
    pub fn last_reason(&self) -> Option<BusyReason> {
        self.reason.map(|(_, reason)| reason)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{BusyReason, IdleDetector, Sample};

    const COOLDOWN: Duration = Duration::from_millis(800);

    /// Detector and a guest whose counters change.
    struct Guest {
        detector: IdleDetector,
        start: Instant,
        sample: Sample,
    }

    impl Guest {
        fn new() -> Self {
            let start = Instant::now();
            let mut guest = Self {
                detector: IdleDetector::new(COOLDOWN, 5, start),
                start,
                sample: Sample {
                    is_ready: true,
                    ..Sample::default()
                },
            };
            assert!(!guest.at(0));
            guest
        }

        fn now(&self, milliseconds: u64) -> Instant {
            self.start + Duration::from_millis(milliseconds)
        }

        fn at(&mut self, milliseconds: u64) -> bool {
            self.detector.update(self.now(milliseconds), self.sample)
        }

        fn busy(&self) -> Option<BusyReason> {
            self.detector.busy()
        }

        fn use_cpu(&mut self, milliseconds: u64) {
            self.sample.cpu += Duration::from_millis(milliseconds);
        }
    }

    #[test]
    fn guest_without_activity_is_idle_after_cooldown() {
        let mut guest = Guest::new();
        assert!(!guest.at(100) && !guest.at(799) && guest.busy().is_none());
        assert!(guest.at(800));
    }

    #[test]
    fn each_transfer_begins_cooldown_again() {
        for (change, reason) in [
            (
                (|sample| sample.frames += 1) as fn(&mut Sample),
                BusyReason::Frame,
            ),
            (|sample| sample.requests += 1, BusyReason::Drive),
        ] {
            let mut guest = Guest::new();
            guest.at(700);
            change(&mut guest.sample);
            assert!(!guest.at(800));
            assert_eq!(guest.busy(), Some(reason));
            assert!(!guest.at(1599));
            assert_eq!((guest.busy(), guest.detector.last_reason()), (None, Some(reason)));
            assert!(guest.at(1600));
        }
    }

    #[test]
    fn processor_time_within_limit_is_idle() {
        let mut guest = Guest::new();
        for at in [200, 400, 600] {
            guest.use_cpu(10);
            assert!(!guest.at(at));
        }
        guest.use_cpu(10);
        assert!(guest.at(800), "40 ms in 800 are 5 %");
        guest.use_cpu(1);
        assert!(!guest.at(900));
        assert_eq!(guest.busy(), Some(BusyReason::Cpu));
        assert!(!guest.at(1699) && guest.at(1700));
    }

    #[test]
    fn cooldown_begins_when_guest_is_ready() {
        let mut guest = Guest::new();
        guest.detector = IdleDetector::new(COOLDOWN, 5, guest.start);
        guest.sample.is_ready = false;
        for at in [0, 700, 900] {
            assert!(!guest.at(at));
            assert_eq!(guest.busy(), Some(BusyReason::NotReady));
        }
        guest.sample.is_ready = true;
        assert!(!guest.at(1000) && !guest.at(1799) && guest.at(1800));
    }

    #[test]
    fn guest_that_uses_a_processor_without_transfers_polls() {
        let mut guest = Guest::new();
        let mut at = 0;
        let mut step = |guest: &mut Guest, transfer: u64| {
            at += 100;
            guest.use_cpu(90);
            guest.sample.frames += transfer;
            assert!(!guest.at(at));
            guest.busy()
        };
        for _ in 0..9 {
            assert_eq!(step(&mut guest, 0), Some(BusyReason::Cpu));
        }
        assert!(!guest.detector.is_polling());
        assert_eq!(step(&mut guest, 0), Some(BusyReason::Polling));
        assert!(guest.detector.is_polling());
        assert_eq!(step(&mut guest, 1), Some(BusyReason::Frame));
        assert!(!guest.detector.is_polling());
        assert_eq!(step(&mut guest, 0), Some(BusyReason::Cpu));
    }

    #[test]
    fn postponed_guest_is_sampled_again() {
        let mut guest = Guest::new();
        assert!(guest.at(800));
        guest.detector.postpone(guest.now(800), BusyReason::Drive);
        assert_eq!(guest.busy(), Some(BusyReason::Drive));
        let next = guest.detector.next_sample(guest.now(800));
        assert_eq!(next, Duration::from_millis(100));
        assert!(guest.at(900));
    }

    #[test]
    fn samples_meet_end_of_cooldown() {
        let guest = Guest::new();
        let next = |at| guest.detector.next_sample(guest.now(at)).as_millis();
        assert_eq!([next(0), next(750), next(900)], [100, 50, 1]);
        let long = IdleDetector::new(Duration::from_secs(3600), 5, guest.start);
        assert_eq!(long.next_sample(guest.start), Duration::from_secs(1));
    }
}
