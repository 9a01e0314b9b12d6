//! How much of something a tenant may take in a minute, across all routers: each router leases slices of the minute's
//! limit through the store, and takes from what it has in hand.
//!
//! Minutes are the wall clock's, the same for all. What was leased is never handed back to the store, so the routers
//! together take at most the limit, and a router that has a part of a slice left may keep that much from the others.
//! While the store is away each router counts by itself, up to the whole limit; what it took so is leased first once the
//! store is back.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use penstock_cluster::Store;
use penstock_cluster::store::{self, Expect, Key, Outcome, Prefix, Txn};
use serde::{Deserialize, Serialize};

use super::backing::Backing;

const PREFIX: &str = "/penstock/v1/limits/";
/// Slices that a minute's limit is leased in.
const SLICES: u64 = 16;
/// Tries to lease a slice while other routers do.
const ATTEMPTS: usize = 64;

/// A minute of the wall clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Minute(u64);

impl Minute {
    /// The minute of a time since 1970.
    pub(super) const fn of(time: Duration) -> Self {
        Self(time.as_secs() / 60)
    }

    /// From a time since 1970 until the minute ends, in whole seconds.
    pub(super) fn left(time: Duration) -> u32 {
        u32::try_from(60 - time.as_secs() % 60).expect("at most 60")
    }
}

/// Whether something may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It was taken, of this minute's.
    Granted(Minute),
    /// The minute's limit is spent.
    Spent,
}

/// One kind of limit of one tenant, as one router takes from it. How high it is comes with every call: what was taken of
/// a minute counts under the next catalogue too.
#[derive(Debug)]
pub(super) struct Rate {
    key: Key,
    hand: Mutex<Hand>,
    leasing: tokio::sync::Mutex<()>,
}

impl Rate {
    /// A limit that all routers know by the same tenant and kind (`requests`, `tokens`).
    pub(super) fn new(tenant: &str, kind: &str) -> Self {
        let key = Prefix::new(PREFIX).key(format!("{kind}/{tenant}"));
        Self { key, hand: Mutex::default(), leasing: tokio::sync::Mutex::default() }
    }

    /// Takes from the limit of the current minute, leasing a slice where there is not enough in hand. A caller that goes
    /// away while it waits for the store leaves a slice that nobody has.
    pub(super) async fn take(&self, backing: &Backing, now: Minute, (amount, limit): (u64, u64)) -> Taken {
        if let Tried::Known(taken) = self.hand().take(now, amount, limit) {
            return taken;
        }
        let _one_at_a_time = self.leasing.lock().await;
        loop {
            // Another may have leased enough for this one, or a smaller one may have taken what this one missed.
            let (minute, missing) = match self.hand().take(now, amount, limit) {
                Tried::Known(taken) => return taken,
                Tried::Missing { minute, amount } => (minute, amount),
            };
            match backing.ask(self.lease(&*backing.store, minute, (missing, limit))).await {
                Some(leased) => self.hand().add(minute, leased, (missing, limit)),
                None => return self.hand().take_alone(now, amount, limit),
            }
        }
    }

    /// Corrects what was taken of a minute, once it is known what was used. It has no effect on a minute that is over.
    pub(super) fn settle(&self, minute: Minute, reserved: u64, used: u64) {
        let mut hand = self.hand();
        if hand.minute == minute {
            hand.taken = hand.taken.saturating_sub(reserved).saturating_add(used);
        }
    }

    /// Whether nothing of this minute was taken.
    pub(super) fn idle(&self, now: Minute) -> bool {
        self.hand().minute < now
    }

    /// Leases a slice that covers `missing`, or whatever is left of the limit.
    async fn lease(&self, store: &dyn Store, now: Minute, (missing, limit): (u64, u64)) -> Result<u64, store::Error> {
        for _ in 0..ATTEMPTS {
            let entry = store.get(&self.key).await?;
            let record = entry.as_ref().and_then(|entry| serde_json::from_slice(&entry.value).ok());
            let (after, leased) = Leased::lease(record.unwrap_or_default(), now, (missing, limit));
            if leased == 0 {
                return Ok(0);
            }
            let expect = match &entry {
                None => Expect::Absent(self.key.clone()),
                Some(entry) => Expect::Modified(self.key.clone(), entry.modified),
            };
            let value = serde_json::to_vec(&after).expect("a record of two numbers is JSON");
            match store.commit(Txn::new().expect(expect).put(self.key.clone(), value)).await? {
                Outcome::Committed { .. } => return Ok(leased),
                Outcome::Conflict { .. } => {}
            }
        }
        Err(store::Error::Failed { reason: "too many routers lease the same limit at once".to_owned() })
    }

