//! The engine's one clock. Logic takes the time as an argument; only the step loop and the front of the queue read it.

use std::time::Instant;

/// The time now, on the clock that deadlines are measured by.
#[expect(clippy::disallowed_methods, reason = "the one place where the engine reads a clock")]
pub fn now() -> Instant {
    Instant::now()
}
