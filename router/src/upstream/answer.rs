//! An upstream's answer under way: its body, bounded in time and size, becoming deltas. What the pieces mean is the
//! protocol's matter.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use tokio::time::{Instant, timeout_at};

use super::breaker::Outcome;
use super::fault::Fault;
use super::key::Key;
use super::reader::{Piece, Reader};
use super::sse::{Events, TooLong};
use super::transport::{Framing, Opened};
use super::{Attempt, Prepared};
use crate::replica::Causes;
use crate::request::{Delta, Failure, Finish, Usage};

/// Bytes of an answer that comes as one JSON body.
const WHOLE_LIMIT: usize = 8 << 20;
/// Bytes of all events of an answer; they are not kept.
const STREAM_LIMIT: u64 = 256 << 20;
/// How long the body's end may take after the answer's, so that the connection can serve the next request.
const LINGER: Duration = Duration::from_millis(50);

/// Whose word the usage of an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UsageSource {
    /// The upstream's.
    Reported,
    /// Nobody's: the upstream told none, and the usage is the bound of [`Prepared::bound`].
    Estimated,
}

/// An answer whose first piece is there. Dropping it closes the upstream's request.
pub struct UpstreamAnswer {
    upstream: Arc<str>,
    first: Option<Delta>,
    /// None once the answer has ended.
    rest: Option<Reading>,
    usage: UsageSource,
}

impl UpstreamAnswer {
    pub(super) async fn begin(mut reading: Reading, upstream: Arc<str>) -> Result<Self, Fault> {
        let first = reading.next().await;
        reading.attempt.settle(first.as_ref().err().map_or(Outcome::Success, Fault::outcome));
        let mut answer = Self { upstream, first: None, rest: Some(reading), usage: UsageSource::Estimated };
        answer.first = Some(answer.finished(first?));
        Ok(answer)
    }

    /// The next piece; None after the one with a finish and after a failure. It may be dropped and called again.
    pub async fn next(&mut self) -> Option<Result<Delta, Failure>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        let reading = self.rest.as_mut()?;
        match reading.next().await {
            Ok(piece) => Some(Ok(self.finished(piece))),
            Err(fault) => {
                reading.attempt.settle(fault.outcome());
                self.rest = None;
                Some(Err(fault.failure(&self.upstream)))
            }
        }
    }

    /// Whose word the usage in the finish is; settled once the finish is there.
    pub fn usage_source(&self) -> UsageSource {
        self.usage
    }

    fn finished(&mut self, piece: Piece) -> Delta {
        let finish = piece.end.map(|end| {
            let bound = self.rest.take().map(|reading| reading.bound).unwrap_or_default();
            self.usage = if end.usage.is_some() { UsageSource::Reported } else { UsageSource::Estimated };
            Finish { reason: end.reason, stop: None, usage: end.usage.unwrap_or(bound) }
        });
        Delta { finish, ..piece.delta }
    }
}

/// A body being read.
pub(super) struct Reading {
    response: Response,
    shape: Shape,
    reader: Reader,
    /// Read, and not given out yet; what came before a fault is said before it.
    ready: VecDeque<Result<Piece, Fault>>,
    received: u64,
    /// Until then the next piece must be there.
    until: Instant,
    idle: Duration,
    deadline: Instant,
    key: Option<Key>,
    bound: Usage,
    attempt: Attempt,
}

/// A body as far as it is kept.
enum Shape {
    Events(Events),
    Whole(Vec<u8>),
}

impl Reading {
    pub(super) fn new(opened: Opened, idle: Duration, prepared: &Prepared, attempt: Attempt) -> Self {
        let Opened { response, framing, until, key } = opened;
        let shape = match framing {
            Framing::Events => Shape::Events(Events::default()),
            Framing::Whole => Shape::Whole(Vec::new()),
        };
        let reader = prepared.reader.clone();
        let (bound, deadline) = (prepared.bound, prepared.deadline);
        let ready = VecDeque::new();
        Self { response, shape, reader, ready, received: 0, until, idle, deadline, key, bound, attempt }
    }

    /// The next piece that says something.
    async fn next(&mut self) -> Result<Piece, Fault> {
        loop {
            if self.ready.front().is_some_and(|piece| piece.as_ref().is_ok_and(|piece| piece.end.is_some())) {
                let linger = self.deadline.min(Instant::now() + LINGER);
                while let Ok(Ok(Some(_))) = timeout_at(linger, self.response.chunk()).await {}
            }
            if let Some(piece) = self.ready.pop_front() {
                return piece;
            }
            match self.chunk().await? {
                Some(bytes) => self.take(&bytes),
                None => {
                    let piece = match &self.shape {
                        Shape::Events(_) => self.reader.end(),
                        Shape::Whole(body) => self.reader.whole(body, self.key.as_ref()),
                    };
                    self.ready.push_back(piece);
                }
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        match &mut self.shape {
            Shape::Whole(body) if body.len() + bytes.len() > WHOLE_LIMIT => {
                self.ready.push_back(Err(Fault::Invalid("the answer is too long")));
            }
            Shape::Whole(body) => body.extend_from_slice(bytes),
            Shape::Events(events) => {
                events.push(bytes);
                while let Some(event) = events.next().transpose() {
                    let event = event.map_err(|TooLong| Fault::Invalid("an event is too long"));
                    let piece = event.and_then(|event| self.reader.event(&event, self.key.as_ref()));
                    let last = piece.as_ref().map_or(true, |piece| piece.end.is_some());
                    if last || piece.as_ref().is_ok_and(|piece| piece.delta != Delta::default()) {
                        self.ready.push_back(piece);
                    }
                    if last {
                        break;
                    }
                }
            }
        }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        let until = self.until.min(self.deadline);
        let read = timeout_at(until, self.response.chunk()).await;
        let chunk = match read {
            Ok(chunk) => chunk.map_err(|error| {
                tracing::warn!(reason = %Causes(&error), "upstream's answer broke off");
                Fault::Lost
            })?,
            Err(_) if self.deadline <= self.until => return Err(Fault::Deadline),
            Err(_) => return Err(Fault::Silent),
        };
        self.until = Instant::now() + self.idle;
        self.received += chunk.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if self.received > STREAM_LIMIT { Err(Fault::Invalid("the answer is too long")) } else { Ok(chunk) }
    }
}
