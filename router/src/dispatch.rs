//! Carries out a request: model, prompt, defaults, replica, call, and the worker's tokens as text. It does not know who
//! asked, or in which shape the answer goes out.

mod fill;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::Stream;
use futures_util::stream;
use penstock_proto::{ErrorCode, ModelName, WorkerName};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::balance::{self, Balance};
use crate::fleet::{Fleet, Model, Snapshot};
use crate::metrics::Metrics;
use crate::prompt::ModelText;
use crate::replica::{Call, Event, Events, Replica};
use crate::request::{Delta, Failure, Finish, FinishReason, Input, Request, Usage};
use crate::text::{Step, TextStream};

/// Workers that a request is tried on, before its first token.
const ATTEMPTS: usize = 3;
/// Bytes of a prompt up to which encoding it does not hold up other requests.
const QUICK_PROMPT: usize = 8 << 10;
/// Long prompts encoded at once.
const LONG_PROMPTS: usize = 4;
/// Names that a refusal lists.
const NAMES_TOLD: usize = 20;

/// What carries out requests.
pub(crate) struct Dispatch {
    fleet: Fleet,
    balance: Balance,
    /// Counts the picks.
    turn: AtomicUsize,
    metrics: Arc<Metrics>,
    long_prompts: Arc<Semaphore>,
}

/// An answer whose first piece is there.
pub(crate) struct Answer {
    /// When its worker was first called.
    pub(crate) called: Instant,
    first: Delta,
    rest: Answering,
}

impl Dispatch {
    pub(crate) fn new(fleet: Fleet, balance: Balance, metrics: Arc<Metrics>) -> Self {
        let long_prompts = Arc::new(Semaphore::new(LONG_PROMPTS));
        Self { fleet, balance, turn: AtomicUsize::new(0), metrics, long_prompts }
    }

    /// The model of that name, served now or before.
    pub(crate) fn model(&self, name: &ModelName) -> Result<Arc<Model>, Failure> {
        let snapshot = self.fleet.snapshot();
        snapshot.models.get(name).map(Arc::clone).ok_or_else(|| unknown(name, &snapshot))
    }

    /// The models that are served now.
    pub(crate) fn models(&self) -> Vec<Arc<Model>> {
        self.fleet.snapshot().served().map(Arc::clone).collect()
    }

    /// Starts the answer and waits for its first piece: what fails before it is a refusal.
    pub(crate) async fn answer(&self, model: &Model, request: Request) -> Result<Answer, Failure> {
        let deadline = request.deadline;
        timeout_at(deadline, self.start(model, request)).await.unwrap_or_else(|_| Err(too_late()))
    }

    async fn start(&self, model: &Model, request: Request) -> Result<Answer, Failure> {
        let prompt = self.encode(&model.text, request.input).await?;
        let sampling = fill::sampling(request.sampling, &prompt, model)?;
        let text = TextStream::new(Arc::clone(model.text.vocabulary()), &request.stop, sampling.min_tokens);
        let call = Call {
            id: request.id,
            tenant: request.tenant,
            class: request.class,
            priority: request.priority,
            deadline: request.deadline,
            prompt,
            sampling,
        };
        let called = Instant::now();
        let (events, event) = self.call(model, &call).await?;
        let prompt_tokens = u32::try_from(call.prompt.len()).unwrap_or(u32::MAX);
        let mut rest =
            Answering { events, text: Some(text), pending: Some(event), prompt_tokens, deadline: call.deadline };
        let first = rest.next().await?;
        Ok(Answer { called, first, rest })
    }

    /// Encodes beside the async threads what would hold them up.
    pub(crate) async fn encode(&self, text: &Arc<ModelText>, input: Input) -> Result<Vec<u32>, Failure> {
        let bytes = match &input {
            Input::Chat(chat) => chat.messages.iter().map(|message| message.content.len()).sum(),
            Input::Text(text) => text.len(),
            Input::Tokens(_) => 0,
        };
        if bytes <= QUICK_PROMPT {
            return text.encode(&input);
        }
        let text = Arc::clone(text);
        self.beside(move || text.encode(&input)).await
    }

