//! Carries out a request: model, prompt, defaults, replica, call, and the worker's tokens as text. It does not know who
//! asked, or in which shape the answer goes out.

mod fill;
mod hold;
mod logprobs;
mod outside;
mod reading;
mod retry;
mod shadow;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::Stream;
use futures_util::future::try_join_all;
use futures_util::stream;
use penstock_cluster::catalog;
use penstock_proto::{ErrorCode, Fault, RequestId, WorkerName};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::task::TaskTracker;

use crate::balance::{self, Balance};
use crate::budget::Budgets;
use crate::fleet::{Fleet, Model};
use crate::metrics::Metrics;
use crate::policy::{Authorised, Decision, Target};
use crate::prompt::ModelText;
use crate::replica::{Call, Event, Events, Replica};
use crate::request::{Delta, Failure, Input, Request, ToolChoice, Tools};
use crate::rulebook::Rulebook;
use crate::ruling::Rulings;
use crate::tenant::Permit;
use crate::tools;
use crate::upstream::{UpstreamAnswer, UsageSource};
use hold::Hold;
use reading::Reading;
use retry::Budget;

/// Workers that a request is tried on, before its first token.
const ATTEMPTS: usize = 3;
/// Bytes of a prompt up to which encoding it does not hold up other requests.
const QUICK_PROMPT: usize = 8 << 10;
/// Long prompts encoded at once.
const LONG_PROMPTS: usize = 4;
/// Copies under way at once; one more is not sent.
const SHADOWS: usize = 32;

/// What carries out requests.
pub(crate) struct Dispatch(Arc<Inner>);

struct Inner {
    fleet: Fleet,
    balance: Balance,
    /// Counts the picks.
    turn: AtomicUsize,
    retries: Budget,
    budgets: Arc<Budgets>,
    metrics: Arc<Metrics>,
    long_prompts: Arc<Semaphore>,
    shadows: Arc<Semaphore>,
    /// What runs beside the requests: the copies.
    tasks: TaskTracker,
}

/// What is to be carried out, and under which catalogue.
#[derive(Clone, Copy)]
pub(crate) struct Orders<'a> {
    pub(crate) book: &'a Arc<Rulebook>,
    pub(crate) rulings: &'a Arc<Rulings>,
    pub(crate) decision: &'a Arc<Decision>,
    /// Whose tokens of the minute are taken.
    pub(crate) permit: &'a Permit,
}

/// Answers that have begun.
pub(crate) struct Started {
    /// What answers.
    pub(crate) target: Target,
    /// Where it is one of the cluster's own.
    pub(crate) model: Option<Arc<Model>>,
    pub(crate) answers: Vec<Answer>,
}

/// Answers that did not begin.
pub(crate) struct Failed {
    /// What was asked last.
    pub(crate) target: Option<Target>,
    pub(crate) failure: Failure,
}

/// An answer whose first piece is there.
pub(crate) struct Answer {
    /// When its target was first called.
    pub(crate) called: Instant,
    /// Tokens of its prompt; 0 where only the end tells.
    pub(crate) prompt_tokens: u32,
    first: Delta,
    rest: Rest,
    hold: Hold,
}

/// Where the rest of an answer comes from.
enum Rest {
    Own(Box<Answering>),
    Outside(Box<UpstreamAnswer>),
}

impl Dispatch {
    pub(crate) fn new(fleet: Fleet, balance: Balance, budgets: Arc<Budgets>, metrics: Arc<Metrics>) -> Self {
        let long_prompts = Arc::new(Semaphore::new(LONG_PROMPTS));
        let shadows = Arc::new(Semaphore::new(SHADOWS));
        let (turn, retries) = (AtomicUsize::new(0), Budget::new());
        let tasks = TaskTracker::new();
        Self(Arc::new(Inner { fleet, balance, turn, retries, budgets, metrics, long_prompts, shadows, tasks }))
    }

    /// The models that are served now.
    pub(crate) fn models(&self) -> Vec<Arc<Model>> {
        self.0.fleet.snapshot().served().map(Arc::clone).collect()
    }

