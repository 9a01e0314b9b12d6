//! How many requests of a tenant may be under way at once, across all routers: each router leases some of the limit
//! through the store, bound to its own lease there, so that what a lost router had returns by itself.
//!
//! The routers together hold at most the limit. Only one that the store has given up, and that still answers what it
//! had begun, comes on top of that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use penstock_cluster::Store;
use penstock_cluster::store::{self, Entry, Expect, Key, LeaseId, Outcome, Prefix, Txn};
use tokio::sync::Mutex;

const PREFIX: &str = "/penstock/v1/limits/concurrent/";
/// Slices that a limit is leased in.
const SLICES: u64 = 16;
/// Tries to change what is leased while other routers do.
const ATTEMPTS: usize = 64;

/// A place among a tenant's requests; dropping it frees it.
#[derive(Debug)]
pub struct Slot {
    in_use: Arc<AtomicU64>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.in_use.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One tenant's limit, as one router takes from it.
#[derive(Debug)]
pub struct Slots {
    store: Arc<dyn Store>,
    /// Put with every change, so that of two changes at once one fails.
    guard: Key,
    /// What each router has leased, under its name.
    routers: Prefix,
    own: Key,
    lease: LeaseId,
    limit: u64,
    in_use: Arc<AtomicU64>,
    leased: Mutex<u64>,
}

impl Slots {
    /// The limit of a tenant for the router of that name, whose lease is kept alive elsewhere. Once that has ended, this
    /// fails, and a new one with a new lease takes its place.
    pub fn new(store: Arc<dyn Store>, tenant: &str, router: &str, lease: LeaseId, limit: u64) -> Self {
        let prefix = Prefix::new(PREFIX);
        let routers = Prefix::new(prefix.key(format!("routers/{tenant}/")).as_str());
        Self {
            store,
            guard: prefix.key(format!("guard/{tenant}")),
            own: routers.key(router),
            routers,
            lease,
            limit,
            in_use: Arc::default(),
            leased: Mutex::default(),
        }
    }

    /// Takes a place, leasing some where none is in hand; None where the limit is reached.
    ///
    /// # Errors
    ///
    /// Where some have to be leased and the store does not answer, or the router's lease has ended.
    pub async fn take(&self) -> Result<Option<Slot>, store::Error> {
        let mut leased = self.leased.lock().await;
        if self.in_use.load(Ordering::Acquire) >= *leased {
            let slice = (self.limit / SLICES).max(1);
            *leased = self.change(|own, room| own + slice.min(room)).await?;
        }
        // Only this adds, one at a time.
        if self.in_use.load(Ordering::Acquire) >= *leased {
            return Ok(None);
        }
        self.in_use.fetch_add(1, Ordering::AcqRel);
        Ok(Some(Slot { in_use: Arc::clone(&self.in_use) }))
    }

    /// Gives back what is in hand beyond one slice; to be called now and then.
    ///
    /// # Errors
    ///
    /// As [`Slots::take`].
    pub async fn give_back(&self) -> Result<(), store::Error> {
        let mut leased = self.leased.lock().await;
        let keep = self.in_use.load(Ordering::Acquire) + (self.limit / SLICES).max(1);
        if *leased > keep {
            *leased = self.change(|own, _| own.min(keep)).await?;
        }
        Ok(())
    }

    /// Changes what this router has leased, given that and the room there is; returns what it then has.
    async fn change(&self, to: impl Fn(u64, u64) -> u64) -> Result<u64, store::Error> {
        for _ in 0..ATTEMPTS {
            // Whatever is leased after this read changes the guard.
            let guard = self.store.get(&self.guard).await?;
            let entries = self.store.list(&self.routers).await?.entries;
            let all: u64 = entries.iter().map(amount).sum();
            let own = entries.iter().find(|entry| entry.key == self.own).map_or(0, amount);
            let after = to(own, self.limit.saturating_sub(all));
            if after == own {
                return Ok(own);
            }
            let expect = match guard {
                None => Expect::Absent(self.guard.clone()),
                Some(entry) => Expect::Modified(self.guard.clone(), entry.modified),
            };
            let txn = Txn::new().expect(expect).put(self.guard.clone(), "");
            let txn = txn.put_leased(self.own.clone(), after.to_string(), self.lease);
            match self.store.commit(txn).await? {
                Outcome::Committed { .. } => return Ok(after),
                Outcome::Conflict { .. } => {}
            }
        }
        Err(store::Error::Failed { reason: "too many routers lease the same limit at once".to_owned() })
    }
}

/// What an entry says is leased. One that says nothing counts as all there could be: it fails closed.
fn amount(entry: &Entry) -> u64 {
    let amount = std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse::<u32>().ok());
    u64::from(amount.unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use penstock_cluster::store::MemoryStore;
    use tokio::task::JoinSet;

    use super::*;

    async fn slots(store: &Arc<dyn Store>, router: &str, limit: u64) -> Slots {
        let grant = store.grant(Duration::from_secs(60)).await.unwrap();
        Slots::new(Arc::clone(store), "t", router, grant.lease, limit)
    }

    async fn take_all(slots: &Slots) -> Vec<Slot> {
        let mut taken = Vec::new();
        while let Some(slot) = slots.take().await.unwrap() {
            taken.push(slot);
        }
        taken
    }

    #[tokio::test]
    async fn what_one_router_frees_another_may_take() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let (one, two) = (slots(&store, "one", 10).await, slots(&store, "two", 10).await);
        let taken = take_all(&one).await;
        assert_eq!(taken.len(), 10);
        assert!(two.take().await.unwrap().is_none());
        drop(taken);
        one.give_back().await.unwrap();
        assert_eq!(take_all(&two).await.len(), 9, "the other keeps one slice");
    }

    #[tokio::test]
    async fn what_a_lost_router_had_returns_with_its_lease() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let (lost, two) = (slots(&store, "lost", 10).await, slots(&store, "two", 10).await);
        let taken = take_all(&lost).await;
        store.revoke(lost.lease).await.unwrap();
        assert_eq!(take_all(&two).await.len(), 10);
        drop(taken);
        lost.give_back().await.unwrap();
        let ended = Slots::new(Arc::clone(&store), "other", "lost", lost.lease, 10).take().await;
        assert!(matches!(ended, Err(store::Error::LeaseNotFound { .. })), "{ended:?}");
    }

    #[tokio::test]
    async fn routers_together_never_hold_more_than_the_limit() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let held = Arc::new(AtomicU64::new(0));
        let mut routers = JoinSet::new();
        for router in ["one", "two", "three"] {
            let (slots, held) = (Arc::new(slots(&store, router, 20).await), Arc::clone(&held));
            for client in 0..15_usize {
                let (slots, held) = (Arc::clone(&slots), Arc::clone(&held));
                routers.spawn(async move {
                    let mut served = 0;
                    for round in 0..30 {
                        if let Some(slot) = slots.take().await.unwrap() {
                            assert!(held.fetch_add(1, Ordering::AcqRel) < 20);
                            for _ in 0..(client + round) % 7 {
                                tokio::task::yield_now().await;
                            }
                            held.fetch_sub(1, Ordering::AcqRel);
                            drop(slot);
                            served += 1;
                        }
                        if round % 5 == 0 {
                            slots.give_back().await.unwrap();
                        }
                    }
                    served
                });
            }
        }
        assert!(routers.join_all().await.iter().sum::<u32>() >= 20);
        assert_eq!(held.load(Ordering::Acquire), 0);
    }
}
