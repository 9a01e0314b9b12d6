//! What a reader gets of its sequence: a bounded stream. A reader that does not keep up pauses its own sequence and
//! nothing else; one that goes away ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc as std_mpsc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::batch::TokenId;
use crate::door::{Door, Stage};
use crate::sampler::{Draw, TokenLogprob};
use crate::sequence::SequenceId;
use crate::step::Command;

/// One event of a sequence. `Finished` or `Failed` is the last one, and there always is one.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// New outputs, in order.
    Tokens {
        /// The output position of the first of them; outputs that the submission resumed from count.
        first_position: u64,
        /// At least one.
        ids: Vec<TokenId>,
        /// One for each id where they were asked for, else none.
        logprobs: Vec<TokenLogprob>,
    },
    /// The sequence has ended as it should.
    Finished(Finished),
    /// The sequence was given up.
    Failed(Failure),
}

/// Why an answer is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-text id or one of the submission's stop ids was drawn. It is not among the tokens.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
}

/// The account of a finished sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Why it is complete.
    pub reason: FinishReason,
    /// The token that ended it, where one did.
    pub stop_token: Option<TokenId>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Outputs, those that it resumed from among them, without the stop token.
    pub output_tokens: usize,
    /// Tokens of the prompt that a cache held.
    pub cached_tokens: usize,
    /// From the submission to the first step.
    pub queue: Duration,
    /// From the first step to the first token.
    pub prefill: Duration,
    /// From the first token to the end.
    pub decode: Duration,
    /// Its share, by rows, of the seconds of every step it took part in.
    pub compute_seconds: f64,
}

/// Why a sequence was given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Its deadline has passed.
    #[error("the deadline has passed")]
    Deadline,
    /// The device failed, or gave logits that no token can be drawn from.
    #[error("the device failed: {0}")]
    Device(String),
    /// Its grammar could not go on, or allowed nothing that its other parameters do.
    #[error("{0}")]
    Constraint(String),
    /// The engine was stopped.
    #[error("the engine was stopped")]
    Stopped,
}

/// Places beyond the buffer, so that a sequence's last tokens and its end never have to wait.
const RESERVED: usize = 2;

/// The reader's side. Dropping it aborts the sequence and frees its blocks.
#[derive(Debug)]
pub struct Events {
    id: SequenceId,
    events: mpsc::Receiver<Event>,
    commands: std_mpsc::Sender<Command>,
    door: Arc<Door>,
    paused: Arc<AtomicBool>,
    /// A paused sequence is woken when no more events than this are left.
    low: usize,
    ended: bool,
}

impl Events {
    /// The next event; `None` after the last one. Safe to cancel.
    pub async fn recv(&mut self) -> Option<Event> {
        std::future::poll_fn(|context| self.poll_recv(context)).await
    }

    /// The next event, for those who write their own futures.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let event = ready!(self.events.poll_recv(context));
        Poll::Ready(Some(self.received(event)))
    }

    /// The next event, for threads outside an async runtime; panics inside one.
    pub fn blocking_recv(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.blocking_recv();
        Some(self.received(event))
    }

    fn received(&mut self, event: Option<Event>) -> Event {
        let event = event.unwrap_or_else(|| Event::Failed(self.lost()));
        self.ended = !matches!(event, Event::Tokens { .. });
        if !self.ended && self.events.len() <= self.low {
            // Pairs with the fence in `Outbox::flush`: either it sees the place that became free, or this sees its flag.
            fence(Ordering::SeqCst);
            if self.paused.swap(false, Ordering::SeqCst) {
                // An engine that is gone has no sequence to wake.
                let _ = self.commands.send(Command::Wake(self.id));
            }
        }
        event
    }

    /// The engine's thread ends every sequence that it knows of; this one came while it was ending itself.
    fn lost(&self) -> Failure {
        match self.door.stage() {
            Stage::Failed(reason) => Failure::Device(reason),
            Stage::Open | Stage::Draining | Stage::Stopped => Failure::Stopped,
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if !self.ended {
            // An engine that is gone has no sequence to abort.
            let _ = self.commands.send(Command::Abort(self.id));
        }
    }
}

/// Whether a reader keeps up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Open,
    /// Full: the sequence pauses until `Command::Wake` comes.
    Full,
    /// The reader is gone.
    Gone,
}

/// The engine's side: what could not be sent yet is held and goes out as one event.
#[derive(Debug)]
pub(crate) struct Outbox {
    events: mpsc::Sender<Event>,
    paused: Arc<AtomicBool>,
    position: u64,
    held: Vec<TokenId>,
    held_logprobs: Vec<TokenLogprob>,
}

/// A stream of `buffer` events; `position` is the output position of its first token.
pub(crate) fn channel(
    id: SequenceId,
    buffer: usize,
    position: u64,
    commands: std_mpsc::Sender<Command>,
    door: Arc<Door>,
) -> (Outbox, Events) {
    let (sender, events) = mpsc::channel(buffer + RESERVED);
    let paused = Arc::new(AtomicBool::new(false));
    let (held, held_logprobs) = (Vec::new(), Vec::new());
    let outbox = Outbox { events: sender, paused: paused.clone(), position, held, held_logprobs };
    (outbox, Events { id, events, commands, door, paused, low: buffer / 2, ended: false })
}

impl Outbox {
    /// Sends what was drawn or holds it, without ever waiting.
    pub(crate) fn push(&mut self, drawn: Draw) -> Flow {
        self.held.push(drawn.token);
        self.held_logprobs.extend(drawn.logprob);
        self.flush()
    }

    /// Sends what is held, if the reader keeps up.
    pub(crate) fn flush(&mut self) -> Flow {
        if self.events.is_closed() {
            return Flow::Gone;
        }
        if self.events.capacity() <= RESERVED {
            self.paused.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if self.events.capacity() <= RESERVED || !self.paused.swap(false, Ordering::SeqCst) {
                return Flow::Full;
            }
        }
        self.send_held();
        Flow::Open
    }

    /// Sends what is held and the last event. The reserved places are there for these two.
    pub(crate) fn end(mut self, last: Event) {
        self.send_held();
        // A reader that is gone needs no end.
        let _ = self.events.try_send(last);
    }

    fn send_held(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let (ids, logprobs) = (std::mem::take(&mut self.held), std::mem::take(&mut self.held_logprobs));
        let first_position = self.position;
        self.position += ids.len() as u64;
        // There is room; a reader that is gone is noticed by the next flush.
        let _ = self.events.try_send(Event::Tokens { first_position, ids, logprobs });
    }
}
