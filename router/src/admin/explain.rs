//! What would be decided, and what was, for whoever asks why.

use std::sync::Arc;

use penstock_proto::admin as wire;
use penstock_proto::{DataClass, ErrorCode, RequestId};

use crate::class::{Classed, Raiser, Sessions};
use crate::policy::{self, Decision, Shape};
use crate::request::Failure;
use crate::rulebook::Rulebook;
use crate::ruling::{Question, Rulings};

/// The tenant of every caller where the catalogue has none.
const DEFAULT_TENANT: &str = "default";

/// Decides on a request that nobody makes.
pub(super) async fn foresee(
    rulings: &Rulings,
    sessions: &Sessions,
    asked: wire::ExplainRequest,
) -> Result<wire::Explanation, Failure> {
    let book = rulings.book()?;
    let wire::ExplainRequest { tenant, model, class, task, session, stream, prompt } = asked;
    let (tenant, least) = tenant_of(&book, &tenant)?;
    let mut classed = Classed::of_tenant(least);
    if !class.is_empty() {
        let class: DataClass = class.parse().map_err(|error| Failure::field("class", format!("class: {error}")))?;
        classed.raise(Raiser::Header, class);
    }
    let known = book.catalog().tenants.get(tenant.as_str());
    if let Some(class) = known.and_then(|tenant| tenant.tasks.get(&task)) {
        classed.raise(Raiser::Task, *class);
    }
    let session = (!session.is_empty()).then_some(session);
    if let Some(class) = session.as_deref().and_then(|session| sessions.class(&tenant, session)) {
        classed.raise(Raiser::Session, class);
    }
    let prompt_bytes = prompt.len() as u64;
    if prompt_bytes > 0 {
        classed.raise_by(&scan(&book, prompt).await?);
    }
    let question = Question {
        tenant: &tenant,
        class: &classed,
        asked: &model,
        shape: Shape { prompt_bytes, messages: 1, task: &task, stream, tools: 0 },
        session: session.as_deref(),
    };
    tell(&rulings.foresee(&book, &question))
}

/// What was decided for a request that this router has had not long ago.
pub(super) fn decided(rulings: &Rulings, id: &str) -> Result<wire::Explanation, Failure> {
    let field = |message: String| Failure::field("request_id", message);
    let parsed: RequestId =
        id.parse().map_err(|_| field(format!("{id:?} is no request id: x-penstock-request-id of an answer is one")))?;
    let unknown = || field(format!("this router knows no request {id}: it remembers its last 4096, since its start"));
    tell(&*rulings.decided(parsed).ok_or_else(unknown)?)
}

fn tell(decision: &Decision) -> Result<wire::Explanation, Failure> {
    let explanation = policy::explain(decision);
    let json = serde_json::to_string(&explanation)
        .map_err(|error| Failure::new(ErrorCode::Internal, format!("the decision cannot be told: {error}")))?;
    Ok(wire::Explanation { text: explanation.to_string(), json })
}

/// A tenant, and the least class of its requests.
pub(super) fn tenant_of(book: &Rulebook, tenant: &str) -> Result<(String, DataClass), Failure> {
    let tenants = &book.catalog().tenants;
    match tenants.get(tenant) {
        Some(known) => Ok((tenant.to_owned(), known.class)),
        None if tenants.is_empty() && (tenant.is_empty() || tenant == DEFAULT_TENANT) => {
            Ok((DEFAULT_TENANT.to_owned(), DataClass::Internal))
        }
        None => {
            let names: Vec<&str> = tenants.keys().map(|name| name.as_str()).collect();
            let known = if names.is_empty() { DEFAULT_TENANT.to_owned() } else { names.join(", ") };
            Err(Failure::field("tenant", format!("there is no tenant {tenant:?}; there are: {known}")))
        }
    }
}

async fn scan(book: &Arc<Rulebook>, prompt: String) -> Result<crate::class::Findings, Failure> {
    let book = Arc::clone(book);
    let scanned = tokio::task::spawn_blocking(move || Ok(book.detectors()?.scan_all([("prompt", prompt.as_str())])));
    scanned.await.map_err(|error| Failure::new(ErrorCode::Detectors, error.to_string()))?
}
