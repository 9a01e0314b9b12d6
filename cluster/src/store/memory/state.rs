//! The store's rules as a plain value: no IO, no clock; `now` is an argument.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::{
    Entry, Error, Event, Expect, Grant, Key, LeaseId, Listing, Operation, Outcome, Prefix, Revision, Txn, Update,
};

/// A lease that has not ended.
#[derive(Debug, Clone)]
struct Held {
    ttl: Duration,
    expires: Instant,
    keys: BTreeSet<Key>,
}

/// Everything that the store holds.
#[derive(Debug, Clone)]
pub(super) struct State {
    revision: Revision,
    compacted: Revision,
    entries: BTreeMap<Key, Entry>,
    leases: BTreeMap<LeaseId, Held>,
    last_lease: LeaseId,
    history: VecDeque<Update>,
    history_limit: usize,
}

impl State {
    /// A store at `revision` with `entries` in it, none of them leased; it remembers the last `history_limit`
    /// revisions.
    pub(super) fn new(revision: Revision, entries: Vec<Entry>, history_limit: usize) -> Self {
        Self {
            revision,
            // Nothing is remembered of how the store came to this revision.
            compacted: if revision <= Revision::FIRST { Revision::ZERO } else { revision },
            entries: entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect(),
            leases: BTreeMap::new(),
            last_lease: LeaseId::new(0),
            history: VecDeque::new(),
            history_limit,
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(super) fn list(&self, prefix: &Prefix) -> Listing {
        let entries = self.entries.values().filter(|entry| entry.key.strip(prefix).is_some()).cloned().collect();
        Listing { revision: self.revision, entries }
    }

    /// The entries that outlive the process.
    pub(super) fn durable(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| entry.lease.is_none())
    }

    pub(super) fn commit(&mut self, txn: &Txn) -> Result<Outcome, Error> {
        txn.check()?;
        if !txn.expects.iter().all(|expect| self.holds(expect)) {
            return Ok(Outcome::Conflict { revision: self.revision });
        }
        for operation in &txn.operations {
            if let Operation::Put { lease: Some(lease), .. } = operation
                && !self.leases.contains_key(lease)
            {
                return Err(Error::LeaseNotFound { lease: *lease });
            }
        }
        let deleted = self.apply(&txn.operations);
        Ok(Outcome::Committed { revision: self.revision, deleted })
    }

    pub(super) fn grant(&mut self, ttl: Duration, now: Instant) -> Grant {
        let ttl = Duration::from_secs(ttl.as_millis().div_ceil(1000).clamp(1, u128::from(u32::MAX)) as u64);
        self.last_lease = LeaseId::new(self.last_lease.get() + 1);
        self.leases.insert(self.last_lease, Held { ttl, expires: now + ttl, keys: BTreeSet::new() });
        Grant { lease: self.last_lease, ttl }
    }

    pub(super) fn keep_alive(&mut self, lease: LeaseId, now: Instant) -> Result<Duration, Error> {
        let held = self.leases.get_mut(&lease).ok_or(Error::LeaseNotFound { lease })?;
        held.expires = now + held.ttl;
        Ok(held.ttl)
    }

    pub(super) fn revoke(&mut self, lease: LeaseId) -> Result<(), Error> {
        let held = self.leases.get(&lease).ok_or(Error::LeaseNotFound { lease })?;
        let deletes: Vec<Operation> = held.keys.iter().map(|key| Operation::Delete { key: key.clone() }).collect();
        self.apply(&deletes);
        self.leases.remove(&lease);
        Ok(())
    }

    /// Ends the leases whose time is over, the oldest first.
    pub(super) fn expire(&mut self, now: Instant) {
        let mut over: Vec<(Instant, LeaseId)> =
            self.leases.iter().filter(|(_, held)| held.expires <= now).map(|(id, held)| (held.expires, *id)).collect();
        over.sort();
        for (_, lease) in over {
            self.revoke(lease).expect("the lease was just found here");
        }
    }

    /// When the next lease ends unless it is kept alive.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.leases.values().map(|held| held.expires).min()
    }

    /// What happened under `prefix` after a revision.
    pub(super) fn updates(&self, prefix: &Prefix, after: Revision) -> Result<VecDeque<Update>, Error> {
        if after < self.compacted {
            return Err(Error::Compacted { at: self.compacted });
        }
        let under = |event: &&Event| event.key().strip(prefix).is_some();
        let updates = self.history.iter().filter(|update| update.revision > after).map(|update| Update {
            revision: update.revision,
            events: update.events.iter().filter(under).cloned().collect(),
        });
        Ok(updates.filter(|update| !update.events.is_empty()).collect())
    }

    fn holds(&self, expect: &Expect) -> bool {
        match expect {
            Expect::Absent(key) => !self.entries.contains_key(key),
            Expect::Modified(key, revision) => self.entries.get(key).is_some_and(|entry| entry.modified == *revision),
            Expect::Created(key, revision) => self.entries.get(key).is_some_and(|entry| entry.created == *revision),
        }
    }

    /// Applies operations on distinct keys whose leases exist, as one revision; returns how many keys were deleted.
    fn apply(&mut self, operations: &[Operation]) -> usize {
        let revision = self.revision.next();
        let mut events = Vec::new();
        let mut deleted = 0;
        for operation in operations {
            let before = self.entries.remove(operation.key());
            if let Some(held) = before.as_ref().and_then(|entry| entry.lease).and_then(|l| self.leases.get_mut(&l)) {
                held.keys.remove(operation.key());
            }
            match operation {
                Operation::Put { key, value, lease } => {
                    let created = before.map_or(revision, |entry| entry.created);
                    let entry =
                        Entry { key: key.clone(), value: value.clone(), created, modified: revision, lease: *lease };
                    if let Some(held) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
                        held.keys.insert(key.clone());
                    }
                    self.entries.insert(key.clone(), entry.clone());
                    events.push(Event::Put(entry));
                }
                Operation::Delete { key } => {
                    if before.is_some() {
                        deleted += 1;
                        events.push(Event::Delete(key.clone()));
                    }
                }
            }
        }
        if !events.is_empty() {
            events.sort_by(|a, b| a.key().cmp(b.key()));
            self.revision = revision;
            self.remember(Update { revision, events });
        }
        deleted
    }

    fn remember(&mut self, update: Update) {
        self.history.push_back(update);
        while self.history.len() > self.history_limit {
            if let Some(forgotten) = self.history.pop_front() {
                self.compacted = forgotten.revision;
            }
        }
    }
}
