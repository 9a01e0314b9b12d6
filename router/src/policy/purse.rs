//! What a tenant has left for external calls.

use penstock_cluster::catalog::{Price, Usd, WhenSpent};

use super::{Considered, Inputs, Refusal, Verdict};

/// What a tenant has left for external calls, as far as the router knows before it asks the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purse {
    /// Nothing bounds what it spends.
    Unbounded,
    /// It has a budget.
    Budget {
        /// What can still be reserved; None where nobody has looked lately: then the call itself finds out.
        left: Option<Usd>,
        /// What happens once it is spent.
        when_spent: WhenSpent,
    },
}

impl Purse {
    /// Whether a call may be covered that costs so much at least.
    fn covers(self, least: u64) -> bool {
        match self {
            Self::Unbounded | Self::Budget { left: None, .. } => true,
            Self::Budget { left: Some(left), .. } => left.nanos() >= least.max(1),
        }
    }
}

/// Whether the purse may cover an external call. What is surely reserved for it is a token for each byte of its prompt, and
/// one of its answer.
pub(super) fn affordable(inputs: &Inputs<'_>, price: Option<Price>) -> Result<(), Refusal> {
    let least = price.map_or(0, |price| {
        let tokens = u128::from(inputs.shape.prompt_bytes) * u128::from(price.input.nanos());
        let nanos = (tokens + u128::from(price.output.nanos())) / 1_000_000;
        u64::try_from(nanos).unwrap_or(u64::MAX)
    });
    if inputs.purse.covers(least) { Ok(()) } else { Err(Refusal::Budget) }
}

/// Where a spent budget refuses requests, nothing of a decision may be called: at all where nothing is left, else from the
/// first target on that is not covered.
pub(super) fn refuse(purse: Purse, considered: &mut [Considered]) {
    let Purse::Budget { left, when_spent: WhenSpent::Refuse } = purse else { return };
    let uncovered = |considered: &Considered| considered.verdict == Verdict::Refused(Refusal::Budget);
    let first = considered.iter().position(uncovered).unwrap_or(considered.len());
    let from = if left == Some(Usd::default()) { 0 } else { first };
    for considered in considered.iter_mut().skip(from) {
        if let Verdict::Allowed(_) | Verdict::Refused(Refusal::NotServed | Refusal::Broken) = considered.verdict {
            considered.verdict = Verdict::Refused(Refusal::Budget);
        }
    }
}