    /// Starts so many answers to each request and waits for the first piece of each: what fails before it is a refusal,
    /// and the next target of the decision is tried where another one may do better. The choices of a request have one
    /// prompt, which is encoded once, and go to one replica where it takes them. Copies go where the decision says.
    pub(crate) async fn answers(
        &self,
        orders: Orders<'_>,
        requests: Vec<Request>,
        choices: u32,
    ) -> Result<Started, Failed> {
        let deadline = requests.first().map_or_else(Instant::now, |request| request.deadline);
        let copied = shadow::original(orders.decision, &requests);
        let mut last = None;
        let trying = self.0.try_in_turn(orders, requests, choices, &mut last);
        let started = timeout_at(deadline, trying).await.unwrap_or_else(|_| Err(too_late()));
        let started = started.map_err(|failure| Failed { target: last, failure })?;
        if let Some(original) = copied {
            shadow::send(&self.0, orders, original);
        }
        Ok(started)
    }

    /// Encodes beside the async threads what would hold them up.
    pub(crate) async fn encode(&self, text: &Arc<ModelText>, input: Input, tools: Tools) -> Result<Vec<u32>, Failure> {
        self.0.encode(text, input, tools).await
    }

    /// Runs long work with text beside the async threads, not too much of it at once.
    pub(crate) async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        self.0.beside(work).await
    }
}

impl Inner {
    /// Tries the targets of a decision, in order; `last` is the one that was tried last.
    async fn try_in_turn(
        &self,
        orders: Orders<'_>,
        requests: Vec<Request>,
        choices: u32,
        last: &mut Option<Target>,
    ) -> Result<Started, Failure> {
        let mut candidates = orders.decision.candidates().peekable();
        let mut requests = Some(requests);
        let mut failure = Failure::new(ErrorCode::Internal, "the decision allows no target");
        while let Some(to) = candidates.next() {
            let asked = if candidates.peek().is_some() { requests.clone() } else { requests.take() };
            *last = Some(to.target().clone());
            match self.begin(orders, to, asked.unwrap_or_default(), choices).await {
                Ok((model, answers)) => return Ok(Started { target: to.target().clone(), model, answers }),
                Err(failed) => failure = failed,
            }
            if candidates.peek().is_none() || !may_go_on(&failure, orders.budget()) {
                break;
            }
            tracing::debug!(target = %to.target(), code = failure.code.as_str(), "the next target is tried");
            self.metrics.fell_back();
        }
        Err(failure)
    }

    async fn begin(
        &self,
        orders: Orders<'_>,
        to: &Authorised,
        requests: Vec<Request>,
        choices: u32,
    ) -> Result<(Option<Arc<Model>>, Vec<Answer>), Failure> {
        let name = to.target().name();
        match name {
            catalog::Target::Local { .. } => {
                let nobody =
                    || Failure::new(ErrorCode::NoWorker, format!("no worker serves {} now", to.target().model()));
                let model = orders.rulings.model(orders.book, name).ok_or_else(nobody)?;
                let starts =
                    requests.into_iter().map(|request| self.start(orders.permit, (to, &model), request, choices));
                let answers = try_join_all(starts).await?.into_iter().flatten().collect();
                Ok((Some(Arc::clone(&model)), answers))
            }
            catalog::Target::Upstream { upstream, model } => {
                let payer = outside::Payer::new(&self.budgets, orders, (upstream, model))?;
                let calls = requests.iter().flat_map(|request| (0..choices).map(move |choice| (request, choice)));
                // Nothing is called before everything is reserved.
                let calls = try_join_all(calls.map(|(request, choice)| payer.reserve(to, request, choice))).await?;
                Ok((None, try_join_all(calls.into_iter().map(|call| call.begin(to))).await?))
            }
        }
    }

