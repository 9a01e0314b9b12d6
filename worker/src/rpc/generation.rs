//! One sequence's events as messages. Dropping the stream drops the events, which aborts the sequence.

use futures_util::Stream;
use penstock_engine::{Event, Events, Failure, FinishReason, Finished, TokenLogprob};
use penstock_proto::ErrorCode;
use penstock_proto::worker::{self as wire, WorkerGenerateEvent, worker_generate_event};
use tokio::sync::watch;
use tonic::Status;

pub(super) struct Generation {
    events: Events,
    draining: watch::Receiver<bool>,
    /// The output position of the next token.
    position: u64,
}

impl Generation {
    pub(super) fn new(events: Events, draining: watch::Receiver<bool>, position: u64) -> Self {
        Self { events, draining, position }
    }

    /// Tokens and drain notices as they come; then the finish, or an error.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<WorkerGenerateEvent, Status>> + Send {
        futures_util::stream::unfold(self, |mut generation| async move {
            let message = generation.next().await?;
            Some((message, generation))
        })
    }

    async fn next(&mut self) -> Option<Result<WorkerGenerateEvent, Status>> {
        let Self { events, draining, position } = self;
        let event = tokio::select! {
            biased;
            () = drain_begins(draining) => {
                let notice = worker_generate_event::Event::Drain(wire::DrainNotice {});
                return Some(Ok(message(*position, notice)));
            }
            event = events.recv() => event?,
        };
        Some(match event {
            Event::Tokens { first_position, ids, logprobs } => {
                self.position = first_position + ids.len() as u64;
                let logprobs = logprobs.into_iter().map(logprob).collect();
                Ok(message(first_position, worker_generate_event::Event::Tokens(wire::Tokens { ids, logprobs })))
            }
            Event::Finished(account) => {
                Ok(message(self.position, worker_generate_event::Event::Finished(finished(account))))
            }
            Event::Failed(failure) => Err(failed(&failure)),
        })
    }
}

/// Answers at the next change of the switch that turns it on.
async fn drain_begins(draining: &mut watch::Receiver<bool>) {
    while draining.changed().await.is_ok() {
        if *draining.borrow_and_update() {
            return;
        }
    }
    // The worker is gone, and its engine with it: the events tell.
    std::future::pending().await
}

fn message(sequence_number: u64, event: worker_generate_event::Event) -> WorkerGenerateEvent {
    WorkerGenerateEvent { sequence_number, event: Some(event) }
}

fn logprob(token: TokenLogprob) -> wire::TokenLogprob {
    let top = token.top.into_iter().map(|(id, logprob)| wire::RankedToken { id, logprob }).collect();
    wire::TokenLogprob { logprob: token.logprob, top }
}

fn finished(account: Finished) -> wire::Finished {
    let reason = match account.reason {
        FinishReason::Stop => wire::FinishReason::Stop,
        FinishReason::Length => wire::FinishReason::Length,
    };
    // Lengths are bounded by the context, which the card has as u32.
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let micros = |duration: std::time::Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    wire::Finished {
        reason: reason.into(),
        stop_token_id: account.stop_token,
        prompt_tokens: count(account.prompt_tokens),
        output_tokens: count(account.output_tokens),
        cached_tokens: count(account.cached_tokens),
        queue_micros: micros(account.queue),
        prefill_micros: micros(account.prefill),
        decode_micros: micros(account.decode),
        compute_seconds: account.compute_seconds,
    }
}

fn failed(failure: &Failure) -> Status {
    let message = failure.to_string();
    match failure {
        Failure::Deadline => ErrorCode::DeadlineExceeded.status(message, None),
        Failure::Constraint(_) => ErrorCode::InvalidRequest.status(message, Some("constraint")),
        Failure::Device(_) | Failure::Stopped => ErrorCode::WorkerLost.status(message, None),
    }
}
