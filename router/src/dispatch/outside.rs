//! A call of an external upstream: how long its answer may be, what it may cost, and its first piece.

use std::sync::Arc;

use penstock_cluster::catalog::{Budget, Catalog, Name, Price};
use penstock_proto::{ErrorCode, ModelName};
use tokio::time::Instant;

use super::hold::Hold;
use super::{Answer, Orders, Rest};
use crate::budget::{Bill, Budgets, Charge};
use crate::policy::Authorised;
use crate::request::{Delta, Failure, Request};
use crate::tenant::{Permit, TokenHold};
use crate::upstream::{Prepared, Upstream, UpstreamAnswer};

/// Tokens of an answer where neither the client nor the catalogue says; every call names a bound.
const MAX_OUTPUT: u32 = 4096;

/// An upstream's model, and who pays for its calls.
pub(super) struct Payer<'a> {
    upstream: &'a Arc<Upstream>,
    budgets: &'a Budgets,
    permit: &'a Permit,
    tenant: &'a str,
    budget: Option<&'a Budget>,
    price: Option<Price>,
    /// Tokens of its longest answer.
    max_output: u32,
}

/// A call that everything is reserved for.
pub(super) struct Call<'a> {
    upstream: &'a Arc<Upstream>,
    prepared: Prepared,
    tokens: TokenHold,
    charge: Charge,
}

impl<'a> Payer<'a> {
    pub(super) fn new(
        budgets: &'a Budgets,
        orders: Orders<'a>,
        (upstream, model): (&Name, &ModelName),
    ) -> Result<Self, Failure> {
        let catalog = orders.book.catalog();
        let listed = catalog.upstreams.get(upstream);
        Ok(Self {
            upstream: orders.book.upstream(upstream)?,
            budgets,
            permit: orders.permit,
            tenant: &orders.decision.tenant,
            budget: orders.budget(),
            price: listed.and_then(|upstream| catalog.price(upstream, model.as_str())),
            max_output: max_output(catalog, upstream, model),
        })
    }

    /// Puts a request for one choice into the upstream's words, and reserves what the call may take and cost.
    pub(super) async fn reserve(&self, to: &Authorised, request: &Request, choice: u32) -> Result<Call<'a>, Failure> {
        let (upstream, sampling) = (self.upstream, &request.sampling);
        let max_tokens = sampling.max_tokens.or(sampling.default_max_tokens).unwrap_or(self.max_output);
        let max_tokens = max_tokens.min(self.max_output);
        let model = to.target().model();
        let prepared = match (choice, sampling.seed) {
            // One seed gives one answer: the other choices take the next ones, as those of the cluster's own models do.
            (1.., Some(seed)) => {
                let mut request = request.clone();
                request.sampling.seed = Some(seed.wrapping_add(u64::from(choice)));
                upstream.prepare(model, &request, max_tokens)?
            }
            (_, _) => upstream.prepare(model, request, max_tokens)?,
        };
        let tokens = self.permit.tokens(prepared.bound().total()).await?;
        let (tenant, budget, price) = (self.tenant, self.budget, self.price);
        let bill = Bill { tenant, budget, price, target: to.target().to_string(), bound: prepared.bound() };
        match self.budgets.charge(bill).await {
            Ok(charge) => Ok(Call { upstream, prepared, tokens, charge }),
            Err(spent) => {
                tokens.settle(0);
                Err(spent.into())
            }
        }
    }
}

impl Call<'_> {
    /// Calls the upstream, and waits for the first piece.
    pub(super) async fn begin(self, to: &Authorised) -> Result<Answer, Failure> {
        let Self { upstream, prepared, tokens, mut charge } = self;
        charge.called();
        let called = Instant::now();
        match first(upstream, to, &prepared).await {
            Ok((first, rest)) => {
                let (rest, hold) = (Rest::Outside(Box::new(rest)), Hold::outside(tokens, charge));
                Ok(Answer { called, prompt_tokens: 0, first, rest, hold })
            }
            Err(failure) => {
                charge.failed(&failure);
                tokens.settle(0);
                Err(failure)
            }
        }
    }
}

/// Tokens of the longest answer of an upstream's model.
fn max_output(catalog: &Catalog, upstream: &Name, model: &ModelName) -> u32 {
    let listed = catalog.upstreams.get(upstream).and_then(|it| it.models.iter().find(|it| it.name == *model));
    listed.and_then(|listed| listed.max_output).map_or(MAX_OUTPUT, u32::from)
}

async fn first(upstream: &Upstream, to: &Authorised, prepared: &Prepared) -> Result<(Delta, UpstreamAnswer), Failure> {
    let mut answer = upstream.send(to, prepared).await?;
    let first = answer.next().await;
    let first = first.ok_or_else(|| Failure::new(ErrorCode::ProviderLost, "the upstream's answer was empty"))??;
    Ok((first, answer))
}
