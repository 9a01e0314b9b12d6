//! The choices of one answer as one stream, watched by the request's observation. Every face takes its answers from here.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use futures_util::stream::{BoxStream, select_all};
use penstock_proto::ErrorCode;

use super::Api;
use super::Notes;
use super::blocks::Blocks;
use crate::dispatch::Answer;
use crate::fleet::Model;
use crate::metrics::Observation;
use crate::request::{Delta, Failure, Finish, Request};

/// An answer under way, of one choice or several, merged as they come. Dropping it aborts what has not ended.
pub(super) struct Answers {
    choices: BoxStream<'static, (usize, Result<Delta, Failure>)>,
    open: usize,
    prompt_tokens: u32,
    observation: Observation,
}

impl Api {
    /// Starts an answer to each request and waits for the first piece of each.
    pub(super) async fn answers(
        &self,
        model: &Model,
        requests: Vec<Request>,
        observation: Observation,
    ) -> Result<Answers, Failure> {
        self.choices(model, requests, 1, observation).await
    }

    /// Starts so many answers to each request and waits for the first piece of each. Those to one request follow one
    /// another.
    pub(super) async fn choices(
        &self,
        model: &Model,
        requests: Vec<Request>,
        choices: u32,
        mut observation: Observation,
    ) -> Result<Answers, Failure> {
        let starts = requests.into_iter().map(|request| self.dispatch.answers(model, request, choices));
        let answers: Vec<Answer> = match try_join_all(starts).await {
            Ok(answers) => answers.into_iter().flatten().collect(),
            Err(failure) => {
                observation.failed(&failure);
                return Err(failure);
            }
        };
        answers.iter().for_each(|answer| observation.called(answer.called));
        let open = answers.len();
        let prompt_tokens = answers.iter().map(|answer| answer.prompt_tokens).sum();
        let choice = |(index, answer): (usize, Answer)| answer.into_stream().map(move |delta| (index, delta)).boxed();
        let choices = select_all(answers.into_iter().enumerate().map(choice)).boxed();
        Ok(Answers { choices, open, prompt_tokens, observation })
    }

    /// Finds the model of a request that was decoded, notes it, and starts the one choice of its answer. What the face
    /// wants beside the request comes back.
    pub(super) async fn answer_one<T>(
        &self,
        decoded: Result<(Request, T), Failure>,
        notes: &mut Notes,
        mut observation: Observation,
    ) -> Result<(Arc<Model>, Answers, T), Failure> {
        let found = decoded.and_then(|(request, beside)| Ok((self.dispatch.model(&request.model)?, request, beside)));
        let (model, request, beside) = match found {
            Ok(found) => found,
            Err(failure) => {
                observation.failed(&failure);
                return Err(failure);
            }
        };
        notes.target = Some(model.name.clone());
        observation.targets(&model.name);
        let answers = self.answers(&model, vec![request], observation).await?;
        Ok((model, answers, beside))
    }
}

impl Answers {
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
