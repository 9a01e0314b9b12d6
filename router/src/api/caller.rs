//! Who asks, and what comes of it: the tenant by its key, the class of the data, the decision where it may go. No face
//! reaches a model but through here.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::header;
use http::request::Parts;
use penstock_cluster::catalog::{self, Catalog};
use penstock_proto::{DataClass, ErrorCode, ModelName, Priority, TenantName};
use serde_json::{Map, Value};

use super::head::{Defaults, Head};
use super::{Api, Notes, guard};
use crate::class::{self, Classed, Findings, Raiser};
use crate::fleet::Model;
use crate::policy::{self, Asked, Decision, Denied, Refusal, Shape};
use crate::request::{Failure, Input, Request};
use crate::rulebook::Rulebook;
use crate::ruling::{Question, names};
use crate::tenant::{Holder, Permit, is_jwt};

/// The tenant of every caller where the catalogue has none.
const DEFAULT_TENANT: &str = "default";
/// The header in which Anthropic's clients put their key.
const API_KEY: &str = "x-api-key";
/// Bytes of a body up to which looking through it does not hold up other requests.
const QUICK_BODY: usize = 64 << 10;
/// Names that a refusal lists.
const NAMES_TOLD: usize = 20;

/// Whose request it is, and the catalogue that it begins and ends under.
pub(super) struct Caller {
    pub(super) book: Arc<Rulebook>,
    pub(super) tenant: TenantName,
    /// The least class of its requests.
    class: DataClass,
    pub(super) defaults: Defaults,
    /// Its place among the tenant's requests, until the answer has ended.
    pub(super) permit: Arc<Permit>,
}

/// What is asked for, beside the requests themselves.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) head: &'a Head,
    pub(super) caller: &'a Caller,
    /// As it came; None where it was no JSON.
    pub(super) body: Option<&'a Bytes>,
    pub(super) streams: bool,
}

impl Caller {
    /// The class of a request before anybody has looked into it.
    pub(super) fn class_of(&self, head: &Head) -> DataClass {
        head.class.map_or(self.class, |class| class.max(self.class))
    }

    fn catalog(&self) -> &Catalog {
        self.book.catalog()
    }
}

impl Api {
    /// Finds out who calls on one of the tenants' ports.
    pub(super) async fn admit(&self, head: &Parts, port: SocketAddr) -> Result<Caller, Failure> {
        let book = self.rulings.book()?;
        if book.is_keyless() {
            self.admit_keyless(head, port)?;
        }
        self.caller(book, &head.headers).await
    }

    /// Finds out who calls, by the keys of a catalogue.
    pub(super) async fn caller(&self, book: Arc<Rulebook>, map: &HeaderMap) -> Result<Caller, Failure> {
        if book.is_keyless() {
            let tenant = TenantName::new(DEFAULT_TENANT).expect("a well-formed name");
            let defaults = Defaults { deadline: self.config.deadline, priority: Priority::default() };
            return Ok(Caller { book, tenant, class: DataClass::Internal, defaults, permit: Arc::new(Permit::free()) });
        }
        let presented = key(map)?;
        let name = if is_jwt(presented) {
            book.issuers().verify(presented).await?.tenant
        } else {
            match book.keys().find(presented, penstock_proto::time::unix_now()) {
                Ok(Holder::Tenant { name, .. }) => name.clone(),
                Ok(Holder::Operator { .. }) => {
                    return Err(unauthenticated("this is an operator's key, which opens the admin port alone"));
                }
                Err(refused) => return Err(unauthenticated(&refused.to_string())),
            }
        };
        let tenant = &book.catalog().tenants[&name];
        let deadline = tenant.deadline.as_ref().map_or(self.config.deadline, catalog::Span::get);
        let (class, defaults) = (tenant.class, Defaults { deadline, priority: tenant.priority });
        let limits = tenant.limits.clone();
        let tenant = TenantName::new(name.as_str()).expect("the catalogue's names are well-formed");
        let permit = self.limiter.admit(&name, &limits).await?;
        Ok(Caller { book, tenant, class, defaults, permit: Arc::new(permit) })
    }

    /// Without keys, whoever is on this machine may ask, and nobody else.
    pub(super) fn admit_keyless(&self, head: &Parts, port: SocketAddr) -> Result<(), Failure> {
        if !self.config.keyless_at(port) {
            return Err(unauthenticated(
                "the catalogue has no tenants yet, and this address can be reached from other machines: `penstock \
                 apply` a catalogue with tenants, or start the router with --insecure",
            ));
        }
        // Where clients prove who they are, or nobody minds, they may come from anywhere.
        let open = self.config.insecure || self.config.tls.as_ref().is_some_and(|tls| tls.asks_clients());
        if open { Ok(()) } else { guard::check(head) }
    }

