//! Every metric family of the router, and the guard that records a request once, at its end or its drop.

use prometheus::{
    CounterVec, Encoder as _, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::sync::Arc;
use tokio::time::Instant;

use penstock_cluster::catalog::{Name, Usd};
use penstock_proto::{ErrorCode, ModelName, TenantName};

use crate::request::{Delta, Failure, Usage};

/// The registries' metrics in Prometheus' text format; the source of an operators' `/metrics`.
pub fn render(registries: &[Registry]) -> String {
    let mut bytes = Vec::new();
    for registry in registries {
        if let Err(error) = TextEncoder::new().encode(&registry.gather(), &mut bytes) {
            tracing::error!(%error, "cannot write metrics");
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// What a client asked for; the metrics' `route`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    ChatCompletions,
    Completions,
    Models,
    Health,
    Tokenize,
    Detokenize,
    Responses,
    Messages,
    CountTokens,
    OpenApi,
    /// Of the gRPC face, as are its models.
    Generate,
    ListModels,
    Unknown,
}

impl Route {
    fn as_str(self) -> &'static str {
        match self {
            Self::ChatCompletions => "chat_completions",
            Self::Completions => "completions",
            Self::Models => "models",
            Self::Health => "health",
            Self::Tokenize => "tokenize",
            Self::Detokenize => "detokenize",
            Self::Responses => "responses",
            Self::Messages => "messages",
            Self::CountTokens => "count_tokens",
            Self::OpenApi => "openapi",
            Self::Generate => "grpc_generate",
            Self::ListModels => "grpc_list_models",
            Self::Unknown => "unknown",
        }
    }
}

/// Where a member stands, as the router sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemberState {
    /// Its model's card and text are being fetched.
    Loading,
    /// It takes requests.
    Ready,
    /// It finishes what it has.
    Draining,
    /// It serves another file under a name that is taken, or speaks another protocol version.
    Mismatched,
    /// It broke the protocol and gets no work until it joins again.
    Distrusted,
}

impl MemberState {
    pub(crate) const ALL: [Self; 5] = [Self::Loading, Self::Ready, Self::Draining, Self::Mismatched, Self::Distrusted];

    fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Mismatched => "mismatched",
            Self::Distrusted => "distrusted",
        }
    }
}

/// The router's metrics. Every label's values are bounded: a name that a client made up never becomes one.
pub(crate) struct Metrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    first_token: HistogramVec,
    per_token: HistogramVec,
    overhead: Histogram,
    tokens: IntCounterVec,
    refusals: IntCounterVec,
    retries: IntCounter,
    retries_throttled: IntCounter,
    fallbacks: IntCounter,
    shadows: IntCounterVec,
    filter_hits: IntCounterVec,
    cost: CounterVec,
    budget_left: GaugeVec,
    catalog: IntGauge,
    in_flight: IntGauge,
    queue: IntGaugeVec,
    members: IntGaugeVec,
}

/// The labels `tenant` and `target` where there was none.
const NOBODY: &str = "none";

