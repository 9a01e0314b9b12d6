//! How much of something a tenant may take in a minute, across all routers: each router leases slices of the minute's
//! limit through the store, and takes from what it has in hand.
//!
//! Minutes are the wall clock's, the same for all. What was leased is never handed back, so the routers together take at
//! most the limit, and a router that has a part of a slice left may keep that much from the others.

use std::sync::Arc;
use std::time::Duration;

use penstock_cluster::Store;
use penstock_cluster::store::{self, Expect, Key, Outcome, Prefix, Txn};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

const PREFIX: &str = "/penstock/v1/limits/";
/// Slices that a minute's limit is leased in.
const SLICES: u64 = 16;
/// Tries to lease a slice while other routers do.
const ATTEMPTS: usize = 64;

/// A minute of the wall clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Minute(u64);

impl Minute {
    /// The minute of a time since 1970.
    pub const fn of(time: Duration) -> Self {
        Self(time.as_secs() / 60)
    }

    /// From a time since 1970 until the minute ends.
    pub const fn left(time: Duration) -> Duration {
        Duration::from_secs(60 - time.as_secs() % 60)
    }
}

/// Whether something may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It was taken.
    Granted,
    /// The minute's limit is spent.
    Spent,
}

/// One limit of one tenant, as one router takes from it.
#[derive(Debug)]
pub struct Rate {
    store: Arc<dyn Store>,
    key: Key,
    limit: u64,
    hand: Mutex<Hand>,
}

impl Rate {
    /// A limit that all routers know by the same tenant and kind (`requests`, `tokens`).
    pub fn new(store: Arc<dyn Store>, tenant: &str, kind: &str, limit: u64) -> Self {
        let key = Prefix::new(PREFIX).key(format!("{kind}/{tenant}"));
        Self { store, key, limit, hand: Mutex::default() }
    }

    /// Takes from the limit of the current minute, leasing a slice where there is not enough in hand.
    ///
    /// # Errors
    ///
    /// Where a slice is needed and the store does not answer.
    pub async fn take(&self, now: Minute, amount: u64) -> Result<Taken, store::Error> {
        let mut hand = self.hand.lock().await;
        if let Some(missing) = hand.missing(now, amount) {
            let leased = self.lease(now, missing).await?;
            hand.add(leased);
        }
        Ok(hand.take(amount))
    }

    /// Leases a slice that covers `missing`, or whatever is left of the limit.
    async fn lease(&self, now: Minute, missing: u64) -> Result<u64, store::Error> {
        for _ in 0..ATTEMPTS {
            let entry = self.store.get(&self.key).await?;
            let record = entry.as_ref().and_then(|entry| serde_json::from_slice(&entry.value).ok());
            let (after, leased) = Leased::lease(record.unwrap_or_default(), now, self.limit, missing);
            if leased == 0 {
                return Ok(0);
            }
            let expect = match &entry {
                None => Expect::Absent(self.key.clone()),
                Some(entry) => Expect::Modified(self.key.clone(), entry.modified),
            };
            let value = serde_json::to_vec(&after).expect("a record of two numbers is JSON");
            match self.store.commit(Txn::new().expect(expect).put(self.key.clone(), value)).await? {
                Outcome::Committed { .. } => return Ok(leased),
                Outcome::Conflict { .. } => {}
            }
        }
        Err(store::Error::Failed { reason: "too many routers lease the same limit at once".to_owned() })
    }
}

/// What a router has in hand of a minute's limit.
#[derive(Debug, Default)]
struct Hand {
    minute: Minute,
    left: u64,
}

impl Hand {
    /// What has to be leased before an amount can be taken; what is left of another minute counts for nothing.
    fn missing(&mut self, now: Minute, amount: u64) -> Option<u64> {
        if self.minute != now {
            *self = Self { minute: now, left: 0 };
        }
        amount.checked_sub(self.left).filter(|missing| *missing > 0)
    }

    fn add(&mut self, leased: u64) {
        self.left += leased;
    }

    fn take(&mut self, amount: u64) -> Taken {
        match self.left.checked_sub(amount) {
            Some(left) => {
                self.left = left;
                Taken::Granted
            }
            None => Taken::Spent,
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
    fn lease(self, now: Minute, limit: u64, missing: u64) -> (Self, u64) {
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
    use penstock_cluster::store::MemoryStore;
    use proptest::prelude::*;
    use tokio::task::JoinSet;

    use super::*;

    #[test]
    fn a_minute_ends_on_the_wall_clock() {
        assert_eq!(Minute::of(Duration::from_secs(119)), Minute(1));
        assert_eq!(Minute::left(Duration::from_secs(119)), Duration::from_secs(1));
        assert_eq!(Minute::left(Duration::from_secs(120)), Duration::from_secs(60));
    }

    #[tokio::test]
    async fn routers_together_take_the_limit_and_no_more() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        for minute in 1..=3 {
            let mut routers = JoinSet::new();
            for _ in 0..3 {
                let rate = Rate::new(Arc::clone(&store), "t", "requests", 100);
                routers.spawn(async move {
                    let mut granted = 0;
                    for _ in 0..200 {
                        granted += u32::from(rate.take(Minute(minute), 1).await.unwrap() == Taken::Granted);
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
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let (ahead, behind) = (Rate::new(store.clone(), "t", "r", 10), Rate::new(store, "t", "r", 10));
        assert_eq!(ahead.take(Minute(2), 1).await.unwrap(), Taken::Granted);
        assert_eq!(behind.take(Minute(1), 1).await.unwrap(), Taken::Spent);
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit_in_any_order(
            limit in 1..500_u64,
            takes in prop::collection::vec((0..4_usize, 0..3_u64, 1..60_u64), 0..400),
        ) {
            let mut record = Leased::default();
            let mut hands: Vec<Hand> = (0..4).map(|_| Hand::default()).collect();
            let mut taken = [0_u64; 3];
            for (router, minute, amount) in takes {
                let (hand, now) = (&mut hands[router], Minute(minute));
                if let Some(missing) = hand.missing(now, amount) {
                    let (after, leased) = record.lease(now, limit, missing);
                    record = after;
                    hand.add(leased);
                }
                if hand.take(amount) == Taken::Granted {
                    taken[minute as usize] += amount;
                }
            }
            prop_assert!(taken.iter().all(|taken| *taken <= limit), "{:?} of {}", taken, limit);
        }
    }
}
