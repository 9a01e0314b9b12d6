//! What one external call costs: reserved at its price before it, settled after.

use std::sync::Arc;

use penstock_cluster::catalog::Price;
use penstock_proto::ErrorCode;

use super::account::Reservation;
use crate::metrics::Metrics;
use crate::request::{Delta, Failure, Finish, FinishReason, Usage};
use crate::upstream::UsageSource;

/// Prices are for so many tokens.
const MILLION: u128 = 1_000_000;
/// Bytes of the longest token of vocabularies in use: 128 blanks.
const TOKEN_BYTES: u64 = 128;

/// What tokens cost, in nano-dollars; a part of one counts as one.
pub(super) fn cost(price: &Price, usage: Usage) -> u64 {
    let Usage { prompt_tokens, cached_tokens, completion_tokens } = usage;
    let parts = [
        (prompt_tokens.saturating_sub(cached_tokens), price.input),
        (cached_tokens, price.cached_input.unwrap_or(price.input)),
        (completion_tokens, price.output),
    ];
    let sum: u128 = parts.iter().map(|(tokens, usd)| u128::from(*tokens) * u128::from(usd.nanos())).sum();
    u64::try_from(sum.div_ceil(MILLION)).unwrap_or(u64::MAX)
}

/// The most that tokens may cost. Nobody knows how many of the prompt's are cached, and those may cost more than others.
pub(super) fn most(price: &Price, bound: Usage) -> u64 {
    let cached = Usage { cached_tokens: bound.prompt_tokens, ..bound };
    cost(price, Usage { cached_tokens: 0, ..bound }).max(cost(price, cached))
}

/// One external call and who pays for it. Dropping it settles it at the reserve where the call was made, since nobody knows
/// what it has cost, and at nothing where it was not.
#[must_use = "a call that was made costs its reserve unless it is settled"]
pub(crate) struct Charge {
    /// None where no budget bounds what the tenant spends.
    pub(super) reservation: Option<Reservation>,
    /// None where the catalogue has none; nothing is counted then.
    pub(super) price: Option<Price>,
    pub(super) bound: Usage,
    pub(super) tenant: String,
    pub(super) target: String,
    pub(super) metrics: Arc<Metrics>,
    pub(super) state: State,
    /// Bytes of the answer so far.
    pub(super) received: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Reserved,
    Called,
    Settled,
}

impl Charge {
    /// The call is about to be made.
    pub(crate) fn called(&mut self) {
        self.state = State::Called;
    }

    /// The call has failed before its answer began. It costs nothing where the upstream has said no, or has never had it.
    pub(crate) fn failed(mut self, failure: &Failure) {
        let nothing = matches!(
            failure.code,
            ErrorCode::ProviderUnavailable
                | ErrorCode::ProviderUnauthenticated
                | ErrorCode::ProviderRateLimited
                | ErrorCode::ProviderRejected
                | ErrorCode::Internal
        );
        if nothing {
            self.spend(0);
        }
    }

    /// A piece of the answer has come. Where that is now longer than the reserve can pay for, the piece becomes the last.
    pub(crate) fn received(&mut self, delta: &mut Delta) {
        let calls = delta.tool_calls.iter().map(|call| call.arguments.len());
        self.received += calls.sum::<usize>() as u64 + delta.text.len() as u64;
        let most = TOKEN_BYTES * u64::from(self.bound.completion_tokens);
        if delta.finish.is_none() && self.received > most {
            tracing::warn!(
                target_name = self.target,
                max_tokens = self.bound.completion_tokens,
                "an upstream goes on beyond the longest answer that it was asked for: the answer is ended, and costs its reserve"
            );
            delta.finish = Some(Finish { reason: FinishReason::Length, stop: None, usage: self.bound });
        }
    }

    /// The answer has ended, with a usage by somebody's word. Returns the usage that was settled: what nobody can have used
    /// counts as all that was reserved.
    pub(crate) fn settle(mut self, usage: Usage, source: UsageSource) -> Usage {
        let bound = self.bound;
        let possible = usage.prompt_tokens <= bound.prompt_tokens
            && usage.completion_tokens <= bound.completion_tokens
            && usage.cached_tokens <= usage.prompt_tokens;
        match (source, possible) {
            (UsageSource::Reported, true) => {
                let cost = self.price.map_or(0, |price| cost(&price, usage));
                self.spend(cost);
                usage
            }
            (UsageSource::Reported, false) => {
                tracing::warn!(
                    target_name = self.target,
                    ?usage,
                    ?bound,
                    "an upstream has told a usage that cannot be: the call costs its reserve (estimated)"
                );
                bound
            }
            (UsageSource::Estimated, _) => {
                tracing::debug!(target_name = self.target, "no usage was told: the call costs its reserve (estimated)");
                bound
            }
        }
    }

    fn spend(&mut self, nanos: u64) {
        self.state = State::Settled;
        if self.price.is_some() {
            self.metrics.cost(&self.tenant, &self.target, nanos);
        }
        if let Some(reservation) = self.reservation.take() {
            reservation.settle(nanos);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        match self.state {
            State::Settled => {}
            State::Reserved => {
                if let Some(reservation) = self.reservation.take() {
                    reservation.settle(0);
                }
            }
            State::Called => {
                let most = self.price.map_or(0, |price| most(&price, self.bound));
                self.spend(most);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use penstock_cluster::catalog::Usd;
    use proptest::prelude::*;

    use super::*;

    fn price(input: u64, output: u64, cached: Option<u64>) -> Price {
        Price {
            input: Usd::from_nanos(input),
            output: Usd::from_nanos(output),
            cached_input: cached.map(Usd::from_nanos),
        }
    }

    fn usage(prompt_tokens: u32, cached_tokens: u32, completion_tokens: u32) -> Usage {
        Usage { prompt_tokens, cached_tokens, completion_tokens }
    }

    #[test]
    fn a_call_costs_its_tokens_at_their_price() {
        // 2.50 and 10.00 dollars for a million, 1.25 where they were cached.
        let price = price(2_500_000_000, 10_000_000_000, Some(1_250_000_000));
        assert_eq!(cost(&price, usage(1_000_000, 0, 0)), 2_500_000_000);
        assert_eq!(cost(&price, usage(100, 40, 10)), 60 * 2_500 + 40 * 1_250 + 10 * 10_000);
        assert_eq!(cost(&self::price(1, 0, None), usage(1, 0, 0)), 1, "a part of a nano-dollar counts as one");
    }

    proptest! {
        #[test]
        fn no_usage_within_the_bound_costs_more_than_the_most(
            (input, output) in (0..u64::MAX, 0..u64::MAX),
            cached in prop::option::of(0..u64::MAX),
            bound in (any::<u32>(), any::<u32>()),
            parts in (0.0..=1.0, 0.0..=1.0, 0.0..=1.0),
        ) {
            let part = |all: u32, part: f64| (f64::from(all) * part) as u32;
            let price = price(input, output, cached);
            let prompt = part(bound.0, parts.0);
            let used = usage(prompt, part(prompt, parts.1), part(bound.1, parts.2));
            prop_assert!(cost(&price, used) <= most(&price, usage(bound.0, 0, bound.1)));
        }
    }
}
