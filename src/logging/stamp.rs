//! The time of a line.

use std::fmt;
use std::time::Duration;

use devices::civil_time::CivilTime;

/// Prints a time since 1970-01-01 as `2026-11-22T01:02:03.123456789`, in UTC; after the year 9999, the end of that.
#[derive(Clone, Copy, Debug)]
pub struct Stamp(pub Duration);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CivilTime {
            year,
            month,
            day,
            hour,
            minute,
            second,
        } = CivilTime::from_unix(i64::try_from(self.0.as_secs()).unwrap_or(i64::MAX));
        let nanosecond = self.0.subsec_nanos();
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanosecond:09}"
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Stamp;

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
    fn no_time_is_too_late() {
        assert!(Stamp(Duration::MAX).to_string().ends_with(".999999999"));
    }
}
