//! The wall clock: the one place that reads it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Now, as time since 1970. Deadlines cross processes in this form.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
