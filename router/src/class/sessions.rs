//! What operators have said of sessions: a least class for their requests. Each record stands in the store under a lease
//! of its own, and every router follows them all: whoever classes a request asks nobody.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use penstock_cluster::Store;
use penstock_cluster::catalog::{Digest, Moment};
use penstock_cluster::store::{self, Event, Key, Listing, Prefix, Revision, Txn};
use penstock_proto::DataClass;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;

const PREFIX: &str = "/penstock/v1/sessions/";
/// How long a record stands.
const LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// Records that the store may hold.
const LIMIT: usize = 10_000;
/// Between two listings: they find what a watch has missed.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long whoever makes a record waits until this router knows of it.
const SEEN: Duration = Duration::from_secs(2);
/// Before the next try, once the store has failed.
const PAUSE: Duration = Duration::from_millis(500);

/// The records that are known. Handles are cheap; the task that follows ends with the last of them.
#[derive(Debug, Clone)]
pub struct Sessions {
    known: watch::Receiver<HashMap<Key, DataClass>>,
    store: Arc<dyn Store>,
}

/// Why a record was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store does not answer, or refuses.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// There are too many.
    #[error("there are {LIMIT} sessions with a class already; each ends after 24 hours")]
    Full,
}

/// A record as it is stored.
#[derive(Serialize, Deserialize)]
struct Record {
    tenant: String,
    session: String,
    class: DataClass,
    /// Who said so.
    by: String,
    until: Moment,
}

impl Sessions {
    /// Starts to follow the records.
    pub fn watch(store: Arc<dyn Store>, tasks: &TaskTracker) -> Self {
        let (publish, known) = watch::channel(HashMap::new());
        let follower = Follower { store: Arc::clone(&store), seen: Revision::ZERO, known: publish };
        tasks.spawn(async move {
            let ended = follower.known.clone();
            tokio::select! {
                () = ended.closed() => {}
                never = follower.run() => match never {},
            }
        });
        Self { known, store }
    }

    /// The least class of a session's requests, where an operator gave one.
    pub fn class(&self, tenant: &str, session: &str) -> Option<DataClass> {
        self.known.borrow().get(&key(tenant, session)).copied()
    }

    /// Gives a session a class, in the place of one that it has. Returns when that ends. `now` is since 1970.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub(crate) async fn set(
        &self,
        (tenant, session): (&str, &str),
        class: DataClass,
        by: &str,
        now: Duration,
    ) -> Result<Moment, Error> {
        let key = key(tenant, session);
        {
            let known = self.known.borrow();
            if known.len() >= LIMIT && !known.contains_key(&key) {
                return Err(Error::Full);
            }
        }
        let grant = self.store.grant(LIFE).await?;
        let until = Moment::at(now + grant.ttl);
        let record = Record { tenant: tenant.to_owned(), session: session.to_owned(), class, by: by.to_owned(), until };
        let value = serde_json::to_vec(&record).expect("a record has only strings as keys");
        self.store.commit(Txn::new().put_leased(key.clone(), Bytes::from(value), grant.lease)).await?;
        // Whoever asks this router next is to see it.
        let mut known = self.known.clone();
        let seen = known.wait_for(|known| known.get(&key) == Some(&class));
        if timeout(SEEN, seen).await.is_err() {
            tracing::warn!("a session's class is stored, and not known here yet");
        }
        Ok(until)
    }
}

/// Names in keys may have any character, so a record is found by the digest of both.
fn key(tenant: &str, session: &str) -> Key {
    let both = format!("{}:{tenant}{session}", tenant.len());
    Prefix::new(PREFIX).key(Digest::of(both.as_bytes()).to_string())
}

struct Follower {
    store: Arc<dyn Store>,
    /// The store's revision that is known.
    seen: Revision,
    known: watch::Sender<HashMap<Key, DataClass>>,
}

impl Follower {
    async fn run(mut self) -> Infallible {
        loop {
            if let Err(error) = self.round().await {
                tracing::warn!(%error, "cannot follow the classes of sessions; keeping those known");
                sleep(PAUSE).await;
            }
        }
    }

