//! The time of a line.

use std::fmt;
use std::time::Duration;

const DAY: u64 = 86_400;
/// Days of 400, of 100, of 4 Gregorian years and of one, each without a leap day at its end.
const DAYS_400: u64 = 146_097;
const DAYS_100: u64 = 36_524;
const DAYS_4: u64 = 1_461;
const DAYS_1: u64 = 365;
/// Days from 0000-03-01 to 1970-01-01. Years that begin in March have their leap day at the end.
const EPOCH: u64 = 719_468;
/// Months from March on.
const MONTHS: [(u64, u64); 12] = [
    (3, 31),
    (4, 30),
    (5, 31),
    (6, 30),
    (7, 31),
    (8, 31),
    (9, 30),
    (10, 31),
    (11, 30),
    (12, 31),
    (1, 31),
    (2, 29),
];

/// Prints a time since 1970-01-01 as `2026-11-22T01:02:03.123456789`, in UTC.
#[derive(Clone, Copy, Debug)]
pub struct Stamp(pub Duration);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (year, month, day) = date(seconds / DAY);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let nanosecond = self.0.subsec_nanos();
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanosecond:09}"
        )
    }
}

/// Year, month and day, so many days after 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    let day = days + EPOCH;
    let (eras, day) = (day / DAYS_400, day % DAYS_400);
    // The last day of 400 years, and that of 4, is one that a fifth century, or year, would begin with.
    let centuries = (day / DAYS_100).min(3);
    let day = day - centuries * DAYS_100;
    let (fours, day) = (day / DAYS_4, day % DAYS_4);
    let ones = (day / DAYS_1).min(3);
    let mut day = day - ones * DAYS_1;
    let year = 400 * eras + 100 * centuries + 4 * fours + ones;
    for (month, length) in MONTHS {
        if day < length {
            return (year + u64::from(month < 3), month, day + 1);
        }
        day -= length;
    }
    unreachable!("a year has at most 366 days");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Stamp, date};

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000007"),
            (951_782_399, "2000-02-28T23:59:59.000000007"),
            (951_782_400, "2000-02-29T00:00:00.000000007"),
            (951_868_800, "2000-03-01T00:00:00.000000007"),
            (1_709_251_199, "2024-02-29T23:59:59.000000007"),
            (1_767_225_599, "2025-12-31T23:59:59.000000007"),
            (4_107_542_399, "2100-02-28T23:59:59.000000007"),
            (4_107_542_400, "2100-03-01T00:00:00.000000007"),
            (253_402_300_799, "9999-12-31T23:59:59.000000007"),
        ] {
            assert_eq!(Stamp(Duration::new(seconds, 7)).to_string(), expected);
        }
    }

    #[test]
    fn every_day_is_the_one_after_the_day_before() {
        let mut before = date(0);
        for days in 1..200_000 {
            let (year, month, day) = before;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            let expected = match (day == length, month == 12) {
                (false, _) => (year, month, day + 1),
                (true, false) => (year, month + 1, 1),
                (true, true) => (year + 1, 1, 1),
            };
            before = date(days);
            assert_eq!(before, expected);
        }
    }

    #[test]
    fn no_time_is_too_late() {
        assert!(Stamp(Duration::MAX).to_string().ends_with(".999999999"));
    }
}