    /// Classes requests, which have one body, and decides where they may go. They leave with their class.
    pub(super) async fn rule(
        &self,
        asking: &Asking<'_>,
        requests: Vec<Request>,
        notes: &mut Notes,
    ) -> Result<(Arc<Decision>, Vec<Request>), Failure> {
        let Asking { head, caller, streams, .. } = *asking;
        let (mut requests, findings) = self.look(asking, requests).await?;
        let first = requests.first().ok_or_else(|| Failure::field("prompt", "there is no prompt"))?;
        let mut classed = Classed::of_tenant(caller.class);
        // A header that asks for less than the tenant has is no reason.
        if head.class == Some(first.class) || first.class > caller.class {
            classed.raise(Raiser::Header, first.class);
        }
        let tenant = caller.catalog().tenants.get(caller.tenant.as_str());
        if let Some(class) = tenant.and_then(|tenant| tenant.tasks.get(&head.task)) {
            classed.raise(Raiser::Task, *class);
        }
        let session = head.session.as_deref();
        let recorded = session.and_then(|session| self.rulings.session_class(caller.tenant.as_str(), session));
        recorded.iter().for_each(|class| classed.raise(Raiser::Session, *class));
        classed.raise_by(&findings.found);
        if let Some(place) = findings.opaque {
            classed.raise(Raiser::Opaque { place }, DataClass::Restricted);
        }
        notes.class = Some(classed.class());
        let question = Question {
            tenant: caller.tenant.as_str(),
            class: &classed,
            asked: first.model.as_str(),
            shape: shape(&requests, &head.task, streams),
            session: head.session.as_deref(),
        };
        let decision = self.rulings.decide(&caller.book, head.id, &question);
        if let Some(denied) = decision.denied() {
            return Err(self.refusal(caller, &decision, denied));
        }
        let unknown = unknown(asking, &notes.ignored)?;
        for request in &mut requests {
            request.class = classed.class();
            request.unknown.clone_from(&unknown);
        }
        Ok((decision, requests))
    }

    async fn look(&self, asking: &Asking<'_>, requests: Vec<Request>) -> Result<(Vec<Request>, Looked), Failure> {
        let models = if requests.iter().any(|request| matches!(request.input, Input::Tokens(_))) {
            requests.first().map(|request| self.locals(asking.caller, &request.model)).unwrap_or_default()
        } else {
            Vec::new()
        };
        let (book, body) = (Arc::clone(&asking.caller.book), asking.body.cloned());
        let bytes = body.as_ref().map_or_else(|| shape(&requests, "", false).prompt_bytes, |body| body.len() as u64);
        let work = move || {
            let found = look(&book, &requests, body.as_deref(), &models)?;
            Ok((requests, found))
        };
        if bytes <= QUICK_BODY as u64 { work() } else { self.dispatch.beside(work).await }
    }

    /// The models of the cluster's own that a name may mean.
    fn locals(&self, caller: &Caller, asked: &ModelName) -> Vec<Arc<Model>> {
        let targets = match policy::resolve(caller.catalog(), caller.tenant.as_str(), asked.as_str()) {
            Asked::Route(route) => caller.catalog().routes[&route].every_target().cloned().collect(),
            Asked::Target(target) => vec![target],
            Asked::NotAllowed(_) | Asked::Unknown(_) => Vec::new(),
        };
        let mut seen = BTreeSet::new();
        let models = targets.iter().filter_map(|target| self.rulings.model(&caller.book, target));
        models.filter(|model| seen.insert(model.card.digest.clone())).collect()
    }

    /// The model of the cluster's own that a name means first, for what is done with its tokenizer alone.
    pub(super) fn local(&self, caller: &Caller, asked: &ModelName) -> Result<Arc<Model>, Failure> {
        let first = self.locals(caller, asked).into_iter().next();
        first.ok_or_else(|| self.unknown(caller, asked.as_str()))
    }

    /// What a caller may ask for.
    pub(super) fn names(&self, caller: &Caller) -> Vec<String> {
        names(&caller.book, &self.rulings.snapshot(), caller.tenant.as_str())
    }

    /// What a name means that a caller may ask for: the model of one's own that would answer, and since when the router
    /// knows of it. None where nobody has ever served it.
    pub(super) fn known(&self, caller: &Caller, name: &str) -> Option<(Option<Arc<Model>>, u64)> {
        let targets = match policy::resolve(caller.catalog(), caller.tenant.as_str(), name) {
            Asked::Route(route) => caller.catalog().routes[&route].every_target().cloned().collect(),
            Asked::Target(target) => vec![target],
            Asked::NotAllowed(_) | Asked::Unknown(_) => Vec::new(),
        };
        let own = targets.iter().filter_map(|target| self.rulings.model(&caller.book, target));
        let own = own.max_by_key(|model| model.is_served());
        let outside = targets.iter().any(|target| matches!(target, catalog::Target::Upstream { .. }));
        match own {
            Some(model) => Some((Some(Arc::clone(&model)), model.created)),
            None => outside.then(|| (None, caller.book.since())),
        }
    }

    /// A name that means nothing to a caller, and what does.
    pub(super) fn unknown(&self, caller: &Caller, asked: &str) -> Failure {
        let mut names = self.names(caller);
        if names.len() > NAMES_TOLD {
            names.truncate(NAMES_TOLD);
            names.push("…".to_owned());
        }
        let known =
            if names.is_empty() { "none is served yet".to_owned() } else { format!("there are: {}", names.join(", ")) };
        let message = format!("there is no model {asked}; {known}");
        Failure { param: Some("model".to_owned()), ..Failure::new(ErrorCode::ModelNotFound, message) }
    }