    async fn start(
        &self,
        permit: &Permit,
        (to, model): (&Authorised, &Model),
        request: Request,
        choices: u32,
    ) -> Result<Vec<Answer>, Failure> {
        let tools = request.tools;
        // Where the model is free, the client's own constraint is more at fault than tools without demands.
        let own = request.constraint.is_some() && tools.choice == ToolChoice::Auto;
        let at_fault = if tools.are_callable() && !own { "tools" } else { "constraint" };
        let constraint = tools::constraint(&tools, model.text.format(), model.text.vocabulary(), request.constraint)?;
        let prompt = self.encode(&model.text, request.input, tools.clone()).await?;
        let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let sampling = fill::sampling(request.sampling, choices, &prompt, model)?;
        let call = Call {
            id: request.id,
            tenant: request.tenant,
            class: request.class,
            priority: request.priority,
            deadline: request.deadline,
            prompt,
            sampling,
            constraint,
        };
        let home = self.pick(&model.replicas, &[]);
        let choice = |at: u32| {
            let reading = Reading::new(&model.text, &request.stop, &tools, prompt_tokens, call.sampling.min_tokens);
            // The choices have one prompt, which counts once.
            let (call, prompt) = if at == 0 { (call.clone(), prompt_tokens) } else { (choice(&call, at), 0) };
            self.answer((permit, to, model), call, (reading, prompt), home)
        };
        let answers = try_join_all((0..choices).map(choice)).await;
        answers.map_err(|failure| match failure.param.as_deref() {
            Some("constraint") => Failure { param: Some(at_fault.to_owned()), ..failure },
            Some(_) | None => failure,
        })
    }

    async fn answer(
        &self,
        (permit, to, model): (&Permit, &Authorised, &Model),
        call: Call,
        (reading, prompt): (Reading, u32),
        home: Option<&Arc<Replica>>,
    ) -> Result<Answer, Failure> {
        let hold = permit.tokens(u64::from(prompt) + u64::from(call.sampling.max_tokens)).await?;
        let called = Instant::now();
        let (events, event) = match self.call((to, model), &call, home).await {
            Ok(first) => first,
            Err(failure) => {
                hold.settle(0);
                return Err(failure);
            }
        };
        let mut rest = Answering { events, reading, ready: VecDeque::new(), deadline: call.deadline };
        rest.reading.read(event, rest.events.cached_tokens(), &mut rest.ready);
        let first = rest.next().await?;
        let prompt_tokens = rest.reading.prompt_tokens();
        Ok(Answer { called, prompt_tokens, first, rest: Rest::Own(Box::new(rest)), hold: Hold::own(hold) })
    }

    async fn encode(&self, text: &Arc<ModelText>, input: Input, tools: Tools) -> Result<Vec<u32>, Failure> {
        let bytes = match &input {
            Input::Chat(chat) => chat.messages.iter().map(|message| message.content.len()).sum(),
            Input::Text(text) => text.len(),
            Input::Tokens(_) => 0,
        };
        // Definitions, whose size nobody has counted, are much of most prompts that have them.
        if bytes <= QUICK_PROMPT && tools.definitions.is_empty() {
            return text.encode(&input, &tools);
        }
        let text = Arc::clone(text);
        self.beside(move || text.encode(&input, &tools)).await
    }

    async fn beside<T: Send + 'static>(
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

    /// Calls replicas, `home` first, until one gives its first event, where the failures allow another attempt.
    async fn call(
        &self,
        (to, model): (&Authorised, &Model),
        call: &Call,
        mut home: Option<&Arc<Replica>>,
    ) -> Result<(Events, Event), Failure> {
        self.retries.deposit();
        let mut tried: Vec<WorkerName> = Vec::new();
        let mut failure = Failure::new(ErrorCode::NoWorker, format!("no worker serves {} now", model.name));
        while let Some(replica) = home.take().or_else(|| self.pick(&model.replicas, &tried)) {
            if !tried.is_empty() {
                self.metrics.retried();
            }
            tracing::debug!(request = %call.id, worker = %replica.worker(), model = %model.name, "call");
            match self.first_event(replica, (to, model), call).await {
                Ok(first) => return Ok(first),
                Err(failed) => failure = failed,
            }
            tried.push(replica.worker().clone());
            let others = model.replicas.iter().any(|replica| open_load(replica, &tried).is_some());
            if !others || !failure.code.retryable() || !self.may_retry(&failure, tried.len(), call.deadline).await {
                break;
            }
        }
        Err(failure)
    }

    /// Whether a call that failed is made again; the pause before that has passed.
    async fn may_retry(&self, failure: &Failure, attempts: usize, deadline: Instant) -> bool {
        if attempts >= ATTEMPTS {
            return false;
        }
        // A worker that is leaving has done nothing yet: to ask another one adds nothing to what the fleet does.
        if failure.code == ErrorCode::Draining {
            return true;
        }
        let again = Instant::now() + retry::pause(attempts, &mut fastrand::Rng::new());
        if again >= deadline {
            return false;
        }
        if !self.retries.withdraw() {
            self.metrics.retry_throttled();
            return false;
        }
        sleep_until(again).await;
        true
    }

