//! What was taken for an answer before anybody knew what it would use.

use crate::budget::Charge;
use crate::request::Delta;
use crate::tenant::TokenHold;
use crate::upstream::UsageSource;

/// Tokens of the tenant's minute, and where the answer comes from outside, money. What is dropped with neither settled stays
/// taken.
pub(super) struct Hold {
    tokens: Option<TokenHold>,
    charge: Option<Charge>,
}

impl Hold {
    /// For an answer of the cluster's own.
    pub(super) fn own(tokens: TokenHold) -> Self {
        Self { tokens: Some(tokens), charge: None }
    }

    /// For an answer from outside.
    pub(super) fn outside(tokens: TokenHold, charge: Charge) -> Self {
        Self { tokens: Some(tokens), charge: Some(charge) }
    }

    /// Sees a piece of the answer, and settles with the last one; says whether there is more to come.
    pub(super) fn passes(&mut self, delta: &mut Delta, source: UsageSource) -> bool {
        if let Some(charge) = &mut self.charge {
            charge.received(delta);
        }
        let Some(finish) = &mut delta.finish else { return true };
        if let Some(charge) = self.charge.take() {
            finish.usage = charge.settle(finish.usage, source);
        }
        if let Some(tokens) = self.tokens.take() {
            tokens.settle(finish.usage.total());
        }
        false
    }
}
