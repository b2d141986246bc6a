//! How much of the libraries' log is said: a guest may be behind it.

use std::time::{Duration, Instant};

/// How many lines are said in one period.
const MAX_LINES: u32 = 20;
const PERIOD: Duration = Duration::from_secs(1);

/// What may be said until the end of a period.
#[derive(Debug)]
pub struct Budget {
    start: Instant,
    said: u32,
    withheld: u64,
}

impl Budget {
    /// A budget of which nothing is spent, for the period that begins at `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            start: now,
            said: 0,
            withheld: 0,
        }
    }

    /// Whether a line may be said at `now`, and how many were withheld before it that nobody knows of.
    pub fn spend(&mut self, now: Instant) -> Option<u64> {
        let mut withheld = 0;
        if now.duration_since(self.start) >= PERIOD {
            withheld = self.withheld;
            *self = Self::new(now);
        }
        if self.said == MAX_LINES {
            self.withheld += 1;
            return None;
        }
        self.said += 1;
        Some(withheld)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Budget, MAX_LINES, PERIOD};

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let allowed = (0..100).filter(|_| budget.spend(start).is_some()).count();
        assert_eq!(allowed, usize::try_from(MAX_LINES).unwrap());
        assert_eq!(budget.spend(start + PERIOD), Some(100 - u64::from(MAX_LINES)));
        assert_eq!(budget.spend(start + PERIOD + Duration::from_millis(1)), Some(0));
    }
}
