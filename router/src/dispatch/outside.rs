//! A call of an external upstream: how long its answer may be, and its first piece.

use std::sync::Arc;

use penstock_cluster::catalog::{Catalog, Name};
use penstock_proto::{ErrorCode, ModelName};
use tokio::time::Instant;

use super::{Answer, Rest};
use crate::policy::Authorised;
use crate::request::{Failure, Request};
use crate::upstream::Upstream;

/// Tokens of an answer where neither the client nor the catalogue says; every call names a bound.
const MAX_OUTPUT: u32 = 4096;

/// Tokens of the longest answer of an upstream's model.
pub(super) fn max_output(catalog: &Catalog, upstream: &Name, model: &ModelName) -> u32 {
    let listed = catalog.upstreams.get(upstream).and_then(|it| it.models.iter().find(|it| it.name == *model));
    listed.and_then(|listed| listed.max_output).map_or(MAX_OUTPUT, u32::from)
}

/// Calls an upstream for one choice, and waits for its first piece.
pub(super) async fn call(
    upstream: &Arc<Upstream>,
    to: &Authorised,
    request: &Request,
    (choice, most): (u32, u32),
) -> Result<Answer, Failure> {
    let called = Instant::now();
    let sampling = &request.sampling;
    let max_tokens = sampling.max_tokens.or(sampling.default_max_tokens).unwrap_or(most).min(most);
    let mut answer = match (choice, sampling.seed) {
        // One seed gives one answer: the other choices take the next ones, as those of the cluster's own models do.
        (1.., Some(seed)) => {
            let mut request = request.clone();
            request.sampling.seed = Some(seed.wrapping_add(u64::from(choice)));
            upstream.generate(to, &request, max_tokens).await?
        }
        (_, _) => upstream.generate(to, request, max_tokens).await?,
    };
    let first = answer.next().await;
    let first = first.ok_or_else(|| Failure::new(ErrorCode::ProviderLost, "the upstream's answer was empty"))??;
    Ok(Answer { called, prompt_tokens: 0, first, rest: Rest::Outside(Box::new(answer)) })
}