    /// Runs long work with text beside the async threads, not too much of it at once.
    pub(crate) async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let permit = Arc::clone(&self.long_prompts).acquire_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        done.await.unwrap_or_else(|_| Err(Failure::new(ErrorCode::Internal, "the tokenizer failed")))
    }

    /// Calls replicas until one gives its first event, where the failures allow another attempt.
    async fn call(&self, model: &Model, call: &Call) -> Result<(Events, Event), Failure> {
        let mut tried: Vec<WorkerName> = Vec::new();
        let mut failure = Failure::new(ErrorCode::NoWorker, format!("no worker serves {} now", model.name));
        while let Some(replica) = self.pick(&model.replicas, &tried) {
            if !tried.is_empty() {
                self.metrics.retried();
            }
            tracing::debug!(request = %call.id, worker = %replica.worker(), model = %model.name, "call");
            match self.first_event(replica, model, call).await {
                Ok(first) => return Ok(first),
                Err(failed) if failed.code.retryable() && tried.len() + 1 < ATTEMPTS => failure = failed,
                Err(failed) => return Err(failed),
            }
            tried.push(replica.worker().clone());
        }
        Err(failure)
    }

    fn pick<'a>(&self, replicas: &'a [Arc<Replica>], tried: &[WorkerName]) -> Option<&'a Arc<Replica>> {
        let load = |replica: &Arc<Replica>| if tried.contains(replica.worker()) { None } else { replica.load() };
        let loads: Vec<Option<usize>> = replicas.iter().map(load).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        balance::pick(self.balance, &loads, turn, &mut fastrand::Rng::new()).map(|at| &replicas[at])
    }

    async fn first_event(
        &self,
        replica: &Arc<Replica>,
        model: &Model,
        call: &Call,
    ) -> Result<(Events, Event), Failure> {
        let _queued = self.metrics.queued(&model.name);
        let mut events = replica.generate(call).await?;
        let event = events.next().await?;
        Ok((events, event))
    }
}

fn unknown(name: &ModelName, snapshot: &Snapshot) -> Failure {
    let mut names: Vec<&str> = snapshot.models.keys().map(ModelName::as_str).take(NAMES_TOLD + 1).collect();
    if names.len() > NAMES_TOLD {
        names[NAMES_TOLD] = "…";
    }
    let known =
        if names.is_empty() { "none is served yet".to_owned() } else { format!("there are: {}", names.join(", ")) };
    let message = format!("there is no model {name}; {known}");
    Failure { param: Some("model".to_owned()), ..Failure::new(ErrorCode::ModelNotFound, message) }
}

fn too_late() -> Failure {
    Failure::new(ErrorCode::DeadlineExceeded, "the deadline passed before the answer was complete")
}

impl Answer {
    /// The pieces, the last one with a finish, or a failure at the end. Dropping the stream aborts the sequence.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<Delta, Failure>> + Send {
        let ended = self.first.finish.is_some();
        let rest = stream::unfold((!ended).then_some(self.rest), |rest| async move {
            let mut rest = rest?;
            let delta = match timeout_at(rest.deadline, rest.next()).await {
                Ok(delta) => delta,
                Err(_) => Err(too_late()),
            };
            let goes_on = delta.as_ref().is_ok_and(|delta| delta.finish.is_none());
            Some((delta, goes_on.then_some(rest)))
        });
        futures_util::StreamExt::chain(stream::once(std::future::ready(Ok(self.first))), rest)
    }
}

/// An answer under way: the worker's events becoming text.
struct Answering {
    events: Events,
    /// None once it has given out its end.
    text: Option<TextStream>,
    /// An event that was waited for before.
    pending: Option<Event>,
    prompt_tokens: u32,
    deadline: Instant,
}

impl Answering {
    /// The next piece with text or an end in it.
    async fn next(&mut self) -> Result<Delta, Failure> {
        loop {
            let event = match self.pending.take() {
                Some(event) => event,
                None => self.events.next().await?,
            };
            let delta = match event {
                Event::Tokens(ids) => self.push(&ids),
                Event::Finished(finish) => self.finish(finish),
            };
            if !delta.text.is_empty() || delta.finish.is_some() {
                return Ok(delta);
            }
        }
    }

    fn push(&mut self, ids: &[u32]) -> Delta {
        let text = self.text.as_mut().expect("nothing is asked for after the end");
        match text.push(ids) {
            Step::Text(text) => Delta { text, finish: None },
            Step::Stopped(stopped) => {
                let usage = Usage {
                    prompt_tokens: self.prompt_tokens,
                    cached_tokens: self.events.cached_tokens(),
                    completion_tokens: text.received(),
                };
                Delta { text: stopped, finish: Some(Finish { reason: FinishReason::Stop, usage }) }
            }
        }
    }

    fn finish(&mut self, finish: Finish) -> Delta {
        let text = self.text.take().expect("nothing is asked for after the end");
        match text.finish() {
            Step::Text(text) => Delta { text, finish: Some(finish) },
            Step::Stopped(text) => Delta { text, finish: Some(Finish { reason: FinishReason::Stop, ..finish }) },
        }
    }
}
