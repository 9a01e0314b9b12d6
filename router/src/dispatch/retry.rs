//! Whether and when a call is made again: a budget, so that a sick fleet is not asked several times over for each
//! request, and the pause before each further attempt. Who may be asked again, and for which failures, is not its matter.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What a retry costs, in deposits: one request in five may be made again for as long as it takes.
const PRICE: u32 = 5;
/// What can be saved up: ten retries.
const SAVINGS: u32 = 10 * PRICE;
/// The longest pause before the first retry; doubled for each one after it.
const PAUSE: Duration = Duration::from_millis(25);

/// Retries that may still be made. It begins full, as gRPC's retry throttling does; every request pays in a little, a
/// retry takes out more, whatever becomes of it.
pub(super) struct Budget(AtomicU32);

impl Budget {
    pub(super) fn new() -> Self {
        Self(AtomicU32::new(SAVINGS))
    }

    /// A request has come.
    pub(super) fn deposit(&self) {
        self.0.update(Ordering::Relaxed, Ordering::Relaxed, |saved| SAVINGS.min(saved + 1));
    }

    /// Takes out one retry; false where there is none.
    pub(super) fn withdraw(&self) -> bool {
        self.0.try_update(Ordering::Relaxed, Ordering::Relaxed, |saved| saved.checked_sub(PRICE)).is_ok()
    }
}

/// How long to wait before the `retry`th one, the first being 1: anything up to the longest, so that those who failed
/// together do not come again together.
pub(super) fn pause(retry: usize, rng: &mut fastrand::Rng) -> Duration {
    let doublings = u32::try_from(retry.saturating_sub(1)).unwrap_or(u32::MAX).min(8);
    (PAUSE * (1 << doublings)).mul_f64(rng.f64())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against what the words say: ten are there, five requests earn one, ten is the most.
        #[test]
        fn a_budget_gives_what_was_saved_and_no_more(withdrawals in prop::collection::vec(any::<bool>(), 0..400)) {
            let budget = Budget::new();
            let (mut saved, mut requests, mut retries) = (10.0_f64, 0.0, 0.0);
            for withdrawal in withdrawals {
                if withdrawal {
                    let granted = budget.withdraw();
                    prop_assert_eq!(granted, saved > 0.99);
                    saved -= f64::from(u8::from(granted));
                    retries += f64::from(u8::from(granted));
                } else {
                    budget.deposit();
                    saved = (saved + 0.2).min(10.0);
                    requests += 1.0;
                }
                prop_assert!(retries <= 10.0 + 0.2 * requests + 0.01);
            }
        }

        #[test]
        fn a_pause_is_anything_up_to_its_longest(retry in 1_usize..100, seed: u64) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let longest = PAUSE * 2_u32.pow(retry.min(9) as u32 - 1);
            let pauses: Vec<Duration> = (0..64).map(|_| pause(retry, &mut rng)).collect();
            prop_assert!(pauses.iter().all(|pause| *pause < longest));
            prop_assert!(pauses.iter().any(|pause| *pause < longest / 2));
            prop_assert!(pauses.iter().any(|pause| *pause > longest / 2));
        }
    }
}
