//! For tests: a store that fails when it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use penstock_cluster::Store;
use penstock_cluster::store::{
    self, Answer, Entry, Grant, Key, LeaseId, Listing, MemoryStore, Outcome, Prefix, Revision, Txn, Watch,
};

/// A store that can be cut off, and that counts how often it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    store: MemoryStore,
    cut: Arc<AtomicBool>,
    /// What is cut off does not answer at all, rather than fail.
    silent: bool,
    /// What is committed is, and nobody hears of it.
    lossy: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
}

impl Link {
    pub(crate) fn new(store: &MemoryStore) -> Self {
        Self { store: store.clone(), cut: Arc::default(), silent: false, lossy: Arc::default(), calls: Arc::default() }
    }

    /// One that answers nothing at all while it is cut off.
    pub(crate) fn silent(store: &MemoryStore) -> Self {
        Self { silent: true, ..Self::new(store) }
    }

    pub(crate) fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Release);
    }

    pub(crate) fn lose_answers(&self, lossy: bool) {
        self.lossy.store(lossy, Ordering::Release);
    }

    /// All is well again.
    pub(crate) fn heal(&self) {
        self.cut(false);
        self.lose_answers(false);
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Acquire)
    }

    fn pass<'a, T: Send + 'a>(&self, answer: Answer<'a, T>) -> Answer<'a, T> {
        self.calls.fetch_add(1, Ordering::AcqRel);
        match (self.cut.load(Ordering::Acquire), self.silent) {
            (false, _) => answer,
            (true, false) => {
                let reason = "it is cut off".to_owned();
                Box::pin(async { Err(store::Error::Unavailable { reason }) })
            }
            (true, true) => Box::pin(std::future::pending()),
        }
    }
}

impl Store for Link {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        self.pass(self.store.get(key))
    }

    fn list<'a>(&'a self, prefix: &'a Prefix) -> Answer<'a, Listing> {
        self.pass(self.store.list(prefix))
    }

    fn commit(&self, txn: Txn) -> Answer<'_, Outcome> {
        let committed = self.pass(self.store.commit(txn));
        if !self.lossy.load(Ordering::Acquire) {
            return committed;
        }
        Box::pin(async {
            committed.await?;
            Err(store::Error::Unavailable { reason: "the answer is lost".to_owned() })
        })
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, Grant> {
        self.pass(self.store.grant(ttl))
    }

    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, Duration> {
        self.pass(self.store.keep_alive(lease))
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        self.pass(self.store.revoke(lease))
    }

    fn watch<'a>(&'a self, prefix: &'a Prefix, after: Revision) -> Answer<'a, Watch> {
        self.pass(self.store.watch(prefix, after))
    }

    fn revision(&self) -> Answer<'_, Revision> {
        self.pass(self.store.revision())
    }
}
