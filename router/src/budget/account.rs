//! One tenant's budget of one day or month, as one router spends it.
//!
//! The store has two kinds of records. `spent` is lasting: what was settled. A router's own is bound to its lease: the slice
//! that it may spend. Whatever changes one of them puts `spent`, so that of two changes at once one fails, and keeps
//! `spent` and all slices together within the cap.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use penstock_cluster::store::{self, Entry, Expect, Key, LeaseId, Outcome, Prefix, Txn};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::period::Span;
use crate::tenant::Backing;

const PREFIX: &str = "/penstock/v1/budgets/";
/// Slices that what is left is leased in.
const SLICES: u64 = 16;
/// Tries to change the records while other routers do.
const ATTEMPTS: usize = 64;
/// How long the store's word that nothing is left stands, so that a flood of requests is not one of the store's too.
const SPENT: Duration = Duration::from_millis(100);
/// After so many seconds without a question a budget is remembered no more.
const IDLE: u32 = 60;
/// How long what the store has said of other routers is good for a decision.
const FRESH: Duration = Duration::from_secs(2);

/// A budget, as one router spends it. Amounts are in nano-dollars. How high the cap is comes with every call.
#[derive(Debug)]
pub(super) struct Account {
    span: Span,
    /// Every span's lasting record of this tenant.
    spans: Prefix,
    spent: Key,
    /// What each router has of it.
    routers: Prefix,
    own: Key,
    hand: Mutex<Hand>,
    changing: tokio::sync::Mutex<()>,
}

/// A router's record, which is there while it says something: its slice is what was granted and is not yet written down
/// as spent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slice {
    /// What the store has ever granted.
    granted: u64,
    /// What of it was moved to the lasting record.
    written: u64,
    /// What calls under way may still cost.
    reserved: u64,
}

impl Slice {
    fn left(self) -> u64 {
        self.granted.saturating_sub(self.written)
    }
}

/// What a router has of a budget. `granted`, `settled` and `written` only rise, except that what is not needed is taken
/// off `granted` before it is given back.
#[derive(Debug, Default)]
struct Hand {
    granted: u64,
    /// What the slice is bound to; nothing is spent of it under another.
    lease: Option<LeaseId>,
    settled: u64,
    /// Of what was settled, what the lasting record is known to have.
    written: u64,
    reserved: u64,
    /// The store has a record of this.
    recorded: bool,
    /// Reserved since the account was last tended.
    lately: u64,
    /// Somebody asked for it since then.
    asked: bool,
    /// For so many times it was tended without that.
    idle: u32,
    /// What is spent or in a slice, as the store last said.
    committed: Option<(Instant, u64)>,
    /// The last cap that was asked for.
    cap: u64,
    /// Until then there is not so much left.
    nothing: Option<(Instant, u64)>,
    closed: bool,
}

/// Spent, reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) spent: u64,
    pub(super) reserved: u64,
}

#[derive(Debug, Clone, Copy)]
enum Change {
    /// Has so much more in hand afterwards than is reserved now.
    Lease(u64),
    /// Gives back what is in hand above this.
    Keep(u64),
}

impl Hand {
    /// What may be reserved without asking the store.
    fn free(&self, lease: Option<LeaseId>) -> u64 {
        let used = self.settled.saturating_add(self.reserved);
        let sure = lease.is_some() && lease == self.lease;
        if sure { self.granted.min(self.cap).saturating_sub(used) } else { 0 }
    }

    fn try_reserve(&mut self, amount: u64, lease: Option<LeaseId>) -> bool {
        let fits = amount <= self.free(lease) && !self.closed;
        if fits {
            self.reserved += amount;
            self.lately = self.lately.saturating_add(amount);
        }
        fits
    }

    /// Whether nothing is to be written, and nothing to come.
    fn is_done(&self) -> bool {
        self.reserved == 0 && self.settled == self.written && self.granted <= self.settled && !self.recorded
    }
}

impl Account {
    /// The budget of a tenant. `instance` names this account among all that routers ever make for it.
    pub(super) fn new(tenant: &str, span: Span, instance: &str) -> Self {
        let prefix = Prefix::new(PREFIX);
        // The name of another tenant may begin with this one's and a slash; none has a colon.
        let tenant = tenant.replace('/', ":");
        let spans = Prefix::new(prefix.key(format!("spent/{tenant}/")).as_str());
        let routers = Prefix::new(prefix.key(format!("routers/{tenant}/{span}/")).as_str());
        let (spent, own) = (spans.key(span.to_string()), routers.key(instance));
        Self { span, spans, spent, routers, own, hand: Mutex::default(), changing: tokio::sync::Mutex::default() }
    }

    /// Reserves an amount, leasing a slice where there is not enough in hand. False where the budget does not cover it, as
    /// far as that can be known.
    pub(super) async fn reserve(&self, backing: &Backing, amount: u64, cap: u64) -> bool {
        if let Some(known) = self.try_reserve(backing, amount, cap) {
            return known;
        }
        let _one_at_a_time = self.changing.lock().await;
        if let Some(known) = self.try_reserve(backing, amount, cap) {
            return known;
        }
        let answer = backing.ask(self.change(backing, Change::Lease(amount))).await;
        let mut hand = self.hand();
        let reserved = hand.try_reserve(amount, backing.lease());
        if !reserved && answer.is_some() {
            hand.nothing = Some((Instant::now() + SPENT, amount));
        }
        reserved
    }

