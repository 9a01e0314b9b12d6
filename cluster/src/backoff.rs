//! How long to wait before the next try: exponential, bounded, with jitter, so that a fleet does not knock at once.

use std::time::Duration;

/// The waits of one series of tries.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    base: Duration,
    limit: Duration,
    tries: u32,
}

impl Backoff {
    /// Waits of up to `base` at first, doubling up to `limit`.
    pub(crate) const fn new(base: Duration, limit: Duration) -> Self {
        Self { base, limit, tries: 0 }
    }

    /// The next wait: between half of the current bound and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let bound = self.base.saturating_mul(1 << self.tries.min(16)).min(self.limit);
        self.tries = self.tries.saturating_add(1);
        bound.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Starts anew after a success.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_their_jitter_up_to_the_limit_and_start_anew_after_a_success() {
        let (base, limit) = (Duration::from_millis(100), Duration::from_secs(2));
        let mut backoff = Backoff::new(base, limit);
        for bound in [100, 200, 400, 800, 1600, 2000, 2000].map(Duration::from_millis) {
            let wait = backoff.next();
            assert!(wait >= bound / 2 && wait <= bound, "{wait:?} of {bound:?}");
        }
        for _ in 0..100 {
            assert!(backoff.next() <= limit);
        }
        backoff.reset();
        assert!(backoff.next() <= base);
    }

    #[test]
    fn two_series_differ() {
        let series = || {
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(9));
            (0..8).map(|_| backoff.next()).collect::<Vec<_>>()
        };
        assert_ne!(series(), series());
    }
}