    fn hand(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a router has leased and taken of a minute's limit. More may be taken than leased: while the store was away, or
/// where more was used than had been reserved.
#[derive(Debug, Default)]
struct Hand {
    minute: Minute,
    leased: u64,
    taken: u64,
    /// The store had nothing more to lease of a limit of this height, and will not until the minute is over.
    spent: Option<u64>,
}

enum Tried {
    Known(Taken),
    /// So much of that minute has to be leased first.
    Missing {
        minute: Minute,
        amount: u64,
    },
}

impl Hand {
    /// What was leased of another minute counts for nothing. One who read the clock before the minute changed takes from
    /// the new one.
    fn turn(&mut self, now: Minute) {
        if now > self.minute {
            *self = Self { minute: now, ..Self::default() };
        }
    }

    fn take(&mut self, now: Minute, amount: u64, limit: u64) -> Tried {
        self.turn(now);
        let after = self.taken.saturating_add(amount);
        if after > limit {
            return Tried::Known(Taken::Spent);
        }
        match after.checked_sub(self.leased).filter(|missing| *missing > 0) {
            None => {
                self.taken = after;
                Tried::Known(Taken::Granted(self.minute))
            }
            Some(_) if self.spent.is_some_and(|spent| limit <= spent) => Tried::Known(Taken::Spent),
            Some(amount) => Tried::Missing { minute: self.minute, amount },
        }
    }

    fn take_alone(&mut self, now: Minute, amount: u64, limit: u64) -> Taken {
        self.turn(now);
        let after = self.taken.saturating_add(amount);
        if after > limit {
            return Taken::Spent;
        }
        self.taken = after;
        Taken::Granted(self.minute)
    }

    fn add(&mut self, minute: Minute, leased: u64, (missing, limit): (u64, u64)) {
        if self.minute == minute {
            self.leased += leased;
            if leased < missing {
                self.spent = Some(limit);
            }
        }
    }
}

/// What all routers together have leased of a minute's limit; the store's record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Leased {
    minute: Minute,
    amount: u64,
}

impl Leased {
    /// The record after one more slice, and how large that is: a sixteenth of the limit or what is missing, as far as
    /// there is room. Nothing is leased of a minute that others have left behind: their clocks are right or ours is, and
    /// only one of them may count.
    fn lease(self, now: Minute, (missing, limit): (u64, u64)) -> (Self, u64) {
        if now < self.minute {
            return (self, 0);
        }
        let before = if now > self.minute { 0 } else { self.amount };
        let leased = missing.max(limit / SLICES).min(limit.saturating_sub(before));
        (Self { minute: now, amount: before + leased }, leased)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use penstock_cluster::store::MemoryStore;
    use proptest::prelude::*;
    use tokio::task::JoinSet;

    use super::*;

    fn backing(store: &MemoryStore) -> Backing {
        Backing::new(Arc::new(store.clone()), "r")
    }

    #[test]
    fn a_minute_ends_on_the_wall_clock() {
        assert_eq!(Minute::of(Duration::from_secs(119)), Minute(1));
        assert_eq!(Minute::left(Duration::from_secs(119)), 1);
        assert_eq!(Minute::left(Duration::from_secs(120)), 60);
    }

    #[tokio::test]
    async fn routers_together_take_the_limit_and_no_more() {
        let store = MemoryStore::new();
        for minute in 1..=3 {
            let mut routers = JoinSet::new();
            for _ in 0..3 {
                let (backing, rate) = (backing(&store), Rate::new("t", "requests"));
                routers.spawn(async move {
                    let mut granted = 0;
                    for _ in 0..200 {
                        let taken = rate.take(&backing, Minute(minute), (1, 100)).await;
                        granted += u32::from(taken == Taken::Granted(Minute(minute)));
                        tokio::task::yield_now().await;
                    }
                    granted
                });
            }
            let granted: u32 = routers.join_all().await.iter().sum();
            assert_eq!(granted, 100, "each asks until nothing is left, so nothing is kept from the others");
        }
    }

    #[tokio::test]
    async fn a_minute_that_others_left_behind_gives_nothing() {
        let store = MemoryStore::new();
        let take = async |minute| Rate::new("t", "r").take(&backing(&store), Minute(minute), (1, 10)).await;
        assert_eq!(take(2).await, Taken::Granted(Minute(2)));
        assert_eq!(take(1).await, Taken::Spent);
    }

    #[tokio::test]
    async fn what_is_spent_is_known_without_asking_again_until_the_limit_rises() {
        let store = MemoryStore::new();
        let (backing, rate) = (backing(&store), Rate::new("t", "r"));
        let others = Rate::new("t", "r");
        assert_eq!(others.take(&backing, Minute(1), (8, 10)).await, Taken::Granted(Minute(1)));
        assert_eq!(rate.take(&backing, Minute(1), (3, 10)).await, Taken::Spent);
        store.delete(rate.key.clone()).await.unwrap();
        assert_eq!(rate.take(&backing, Minute(1), (3, 10)).await, Taken::Spent, "the store was not asked");
        assert_eq!(rate.take(&backing, Minute(1), (2, 10)).await, Taken::Granted(Minute(1)), "from what is in hand");
        assert_eq!(rate.take(&backing, Minute(1), (3, 20)).await, Taken::Granted(Minute(1)));
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit_in_any_order(
            limit in 1..500_u64,
            takes in prop::collection::vec((0..4_usize, 0..3_u64, 1..60_u64, 0..80_u64), 0..400),
        ) {
            let mut record = Leased::default();
            let mut hands: Vec<Hand> = (0..4).map(|_| Hand::default()).collect();
            let mut taken = [0_u64; 3];
            for (router, minute, amount, used) in takes {
                let hand = &mut hands[router];
                let mut tried = hand.take(Minute(minute), amount, limit);
                if let Tried::Missing { minute, amount: missing } = tried {
                    let (after, leased) = record.lease(minute, (missing, limit));
                    record = after;
                    hand.add(minute, leased, (missing, limit));
                    tried = hand.take(minute, amount, limit);
                }
                if let Tried::Known(Taken::Granted(minute)) = tried {
                    // A part of it comes back to the hand that took it.
                    let used = used.min(amount);
                    hand.taken -= amount - used;
                    taken[usize::try_from(minute.0).unwrap()] += used;
                }
            }
            prop_assert!(taken.iter().all(|taken| *taken <= limit), "{:?} of {}", taken, limit);
        }
    }
}
