//! One worker's one model: its channel, what it has in flight, and its side of the protocol. The only file that knows the
//! worker protocol's messages, with [`events`], which holds a worker to what it promised.

mod causes;
mod control;
mod events;
mod fetch;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use penstock_cluster::catalog::Target;
use penstock_proto::worker::{self, SamplingParams, WorkerClient, WorkerGenerateRequest};
use penstock_proto::{DataClass, ErrorCode, Priority, RequestId, TenantName, WorkerName};
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

use crate::policy::{Authorised, Covered};
use crate::request::{Constraint, Failure};

pub use causes::Causes;
pub(crate) use control::Control;
pub(crate) use events::{Event, Events, Lie, Logprob, Tokens};
pub(crate) use fetch::{FetchError, Fetched, fetch};

/// What the router must know of a model's weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Card {
    /// The digest of the weights' file; prompts are encoded for it.
    pub(crate) digest: String,
    /// Tokens that a prompt and its answer may take together.
    pub(crate) context_length: u32,
    /// Ids are below it.
    pub(crate) vocab_size: u32,
    /// Tokens that the worker can hold at once, of all sequences; 0 where it does not say.
    pub(crate) kv_tokens: u64,
}

/// One worker, serving one model.
pub(crate) struct Replica {
    worker: WorkerName,
    client: WorkerClient<Channel>,
    card: Card,
    in_flight: Arc<AtomicUsize>,
    draining: AtomicBool,
    /// How it first broke the protocol, where it has.
    lie: OnceLock<Lie>,
    lied: Arc<Notify>,
    /// When a stream last said that the worker drains.
    noticed: Mutex<Option<Instant>>,
    /// How long a new request waits there, as the worker last predicted.
    wait_ms: AtomicU64,
}

/// How long a worker may take to tell its load.
const LOAD_TIME: Duration = Duration::from_secs(2);
/// How long a stream's notice of a drain counts. Within it the membership tells the same; and one that was read late,
/// behind a slow client, must not keep a worker out that an operator has given work again.
const NOTICE: Duration = Duration::from_secs(3);

/// A prompt on its way to a worker, with every default filled.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) id: RequestId,
    pub(crate) tenant: TenantName,
    pub(crate) class: DataClass,
    pub(crate) priority: Priority,
    pub(crate) deadline: Instant,
    pub(crate) prompt: Vec<u32>,
    pub(crate) sampling: Filled,
    pub(crate) constraint: Option<Constraint>,
}

/// How tokens are chosen, nothing left open. See [`crate::request::Sampling`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Filled {
    pub(crate) seed: u64,
    pub(crate) temperature: f32,
    pub(crate) top_k: u32,
    pub(crate) top_p: f32,
    pub(crate) min_p: f32,
    pub(crate) repetition_penalty: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) logit_bias: Vec<(u32, f32)>,
    pub(crate) max_tokens: u32,
    pub(crate) min_tokens: u32,
    pub(crate) ignore_eos: bool,
    pub(crate) stop_token_ids: Vec<u32>,
    pub(crate) top_logprobs: Option<u32>,
}

impl Replica {
    /// One that takes calls. `lied` is told when it breaks the protocol.
    pub(crate) fn new(worker: WorkerName, channel: Channel, card: Card, lied: Arc<Notify>) -> Self {
        Self {
            worker,
            client: WorkerClient::new(channel),
            card,
            in_flight: Arc::default(),
            draining: AtomicBool::new(false),
            lie: OnceLock::new(),
            lied,
            noticed: Mutex::default(),
            wait_ms: AtomicU64::new(0),
        }
    }

    /// Whose it is.
    pub(crate) fn worker(&self) -> &WorkerName {
        &self.worker
    }

    /// What it serves.
    pub(crate) fn card(&self) -> &Card {
        &self.card
    }

    /// Calls that have not ended; None while it takes no new ones.
    pub(crate) fn load(&self) -> Option<usize> {
        let open = self.problem().is_none() && !self.draining.load(Ordering::Relaxed) && !self.is_noticed();
        open.then(|| self.in_flight())
    }

    /// How long a new request waits there for its first token, as the worker last predicted.
    pub(crate) fn wait_ms(&self) -> u64 {
        self.wait_ms.load(Ordering::Relaxed)
    }

