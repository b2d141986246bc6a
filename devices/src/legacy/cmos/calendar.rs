//! Dates.

use serde::{Deserialize, Serialize};

const DAY: i64 = 86_400;
/// Days of 400 Gregorian years.
const ERA: i64 = 146_097;

/// 0000-01-01 and 9999-12-31T23:59:59, in seconds since 1970: what four digits of a year can show.
const FIRST: i64 = -62_167_219_200;
const LAST: i64 = 253_402_300_799;

/// A date and a time of day in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calendar {
    /// 0 to 59.
    pub second: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 1 to 31. A day that its month does not have is one of the next month.
    pub day: u8,
    /// 1 to 12.
    pub month: u8,
    /// 0 to 99.
    pub year: u8,
    /// 0 to 99.
    pub century: u8,
}

impl Calendar {
    /// The date `seconds` after 1970-01-01; the years 0 and 9999 are the first and the last.
    pub fn at(seconds: i64) -> Self {
        let seconds = seconds.clamp(FIRST, LAST);
        let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // Years are counted from March, so that a leap day is the last of its year.
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
        let year = era * 400 + year + next;
        Self {
            second: narrow(time % 60),
            minute: narrow(time / 60 % 60),
            hour: narrow(time / 3600),
            day: narrow(day),
            month: narrow(month),
            year: narrow(year % 100),
            century: narrow(year / 100),
        }
    }

    /// Seconds since 1970-01-01.
    pub(super) fn seconds(self) -> i64 {
        let year = i64::from(self.century) * 100 + i64::from(self.year);
        let first = days_before(year, self.month) - days_before(1970, 1);
        let days = first + i64::from(self.day) - 1;
        days * DAY + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }

    /// Day of the week, 1 (Sunday) to 7.
    pub(super) fn weekday(self) -> u8 {
        // 1970-01-01 was a Thursday.
        narrow((self.seconds().div_euclid(DAY) + 4).rem_euclid(7) + 1)
    }

    /// The same with every field in its range.
    pub(super) fn clamped(self) -> Self {
        Self {
            second: self.second.min(59),
            minute: self.minute.min(59),
            hour: self.hour.min(23),
            day: self.day.clamp(1, 31),
            month: self.month.clamp(1, 12),
            year: self.year.min(99),
            century: self.century.min(99),
        }
    }
}

/// Days from 0000-03-01 to the first of `month`, 1 to 12.
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

/// A value that its caller knows to be within 0 to 255.
fn narrow(value: i64) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::{Calendar, FIRST, LAST};

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date, weekday) in [
            (0, (19, 70, 1, 1, 0, 0, 0), 5),
            (951_782_399, (20, 0, 2, 28, 23, 59, 59), 2),
            (951_782_400, (20, 0, 2, 29, 0, 0, 0), 3),
            (1_709_251_199, (20, 24, 2, 29, 23, 59, 59), 5),
            (4_107_542_400, (21, 0, 3, 1, 0, 0, 0), 2),
            (-1, (19, 69, 12, 31, 23, 59, 59), 4),
            (FIRST, (0, 0, 1, 1, 0, 0, 0), 7),
            (i64::MIN, (0, 0, 1, 1, 0, 0, 0), 7),
            (i64::MAX, (99, 99, 12, 31, 23, 59, 59), 6),
        ] {
            let calendar = Calendar::at(seconds);
            let (century, year, month, day, hour, minute, second) = date;
            let expected = Calendar {
                second,
                minute,
                hour,
                day,
                month,
                year,
                century,
            };
            assert_eq!(calendar, expected);
            assert_eq!(calendar.weekday(), weekday, "{calendar:?}");
        }
    }

    #[test]
    fn every_day_is_the_one_after_the_day_before() {
        let date = |days: i64| {
            let date = Calendar::at(days * 86_400);
            (
                u16::from(date.century) * 100 + u16::from(date.year),
                date.month,
                date.day,
            )
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
        fn every_second_has_one_date(seconds in FIRST..=LAST) {
            let calendar = Calendar::at(seconds);
            prop_assert_eq!(calendar, calendar.clamped());
            prop_assert_eq!(calendar.seconds(), seconds);
        }

        #[test]
        fn whatever_is_clamped_is_a_date(bytes in any::<[u8; 7]>()) {
            let [second, minute, hour, day, month, year, century] = bytes;
            let calendar = Calendar { second, minute, hour, day, month, year, century }.clamped();
            prop_assert!((FIRST..=LAST + 86_400).contains(&calendar.seconds()));
        }
    }
}
