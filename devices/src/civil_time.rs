//! Date and time of day in UTC, in the proleptic Gregorian calendar.

const DAY: i64 = 86_400;
/// Days of 400 Gregorian years.
const ERA: i64 = 146_097;

/// 0000-01-01T00:00:00 in seconds since 1970: the first time with a year of four digits.
const MIN_SECONDS: i64 = -62_167_219_200;
/// 9999-12-31T23:59:59 in seconds since 1970: the last time with a year of four digits.
const MAX_SECONDS: i64 = 253_402_300_799;

/// A date and a time of day in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CivilTime {
    /// 0 to 9999.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31. A day beyond the end of its month counts as a day of the next month.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

impl CivilTime {
    /// Converts `seconds` since 1970-01-01. Times before the year 0 or after the year 9999 become the first or the last
    /// second of that range.
    pub fn from_unix(seconds: i64) -> Self {
        let seconds = seconds.clamp(MIN_SECONDS, MAX_SECONDS);
        let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // Years start in March here, so that a leap day is the last day of its year.
        let days = days + days_before(1970, 1);
        let (era, day) = (days.div_euclid(ERA), days.rem_euclid(ERA));
        let year = (day - day / 1460 + day / 36_524 - day / (ERA - 1)) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, next) = if month < 10 {
            (month + 3, 0)
        } else {
            (month - 9, 1)
        };
        Self {
            year: u16::try_from(era * 400 + year + next).unwrap_or(u16::MAX),
            month: narrow(month),
            day: narrow(day),
            hour: narrow(time / 3600),
            minute: narrow(time / 60 % 60),
            second: narrow(time % 60),
        }
    }

    /// Returns the seconds since 1970-01-01.
    pub fn to_unix(self) -> i64 {
        let first = days_before(self.year.into(), self.month) - days_before(1970, 1);
        let days = first + i64::from(self.day) - 1;
        days * DAY + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }

    /// Returns the day of the week, 1 (Sunday) to 7.
    pub fn weekday(self) -> u8 {
        // 1970-01-01 was a Thursday.
        narrow((self.to_unix().div_euclid(DAY) + 4).rem_euclid(7) + 1)
    }
}

/// Returns the days from 0000-03-01 to the first day of `month`, 1 to 12.
fn days_before(year: i64, month: u8) -> i64 {
    let month = i64::from(month);
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    365 * year + leap_days + (153 * month + 2) / 5
}

/// Converts a value that its caller limits to 0 to 255.
fn narrow(value: i64) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::{CivilTime, MAX_SECONDS, MIN_SECONDS};

    #[test]
    fn known_seconds_give_known_dates() {
        for (seconds, date, weekday) in [
            (0, (1970, 1, 1, 0, 0, 0), 5),
            (951_782_399, (2000, 2, 28, 23, 59, 59), 2),
            (951_782_400, (2000, 2, 29, 0, 0, 0), 3),
            (1_709_251_199, (2024, 2, 29, 23, 59, 59), 5),
            (4_107_542_400, (2100, 3, 1, 0, 0, 0), 2),
            (-1, (1969, 12, 31, 23, 59, 59), 4),
            (MIN_SECONDS, (0, 1, 1, 0, 0, 0), 7),
            (i64::MIN, (0, 1, 1, 0, 0, 0), 7),
            (i64::MAX, (9999, 12, 31, 23, 59, 59), 6),
        ] {
            let time = CivilTime::from_unix(seconds);
            let (year, month, day, hour, minute, second) = date;
            let expected = CivilTime {
                year,
                month,
                day,
                hour,
                minute,
                second,
            };
            assert_eq!(time, expected);
            assert_eq!(time.weekday(), weekday, "{time:?}");
        }
    }

    #[test]
    fn consecutive_days_follow_the_calendar() {
        let date = |days: i64| {
            let time = CivilTime::from_unix(days * 86_400);
            (time.year, time.month, time.day)
        };
        let mut before = date(0);
        for days in 1..200_000 {
            let (year, month, day) = before;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + u8::from(leap),
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

    proptest! {
        #[test]
        fn seconds_round_trip(seconds in MIN_SECONDS..=MAX_SECONDS) {
            let time = CivilTime::from_unix(seconds);
            prop_assert!((1..=12).contains(&time.month) && (1..=31).contains(&time.day));
            prop_assert_eq!(time.to_unix(), seconds);
        }
    }
}
