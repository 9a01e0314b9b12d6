//! A store that can be lost for a while: calls fail, and watches are silent until it is back.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use penstock_cluster::Store;
use penstock_cluster::store::{
    Answer, Entry, Error, Grant, Key, LeaseId, Listing, MemoryStore, Outcome, Prefix, Revision, Txn, Watch,
};
use tokio::sync::watch;

#[derive(Debug)]
pub(crate) struct Losable {
    inner: MemoryStore,
    lost: Arc<watch::Sender<bool>>,
}

impl Losable {
    pub(crate) fn new() -> Self {
        Self { inner: MemoryStore::new(), lost: Arc::new(watch::Sender::new(false)) }
    }

    /// Loses it, or gives it back.
    pub(crate) fn lose(&self, lost: bool) {
        self.lost.send_replace(lost);
    }

    fn call<'a, T: 'a>(&self, call: Answer<'a, T>) -> Answer<'a, T> {
        if *self.lost.borrow() {
            return Box::pin(async { Err(Error::Unavailable { reason: "lost for a while".to_owned() }) });
        }
        call
    }
}

impl Store for Losable {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        self.call(self.inner.get(key))
    }

    fn list<'a>(&'a self, prefix: &'a Prefix) -> Answer<'a, Listing> {
        self.call(self.inner.list(prefix))
    }

    fn commit(&self, txn: Txn) -> Answer<'_, Outcome> {
        self.call(self.inner.commit(txn))
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, Grant> {
        self.call(self.inner.grant(ttl))
    }

    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, Duration> {
        self.call(self.inner.keep_alive(lease))
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        self.call(self.inner.revoke(lease))
    }

    fn watch<'a>(&'a self, prefix: &'a Prefix, after: Revision) -> Answer<'a, Watch> {
        let lost = Arc::clone(&self.lost);
        let watching = self.call(self.inner.watch(prefix, after));
        Box::pin(async move {
            let held = watching.await?.then(move |update| {
                let mut lost = lost.subscribe();
                async move {
                    // The sender lives as long as this closure.
                    drop(lost.wait_for(|lost| !lost).await);
                    update
                }
            });
            Ok(held.boxed())
        })
    }

    fn revision(&self) -> Answer<'_, Revision> {
        self.call(self.inner.revision())
    }
}
