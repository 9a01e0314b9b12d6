//! Times of records as dates, UTC. Days are counted by the proleptic Gregorian calendar.

use std::fmt;
use std::time::Duration;

const DAY: u64 = 86_400_000_000;

/// A day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Day {
    pub(crate) year: u64,
    pub(crate) month: u64,
    pub(crate) day: u64,
}

impl Day {
    /// The day of a time in microseconds since 1970.
    pub(crate) fn of(micros: u64) -> Self {
        // Years are counted from a March, so that the day that may be missing is a year's last; 400 of them always have
        // 146,097 days, and 719,468 days lie between the year 0 and 1970.
        let days = micros / DAY + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let leap_days = day_of_era / 1_460 - day_of_era / 36_524 + day_of_era / 146_096;
        let year_of_era = (day_of_era - leap_days.min(day_of_era)) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // March to July have 153 days, August to December as well.
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self { year: era * 400 + year_of_era + u64::from(month <= 2), month, day }
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

/// When a day begins, since 1970, UTC; None for what is no day from 1970 to 9999, written `2026-11-25`.
pub fn parse_day(text: &str) -> Option<Duration> {
    let parts: Vec<u64> = text.split('-').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [year @ 1970..=9999, month @ 1..=12, day @ 1..=31] = parts[..] else { return None };
    // The year before has begun by then, and the year after has not: the day is among those between.
    let first = (year - 1970) * 365;
    let wanted = Day { year, month, day };
    let days = first..first + 366 + (year - 1970) / 4 + 1;
    days.map(|day| day * DAY).find(|micros| Day::of(*micros) == wanted).map(Duration::from_micros)
}

/// A time in microseconds since 1970 as RFC 3339 has it.
pub(crate) fn timestamp(micros: u64) -> String {
    let (within, day) = (micros % DAY, Day::of(micros));
    let (seconds, fraction) = (within / 1_000_000, within % 1_000_000);
    format!("{day}T{:02}:{:02}:{:02}.{fraction:06}Z", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // From GNU date.
        for (seconds, date) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_709_164_800, "2024-02-29"),
            (1_772_323_200, "2026-03-01"),
            (1_795_564_800, "2026-11-25"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(Day::of(seconds * 1_000_000).to_string(), date);
        }
        let begin = Some(Duration::from_secs(1_795_564_800));
        assert_eq!((parse_day("2026-11-25"), parse_day("1970-01-01")), (begin, Some(Duration::ZERO)));
        assert!(parse_day("2100-12-31").is_some() && parse_day("9999-12-31").is_some());
        for wrong in ["", "2026", "2026-13-01", "2026-02-29", "1969-12-31", "2026-11-25-1", "x-1-1"] {
            assert_eq!(parse_day(wrong), None, "{wrong}");
        }
        assert_eq!(timestamp(1_795_564_800_000_000 + 3_723_000_042), "2026-11-25T01:02:03.000042Z");
    }

    proptest! {
        #[test]
        fn each_day_follows_the_one_before(day in 0u64..200_000) {
            let (today, next) = (Day::of(day * DAY), Day::of((day + 1) * DAY));
            let same_month = next == Day { day: today.day + 1, ..today };
            let next_month = next.day == 1 && today.day >= 28
                && (next.month == today.month + 1 || (next.month, next.year) == (1, today.year + 1));
            prop_assert!(same_month || next_month, "{today} {next}");
            prop_assert_eq!(Day::of(day * DAY + DAY - 1), today);
        }
    }
}
