//! The choices of one answer as one stream, watched by the request's observation. Every face takes its answers from here.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, select_all};
use penstock_cluster::catalog;
use penstock_proto::{ErrorCode, ModelName};

use super::Api;
use super::Notes;
use super::blocks::Blocks;
use super::caller::{Asking, Caller};
use crate::dispatch::{Answer, Orders, Started};
use crate::filter::Guard;
use crate::fleet::Model;
use crate::metrics::Observation;
use crate::request::{Delta, Failure, Finish, Request};
use crate::tenant::Permit;

/// An answer under way, of one choice or several, merged as they come. Dropping it aborts what has not ended.
pub(super) struct Answers {
    choices: BoxStream<'static, (usize, Result<Delta, Failure>)>,
    open: usize,
    prompt_tokens: u32,
    observation: Observation,
    /// The request's place among its tenant's, until this ends.
    _permit: Arc<Permit>,
}

/// What answers, and its answer under way.
pub(super) struct Begun {
    /// What the client calls it.
    pub(super) name: ModelName,
    /// Where it is one of the cluster's own.
    pub(super) model: Option<Arc<Model>>,
    pub(super) answers: Answers,
}

impl Api {
    /// Decides where requests of one body go, starts so many answers to each, and waits for the first piece of each.
    /// Those to one request follow one another.
    pub(super) async fn choices(
        &self,
        asking: &Asking<'_>,
        (requests, choices): (Vec<Request>, u32),
        notes: &mut Notes,
        mut observation: Observation,
    ) -> Result<Begun, Failure> {
        match self.begin(asking, (requests, choices), notes, &mut observation).await {
            Ok((name, started, guard)) => {
                let (model, permit) = (started.model.clone(), Arc::clone(&asking.caller.permit));
                Ok(Begun { name, model, answers: Answers::of(started, permit, guard.as_ref(), observation) })
            }
            Err(failure) => {
                observation.failed(&failure);
                Err(failure)
            }
        }
    }

    async fn begin(
        &self,
        asking: &Asking<'_>,
        (requests, choices): (Vec<Request>, u32),
        notes: &mut Notes,
        observation: &mut Observation,
    ) -> Result<(ModelName, Started, Option<Guard>), Failure> {
        let (decision, mut requests) = self.rule(asking, requests, notes).await?;
        let rules = asking.caller.book.filter(&decision.asked)?;
        let guard = rules.map(|rules| rules.begin(&mut requests, &self.metrics)).transpose()?;
        let name = requests.first().map(|request| request.model.clone());
        let name = name.ok_or_else(|| Failure::field("prompt", "there is no prompt"))?;
        let Caller { book, permit, .. } = asking.caller;
        let orders = Orders { book, rulings: &self.rulings, decision: &decision, permit };
        let started = self.dispatch.answers(orders, requests, choices).await.map_err(|failed| {
            notes.target = failed.target.as_ref().map(ToString::to_string);
            failed.target.iter().for_each(|target| observation.targets(target.model(), &target.to_string()));
            match &guard {
                Some(guard) => guard.clean(failed.failure),
                None => failed.failure,
            }
        })?;
        if let catalog::Target::Upstream { upstream, .. } = started.target.name() {
            let passed = asking.caller.book.catalog().upstreams.get(upstream).map(|upstream| &upstream.pass);
            notes.ignored.retain(|name| !passed.is_some_and(|passed| passed.contains(name)));
        }
        let target = started.target.to_string();
        observation.targets(started.target.model(), &target);
        notes.target = Some(target);
        Ok((name, started, guard))
    }

    /// Starts the one choice of the answer to a request that was decoded, and is to be streamed or not. What the face
    /// wants beside the request comes back.
    pub(super) async fn answer_one<T>(
        &self,
        asking: Asking<'_>,
        decoded: Result<(Request, bool, T), Failure>,
        notes: &mut Notes,
        mut observation: Observation,
    ) -> Result<(Begun, bool, T), Failure> {
        let (request, streams, beside) = match decoded {
            Ok(decoded) => decoded,
            Err(failure) => {
                observation.failed(&failure);
                return Err(failure);
            }
        };
        let asking = Asking { streams, ..asking };
        let begun = self.choices(&asking, (vec![request], 1), notes, observation).await?;
        Ok((begun, streams, beside))
    }
}

impl Answers {
    fn of(started: Started, permit: Arc<Permit>, guard: Option<&Guard>, mut observation: Observation) -> Self {
        let answers = started.answers;
        answers.iter().for_each(|answer| observation.called(answer.called));
        let open = answers.len();
        let prompt_tokens = answers.iter().map(|answer| answer.prompt_tokens).sum();
        let choice = |(index, answer): (usize, Answer)| match guard {
            Some(guard) => guard.watch(answer.into_stream()).map(move |delta| (index, delta)).boxed(),
            None => answer.into_stream().map(move |delta| (index, delta)).boxed(),
        };
        let choices = select_all(answers.into_iter().enumerate().map(choice)).boxed();
        Self { choices, open, prompt_tokens, observation, _permit: permit }
    }

    /// How many choices have not ended.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Tokens of the prompts of all choices.
    pub(super) fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// The whole of an answer of one choice.
    pub(super) async fn whole(mut self) -> Result<(Blocks, Finish), Failure> {
        let (mut blocks, mut finish) = (Blocks::default(), None);
        while let Some(next) = self.next().await {
            let (_, delta) = next?;
            finish.clone_from(&delta.finish);
            blocks.take(delta, |_, _, _| {});
        }
        let finish = finish.ok_or_else(|| Failure::new(ErrorCode::Internal, "the answer stopped before its end"))?;
        Ok((blocks, finish))
    }

    /// The next piece and whose it is; None once every choice has ended. A failure is the last item.
    pub(super) async fn next(&mut self) -> Option<Result<(usize, Delta), Failure>> {
        if self.open == 0 {
            return None;
        }
        let (index, result) = self.choices.next().await?;
        Some(match result {
            Ok(delta) => {
                self.observation.passed(&delta);
                if delta.finish.is_some() {
                    self.open -= 1;
                }
                if self.open == 0 {
                    self.observation.done();
                }
                Ok((index, delta))
            }
            Err(failure) => {
                self.observation.failed(&failure);
                self.open = 0;
                self.choices = futures_util::stream::empty().boxed();
                Err(failure)
            }
        })
    }
}