    fn try_reserve(&self, backing: &Backing, amount: u64, cap: u64) -> Option<bool> {
        let lease = backing.lease();
        let mut hand = self.hand();
        hand.asked = true;
        if hand.cap != cap {
            (hand.cap, hand.nothing) = (cap, None);
        }
        if hand.try_reserve(amount, lease) {
            return Some(true);
        }
        let known = hand.nothing.is_some_and(|(until, least)| least <= amount && Instant::now() < until);
        (known || hand.closed).then_some(false)
    }

    /// Says what became of a reserve. No more is ever spent of it than there is.
    pub(super) fn settle(&self, reserve: u64, used: u64) {
        let mut hand = self.hand();
        // Once closed, what was reserved counts as spent.
        if !hand.closed {
            hand.reserved -= reserve;
            hand.settled = hand.settled.saturating_add(used.min(reserve));
            hand.nothing = None;
        }
    }

    /// What can still be reserved of a cap; None where nobody has asked the store lately.
    pub(super) fn left(&self, backing: &Backing, cap: u64) -> Option<u64> {
        let lease = backing.lease();
        let mut hand = self.hand();
        (hand.asked, hand.cap) = (true, cap);
        let free = hand.free(lease);
        match hand.committed {
            _ if backing.is_away() => Some(free),
            Some((at, committed)) if Instant::now() < at + FRESH => {
                Some(free.saturating_add(cap.saturating_sub(committed)))
            }
            Some(_) | None => None,
        }
    }

    /// Writes down what was spent, gives back what was not needed lately, and looks what others have; to be called each
    /// second. A span that is over keeps nothing. Returns what the store then has, where it was asked.
    pub(super) async fn tend(&self, backing: &Backing, is_over: bool) -> Option<u64> {
        let _one_at_a_time = self.changing.lock().await;
        let keep = {
            let mut hand = self.hand();
            let (lately, asked) = (std::mem::take(&mut hand.lately), std::mem::take(&mut hand.asked));
            hand.idle = if asked { 0 } else { hand.idle.saturating_add(1) };
            if !asked && hand.is_done() {
                return None;
            }
            let above = hand.committed.is_some_and(|(_, committed)| committed > hand.cap);
            if is_over || above { 0 } else { lately }
        };
        backing.ask(self.change(backing, Change::Keep(keep))).await?;
        self.hand().committed.map(|(_, committed)| committed)
    }

    /// Writes everything down, what is under way as if it cost all that is reserved for it; nothing is spent afterwards.
    pub(super) async fn close(&self, backing: &Backing) -> bool {
        let _one_at_a_time = self.changing.lock().await;
        {
            let mut hand = self.hand();
            hand.settled = hand.settled.saturating_add(std::mem::take(&mut hand.reserved));
            hand.closed = true;
            if hand.is_done() {
                return true;
            }
        }
        backing.ask(self.change(backing, Change::Keep(0))).await.is_some()
    }

    /// Whether nobody needs to remember it.
    pub(super) fn is_done(&self) -> bool {
        let hand = self.hand();
        hand.is_done() && !hand.asked && hand.idle >= IDLE
    }

    /// The last cap that was asked for.
    pub(super) fn cap(&self) -> u64 {
        self.hand().cap
    }

    /// What the store and this router together know of it.
    pub(super) async fn standing(&self, backing: &Backing) -> Result<Standing, store::Error> {
        let spent = backing.store().get(&self.spent).await?;
        let entries = backing.store().list(&self.routers).await?.entries;
        let others = entries.iter().filter(|entry| entry.key != self.own);
        let others = others.fold(0, |sum: u64, entry| sum.saturating_add(slice(entry).reserved));
        let hand = self.hand();
        Ok(Standing {
            spent: amount(spent.as_ref()).saturating_add(hand.settled - hand.written),
            reserved: others.saturating_add(hand.reserved),
        })
    }