impl Metrics {
    /// Registers every family.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new("penstock_requests_total", "Requests that ended, by how"),
                &["route", "tenant", "target", "code"],
            )?,
            duration: histogram("request_duration_seconds", "From a request's head to its answer's end", &SECONDS)?,
            first_token: histogram("time_to_first_token_seconds", "From a request's head to its first text", &SECONDS)?,
            per_token: histogram("time_per_output_token_seconds", "Between tokens after the first", &TOKEN_SECONDS)?,
            overhead: Histogram::with_opts(
                HistogramOpts::new("penstock_overhead_seconds", "From a request's head to the call of a worker")
                    .buckets(OVERHEAD_SECONDS.to_vec()),
            )?,
            tokens: IntCounterVec::new(
                Opts::new("penstock_tokens_total", "Tokens of answers that ended: prompt, of it cached, completion"),
                &["tenant", "model", "target", "kind"],
            )?,
            refusals: IntCounterVec::new(
                Opts::new("penstock_refusals_total", "Requests refused, by code"),
                &["reason"],
            )?,
            retries: IntCounter::new("penstock_retries_total", "Calls made again on another worker")?,
            retries_throttled: IntCounter::new(
                "penstock_retries_throttled_total",
                "Calls not made again because the retry budget was spent",
            )?,
            fallbacks: IntCounter::new(
                "penstock_fallbacks_total",
                "Requests whose next target was tried because the one before failed",
            )?,
            shadows: IntCounterVec::new(
                Opts::new("penstock_shadows_total", "Copies of requests, by where they went and how they ended"),
                &["target", "code"],
            )?,
            filter_hits: IntCounterVec::new(
                Opts::new("penstock_filter_hits_total", "Matches of routes' filters, by what became of them"),
                &["detector", "action"],
            )?,
            cost: CounterVec::new(
                Opts::new("penstock_cost_usd_total", "What external calls have cost, by the catalogue's prices"),
                &["tenant", "target"],
            )?,
            budget_left: GaugeVec::new(
                Opts::new(
                    "penstock_budget_remaining_usd",
                    "Of a budget, what is neither spent nor reserved by a router",
                ),
                &["tenant"],
            )?,
            catalog: IntGauge::new("penstock_catalog_version", "The version of the catalogue in force; 0: none")?,
            in_flight: IntGauge::new("penstock_requests_in_flight", "Requests that have not ended")?,
            queue: IntGaugeVec::new(
                Opts::new("penstock_queue_depth", "Requests sent to a worker that has not answered yet"),
                &["model"],
            )?,
            members: IntGaugeVec::new(Opts::new("penstock_members", "Workers as the router sees them"), &["state"])?,
        };
        metrics.register(registry)?;
        Ok(metrics)
    }

    fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.requests.clone()))?;
        registry.register(Box::new(self.duration.clone()))?;
        registry.register(Box::new(self.first_token.clone()))?;
        registry.register(Box::new(self.per_token.clone()))?;
        registry.register(Box::new(self.overhead.clone()))?;
        registry.register(Box::new(self.tokens.clone()))?;
        registry.register(Box::new(self.refusals.clone()))?;
        registry.register(Box::new(self.retries.clone()))?;
        registry.register(Box::new(self.retries_throttled.clone()))?;
        registry.register(Box::new(self.fallbacks.clone()))?;
        registry.register(Box::new(self.shadows.clone()))?;
        registry.register(Box::new(self.filter_hits.clone()))?;
        registry.register(Box::new(self.cost.clone()))?;
        registry.register(Box::new(self.budget_left.clone()))?;
        registry.register(Box::new(self.catalog.clone()))?;
        registry.register(Box::new(self.in_flight.clone()))?;
        registry.register(Box::new(self.queue.clone()))?;
        registry.register(Box::new(self.members.clone()))
    }

    /// A request has come.
    pub(crate) fn observe(self: &Arc<Self>, route: Route) -> Observation {
        self.in_flight.inc();
        Observation {
            metrics: Arc::clone(self),
            route,
            tenant: None,
            target: None,
            start: Instant::now(),
            first: None,
            choices: 0,
            usage: Usage::default(),
            outcome: Outcome::Left,
        }
    }

    /// A call was made again elsewhere.
    pub(crate) fn retried(&self) {
        self.retries.inc();
    }

    /// A call was not made again: the budget for that is spent.
    pub(crate) fn retry_throttled(&self) {
        self.retries_throttled.inc();
    }

    /// The next target of a request was tried.
    pub(crate) fn fell_back(&self) {
        self.fallbacks.inc();
    }

    /// A version of the catalogue is in force.
    pub(crate) fn in_force(&self, version: u64) {
        self.catalog.set(i64::try_from(version).unwrap_or(i64::MAX));
    }

    /// An external call has cost so many nano-dollars.
    pub(crate) fn cost(&self, tenant: &str, target: &str, nanos: u64) {
        self.cost.with_label_values(&[tenant, target]).inc_by(f64::from(Usd::from_nanos(nanos)));
    }

    /// So many nano-dollars are left of a tenant's budget.
    pub(crate) fn budget_left(&self, tenant: &str, nanos: u64) {
        self.budget_left.with_label_values(&[tenant]).set(f64::from(Usd::from_nanos(nanos)));
    }

    /// A copy has ended.
    pub(crate) fn shadowed(&self, target: &str, code: &str) {
        self.shadows.with_label_values(&[target, code]).inc();
    }

    /// A route's filter found something: a detector of the catalogue did, and an action of the closed list was taken.
    pub(crate) fn filter_hit(&self, detector: &Name, action: &str) {
        self.filter_hits.with_label_values(&[detector.as_str(), action]).inc();
    }

    /// A call of `model` waits for its first token until the guard is dropped.
    pub(crate) fn queued(&self, model: &ModelName) -> Queued {
        let gauge = self.queue.with_label_values(&[model.as_str()]);
        gauge.inc();
        Queued { gauge }
    }

    /// How many members stand where.
    pub(crate) fn members(&self, state: MemberState, count: usize) {
        self.members.with_label_values(&[state.as_str()]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];
const TOKEN_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0];
const OVERHEAD_SECONDS: [f64; 10] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];

