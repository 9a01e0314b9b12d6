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
    /// The next outputs; never empty.
    Tokens(Vec<u32>),
    /// The end; the stream has ended with it.
    Finished(Finish),
}

/// How a worker broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Lie {
    #[error("position {found} where {expected} was due")]
    Position { found: u64, expected: u64 },
    #[error("id {id} of a vocabulary of {size}")]
    Vocabulary { id: u32, size: u32 },
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
    #[error("an end that does not come")]
    Endless,
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
                Checked::Tokens(ids) if ids.is_empty() => {}
                Checked::Tokens(ids) => return Ok(Event::Tokens(ids)),
                Checked::Finished(finish) => return self.end(finish).await,
                Checked::Draining => self.replica.set_draining(true),
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
            Err(_) => Err(self.replica.liar(Lie::Endless)),
        }
    }
}

#[derive(Debug, PartialEq)]
enum Checked {
    Tokens(Vec<u32>),
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
            worker_generate_event::Event::Tokens(tokens) => self.tokens(tokens.ids, message.cached_tokens),
            worker_generate_event::Event::Finished(finished) => self.finished(&finished),
            worker_generate_event::Event::Drain(_) => Ok(Checked::Draining),
        }
    }

    fn tokens(&mut self, ids: Vec<u32>, cached: u32) -> Result<Checked, Lie> {
        if let Some(&id) = ids.iter().find(|id| **id >= self.vocabulary) {
            return Err(Lie::Vocabulary { id, size: self.vocabulary });
        }
        self.position += ids.len() as u64;
        if self.position > u64::from(self.limit) {
            return Err(Lie::TooMany { limit: self.limit });
        }
        if cached > self.prompt {
            return Err(Lie::Cached { cached, prompt: self.prompt });
        }
        self.cached = cached;
        Ok(Checked::Tokens(ids))
    }

    fn finished(&self, finished: &worker::Finished) -> Result<Checked, Lie> {
        let (outputs, prompt, cached) = (finished.output_tokens, finished.prompt_tokens, finished.cached_tokens);
        if u64::from(outputs) != self.position || prompt != self.prompt || cached > prompt {
            return Err(Lie::Counts { outputs, prompt, cached });
        }
        let reason = match worker::FinishReason::try_from(finished.reason) {
            Ok(worker::FinishReason::Stop) => FinishReason::Stop,
            Ok(worker::FinishReason::Length) => FinishReason::Length,
            Ok(worker::FinishReason::Unspecified) | Err(_) => return Err(Lie::Reason { reason: finished.reason }),
        };
        let usage = Usage { prompt_tokens: prompt, cached_tokens: cached, completion_tokens: outputs };
        Ok(Checked::Finished(Finish { reason, usage }))
    }
}

#[cfg(test)]
mod tests {
    use penstock_proto::worker::{DrainNotice, Finished, Tokens};

    use super::*;

    fn checks() -> Checks {
        Checks { position: 0, cached: 0, prompt: 4, vocabulary: 10, limit: 3 }
    }

    fn tokens(sequence_number: u64, ids: &[u32]) -> WorkerGenerateEvent {
        let event = worker_generate_event::Event::Tokens(Tokens { ids: ids.to_vec() });
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
        assert_eq!(checks.check(tokens(0, &[1, 9])), Ok(Checked::Tokens(vec![1, 9])));
        assert_eq!(checks.cached, 2);
        let drain = worker_generate_event::Event::Drain(DrainNotice {});
        let notice = WorkerGenerateEvent { event: Some(drain), ..WorkerGenerateEvent::default() };
        assert_eq!(checks.check(notice), Ok(Checked::Draining));
        assert_eq!(checks.check(tokens(2, &[0])), Ok(Checked::Tokens(vec![0])));
        let usage = Usage { prompt_tokens: 4, cached_tokens: 2, completion_tokens: 3 };
        let finish = Finish { reason: FinishReason::Length, usage };
        assert_eq!(checks.check(finished(3, |_| {})), Ok(Checked::Finished(finish)));
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