    fn pick<'a>(&self, replicas: &'a [Arc<Replica>], tried: &[WorkerName]) -> Option<&'a Arc<Replica>> {
        let loads: Vec<Option<usize>> = replicas.iter().map(|replica| open_load(replica, tried)).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        balance::pick(self.balance, &loads, turn, &mut fastrand::Rng::new()).map(|at| &replicas[at])
    }

    async fn first_event(
        &self,
        replica: &Arc<Replica>,
        (to, model): (&Authorised, &Model),
        call: &Call,
    ) -> Result<(Events, Event), Failure> {
        let _queued = self.metrics.queued(&model.name);
        let mut events = replica.generate(to, call).await?;
        let event = events.next().await?;
        Ok((events, event))
    }
}

/// What a replica has in flight, where it may be called after those that were tried.
fn open_load(replica: &Replica, tried: &[WorkerName]) -> Option<usize> {
    if tried.contains(replica.worker()) { None } else { replica.load() }
}

/// The call for another choice: an own id, and the seed that a request of its own would have to name for the same
/// answer.
fn choice(call: &Call, at: u32) -> Call {
    let mut call = call.clone();
    call.id = RequestId::generate();
    call.sampling.seed = call.sampling.seed.wrapping_add(u64::from(at));
    call
}

/// Whether another target may do better after a failure. One that is the request's own fault would fail again.
fn may_go_on(failure: &Failure, budget: Option<&catalog::Budget>) -> bool {
    match failure.code.fault() {
        Fault::Policy if failure.code == ErrorCode::PolicyBudget => {
            budget.is_some_and(|budget| budget.when_spent == catalog::WhenSpent::LocalOnly)
        }
        Fault::Provider => true,
        Fault::Capacity => failure.code.retryable(),
        Fault::Caller | Fault::Policy | Fault::Internal => false,
    }
}

fn too_late() -> Failure {
    Failure::new(ErrorCode::DeadlineExceeded, "the deadline passed before the answer was complete")
}

impl<'a> Orders<'a> {
    fn budget(self) -> Option<&'a catalog::Budget> {
        self.book.catalog().tenants.get(self.decision.tenant.as_str())?.budget.as_ref()
    }
}

impl Answer {
    /// The pieces, the last one with a finish, or a failure at the end. Dropping the stream aborts the sequence.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<Delta, Failure>> + Send {
        let Self { mut first, rest, mut hold, .. } = self;
        let goes_on = hold.passes(&mut first, rest.usage_source());
        let rest = stream::unfold(goes_on.then_some((rest, hold)), |rest| async move {
            let (mut rest, mut hold) = rest?;
            let mut delta = rest.next().await;
            // What was reserved for an answer that broke off stays spent.
            let goes_on = delta.as_mut().is_ok_and(|delta| hold.passes(delta, rest.usage_source()));
            Some((delta, goes_on.then_some((rest, hold))))
        });
        futures_util::StreamExt::chain(stream::once(std::future::ready(Ok(first))), rest)
    }
}

impl Rest {
    /// Whose word the usage is, once there is a finish.
    fn usage_source(&self) -> UsageSource {
        match self {
            Self::Own(_) => UsageSource::Reported,
            Self::Outside(rest) => rest.usage_source(),
        }
    }

    async fn next(&mut self) -> Result<Delta, Failure> {
        match self {
            Self::Own(rest) => timeout_at(rest.deadline, rest.next()).await.unwrap_or_else(|_| Err(too_late())),
            // It keeps to the deadline itself.
            Self::Outside(rest) => rest.next().await.unwrap_or_else(|| {
                Err(Failure::new(ErrorCode::ProviderLost, "the upstream's answer stopped before its end"))
            }),
        }
    }
}

/// An answer under way: the worker's events becoming pieces.
struct Answering {
    events: Events,
    reading: Reading,
    /// Pieces that are made and not yet out.
    ready: VecDeque<Delta>,
    deadline: Instant,
}

impl Answering {
    /// The next piece with something in it.
    async fn next(&mut self) -> Result<Delta, Failure> {
        loop {
            if let Some(delta) = self.ready.pop_front() {
                return Ok(delta);
            }
            let event = self.events.next().await?;
            self.reading.read(event, self.events.cached_tokens(), &mut self.ready);
        }
    }
}