    /// Changes this router's slice and writes down what it has spent.
    async fn change(&self, backing: &Backing, change: Change) -> Result<(), store::Error> {
        let store = backing.store();
        for _ in 0..ATTEMPTS {
            let lease = backing.granted().await?;
            // Whatever is changed after this read changes `spent`.
            let guard = store.get(&self.spent).await?;
            let entries = store.list(&self.routers).await?.entries;
            let (own, others): (Vec<&Entry>, Vec<&Entry>) = entries.iter().partition(|entry| entry.key == self.own);
            let others = others.iter().fold(0, |sum: u64, entry| sum.saturating_add(slice(entry).left()));
            let before = own.first().map(|entry| slice(entry));
            let bound = own.first().is_some_and(|entry| entry.lease == Some(lease));
            let (after, spent) = self.next(change, (before, amount(guard.as_ref()), others), lease);
            let committed = spent.saturating_add(others).saturating_add(after.left());
            let writes = spent != amount(guard.as_ref());
            // A record stays until it is sure that what was written is known to be: without it something might count twice.
            let empty = after.left() == 0 && after.reserved == 0 && !writes;
            let stands = if empty { before.is_none() } else { bound && before == Some(after) };
            if stands && !writes {
                self.changed(lease, (after, !empty), committed);
                return Ok(());
            }
            let expect = match &guard {
                None => Expect::Absent(self.spent.clone()),
                Some(entry) => Expect::Modified(self.spent.clone(), entry.modified),
            };
            let record = serde_json::to_vec(&after).expect("a record of numbers is JSON");
            let txn = Txn::new().expect(expect).put(self.spent.clone(), spent.to_string());
            let txn = match empty {
                true => txn.delete(self.own.clone()),
                false => txn.put_leased(self.own.clone(), record, lease),
            };
            match store.commit(txn).await {
                Ok(Outcome::Committed { .. }) => {
                    self.changed(lease, (after, !empty), committed);
                    if guard.is_none() {
                        self.forget_former(store).await?;
                    }
                    return Ok(());
                }
                Ok(Outcome::Conflict { .. }) => {}
                Err(store::Error::LeaseNotFound { .. }) => backing.forget(lease),
                Err(error) => return Err(error),
            }
        }
        Err(store::Error::Failed { reason: "too many routers change the same budget at once".to_owned() })
    }

    /// This router's record after a change, and the lasting one.
    fn next(&self, change: Change, (before, spent, others): (Option<Slice>, u64, u64), lease: LeaseId) -> (Slice, u64) {
        let mut hand = self.hand();
        // The record knows better than the hand what was written, where a call to the store came to no answer. Where it
        // went with its lease, the hand's word may be too low: then something counts twice, and nothing is overspent.
        let known = before.unwrap_or(Slice { granted: hand.written, written: hand.written, reserved: 0 });
        // Until it is heard what came of this.
        (hand.written, hand.recorded) = (known.written, true);
        let spent = spent.saturating_add(hand.settled.saturating_sub(known.written));
        let used = hand.settled.saturating_add(hand.reserved);
        let base = known.granted.max(hand.settled);
        let room = hand.cap.saturating_sub(spent).saturating_sub(others).saturating_sub(base - hand.settled);
        let granted = match change {
            Change::Lease(amount) => {
                let missing = used.saturating_add(amount).saturating_sub(base);
                // One that cannot be had whole is not had in part.
                if missing > room { base } else { base + missing.max(room / SLICES) }
            }
            Change::Keep(keep) if hand.lease == Some(lease) => {
                // Off the hand first: what may be taken by others is not spent here.
                hand.granted = hand.granted.min(used.saturating_add(keep)).max(hand.settled);
                hand.granted
            }
            // A former lease has taken the slice with it, or will: what is under way is backed anew, as far as there is room.
            Change::Keep(_) => used.min(base.saturating_add(room)),
        };
        (Slice { granted, written: hand.settled, reserved: hand.reserved }, spent)
    }

    fn changed(&self, lease: LeaseId, (record, recorded): (Slice, bool), committed: u64) {
        let mut hand = self.hand();
        (hand.lease, hand.granted, hand.written) = (Some(lease), record.granted, record.written);
        hand.recorded = recorded;
        hand.committed = Some((Instant::now(), committed));
    }

    /// Deletes what was spent in spans before the last one.
    async fn forget_former(&self, store: &dyn store::Store) -> Result<(), store::Error> {
        let (name, last) = (self.span.to_string(), self.span.before().to_string());
        for entry in store.list(&self.spans).await?.entries {
            let other = entry.key.as_str().rsplit('/').next().unwrap_or_default();
            // Days and months are each in their own order.
            if other.len() == name.len() && other < last.as_str() {
                store.delete(entry.key).await?;
            }
        }
        Ok(())
    }

    fn hand(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An amount that was reserved for one call. Dropping it spends it all, since nobody knows what the call has cost.
#[derive(Debug)]
#[must_use = "what is reserved is spent unless it is settled"]
pub(crate) struct Reservation {
    account: Arc<Account>,
    amount: u64,
    used: u64,
}

impl Reservation {
    pub(super) fn new(account: Arc<Account>, amount: u64) -> Self {
        Self { account, amount, used: amount }
    }

    /// Says what the call has cost, in nano-dollars; more than was reserved counts as what was reserved.
    pub(crate) fn settle(mut self, nanos: u64) {
        self.used = nanos;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.account.settle(self.amount, self.used);
    }
}

/// What the lasting record says. One that says nothing counts as all there could be: it fails closed.
fn amount(entry: Option<&Entry>) -> u64 {
    let read = |entry: &Entry| std::str::from_utf8(&entry.value).ok()?.parse().ok();
    entry.map_or(0, |entry| read(entry).unwrap_or(u64::MAX))
}

/// What a router's record says, as strictly.
fn slice(entry: &Entry) -> Slice {
    serde_json::from_slice(&entry.value).unwrap_or(Slice { granted: u64::MAX, written: 0, reserved: u64::MAX })
}