fn histogram(name: &str, help: &str, buckets: &[f64]) -> Result<HistogramVec, prometheus::Error> {
    HistogramVec::new(HistogramOpts::new(format!("penstock_{name}"), help).buckets(buckets.to_vec()), &["target"])
}

/// A call that waits for its first token.
pub(crate) struct Queued {
    gauge: IntGauge,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

enum Outcome {
    /// Nobody waited for the end.
    Left,
    Done,
    Failed(ErrorCode),
}

/// One request from its head to its end; recorded when dropped, as left by its client unless told otherwise.
pub(crate) struct Observation {
    metrics: Arc<Metrics>,
    route: Route,
    /// None until it is known.
    tenant: Option<TenantName>,
    /// The model and the whole of the target that was called.
    target: Option<(String, String)>,
    start: Instant,
    first: Option<Instant>,
    choices: u32,
    usage: Usage,
    outcome: Outcome,
}

impl Observation {
    /// Whose request it is.
    pub(crate) fn asked_by(&mut self, tenant: &TenantName) {
        self.tenant = Some(tenant.clone());
    }

    /// Where it was answered: a model, and what the catalogue or the fleet calls the whole.
    pub(crate) fn targets(&mut self, model: &str, target: &str) {
        self.target = Some((model.to_owned(), target.to_owned()));
    }

    /// A worker was called for one more choice of the answer.
    pub(crate) fn called(&mut self, at: Instant) {
        self.choices += 1;
        self.metrics.overhead.observe(at.saturating_duration_since(self.start).as_secs_f64());
    }

    /// A piece of the answer passes to the client.
    pub(crate) fn passed(&mut self, delta: &Delta) {
        if self.first.is_none() && !delta.text.is_empty() {
            self.first = Some(Instant::now());
        }
        if let Some(finish) = &delta.finish {
            self.usage.prompt_tokens += finish.usage.prompt_tokens;
            self.usage.cached_tokens += finish.usage.cached_tokens;
            self.usage.completion_tokens += finish.usage.completion_tokens;
        }
    }

    /// The answer is whole.
    pub(crate) fn done(&mut self) {
        self.outcome = Outcome::Done;
    }

    /// It ended in a failure.
    pub(crate) fn failed(&mut self, failure: &Failure) {
        self.outcome = Outcome::Failed(failure.code);
    }

