//! The events of one call, each checked against what the protocol promises.

use std::sync::Arc;
use std::time::Duration;

use penstock_proto::worker::{self, WorkerGenerateEvent, worker_generate_event};
use tokio::time::timeout;
use tonic::Streaming;

use super::{Call, InFlight, Replica, lost};
use crate::request::{Failure, Finish, FinishReason, Usage};

/// How long the end of the stream may take after the event that announces it.
const END: Duration = Duration::from_secs(5);

/// What a worker says of a call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// The next outputs.
    Tokens(Tokens),
    /// The end; the stream has ended with it.
    Finished(Finish),
}

/// Outputs that came together.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Tokens {
    /// Never empty.
    pub(crate) ids: Vec<u32>,
    /// One for each id where they were asked for, else none.
    pub(crate) logprobs: Vec<Logprob>,
}

/// How likely an output was, before temperature and filters.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Logprob {
    pub(crate) logprob: f32,
    /// Ids of the most likely tokens, in order.
    pub(crate) top: Vec<(u32, f32)>,
}

/// How a worker broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Lie {
    #[error("position {found} where {expected} was due")]
    Position { found: u64, expected: u64 },
    #[error("id {id} of a vocabulary of {size}")]
    Vocabulary { id: u32, size: u32 },
    #[error("{found} log-probabilities where {expected} were due")]
    Logprobs { found: usize, expected: usize },
    #[error("a log-probability that is no logarithm of a probability")]
    NotALogprob,
    #[error("more than the {limit} tokens that were asked for")]
    TooMany { limit: u32 },
    #[error("{cached} cached tokens of a prompt of {prompt}")]
    Cached { cached: u32, prompt: u32 },
    #[error("an event with nothing in it")]
    Nothing,
    #[error("the unknown finish reason {reason}")]
    Reason { reason: i32 },
    #[error("{outputs} outputs, {prompt} prompt tokens and {cached} cached ones, which it was not")]
    Counts { outputs: u32, prompt: u32, cached: u32 },
    #[error("an event after the end")]
    AfterEnd,
    #[error("an end without a finish")]
    Unfinished,
}

/// A running call. Dropping it aborts the sequence.
pub(crate) struct Events {
    stream: Streaming<WorkerGenerateEvent>,
    replica: Arc<Replica>,
    checks: Checks,
    _in_flight: InFlight,
}

impl Events {
    pub(super) fn new(
        stream: Streaming<WorkerGenerateEvent>,
        replica: Arc<Replica>,
        in_flight: InFlight,
        call: &Call,
    ) -> Self {
        let checks = Checks {
            position: 0,
            cached: 0,
            prompt: u32::try_from(call.prompt.len()).unwrap_or(u32::MAX),
            vocabulary: replica.card.vocab_size,
            limit: call.sampling.max_tokens,
            top_logprobs: call.sampling.top_logprobs,
        };
        Self { stream, replica, checks, _in_flight: in_flight }
    }

    /// Tokens of the prompt that the worker's cache held, as of the last event.
    pub(crate) fn cached_tokens(&self) -> u32 {
        self.checks.cached
    }

    /// The next event. Not to be called after [`Event::Finished`] or a failure.
    pub(crate) async fn next(&mut self) -> Result<Event, Failure> {
        loop {
            let message = match self.stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return Err(self.replica.liar(Lie::Unfinished)),
                Err(status) => return Err(self.replica.failure(&status)),
            };
            match self.checks.check(message).map_err(|lie| self.replica.liar(lie))? {
                Checked::Tokens(tokens) if tokens.ids.is_empty() => {}
                Checked::Tokens(tokens) => return Ok(Event::Tokens(tokens)),
                Checked::Finished(finish) => return self.end(finish).await,
                Checked::Draining => self.replica.notice(),
            }
        }
    }

    /// A finish counts once the stream has ended with it.
    async fn end(&mut self, finish: Finish) -> Result<Event, Failure> {
        match timeout(END, self.stream.message()).await {
            Ok(Ok(None)) => Ok(Event::Finished(finish)),
            Ok(Ok(Some(_))) => Err(self.replica.liar(Lie::AfterEnd)),
            Ok(Err(status)) => {
                tracing::warn!(worker = %self.replica.worker, code = ?status.code(), "worker failed after its finish");
                Err(lost())
            }
            // Slow is not false.
            Err(_) => {
                tracing::warn!(worker = %self.replica.worker, "worker does not end a stream after its finish");
                Err(lost())
            }
        }
    }
}

#[derive(Debug, PartialEq)]
enum Checked {
    Tokens(Tokens),
    Finished(Finish),
    Draining,
}

