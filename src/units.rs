//! Times as people write them: 90s, 10m, 7d, 2026-11-25.

use std::time::Duration;

/// A point in time, since 1970: a day that begins (`2026-11-25`, UTC), or an age (`7d`).
pub(crate) fn moment(text: &str) -> Result<Duration, String> {
    if let Some(begin) = penstock_ledger::parse_day(text) {
        return Ok(begin);
    }
    let age = duration(text).map_err(|_| format!("{text:?} is no point in time; try 7d, 12h or 2026-11-25"))?;
    Ok(penstock_proto::time::unix_now().saturating_sub(age))
}

/// A time: `500ms`, `90s`, `10m`, `2h`, `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor = match unit {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(format!("{text:?} is no time; try 500ms, 90s, 10m or 2h")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no time; try 500ms, 90s, 10m or 2h"))?;
    Duration::try_from_secs_f64(number * factor).map_err(|error| format!("{text:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        assert!(duration("10").is_err() && duration("s").is_err());
    }

    #[test]
    fn points_in_time_are_days_or_ages() {
        assert_eq!(moment("1970-01-02"), Ok(Duration::from_secs(86_400)));
        let now = penstock_proto::time::unix_now();
        assert!((now.saturating_sub(Duration::from_secs(7_300))..now).contains(&moment("2h").unwrap()));
        assert_eq!(moment("later"), Err("\"later\" is no point in time; try 7d, 12h or 2026-11-25".to_owned()));
    }
}