    fn is_made_up(&self, caller: &Caller, decision: &Decision) -> bool {
        match &decision.asked {
            Asked::Target(target) => {
                caller.catalog().ceiling(target).is_none() && self.rulings.model(&caller.book, target).is_none()
            }
            Asked::Route(_) | Asked::NotAllowed(_) | Asked::Unknown(_) => false,
        }
    }

    /// What a client is told where nothing may serve its request.
    fn refusal(&self, caller: &Caller, decision: &Decision, denied: Denied) -> Failure {
        let rests = |(_, refusal): (_, &Refusal)| matches!(refusal, Refusal::Broken);
        let code = match denied {
            // Without tenants any name may be a model's; one that nobody has ever served is none.
            Denied::Unavailable if self.is_made_up(caller, decision) => {
                return self.unknown(caller, &decision.asked.text());
            }
            Denied::Name => return self.unknown(caller, &decision.asked.text()),
            Denied::Unavailable if decision.refused().any(rests) => ErrorCode::ProviderUnavailable,
            Denied::Unavailable => ErrorCode::NoWorker,
            Denied::Budget => ErrorCode::PolicyBudget,
            Denied::Class => ErrorCode::PolicyClass,
            Denied::Egress => ErrorCode::PolicyEgress,
        };
        Failure::new(code, policy::explain(decision).refusal())
    }
}

/// What headers call a model of the cluster's own.
pub(super) fn target(model: &Model) -> String {
    format!("local/{}", model.name)
}

/// What a look through requests has found.
struct Looked {
    found: Findings,
    /// A prompt that nobody can read.
    opaque: Option<&'static str>,
}

fn look(book: &Rulebook, requests: &[Request], body: Option<&[u8]>, models: &[Arc<Model>]) -> Result<Looked, Failure> {
    let mut scan = book.detectors()?.begin();
    let mut opaque = None;
    for request in requests {
        class::request(request, &mut scan);
        if let Input::Tokens(ids) = &request.input {
            models.iter().for_each(|model| class::text("prompt", &model.text.vocabulary().decode(ids), &mut scan));
            if models.is_empty() {
                opaque = Some("prompt");
            }
        }
    }
    if let Some(body) = body {
        let unreadable = |error: class::Unreadable| Failure::new(ErrorCode::InvalidRequest, error.to_string());
        class::body(body, &mut scan).map_err(unreadable)?;
    }
    Ok(Looked { found: scan.findings(), opaque })
}

/// The fields of a body that no face knows, where the catalogue lets an upstream have any such.
fn unknown(asking: &Asking<'_>, ignored: &[String]) -> Result<Map<String, Value>, Failure> {
    let none_pass = || asking.caller.catalog().upstreams.values().all(|upstream| upstream.pass.is_empty());
    let (Some(body), false) = (asking.body, ignored.is_empty() || none_pass()) else { return Ok(Map::new()) };
    let mut fields: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|error| Failure::new(ErrorCode::InvalidRequest, format!("the body cannot be read: {error}")))?;
    fields.retain(|name, _| ignored.contains(name));
    Ok(fields)
}

/// What requests of one body are like, together.
fn shape<'a>(requests: &[Request], task: &'a str, stream: bool) -> Shape<'a> {
    let bytes = |request: &Request| match &request.input {
        Input::Chat(chat) => chat.messages.iter().map(|message| message.content.len()).sum::<usize>(),
        Input::Text(text) => text.len(),
        // As many as its text has at least, nearly always.
        Input::Tokens(ids) => ids.len(),
    };
    let messages = |request: &Request| match &request.input {
        Input::Chat(chat) => chat.messages.len(),
        Input::Text(_) | Input::Tokens(_) => 1,
    };
    Shape {
        prompt_bytes: requests.iter().map(bytes).sum::<usize>() as u64,
        messages: requests.iter().map(messages).sum::<usize>() as u64,
        task,
        stream,
        tools: requests.first().map_or(0, |request| request.tools.definitions.len() as u64),
    }
}

/// The key that a request comes with.
fn key(map: &HeaderMap) -> Result<&str, Failure> {
    let bearer = match map.get(header::AUTHORIZATION) {
        None => None,
        Some(value) => {
            let value = value.to_str().ok().and_then(|value| value.split_once(' '));
            let bearer = value.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
            Some(bearer.ok_or_else(|| unauthenticated("authorization must be: Bearer KEY"))?.1.trim())
        }
    };
    let named = map.get(API_KEY).map(|value| value.to_str().unwrap_or_default());
    match (bearer, named) {
        (Some(bearer), Some(named)) if bearer != named => {
            Err(unauthenticated("authorization and x-api-key hold different keys"))
        }
        (Some(key), _) | (None, Some(key)) => Ok(key),
        (None, None) => Err(unauthenticated("a key is needed: authorization: Bearer KEY, or x-api-key: KEY")),
    }
}

fn unauthenticated(message: &str) -> Failure {
    Failure::new(ErrorCode::Unauthenticated, message)
}
