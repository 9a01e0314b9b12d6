//! Following the members: a task that lists, then watches, and lists again every so often.
//!
//! The listing is the anchor: it finds outages, is the resync after them, and makes good whatever a watch might miss.
//! The watch makes it quick.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use super::MemberEvent;
use super::view::View;
use crate::backoff::Backoff;
use crate::store::{self, Prefix, Store, Watch};

const EVENTS_LIMIT: usize = 64;
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

/// The members' events. Outages, reconnects and compactions of the store's history do not show in it: during an outage
/// it is silent, and after it a member is gone only if it stays away for one time to live. Ends never.
#[derive(Debug)]
pub struct Members {
    events: mpsc::Receiver<MemberEvent>,
    freshness: Freshness,
}

impl Members {
    /// Tells how old the view is; lives beside the stream.
    pub fn freshness(&self) -> Freshness {
        self.freshness.clone()
    }
}

impl Stream for Members {
    type Item = MemberEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<MemberEvent>> {
        self.events.poll_recv(context)
    }
}

/// How old a watch's view of the members is.
#[derive(Debug, Clone)]
pub struct Freshness(watch::Receiver<Instant>);

impl Freshness {
    /// The time since the view was certainly the store's state: up to an eighth of the leases' time to live while all is
    /// well, more and more through an outage. Before the first answer it counts from the start.
    pub fn staleness(&self) -> Duration {
        self.0.borrow().elapsed()
    }
}

/// Starts following.
pub(super) fn watch(store: Arc<dyn Store>, prefix: Prefix, ttl: Duration, tasks: &TaskTracker) -> Members {
    let now = Instant::now();
    let (events, receiver) = mpsc::channel(EVENTS_LIMIT);
    let (confirmed, freshness) = watch::channel(now);
    let watcher = Watcher {
        view: View::new(prefix.clone(), ttl, now),
        store,
        prefix,
        // Twice as often as what counts as an outage.
        interval: ttl / 8,
        events: events.clone(),
        confirmed,
        synced: false,
    };
    tasks.spawn(async move {
        tokio::select! {
            // Dropping the stream ends the task, whatever it waits for.
            () = events.closed() => {}
            Err(mpsc::error::SendError(_)) = watcher.run() => {}
        }
    });
    Members { events: receiver, freshness: Freshness(freshness) }
}

struct Watcher {
    store: Arc<dyn Store>,
    prefix: Prefix,
    interval: Duration,
    view: View,
    events: mpsc::Sender<MemberEvent>,
    confirmed: watch::Sender<Instant>,
    synced: bool,
}

type Closed = mpsc::error::SendError<MemberEvent>;

impl Watcher {
    async fn run(mut self) -> Result<std::convert::Infallible, Closed> {
        let mut backoff = BACKOFF;
        let mut watch = None;
        loop {
            match self.round(&mut watch).await? {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    self.synced = false;
                    tracing::warn!(%error, "cannot follow the members; keeping those known");
                    sleep(backoff.next()).await;
                }
            }
        }
    }

    /// Lists, then follows the watch until it is time to list again.
    async fn round(&mut self, watch: &mut Option<Watch>) -> Result<Result<(), store::Error>, Closed> {
        let asked = Instant::now();
        let listing = match self.store.list(&self.prefix).await {
            Ok(listing) => listing,
            Err(error) => return Ok(Err(error)),
        };
        if listing.revision < self.view.revision() {
            tracing::warn!("the store went back in its history; following it anew");
            *watch = None;
        }
        let events = self.view.list(&listing, Instant::now());
        self.send(events).await?;
        self.confirmed.send_replace(asked);
        if !self.synced {
            self.synced = true;
            self.send(vec![MemberEvent::Synced]).await?;
        }
        let stream = match watch {
            Some(stream) => stream,
            None => match self.store.watch(&self.prefix, self.view.revision()).await {
                Ok(stream) => watch.insert(stream),
                Err(error) => return Ok(Err(error)),
            },
        };
        let followed = self.follow(stream, asked + self.interval).await?;
        if followed.is_err() {
            *watch = None;
        }
        Ok(followed)
    }

    async fn follow(&mut self, watch: &mut Watch, until: Instant) -> Result<Result<(), store::Error>, Closed> {
        loop {
            let item = tokio::select! {
                item = watch.next() => item,
                () = sleep_until(until) => return Ok(Ok(())),
            };
            match item {
                Some(Ok(update)) => {
                    let events = self.view.update(&update, Instant::now());
                    self.send(events).await?;
                }
                Some(Err(error)) => return Ok(Err(error)),
                None => return Ok(Err(store::Error::Failed { reason: "the watch ended".to_owned() })),
            }
        }
    }

    async fn send(&self, events: Vec<MemberEvent>) -> Result<(), Closed> {
        for event in events {
            self.events.send(event).await?;
        }
        Ok(())
    }
}