/// What the next event must agree with.
struct Checks {
    /// Outputs so far.
    position: u64,
    /// Tokens of the prompt that the worker's cache held.
    cached: u32,
    prompt: u32,
    vocabulary: u32,
    limit: u32,
    top_logprobs: Option<u32>,
}

impl Checks {
    fn check(&mut self, message: WorkerGenerateEvent) -> Result<Checked, Lie> {
        let found = message.sequence_number;
        let event = message.event.ok_or(Lie::Nothing)?;
        // A drain notice has no place in the answer.
        if !matches!(event, worker_generate_event::Event::Drain(_)) && found != self.position {
            return Err(Lie::Position { found, expected: self.position });
        }
        match event {
            worker_generate_event::Event::Tokens(tokens) => self.tokens(tokens, message.cached_tokens),
            worker_generate_event::Event::Finished(finished) => self.finished(&finished),
            worker_generate_event::Event::Drain(_) => Ok(Checked::Draining),
        }
    }

    fn tokens(&mut self, tokens: worker::Tokens, cached: u32) -> Result<Checked, Lie> {
        let worker::Tokens { ids, logprobs } = tokens;
        let known = |id: u32| match id < self.vocabulary {
            true => Ok(()),
            false => Err(Lie::Vocabulary { id, size: self.vocabulary }),
        };
        ids.iter().try_for_each(|id| known(*id))?;
        let expected = if self.top_logprobs.is_some() { ids.len() } else { 0 };
        if logprobs.len() != expected {
            return Err(Lie::Logprobs { found: logprobs.len(), expected });
        }
        logprobs.iter().flat_map(|logprob| &logprob.top).try_for_each(|ranked| known(ranked.id))?;
        let logprobs = logprobs.into_iter().map(|logprob| self.logprob(logprob)).collect::<Result<_, _>>()?;
        self.position += ids.len() as u64;
        if self.position > u64::from(self.limit) {
            return Err(Lie::TooMany { limit: self.limit });
        }
        if cached > self.prompt {
            return Err(Lie::Cached { cached, prompt: self.prompt });
        }
        self.cached = cached;
        Ok(Checked::Tokens(Tokens { ids, logprobs }))
    }

    fn logprob(&self, told: worker::TokenLogprob) -> Result<Logprob, Lie> {
        let expected = self.top_logprobs.unwrap_or(0).min(self.vocabulary) as usize;
        if told.top.len() != expected {
            return Err(Lie::Logprobs { found: told.top.len(), expected });
        }
        let told = Logprob {
            logprob: told.logprob,
            top: told.top.into_iter().map(|ranked| (ranked.id, ranked.logprob)).collect(),
        };
        // Rounding may put a certain token a hair above 0; what is no number is not below anything.
        let all = told.top.iter().map(|(_, logprob)| *logprob).chain([told.logprob]);
        if { all }.all(|logprob| logprob < 0.001) { Ok(told) } else { Err(Lie::NotALogprob) }
    }

    fn finished(&self, finished: &worker::Finished) -> Result<Checked, Lie> {
        let (outputs, prompt, cached) = (finished.output_tokens, finished.prompt_tokens, finished.cached_tokens);
        if u64::from(outputs) != self.position || prompt != self.prompt || cached > prompt {
            return Err(Lie::Counts { outputs, prompt, cached });
        }
        let reason = match worker::FinishReason::try_from(finished.reason) {
            Ok(worker::FinishReason::Stop) => FinishReason::Stop,
            Ok(worker::FinishReason::Length) => FinishReason::Length,
            Ok(worker::FinishReason::ToolCalls | worker::FinishReason::Unspecified) | Err(_) => {
                return Err(Lie::Reason { reason: finished.reason });
            }
        };
        let usage = Usage { prompt_tokens: prompt, cached_tokens: cached, completion_tokens: outputs };
        Ok(Checked::Finished(Finish { reason, stop: None, usage }))
    }
}

#[cfg(test)]
mod tests {
    use penstock_proto::worker::{DrainNotice, Finished, RankedToken, TokenLogprob};

    use super::*;

    fn checks() -> Checks {
        Checks { position: 0, cached: 0, prompt: 4, vocabulary: 10, limit: 3, top_logprobs: None }
    }

    fn tokens(sequence_number: u64, ids: &[u32]) -> WorkerGenerateEvent {
        let event = worker_generate_event::Event::Tokens(worker::Tokens { ids: ids.to_vec(), logprobs: Vec::new() });
        WorkerGenerateEvent { sequence_number, event: Some(event), cached_tokens: 2 }
    }

    fn finished(sequence_number: u64, change: impl FnOnce(&mut Finished)) -> WorkerGenerateEvent {
        let mut finished = Finished {
            reason: worker::FinishReason::Length.into(),
            prompt_tokens: 4,
            output_tokens: 3,
            cached_tokens: 2,
            ..Finished::default()
        };
        change(&mut finished);
        let event = worker_generate_event::Event::Finished(finished);
        WorkerGenerateEvent { sequence_number, event: Some(event), cached_tokens: 2 }
    }

