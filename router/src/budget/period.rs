//! Days and months, UTC.

use std::fmt;
use std::time::Duration;

use penstock_cluster::catalog::Period;

const DAY: u64 = 24 * 60 * 60;

/// The day or the month that a budget is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Span {
    /// Days since 1970.
    Day(u64),
    /// Months since the year 0.
    Month(u64),
}

impl Span {
    /// The one that a time since 1970 is in.
    pub(super) fn of(period: Period, time: Duration) -> Self {
        let days = time.as_secs() / DAY;
        match period {
            Period::Day => Self::Day(days),
            Period::Month => {
                let (year, month, _) = date(days);
                Self::Month(year * 12 + month - 1)
            }
        }
    }

    /// The one before.
    pub(super) fn before(self) -> Self {
        match self {
            Self::Day(day) => Self::Day(day.saturating_sub(1)),
            Self::Month(month) => Self::Month(month.saturating_sub(1)),
        }
    }
}

impl fmt::Display for Span {
    /// `2026-11-25` or `2026-11`; names of one kind are in the order of time.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Day(days) => {
                let (year, month, day) = date(days);
                write!(f, "{year:04}-{month:02}-{day:02}")
            }
            Self::Month(months) => write!(f, "{:04}-{:02}", months / 12, months % 12 + 1),
        }
    }
}

/// Year, month and day, from days since 1970. Years begin in March here, so that the leap day is a year's last, and 400 of
/// them have 146,097 days.
fn date(days: u64) -> (u64, u64, u64) {
    // From 1 March of the year 0.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // From March on, five months have 153 days.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + later, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(seconds: u64) -> [String; 2] {
        [Period::Day, Period::Month].map(|period| Span::of(period, Duration::from_secs(seconds)).to_string())
    }

    #[test]
    fn a_time_is_in_its_day_and_month() {
        assert_eq!(names(0), ["1970-01-01", "1970-01"]);
        assert_eq!(names(951_782_399), ["2000-02-28", "2000-02"]);
        assert_eq!(names(951_782_400), ["2000-02-29", "2000-02"]);
        assert_eq!(names(1_795_590_240), ["2026-11-25", "2026-11"]);
        assert_eq!(names(1_798_761_599), ["2026-12-31", "2026-12"]);
        assert_eq!(names(1_798_761_600), ["2027-01-01", "2027-01"]);
    }

    #[test]
    fn days_follow_each_other_and_their_names_are_in_order() {
        let mut last = (1970, 1, 0);
        for days in 0..200_000 {
            let (year, month, day) = date(days);
            let follows = (year, month, day) == (last.0, last.1, last.2 + 1)
                || (year, month, day) == (last.0, last.1 + 1, 1) && last.2 >= 28
                || (year, month, day) == (last.0 + 1, 1, 1) && last.1 == 12 && last.2 == 31;
            assert!(follows && (1..=31).contains(&day), "{last:?} {:?}", (year, month, day));
            last = (year, month, day);
            let span = Span::Day(days);
            assert!(days == 0 || span.before().to_string() < span.to_string());
        }
        assert!(Span::Month(24_312).before().to_string() < Span::Month(24_312).to_string());
    }
}
