//! What a watch knows of the members, and which events a listing or an update of the store comes to. Pure: no IO; the
//! time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use penstock_proto::WorkerName;
use tokio::time::Instant;

use super::{Epoch, Member, MemberEvent, MemberState};
use crate::store::{Entry, Event, Key, Listing, Prefix, Revision, Update};

/// The members as last known.
///
/// After an outage of the store, leases may have ended of members that are still there and about to join again. So a
/// member that vanishes in an outage, or within one time to live after it, is missed only when that time has passed
/// without it. One that was draining is expected to go, and is let go at once.
pub(super) struct View {
    prefix: Prefix,
    ttl: Duration,
    members: BTreeMap<WorkerName, Known>,
    /// Documents that are no members, so that each is named once in the log.
    refused: BTreeMap<Key, Revision>,
    revision: Revision,
    answered: Instant,
    lenient_until: Instant,
}

struct Known {
    member: Member,
    /// Until when it may be gone from the store; None while it is there.
    missed_at: Option<Instant>,
}

impl View {
    pub(super) fn new(prefix: Prefix, ttl: Duration, now: Instant) -> Self {
        Self {
            prefix,
            ttl,
            members: BTreeMap::new(),
            refused: BTreeMap::new(),
            revision: Revision::ZERO,
            answered: now,
            lenient_until: now,
        }
    }

    /// The store's revision that the view is of.
    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// Takes in the store's whole state, which it answered just now.
    pub(super) fn list(&mut self, listing: &Listing, now: Instant) -> Vec<MemberEvent> {
        if self.in_outage(now) {
            self.lenient_until = now + self.ttl;
            // Those missed already could not come back in the meantime.
            for missed_at in self.members.values_mut().filter_map(|known| known.missed_at.as_mut()) {
                *missed_at = self.lenient_until;
            }
        }
        self.answered = now;
        self.revision = listing.revision;
        let mut events = Vec::new();
        let mut there = Vec::new();
        self.refused.retain(|key, _| listing.entries.iter().any(|entry| entry.key == *key));
        for entry in &listing.entries {
            let name = self.put(entry, &mut events);
            there.extend(name);
        }
        let gone: Vec<WorkerName> = self.members.keys().filter(|name| !there.contains(name)).cloned().collect();
        for name in gone {
            self.gone(&name, now, &mut events);
        }
        events
    }

    /// Takes in one change, unless it is known already.
    pub(super) fn update(&mut self, update: &Update, now: Instant) -> Vec<MemberEvent> {
        let mut events = Vec::new();
        if update.revision <= self.revision {
            return events;
        }
        self.revision = update.revision;
        for event in &update.events {
            let there = match event {
                Event::Put(entry) => self.put(entry, &mut events),
                Event::Delete(_) => None,
            };
            if there.is_none()
                && let Some(name) = self.name_of(event.key())
            {
                self.gone(&name, now, &mut events);
            }
        }
        events
    }

    /// Members tell of themselves every third of their time to live, and need a little to notice that the store is
    /// back: after a quarter of one without an answer, leases may be about to end though their holders live.
    fn in_outage(&self, now: Instant) -> bool {
        now.duration_since(self.answered) > self.ttl / 4
    }

    /// Takes in a document; None where it is no member.
    fn put(&mut self, entry: &Entry, events: &mut Vec<MemberEvent>) -> Option<WorkerName> {
        let member = match self.decode(entry) {
            Ok(member) => member,
            Err(reason) => {
                if self.refused.insert(entry.key.clone(), entry.modified) != Some(entry.modified) {
                    tracing::warn!(key = %entry.key, reason, "not a member");
                }
                return None;
            }
        };
        let name = member.name.clone();
        let known = Known { member: member.clone(), missed_at: None };
        match self.members.insert(name.clone(), known) {
            None => events.push(MemberEvent::Joined(member)),
            Some(before) if before.member != member => events.push(MemberEvent::Changed(member)),
            Some(_) => {}
        }
        Some(name)
    }

    /// Lets a member go that is not in the store, now or when its grace is over.
    fn gone(&mut self, name: &WorkerName, now: Instant, events: &mut Vec<MemberEvent>) {
        let lenient = self.in_outage(now) || now < self.lenient_until;
        let Some(known) = self.members.get_mut(name) else { return };
        let keep = match (known.member.state, known.missed_at) {
            (MemberState::Draining, _) => false,
            (MemberState::Loading | MemberState::Ready, Some(at)) => now < at,
            (MemberState::Loading | MemberState::Ready, None) => lenient,
        };
        if keep {
            known.missed_at.get_or_insert(now + self.ttl);
        } else {
            self.members.remove(name);
            events.push(MemberEvent::Left(name.clone()));
        }
    }

    fn decode(&self, entry: &Entry) -> Result<Member, String> {
        let member: Member = serde_json::from_slice(&entry.value).map_err(|error| error.to_string())?;
        if entry.key.strip(&self.prefix) != Some(member.name.as_str()) {
            return Err(format!("it calls itself {}", member.name));
        }
        Ok(Member { epoch: Epoch(entry.created), ..member })
    }

    fn name_of(&self, key: &Key) -> Option<WorkerName> {
        WorkerName::new(key.strip(&self.prefix)?).ok()
    }
}