    #[test]
    fn an_honest_answer_passes() {
        let mut checks = checks();
        let passed = |ids: &[u32]| Ok(Checked::Tokens(Tokens { ids: ids.to_vec(), logprobs: Vec::new() }));
        assert_eq!(checks.check(tokens(0, &[1, 9])), passed(&[1, 9]));
        assert_eq!(checks.cached, 2);
        let drain = worker_generate_event::Event::Drain(DrainNotice {});
        let notice = WorkerGenerateEvent { event: Some(drain), ..WorkerGenerateEvent::default() };
        assert_eq!(checks.check(notice), Ok(Checked::Draining));
        assert_eq!(checks.check(tokens(2, &[0])), passed(&[0]));
        let usage = Usage { prompt_tokens: 4, cached_tokens: 2, completion_tokens: 3 };
        let finish = Finish { reason: FinishReason::Length, stop: None, usage };
        assert_eq!(checks.check(finished(3, |_| {})), Ok(Checked::Finished(finish)));
    }

    #[test]
    fn log_probabilities_are_as_many_as_were_asked_for_and_are_some() {
        let ranked = |id, logprob| RankedToken { id, logprob };
        let honest = TokenLogprob { logprob: -0.5, top: vec![ranked(3, -0.5), ranked(9, f32::NEG_INFINITY)] };
        let told = |top_logprobs, logprobs: Vec<TokenLogprob>| {
            let tokens = worker::Tokens { ids: vec![3], logprobs };
            let event = Some(worker_generate_event::Event::Tokens(tokens));
            Checks { top_logprobs, ..checks() }.check(WorkerGenerateEvent { event, ..WorkerGenerateEvent::default() })
        };
        let passed = Logprob { logprob: -0.5, top: vec![(3, -0.5), (9, f32::NEG_INFINITY)] };
        let tokens = Tokens { ids: vec![3], logprobs: vec![passed] };
        assert_eq!(told(Some(2), vec![honest.clone()]), Ok(Checked::Tokens(tokens)));
        assert_eq!(told(None, vec![honest.clone()]), Err(Lie::Logprobs { found: 1, expected: 0 }));
        assert_eq!(told(Some(2), vec![]), Err(Lie::Logprobs { found: 0, expected: 1 }));
        assert_eq!(told(Some(1), vec![honest.clone()]), Err(Lie::Logprobs { found: 2, expected: 1 }));
        let foreign = TokenLogprob { top: vec![ranked(3, -0.5), ranked(10, -1.0)], ..honest };
        assert_eq!(told(Some(2), vec![foreign]), Err(Lie::Vocabulary { id: 10, size: 10 }));
        for logprob in [f32::NAN, 0.5] {
            assert_eq!(told(Some(2), vec![TokenLogprob { logprob, ..honest.clone() }]), Err(Lie::NotALogprob));
        }
    }

    #[test]
    fn every_lie_is_found() {
        assert_eq!(checks().check(tokens(1, &[1])), Err(Lie::Position { found: 1, expected: 0 }));
        assert_eq!(checks().check(tokens(0, &[1, 10])), Err(Lie::Vocabulary { id: 10, size: 10 }));
        assert_eq!(checks().check(tokens(0, &[1, 1, 1, 1])), Err(Lie::TooMany { limit: 3 }));
        let more = WorkerGenerateEvent { cached_tokens: 5, ..tokens(0, &[1]) };
        assert_eq!(checks().check(more), Err(Lie::Cached { cached: 5, prompt: 4 }));
        assert_eq!(checks().check(WorkerGenerateEvent::default()), Err(Lie::Nothing));
        assert_eq!(checks().check(finished(3, |_| {})), Err(Lie::Position { found: 3, expected: 0 }));
        let after = |change: fn(&mut Finished)| {
            let mut checks = checks();
            checks.check(tokens(0, &[1, 2, 3])).unwrap();
            checks.check(finished(3, change))
        };
        let counts = |outputs, prompt, cached| Err(Lie::Counts { outputs, prompt, cached });
        assert_eq!(after(|f| f.output_tokens = 2), counts(2, 4, 2));
        assert_eq!(after(|f| f.prompt_tokens = 5), counts(3, 5, 2));
        assert_eq!(after(|f| f.cached_tokens = 5), counts(3, 4, 5));
        assert_eq!(after(|f| f.reason = 0), Err(Lie::Reason { reason: 0 }));
        assert_eq!(after(|f| f.reason = 77), Err(Lie::Reason { reason: 77 }));
    }
}