    fn record_times(&self, target: &str) {
        let end = Instant::now();
        self.metrics.duration.with_label_values(&[target]).observe((end - self.start).as_secs_f64());
        let Some(first) = self.first else { return };
        self.metrics.first_token.with_label_values(&[target]).observe((first - self.start).as_secs_f64());
        if self.choices == 1 && self.usage.completion_tokens > 1 {
            let gaps = f64::from(self.usage.completion_tokens - 1);
            self.metrics.per_token.with_label_values(&[target]).observe((end - first).as_secs_f64() / gaps);
        }
    }

    fn record_tokens(&self, tenant: &str, model: &str, target: &str) {
        let Usage { prompt_tokens, cached_tokens, completion_tokens } = self.usage;
        for (kind, count) in [("prompt", prompt_tokens), ("cached", cached_tokens), ("completion", completion_tokens)] {
            let labels = [tenant, model, target, kind];
            self.metrics.tokens.with_label_values(&labels).inc_by(u64::from(count));
        }
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        let code = match self.outcome {
            Outcome::Done => "ok",
            Outcome::Left => ErrorCode::Cancelled.as_str(),
            Outcome::Failed(code) => {
                self.metrics.refusals.with_label_values(&[code.as_str()]).inc();
                code.as_str()
            }
        };
        let tenant = self.tenant.as_ref().map_or(NOBODY, TenantName::as_str);
        let target = self.target.as_ref().map_or(NOBODY, |(_, target)| target.as_str());
        self.metrics.requests.with_label_values(&[self.route.as_str(), tenant, target, code]).inc();
        self.record_times(target);
        if let Some((model, _)) = &self.target {
            self.record_tokens(tenant, model, target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Finish, FinishReason};

    fn metrics() -> (Registry, Arc<Metrics>) {
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::new(&registry).unwrap());
        (registry, metrics)
    }

    #[tokio::test]
    async fn a_request_is_recorded_once_when_it_is_dropped() {
        let (registry, metrics) = metrics();
        let mut observation = metrics.observe(Route::ChatCompletions);
        observation.asked_by(&TenantName::new("default").unwrap());
        observation.targets("m", "local/m");
        observation.called(Instant::now());
        let usage = Usage { prompt_tokens: 5, cached_tokens: 2, completion_tokens: 3 };
        let finish = Some(Finish { reason: FinishReason::Stop, stop: None, usage });
        observation.passed(&Delta { text: "a".to_owned(), finish, ..Delta::default() });
        observation.done();
        assert!(render(std::slice::from_ref(&registry)).contains("penstock_requests_in_flight 1"));
        drop(observation);
        let text = render(&[registry]);
        for line in [
            r#"penstock_requests_total{code="ok",route="chat_completions",target="local/m",tenant="default"} 1"#,
            r#"penstock_tokens_total{kind="completion",model="m",target="local/m",tenant="default"} 3"#,
            r#"penstock_tokens_total{kind="cached",model="m",target="local/m",tenant="default"} 2"#,
            r#"penstock_time_per_output_token_seconds_count{target="local/m"} 1"#,
            "penstock_requests_in_flight 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[tokio::test]
    async fn a_request_that_nobody_ended_was_left_by_its_client() {
        let (registry, metrics) = metrics();
        drop(metrics.observe(Route::Completions));
        let line =
            r#"penstock_requests_total{code="caller_cancelled",route="completions",target="none",tenant="none"} 1"#;
        assert!(render(&[registry]).contains(line));
    }

    #[tokio::test]
    async fn a_queued_call_counts_until_it_is_answered() {
        let (registry, metrics) = metrics();
        let queued = metrics.queued(&ModelName::new("m").unwrap());
        assert!(render(std::slice::from_ref(&registry)).contains(r#"penstock_queue_depth{model="m"} 1"#));
        drop(queued);
        assert!(render(&[registry]).contains(r#"penstock_queue_depth{model="m"} 0"#));
    }
}