    /// Asks the worker how far it is behind; what it last said stands where it does not answer.
    pub(crate) async fn ask_wait(&self) {
        match tokio::time::timeout(LOAD_TIME, self.control().load()).await {
            Ok(Ok(load)) => {
                let wait = Duration::try_from_secs_f64(load.predicted_wait_seconds).unwrap_or(Duration::MAX);
                self.wait_ms.store(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
            Ok(Err(status)) => tracing::debug!(worker = %self.worker, reason = %Causes(&status), "no load"),
            Err(_) => tracing::debug!(worker = %self.worker, "no load in time"),
        }
    }

    /// Why it gets no calls any more.
    pub(crate) fn problem(&self) -> Option<&Lie> {
        self.lie.get()
    }

    /// Calls that have not ended, whether or not it takes new ones.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What operators ask of the worker.
    pub(crate) fn control(&self) -> Control {
        Control::new(self.client.clone())
    }

    /// Whether it takes new calls, as its membership tells.
    pub(crate) fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
        *self.noticed() = None;
    }

    /// A stream has said that the worker drains.
    fn notice(&self) {
        *self.noticed() = Some(Instant::now());
    }

    fn is_noticed(&self) -> bool {
        self.noticed().is_some_and(|at| at.elapsed() < NOTICE)
    }

    fn noticed(&self) -> MutexGuard<'_, Option<Instant>> {
        self.noticed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a call, counted as in flight from here until the events are dropped. `to` is the gate's word that data of
    /// this class may go to a model of the cluster's own.
    pub(crate) async fn generate(self: &Arc<Self>, to: &Authorised, call: &Call) -> Result<Events, Failure> {
        let covered = to.covers(call.class, |place| matches!(place, Target::Local { .. }))?;
        let in_flight = InFlight::enter(&self.in_flight);
        let request = tonic::Request::new(message(&covered, call, &self.card.digest));
        match self.client.clone().generate(request).await {
            Ok(response) => Ok(Events::new(response.into_inner(), Arc::clone(self), in_flight, call)),
            Err(status) => Err(self.failure(&status)),
        }
    }

    /// What a client is told of a worker's status. One that no Penstock process made means that the worker is lost.
    fn failure(&self, status: &Status) -> Failure {
        match ErrorCode::from_status(status) {
            Some((code, param)) => Failure { code, message: status.message().to_owned(), param, retry_after: None },
            None => {
                tracing::warn!(worker = %self.worker, code = ?status.code(), reason = %Causes(status), "worker lost");
                lost()
            }
        }
    }

    /// A worker that breaks the protocol is not to be believed any further: it gets no more calls, whatever it has in
    /// flight goes on under the same checks.
    fn liar(&self, lie: Lie) -> Failure {
        tracing::error!(worker = %self.worker, %lie, "worker broke the protocol and gets no work until it joins again");
        if self.lie.set(lie).is_ok() {
            self.lied.notify_one();
        }
        lost()
    }
}

fn lost() -> Failure {
    Failure::new(ErrorCode::WorkerLost, "the worker was lost before the answer was complete")
}

/// A call that has not ended.
pub(crate) struct InFlight {
    count: Arc<AtomicUsize>,
}

impl InFlight {
    fn enter(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { count: Arc::clone(count) }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call in the protocol's words: what is written to a worker, which the gate must have covered.
fn message(_: &Covered, call: &Call, digest: &str) -> WorkerGenerateRequest {
    use penstock_proto::worker::{DataClass as ClassMessage, Priority as PriorityMessage};
    WorkerGenerateRequest {
        request_id: call.id.to_string(),
        tenant: call.tenant.to_string(),
        priority: PriorityMessage::from(call.priority).into(),
        deadline_unix_ms: unix_millis(call.deadline),
        class: ClassMessage::from(call.class).into(),
        cache_salt: Vec::new(),
        model_digest: digest.to_owned(),
        adapter_digest: String::new(),
        prompt_ids: call.prompt.clone(),
        resume_tokens: Vec::new(),
        sampling: Some(sampling(&call.sampling)),
        constraint: call.constraint.as_ref().map(constraint),
    }
}

fn constraint(constraint: &Constraint) -> worker::Constraint {
    use worker::constraint::Kind;
    let kind = match constraint {
        Constraint::JsonSchema(schema) => Kind::JsonSchema(schema.clone()),
        Constraint::Regex(regex) => Kind::Regex(regex.clone()),
        Constraint::Grammar(grammar) => Kind::Grammar(grammar.clone()),
    };
    worker::Constraint { kind: Some(kind) }
}

fn unix_millis(deadline: Instant) -> u64 {
    let left: Duration = deadline.saturating_duration_since(Instant::now());
    u64::try_from((penstock_proto::time::unix_now() + left).as_millis()).unwrap_or(u64::MAX)
}

fn sampling(filled: &Filled) -> SamplingParams {
    SamplingParams {
        seed: filled.seed,
        choice_index: 0,
        temperature: filled.temperature,
        top_k: filled.top_k,
        top_p: filled.top_p,
        min_p: filled.min_p,
        repetition_penalty: filled.repetition_penalty,
        presence_penalty: filled.presence_penalty,
        frequency_penalty: filled.frequency_penalty,
        logit_bias: filled.logit_bias.iter().copied().collect(),
        max_tokens: filled.max_tokens,
        min_tokens: filled.min_tokens,
        ignore_eos: filled.ignore_eos,
        stop_token_ids: filled.stop_token_ids.clone(),
        top_logprobs: filled.top_logprobs,
    }
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_notice_counts_for_a_while_or_until_the_membership_tells() {
        let channel = Endpoint::from_static("http://nobody").connect_lazy();
        let card = Card { digest: String::new(), context_length: 1, vocab_size: 1, kv_tokens: 0 };
        let replica = Replica::new(WorkerName::new("w1").unwrap(), channel, card, Arc::default());
        assert_eq!(replica.load(), Some(0));
        replica.notice();
        assert_eq!(replica.load(), None);
        tokio::time::advance(NOTICE).await;
        assert_eq!(replica.load(), Some(0));
        replica.notice();
        replica.set_draining(true);
        replica.set_draining(false);
        assert_eq!(replica.load(), Some(0));
    }
}
