//! The store of a single process: in memory, and on disk where a data directory is given.
//!
//! On disk lives what no lease bounds: leased keys, watches and history end with the process, so a revision that only
//! leased keys have seen may be given out again after a restart. A transaction that changes durable keys is on disk
//! before anybody sees it.

mod disk;
mod state;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use self::disk::Disk;
use self::state::State;
use super::{Answer, Entry, Error, Grant, Key, LeaseId, Listing, Outcome, Prefix, Revision, Store, Txn, Update, Watch};

/// How many revisions are remembered for watches.
const HISTORY_LIMIT: usize = 1024;

/// A [`Store`] inside this process. Clones share one state.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// No async lock: those hand themselves to whoever is next in line, and a watch that stands in line while nobody polls
    /// it, as between two looks of a `select!`, would keep its own task's other calls waiting for ever.
    state: Mutex<State>,
    /// Wakes the watches: the history or the next expiry may have changed.
    changed: watch::Sender<()>,
    disk: Option<Disk>,
}

impl MemoryStore {
    /// An empty store that ends with the process.
    pub fn new() -> Self {
        Self::with_history(HISTORY_LIMIT)
    }

    /// An empty store that remembers only so many revisions for its watches.
    pub fn with_history(limit: usize) -> Self {
        Self::over(State::new(Revision::FIRST, Vec::new(), limit), None)
    }

    /// A store whose unleased keys persist in `directory`, which is made where it is missing.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] where another store has the directory, [`Error::Corrupt`], [`Error::Disk`].
    pub async fn open(directory: impl Into<PathBuf>) -> Result<Self, Error> {
        let directory = directory.into();
        let (disk, state) = blocking(move || Disk::open(&directory, HISTORY_LIMIT)).await?;
        Ok(Self::over(state, Some(disk)))
    }

    fn over(state: State, disk: Option<Disk>) -> Self {
        let shared = Shared { state: Mutex::new(state), changed: watch::Sender::new(()), disk };
        Self { shared: Arc::new(shared) }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Shared {
    /// The state as of now: leases that are over have ended.
    fn state(&self) -> MutexGuard<'_, State> {
        // What panics under the lock has not changed the state yet, or all of it.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.revision();
        state.expire(Instant::now());
        if state.revision() != before {
            self.changed.send_replace(());
        }
        state
    }

    /// Commits, to disk first where durable keys change. With a disk it runs on a blocking thread, to its end even if
    /// nobody waits for it any more, so that memory and disk never part; who wants the state meanwhile waits for the disk.
    fn commit(&self, txn: &Txn) -> Result<Outcome, Error> {
        let mut state = self.state();
        let outcome = match &self.disk {
            None => state.commit(txn)?,
            Some(disk) => {
                let mut next = state.clone();
                let outcome = next.commit(txn)?;
                if !next.durable().eq(state.durable()) {
                    disk.save(&next)?;
                }
                *state = next;
                outcome
            }
        };
        drop(state);
        self.changed.send_replace(());
        Ok(outcome)
    }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        Box::pin(async move { Ok(self.shared.state().get(key).cloned()) })
    }

    fn list<'a>(&'a self, prefix: &'a Prefix) -> Answer<'a, Listing> {
        Box::pin(async move { Ok(self.shared.state().list(prefix)) })
    }

    fn commit(&self, txn: Txn) -> Answer<'_, Outcome> {
        Box::pin(async move {
            let shared = self.shared.clone();
            match &self.shared.disk {
                None => shared.commit(&txn),
                Some(_) => blocking(move || shared.commit(&txn)).await,
            }
        })
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, Grant> {
        Box::pin(async move {
            let grant = self.shared.state().grant(ttl, Instant::now());
            self.shared.changed.send_replace(());
            Ok(grant)
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, Duration> {
        Box::pin(async move { self.shared.state().keep_alive(lease, Instant::now()) })
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        Box::pin(async move {
            self.shared.state().revoke(lease)?;
            self.shared.changed.send_replace(());
            Ok(())
        })
    }

    fn watch<'a>(&'a self, prefix: &'a Prefix, after: Revision) -> Answer<'a, Watch> {
        let cursor = Cursor {
            shared: self.shared.clone(),
            changed: self.shared.changed.subscribe(),
            prefix: prefix.clone(),
            after,
            ready: VecDeque::new(),
        };
        let watch: Watch = Box::pin(stream::unfold(Some(cursor), |cursor| async {
            let mut cursor = cursor?;
            match cursor.next().await {
                Ok(update) => Some((Ok(update), Some(cursor))),
                Err(error) => Some((Err(error), None)),
            }
        }));
        Box::pin(async { Ok(watch) })
    }

    fn revision(&self) -> Answer<'_, Revision> {
        Box::pin(async move { Ok(self.shared.state().revision()) })
    }
}

/// Where a watch stands. It holds no queue of its own but what one look at the history gave: one that reads too slowly
/// is told that history was compacted.
struct Cursor {
    shared: Arc<Shared>,
    changed: watch::Receiver<()>,
    prefix: Prefix,
    after: Revision,
    ready: VecDeque<Update>,
}

impl Cursor {
    async fn next(&mut self) -> Result<Update, Error> {
        loop {
            if let Some(update) = self.ready.pop_front() {
                return Ok(update);
            }
            self.changed.mark_unchanged();
            let next_expiry = {
                let state = self.shared.state();
                self.ready = state.updates(&self.prefix, self.after)?;
                self.after = self.after.max(state.revision());
                state.next_expiry()
            };
            if self.ready.is_empty() {
                self.wait(next_expiry).await;
            }
        }
    }

    async fn wait(&mut self, next_expiry: Option<Instant>) {
        let expiry = async {
            match next_expiry {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The sender lives in `shared`, so this cannot fail.
            _ = self.changed.changed() => {}
            () = expiry => {}
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Failed { reason: error.to_string() }),
    }
}
