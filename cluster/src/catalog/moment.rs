//! A point in time as catalogues write it: `2026-11-26T07:28:48Z`, RFC 3339 in UTC and whole seconds.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::InvalidWord;

const DAY: u64 = 24 * 60 * 60;
/// The first year that has five digits.
const YEAR_LIMIT: u64 = 10_000;

/// A point in time, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Moment(u64);

impl Moment {
    /// The second in which a time since 1970 lies; times after the year 9999 are its end.
    pub fn at(since_1970: Duration) -> Self {
        Self(since_1970.as_secs().min(days_before(YEAR_LIMIT) * DAY - 1))
    }

    /// Since 1970.
    pub const fn get(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut day, second) = (self.0 / DAY, self.0 % DAY);
        let mut year = 1970 + day / 366;
        while days_before(year + 1) <= day {
            year += 1;
        }
        day -= days_before(year);
        let mut month = 1;
        while day >= days_of(year, month) {
            day -= days_of(year, month);
            month += 1;
        }
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 1)
    }
}

impl TryFrom<String> for Moment {
    type Error = InvalidWord;
    fn try_from(written: String) -> Result<Self, InvalidWord> {
        read(&written).ok_or(InvalidWord::Moment(written))
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> Self {
        moment.to_string()
    }
}

fn read(written: &str) -> Option<Moment> {
    let (date, time) = written.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let sane = year >= 1970 && (1..=12).contains(&month) && hour < 24 && minute < 60 && second < 60;
    if !sane || day == 0 || day > days_of(year, month) {
        return None;
    }
    let days = days_before(year) + (1..month).map(|month| days_of(year, month)).sum::<u64>() + day - 1;
    Some(Moment(days * DAY + hour * 3600 + minute * 60 + second))
}

/// Three numbers of so many digits each.
fn numbers(text: &str, between: char, digits: [usize; 3]) -> Option<[u64; 3]> {
    let parts: Vec<&str> = text.split(between).collect();
    let [a, b, c] = <[&str; 3]>::try_from(parts).ok()?;
    let number = |part: &str, digits| {
        let plain = part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit());
        if plain { part.parse().ok() } else { None }
    };
    Some([number(a, digits[0])?, number(b, digits[1])?, number(c, digits[2])?])
}

/// Days from 1970 to the beginning of a year.
fn days_before(year: u64) -> u64 {
    let leap_days = |year: u64| (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400;
    (year - 1970) * 365 + leap_days(year) - leap_days(1970)
}

fn days_of(year: u64, month: u64) -> u64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moment(text: &str) -> Option<Moment> {
        Moment::try_from(text.to_owned()).ok()
    }

    #[test]
    fn a_moment_is_written_and_read_as_everywhere() {
        for (seconds, written) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_591_728, "2026-11-25T07:28:48Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Moment(seconds).to_string(), written);
            assert_eq!(moment(written), Some(Moment(seconds)));
        }
        for wrong in ["", "2026-11-25", "2026-11-25 07:28:48", "2026-11-25T07:28:48", "2026-02-29T00:00:00Z"] {
            assert_eq!(moment(wrong), None, "{wrong}");
        }
        for wrong in ["2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z", "2026-01-01T24:00:00Z", "+026-01-01T00:00:00Z"] {
            assert_eq!(moment(wrong), None, "{wrong}");
        }
        assert_eq!(Moment::at(Duration::MAX).to_string(), "9999-12-31T23:59:59Z");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_and_sorts_as_time(a in 0_u64..253_402_300_800, b in 0_u64..253_402_300_800) {
            prop_assert_eq!(moment(&Moment(a).to_string()), Some(Moment(a)));
            prop_assert_eq!(Moment(a).to_string().cmp(&Moment(b).to_string()), a.cmp(&b));
        }
    }
}
