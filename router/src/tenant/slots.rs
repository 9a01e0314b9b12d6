//! How many requests of a tenant may be under way at once, across all routers: each router leases places through the
//! store, bound to its own lease there, so that what a lost router had returns by itself.
//!
//! The routers together hold at most the limit. Only one that the store has given up, and that still answers what it
//! had begun, comes on top of that, and what each router admits by itself while the store is away.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use penstock_cluster::store::{self, Entry, Expect, Key, LeaseId, Outcome, Prefix, Txn};
use tokio::time::Instant;

use super::backing::Backing;

const PREFIX: &str = "/penstock/v1/limits/concurrent/";
/// Slices that a limit is leased in.
const SLICES: u64 = 16;
/// Tries to change what is leased while other routers do.
const ATTEMPTS: usize = 64;
/// How long the store's word that a limit is reached stands, so that a flood of requests is not one of the store's too.
const FULL: Duration = Duration::from_millis(100);

/// A place among a tenant's requests; dropping it frees it.
#[derive(Debug)]
pub(super) struct Slot {
    count: Arc<Mutex<Count>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.count).in_use -= 1;
    }
}

/// The places of one tenant, as one router takes from them. How many there are comes with every call: what is under way
/// counts under the next catalogue too.
#[derive(Debug)]
pub(super) struct Slots {
    /// Put with every change, so that of two changes at once one fails.
    guard: Key,
    /// What each router has leased, under its name.
    routers: Prefix,
    own: Key,
    count: Arc<Mutex<Count>>,
    leasing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Count {
    in_use: u64,
    /// The most that were in use since places were last given back.
    peak: u64,
    leased: u64,
    /// What those are bound to; nothing is leased under another.
    lease: Option<LeaseId>,
    /// Until then there is no place at this limit.
    full: Option<(Instant, u64)>,
    /// The highest limit that places were leased at; a lower one may be exceeded by what all have.
    highest: u64,
}

impl Count {
    fn enter(&mut self) {
        self.in_use += 1;
        self.peak = self.peak.max(self.in_use);
    }
}

/// What all routers have leased.
#[derive(Debug, Clone, Copy)]
struct Leased {
    own: u64,
    others: u64,
}

impl Slots {
    /// The places of a tenant, for the router of that name.
    pub(super) fn new(tenant: &str, router: &str) -> Self {
        let prefix = Prefix::new(PREFIX);
        // The name of another tenant may begin with this one's and a slash; none has a colon.
        let tenant = tenant.replace('/', ":");
        let routers = Prefix::new(prefix.key(format!("routers/{tenant}/")).as_str());
        Self {
            guard: prefix.key(format!("guard/{tenant}")),
            own: routers.key(router),
            routers,
            count: Arc::default(),
            leasing: tokio::sync::Mutex::default(),
        }
    }

    /// Takes a place, leasing some where none is in hand; None where the limit is reached.
    pub(super) async fn take(&self, backing: &Backing, limit: u64) -> Option<Slot> {
        if let Some(known) = self.try_take(backing, limit) {
            return known;
        }
        let _one_at_a_time = self.leasing.lock().await;
        if let Some(known) = self.try_take(backing, limit) {
            return known;
        }
        let need = lock(&self.count).in_use + 1;
        let slice = (limit / SLICES).max(1);
        let more = |Leased { own, others }: Leased| {
            let room = limit.saturating_sub(own + others);
            own + need.saturating_sub(own).max(slice).min(room)
        };
        let answer = backing.ask(self.change(backing, more)).await;
        let mut count = lock(&self.count);
        let within = match answer {
            Some((lease, leased)) => {
                (count.lease, count.leased) = (Some(lease), leased.own);
                count.highest = count.highest.max(limit);
                leased.own.min(limit)
            }
            None => limit,
        };
        if count.in_use >= within {
            count.full = Some((Instant::now() + FULL, limit));
            return None;
        }
        count.enter();
        Some(Slot { count: Arc::clone(&self.count) })
    }

    /// Gives back what has not been in use lately, and this router's part of what is above a limit that was lowered; to
    /// be called now and then.
    pub(super) async fn give_back(&self, backing: &Backing, limit: u64) {
        let _one_at_a_time = self.leasing.lock().await;
        let keep = {
            let mut count = lock(&self.count);
            let keep = count.peak;
            count.peak = count.in_use;
            let needless = count.leased <= keep && limit >= count.highest;
            if needless || count.lease.is_none() || backing.lease() != count.lease {
                return;
            }
            keep
        };
        // Of what is above the limit each gives a part, in proportion to what it has.
        let fewer = |Leased { own, others }: Leased| match own + others {
            all if all > limit => own.min(keep).min(own * limit / all),
            _ => own.min(keep),
        };
        if let Some((lease, leased)) = backing.ask(self.change(backing, fewer)).await {
            let mut count = lock(&self.count);
            (count.lease, count.leased) = (Some(lease), leased.own);
            if leased.own + leased.others <= limit {
                count.highest = limit;
            }
        }
    }

