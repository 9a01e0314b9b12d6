//! What the clients of one connection are doing, and when that has gone on for too long. Pure but for its lock: the time
//! is an argument or tokio's.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tokio::time::Instant;

use crate::config::Limits;
use crate::server::Body;

/// Whether a connection may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may.
    Fine,
    /// No whole request head came in time.
    Silent,
    /// A piece of an answer waits for a client that does not read.
    Stalled,
}

/// The requests of one connection, shared by its watchdog and its answers.
#[derive(Clone)]
pub(crate) struct Activity {
    head_time: Duration,
    idle_time: Duration,
    stall_time: Duration,
    state: Arc<Mutex<State>>,
}

struct State {
    /// Requests begun so far: the next one's number.
    begun: u64,
    /// Requests whose answers have not ended.
    open: usize,
    /// The connection's start, or the end of its last answer.
    quiet_since: Instant,
    /// Answers with a piece handed over and the next not asked for: the transport has no room, since when.
    unread: HashMap<u64, Instant>,
}

impl Activity {
    pub(crate) fn new(limits: &Limits, now: Instant) -> Self {
        let state = State { begun: 0, open: 0, quiet_since: now, unread: HashMap::new() };
        Self {
            head_time: limits.head_time,
            idle_time: limits.idle_time,
            stall_time: limits.stall_time,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// How often to ask for a verdict.
    pub(crate) fn period(&self) -> Duration {
        (self.head_time.min(self.idle_time).min(self.stall_time) / 4).max(Duration::from_millis(10))
    }

    pub(crate) fn verdict(&self, now: Instant) -> Verdict {
        let state = self.lock();
        let silence = if state.begun == 0 { self.head_time } else { self.idle_time };
        let late = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        if state.open == 0 && late(state.quiet_since, silence) {
            Verdict::Silent
        } else if state.unread.values().any(|since| late(*since, self.stall_time)) {
            Verdict::Stalled
        } else {
            Verdict::Fine
        }
    }

    /// A request has come; it is open until the guard, or the body it watches, is dropped.
    pub(crate) fn begin(&self) -> OpenRequest {
        let mut state = self.lock();
        let number = state.begun;
        state.begun += 1;
        state.open += 1;
        drop(state);
        OpenRequest { activity: self.clone(), number }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request whose answer has not ended.
pub(crate) struct OpenRequest {
    activity: Activity,
    number: u64,
}

impl OpenRequest {
    /// The answer's body, watched.
    pub(crate) fn watch(self, body: Body) -> Body {
        Watched { request: self, body }.boxed_unsync()
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let mut state = self.activity.lock();
        state.unread.remove(&self.number);
        state.open -= 1;
        state.quiet_since = Instant::now();
    }
}

/// A body that notes when it is asked for more: a transport that has no room does not ask.
struct Watched {
    request: OpenRequest,
    body: Body,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let number = self.request.number;
        self.request.activity.lock().unread.remove(&number);
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(Some(_))) {
            self.request.activity.lock().unread.insert(number, Instant::now());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::full;

    fn activity() -> (Activity, Instant) {
        let limits = Limits {
            head_time: Duration::from_secs(1),
            idle_time: Duration::from_secs(5),
            stall_time: Duration::from_secs(3),
            ..Limits::default()
        };
        let now = Instant::now();
        (Activity::new(&limits, now), now)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_must_ask_something_soon_and_may_then_rest_longer() {
        let (activity, start) = activity();
        assert_eq!(activity.verdict(start), Verdict::Fine);
        assert_eq!(activity.verdict(start + Duration::from_secs(1)), Verdict::Silent);
        let request = activity.begin();
        assert_eq!(activity.verdict(start + Duration::from_secs(60)), Verdict::Fine);
        drop(request);
        let end = Instant::now();
        assert_eq!(activity.verdict(end + Duration::from_secs(4)), Verdict::Fine);
        assert_eq!(activity.verdict(end + Duration::from_secs(5)), Verdict::Silent);
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_that_nobody_takes_is_a_stall_until_the_next_is_asked_for() {
        let (activity, _) = activity();
        let mut body = activity.begin().watch(full("piece"));
        body.frame().await.unwrap().unwrap();
        let handed = Instant::now();
        assert_eq!(activity.verdict(handed + Duration::from_secs(2)), Verdict::Fine);
        assert_eq!(activity.verdict(handed + Duration::from_secs(3)), Verdict::Stalled);
        assert!(body.frame().await.is_none());
        assert_eq!(activity.verdict(handed + Duration::from_secs(60)), Verdict::Fine);
    }
}
