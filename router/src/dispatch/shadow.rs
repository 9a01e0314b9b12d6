//! Copies of requests to targets whose answers nobody sees: through the same gate and the same calls as any other, and
//! counted by how they ended.

use std::sync::Arc;

use futures_util::StreamExt as _;
use penstock_proto::RequestId;
use tokio::time::timeout_at;

use super::{Inner, Orders, too_late};
use crate::policy::{Authorised, Decision};
use crate::request::{Failure, Finish, Request};
use crate::tenant::Permit;

/// The request that copies are made of, where a decision wants some: the first of a body's.
pub(super) fn original(decision: &Decision, requests: &[Request]) -> Option<Request> {
    decision.copies().next().and_then(|_| requests.first().cloned())
}

/// Sends the copies. They go on by themselves; where too many do, one more is left out, and counted.
pub(super) fn send(dispatch: &Arc<Inner>, orders: Orders<'_>, original: Request) {
    for to in orders.decision.copies() {
        let target = to.target().to_string();
        let Ok(permit) = Arc::clone(&dispatch.shadows).try_acquire_owned() else {
            dispatch.metrics.shadowed(&target, "left_out");
            continue;
        };
        let copy = Request { id: RequestId::generate(), ..original.clone() };
        tracing::debug!(request = %original.id, copy = %copy.id, target, "a copy is sent");
        let (tasks, dispatch) = (dispatch.tasks.clone(), Arc::clone(dispatch));
        let (to, book) = (to.clone(), Arc::clone(orders.book));
        let (rulings, decision) = (Arc::clone(orders.rulings), Arc::clone(orders.decision));
        tasks.spawn(async move {
            let _permit = permit;
            // Nobody asked for it: it takes nothing of the tenant's limits.
            let permit = Permit::free();
            let orders = Orders { book: &book, rulings: &rulings, decision: &decision, permit: &permit };
            let code = match dispatch.whole(orders, &to, copy).await {
                Ok(_) => "ok",
                Err(failure) => failure.code.as_str(),
            };
            dispatch.metrics.shadowed(&target, code);
        });
    }
}

impl Inner {
    /// One answer to its end.
    async fn whole(&self, orders: Orders<'_>, to: &Authorised, request: Request) -> Result<Option<Finish>, Failure> {
        let deadline = request.deadline;
        let begun = timeout_at(deadline, self.begin(orders, to, vec![request], 1)).await;
        let (_, answers) = begun.unwrap_or_else(|_| Err(too_late()))?;
        let mut finish = None;
        for answer in answers {
            let mut pieces = std::pin::pin!(answer.into_stream());
            while let Some(piece) = pieces.next().await {
                finish = piece?.finish.or(finish);
            }
        }
        Ok(finish)
    }
}
