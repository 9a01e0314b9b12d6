//! Following the catalogue: a task that asks for the newest version, then watches, and asks again every so often. The
//! asking is the anchor: it finds outages and is the resync after them. The watch makes it quick.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use super::history::{self, Applied, CURRENT};
use crate::backoff::Backoff;
use crate::store::{self, Entry, Event, Listing, Prefix, Revision, Store, Update, Watch};

const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
/// Between two listings.
const INTERVAL: Duration = Duration::from_secs(5);

/// The newest version of the catalogue, as far as the store can be reached; otherwise the last one that was.
///
/// A version that this build does not take is passed over, loudly: the one before it stays in force.
#[derive(Debug, Clone)]
pub struct Catalogs {
    newest: watch::Receiver<Option<Arc<Applied>>>,
    confirmed: watch::Receiver<Option<Instant>>,
}

impl Catalogs {
    /// The newest version; None where nothing was ever applied, or the store has not answered yet.
    pub fn newest(&self) -> Option<Arc<Applied>> {
        self.newest.borrow().clone()
    }

    /// Waits for a version that this handle has not given out yet. Versions that follow each other quickly may be passed
    /// over for the last of them. Never returns once the task that follows has ended.
    pub async fn next(&mut self) -> Arc<Applied> {
        loop {
            if self.newest.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Some(newest) = self.newest.borrow_and_update().clone() {
                return newest;
            }
        }
    }

    /// Waits until the store has answered once, whether or not it has a catalogue.
    pub async fn synced(&mut self) {
        if self.confirmed.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The time since [`Catalogs::newest`] was certainly the store's: a few seconds at most while all is well, more and
    /// more through an outage. None before the first answer.
    pub fn staleness(&self) -> Option<Duration> {
        self.confirmed.borrow().map(|confirmed| confirmed.elapsed())
    }
}

/// Starts following; the task ends when the last handle is dropped.
pub fn watch(store: Arc<dyn Store>, tasks: &TaskTracker) -> Catalogs {
    let (newest, versions) = watch::channel(None);
    let (confirmed, confirmations) = watch::channel(None);
    let watcher = Watcher { store, prefix: Prefix::new(CURRENT), seen: Revision::ZERO, newest, confirmed };
    tasks.spawn(async move {
        let ended = watcher.newest.clone();
        tokio::select! {
            () = ended.closed() => {}
            never = watcher.run() => match never {},
        }
    });
    Catalogs { newest: versions, confirmed: confirmations }
}

struct Watcher {
    store: Arc<dyn Store>,
    prefix: Prefix,
    /// The store's revision that is known.
    seen: Revision,
    newest: watch::Sender<Option<Arc<Applied>>>,
    confirmed: watch::Sender<Option<Instant>>,
}

impl Watcher {
    async fn run(mut self) -> std::convert::Infallible {
        let mut backoff = BACKOFF;
        let mut watch = None;
        loop {
            match self.round(&mut watch).await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    tracing::warn!(%error, "cannot follow the catalogue; keeping the one known");
                    watch = None;
                    sleep(backoff.next()).await;
                }
            }
        }
    }

    /// Lists, then follows the watch until it is time to list again.
    async fn round(&mut self, watch: &mut Option<Watch>) -> Result<(), store::Error> {
        let asked = Instant::now();
        let listing = self.store.list(&self.prefix).await?;
        if listing.revision < self.seen {
            tracing::warn!("the store went back in its history; following it anew");
            *watch = None;
        }
        self.list(&listing);
        self.confirmed.send_replace(Some(asked));
        let stream = match watch {
            Some(stream) => stream,
            None => watch.insert(self.store.watch(&self.prefix, self.seen).await?),
        };
        self.follow(stream, asked + INTERVAL).await
    }

    async fn follow(&mut self, watch: &mut Watch, until: Instant) -> Result<(), store::Error> {
        loop {
            let item = tokio::select! {
                item = watch.next() => item,
                () = sleep_until(until) => return Ok(()),
            };
            match item {
                Some(update) => self.update(&update?),
                None => return Err(store::Error::Failed { reason: "the watch ended".to_owned() }),
            }
        }
    }

    fn list(&mut self, listing: &Listing) {
        let before = self.seen;
        self.seen = listing.revision;
        for entry in listing.entries.iter().filter(|entry| entry.key.as_str() == CURRENT) {
            // A store that went back tells the same revisions of other things.
            if entry.modified > before || listing.revision < before {
                self.take(entry);
            }
        }
    }

    fn update(&mut self, update: &Update) {
        if update.revision <= self.seen {
            return;
        }
        self.seen = update.revision;
        for event in &update.events {
            match event {
                Event::Put(entry) if entry.key.as_str() == CURRENT => self.take(entry),
                Event::Put(_) => {}
                Event::Delete(_) => tracing::error!("the catalogue is gone from the store; keeping the one known"),
            }
        }
    }

    fn take(&self, entry: &Entry) {
        match history::decode(entry) {
            Ok(applied) => {
                tracing::info!(version = applied.number.get(), by = applied.origin.by, "catalogue in force");
                self.newest.send_replace(Some(applied));
            }
            Err(error) => tracing::error!(%error, "the new catalogue is not taken; keeping the one known"),
        }
    }
}