    /// Whether this router has no part in it.
    pub(super) fn idle(&self) -> bool {
        let count = lock(&self.count);
        count.in_use == 0 && count.peak == 0 && count.leased == 0
    }

    /// Takes a place that is in hand, or knows that there is none; None where the store has to be asked.
    fn try_take(&self, backing: &Backing, limit: u64) -> Option<Option<Slot>> {
        let lease = backing.lease();
        let mut count = lock(&self.count);
        if lease.is_some() && lease == count.lease && count.in_use < count.leased.min(limit) {
            count.enter();
            return Some(Some(Slot { count: Arc::clone(&self.count) }));
        }
        let full = count.full.is_some_and(|(until, at)| limit <= at && Instant::now() < until);
        (count.in_use >= limit || full).then_some(None)
    }

    /// Changes what this router has leased, given what all have; returns what all then have, and this one under which lease.
    async fn change(&self, backing: &Backing, to: impl Fn(Leased) -> u64) -> Result<(LeaseId, Leased), store::Error> {
        for _ in 0..ATTEMPTS {
            let lease = backing.granted().await?;
            // Whatever is leased after this read changes the guard.
            let guard = backing.store.get(&self.guard).await?;
            let entries = backing.store.list(&self.routers).await?.entries;
            let all: u64 = entries.iter().map(amount).sum();
            let entry = entries.iter().find(|entry| entry.key == self.own);
            let own = entry.map_or(0, amount);
            let leased = Leased { own, others: all - own };
            let after = to(leased);
            // What a former lease of this router's holds has to come under this one before it ends.
            if after == own && entry.is_none_or(|entry| entry.lease == Some(lease)) {
                return Ok((lease, leased));
            }
            let expect = match guard {
                None => Expect::Absent(self.guard.clone()),
                Some(entry) => Expect::Modified(self.guard.clone(), entry.modified),
            };
            let txn = Txn::new().expect(expect).put(self.guard.clone(), "");
            let txn = txn.put_leased(self.own.clone(), after.to_string(), lease);
            match backing.store.commit(txn).await {
                Ok(Outcome::Committed { .. }) => return Ok((lease, Leased { own: after, ..leased })),
                Ok(Outcome::Conflict { .. }) => {}
                Err(store::Error::LeaseNotFound { .. }) => backing.forget(lease),
                Err(error) => return Err(error),
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

fn lock(count: &Mutex<Count>) -> MutexGuard<'_, Count> {
    count.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use penstock_cluster::Store as _;
    use penstock_cluster::store::MemoryStore;
    use proptest::prelude::*;
    use tokio::task::JoinSet;
    use tokio::time::advance;

    use super::*;

    struct Router {
        backing: Backing,
        slots: Slots,
    }

    impl Router {
        fn new(store: &MemoryStore, name: &str) -> Self {
            Self { backing: Backing::new(Arc::new(store.clone()), name), slots: Slots::new("t", name) }
        }

        async fn take(&self, limit: u64) -> Option<Slot> {
            self.slots.take(&self.backing, limit).await
        }

        async fn take_all(&self, limit: u64) -> Vec<Slot> {
            let mut taken = Vec::new();
            while let Some(slot) = self.take(limit).await {
                taken.push(slot);
            }
            taken
        }

        async fn give_back(&self, limit: u64) {
            self.slots.give_back(&self.backing, limit).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_router_frees_another_may_take() {
        let store = MemoryStore::new();
        let (one, two) = (Router::new(&store, "one"), Router::new(&store, "two"));
        let taken = one.take_all(10).await;
        assert_eq!(taken.len(), 10);
        assert!(two.take(10).await.is_none());
        drop(taken);
        one.give_back(10).await;
        advance(FULL).await;
        assert!(two.take(10).await.is_none(), "they were in use a moment ago");
        one.give_back(10).await;
        assert!(two.take(10).await.is_none(), "the store is not asked again so soon");
        advance(FULL).await;
        assert_eq!(two.take_all(10).await.len(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_lost_router_had_returns_with_its_lease() {
        let store = MemoryStore::new();
        let (lost, two) = (Router::new(&store, "lost"), Router::new(&store, "two"));
        let taken = lost.take_all(10).await;
        store.revoke(lost.backing.lease().unwrap()).await.unwrap();
        let others = two.take_all(10).await;
        assert_eq!(others.len(), 10);
        lost.backing.tend().await;
        assert!(lost.take(10).await.is_none(), "its places are another's now");
        drop(others);
        two.give_back(10).await;
        two.give_back(10).await;
        advance(FULL).await;
        assert!(lost.take(10).await.is_none(), "what it has under way comes first");
        drop(taken);
        advance(FULL).await;
        assert_eq!(lost.take_all(10).await.len(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_nobody_kept_alive_is_taken_anew_with_its_places() {
        let store = MemoryStore::new();
        let (one, two) = (Router::new(&store, "one"), Router::new(&store, "two"));
        let taken = one.take_all(4).await;
        let first = one.backing.lease().unwrap();
        advance(Duration::from_secs(11)).await;
        assert_eq!(one.backing.lease(), None);
        drop(taken);
        let taken = one.take_all(4).await;
        assert_eq!(taken.len(), 4);
        assert_ne!(one.backing.lease(), Some(first));
        assert!(two.take(4).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn places_under_a_former_lease_come_under_the_new_one_before_that_ends() {
        let store = MemoryStore::new();
        let (one, two) = (Router::new(&store, "one"), Router::new(&store, "two"));
        drop(one.take_all(4).await);
        let former = one.backing.lease().unwrap();
        one.backing.forget(former);
        advance(FULL).await;
        let _taken = one.take(4).await.unwrap();
        store.revoke(former).await.unwrap();
        assert!(two.take(4).await.is_none(), "all four are leased still");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lower_limit_shrinks_what_each_has_and_a_tenant_is_not_another_with_a_longer_name() {
        let store = MemoryStore::new();
        let (one, two) = (Router::new(&store, "one"), Router::new(&store, "two"));
        let long = Router { slots: Slots::new("t/one", "x"), ..Router::new(&store, "x") };
        let _others = long.take_all(50).await;
        let mut at_one = Vec::new();
        for _ in 0..6 {
            at_one.push(one.take(10).await.unwrap());
        }
        let at_two = two.take_all(10).await;
        assert_eq!(at_two.len(), 4);
        for router in [&one, &two, &one, &two] {
            router.give_back(4).await;
        }
        drop(at_one);
        assert!(two.take(4).await.is_none(), "its part of the new limit is in use");
        drop(at_two);
        advance(FULL).await;
        let (one, two) = (one.take_all(4).await, two.take_all(4).await);
        assert_eq!(one.len() + two.len(), 4);
        assert!(!one.is_empty() && !two.is_empty());
    }

    #[tokio::test]
    async fn routers_together_never_hold_more_than_the_limit() {
        let store = MemoryStore::new();
        let held = Arc::new(AtomicU64::new(0));
        let mut routers = JoinSet::new();
        for name in ["one", "two", "three"] {
            let (router, held) = (Arc::new(Router::new(&store, name)), Arc::clone(&held));
            for client in 0..15_usize {
                let (router, held) = (Arc::clone(&router), Arc::clone(&held));
                routers.spawn(async move {
                    let mut served = 0;
                    for round in 0..30 {
                        if let Some(slot) = router.take(20).await {
                            assert!(held.fetch_add(1, Ordering::AcqRel) < 20);
                            for _ in 0..(client + round) % 7 {
                                tokio::task::yield_now().await;
                            }
                            held.fetch_sub(1, Ordering::AcqRel);
                            drop(slot);
                            served += 1;
                        }
                        if round % 5 == 0 {
                            router.give_back(20).await;
                        }
                    }
                    served
                });
            }
        }
        assert!(routers.join_all().await.iter().sum::<u32>() >= 20);
        assert_eq!(held.load(Ordering::Acquire), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn never_more_than_the_highest_limit_that_was_in_force(
            first in 1..40_u64,
            steps in prop::collection::vec((0..3_usize, 0..5_u8, 1..40_u64), 0..120),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let store = MemoryStore::new();
                let routers: Vec<_> = ["one", "two", "three"].map(|name| Router::new(&store, name)).into();
                let mut held: Vec<Vec<Slot>> = routers.iter().map(|_| Vec::new()).collect();
                let (mut limit, mut highest) = (first, first);
                for (at, step, number) in steps {
                    match step {
                        0..=1 => held[at].extend(routers[at].take(limit).await),
                        2 => drop(held[at].pop()),
                        3 => routers[at].give_back(limit).await,
                        _ => limit = number,
                    }
                    advance(FULL).await;
                    for router in &routers {
                        router.backing.tend().await;
                    }
                    let all: u64 = held.iter().map(|held| held.len() as u64).sum();
                    // Who was admitted under a higher limit is not sent away.
                    highest = highest.max(limit);
                    assert!(all <= highest, "{all} of {highest}");
                    if all == 0 {
                        // With nothing under way, all may have given back what is above the limit of now.
                        for router in routers.iter().chain(&routers) {
                            router.give_back(limit).await;
                        }
                        highest = limit;
                    }
                }
            });
        }
    }
}
