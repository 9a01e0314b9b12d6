//! A store behind a link that tests can cut: one process's way to it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use penstock_cluster::store::{
    Answer, Entry, Error, Grant, Key, LeaseId, Listing, Outcome, Prefix, Revision, Store, Txn, Watch,
};
use tokio::sync::watch;
use tokio::time::sleep;

/// Calls fail after a second while the link is cut, and watches are silent.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    /// Where it leads; another one as after a restore from a backup.
    pub(crate) store: Arc<Mutex<Arc<dyn Store>>>,
    up: Arc<watch::Sender<bool>>,
    /// So many of the next commits are made, and their answers get lost.
    pub(crate) lost_answers: Arc<AtomicUsize>,
}

impl Link {
    pub(crate) fn to(store: Arc<dyn Store>) -> Self {
        let store = Arc::new(Mutex::new(store));
        Self { store, up: Arc::new(watch::Sender::new(true)), lost_answers: Arc::default() }
    }

    pub(crate) fn cut(&self) {
        self.up.send_replace(false);
    }

    pub(crate) fn mend(&self) {
        self.up.send_replace(true);
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.lock().unwrap().clone()
    }

    fn call<'a, T, F>(&'a self, call: impl FnOnce(Arc<dyn Store>) -> F + Send + 'a) -> Answer<'a, T>
    where
        F: Future<Output = Result<T, Error>> + Send + 'a,
    {
        Box::pin(async move {
            if *self.up.borrow() {
                return call(self.store()).await;
            }
            sleep(Duration::from_secs(1)).await;
            Err(Error::Unavailable { reason: "the link is cut".to_owned() })
        })
    }
}

impl Store for Link {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        self.call(move |store| async move { store.get(key).await })
    }

    fn list<'a>(&'a self, prefix: &'a Prefix) -> Answer<'a, Listing> {
        self.call(move |store| async move { store.list(prefix).await })
    }

    fn commit(&self, txn: Txn) -> Answer<'_, Outcome> {
        self.call(move |store| async move {
            let outcome = store.commit(txn).await;
            let less = |count: usize| count.checked_sub(1);
            match self.lost_answers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
                Ok(_) => Err(Error::Unavailable { reason: "the answer got lost".to_owned() }),
                Err(_) => outcome,
            }
        })
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, Grant> {
        self.call(move |store| async move { store.grant(ttl).await })
    }

    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, Duration> {
        self.call(move |store| async move { store.keep_alive(lease).await })
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        self.call(move |store| async move { store.revoke(lease).await })
    }

    fn watch<'a>(&'a self, prefix: &'a Prefix, after: Revision) -> Answer<'a, Watch> {
        self.call(move |store| async move {
            let up = self.up.subscribe();
            let watch = store.watch(prefix, after).await?.then(move |item| {
                let mut up = up.clone();
                async move {
                    up.wait_for(|up| *up).await.expect("the link outlives its watches");
                    item
                }
            });
            Ok(Box::pin(watch) as Watch)
        })
    }

    fn revision(&self) -> Answer<'_, Revision> {
        self.call(move |store| async move { store.revision().await })
    }
}