    /// Lists, then follows a watch until it is time to list again.
    async fn round(&mut self) -> Result<(), store::Error> {
        let (prefix, until) = (Prefix::new(PREFIX), Instant::now() + INTERVAL);
        self.list(self.store.list(&prefix).await?);
        let mut watch = self.store.watch(&prefix, self.seen).await?;
        loop {
            let update = tokio::select! {
                update = watch.next() => update,
                () = sleep_until(until) => return Ok(()),
            };
            let Some(update) = update else { return Ok(()) };
            let update = update?;
            self.seen = update.revision;
            self.known.send_modify(|known| update.events.into_iter().for_each(|event| take(known, event)));
        }
    }

    fn list(&mut self, listing: Listing) {
        self.seen = listing.revision;
        let mut known = HashMap::new();
        listing.entries.into_iter().for_each(|entry| take(&mut known, Event::Put(entry)));
        self.known.send_replace(known);
    }
}

fn take(known: &mut HashMap<Key, DataClass>, event: Event) {
    match event {
        Event::Put(entry) => match serde_json::from_slice::<Record>(&entry.value) {
            Ok(record) => drop(known.insert(entry.key, record.class)),
            // Whatever was meant, it was to be more than nothing.
            Err(error) => {
                tracing::error!(key = %entry.key, %error, "a session's class cannot be read; it counts as restricted");
                known.insert(entry.key, DataClass::Restricted);
            }
        },
        Event::Delete(key) => drop(known.remove(&key)),
    }
}

#[cfg(test)]
mod tests {
    use penstock_cluster::store::MemoryStore;

    use super::*;

    async fn until(sessions: &Sessions, tenant: &str, session: &str, class: Option<DataClass>) {
        let mut known = sessions.known.clone();
        let is_so = |known: &HashMap<Key, DataClass>| known.get(&key(tenant, session)).copied() == class;
        known.wait_for(is_so).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_class_is_known_to_all_who_follow_until_its_lease_ends() {
        let (store, tasks) = (Arc::new(MemoryStore::new()), TaskTracker::new());
        let [one, two] = [(); 2].map(|()| Sessions::watch(store.clone(), &tasks));
        let (set, now) = (DataClass::Restricted, Duration::from_secs(1000));
        let end = one.set(("retail", "s/1"), set, "alice", now).await.unwrap();
        assert_eq!(end, Moment::at(now + LIFE));
        until(&two, "retail", "s/1", Some(set)).await;
        assert_eq!(two.class("retail", "s/1"), Some(set));
        // Neither another session nor another cut through the same letters.
        assert_eq!((two.class("retail", "s"), two.class("retails", "/1")), (None, None));
        one.set(("retail", "s/1"), DataClass::Public, "alice", now).await.unwrap();
        until(&two, "retail", "s/1", Some(DataClass::Public)).await;
        tokio::time::advance(LIFE + Duration::from_secs(2)).await;
        until(&two, "retail", "s/1", None).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_is_restricted_and_the_end_of_all_handles_ends_the_task() {
        let (store, tasks) = (Arc::new(MemoryStore::new()), TaskTracker::new());
        store.put(key("t", "s"), Bytes::from_static(b"?")).await.unwrap();
        let sessions = Sessions::watch(store, &tasks);
        until(&sessions, "t", "s", Some(DataClass::Restricted)).await;
        drop(sessions);
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_an_end_to_their_number() {
        let (store, tasks) = (Arc::new(MemoryStore::new()), TaskTracker::new());
        let sessions = Sessions::watch(store.clone(), &tasks);
        let mut txn = Txn::new();
        for number in 0..LIMIT {
            txn = txn.put(key("t", &number.to_string()), Bytes::from_static(b"?"));
            if number % 100 == 99 {
                store.commit(std::mem::take(&mut txn)).await.unwrap();
            }
        }
        until(&sessions, "t", "9999", Some(DataClass::Restricted)).await;
        let set = |session: &'static str| sessions.set(("t", session), DataClass::Public, "alice", Duration::ZERO);
        assert!(matches!(set("another").await, Err(Error::Full)));
        set("17").await.unwrap();
    }
}
