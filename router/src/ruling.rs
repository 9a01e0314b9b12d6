//! From a request to where it may go: what it depends on is gathered here (the catalogue in force, the load of the
//! workers, upstreams at rest, the time), and policy decides. Traffic and explanations ask in the same way.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use penstock_cluster::catalog::{self, Catalog, Name, Number};
use penstock_proto::{DataClass, ModelName, RequestId};

use crate::budget::Budgets;
use crate::class::{Classed, Sessions};

use crate::fleet::{Fleet, Model, Snapshot};
use crate::policy::{self, Asked, Bucket, Decision, Egress, Inputs, Load, Served, Shape, Tide, Time};
use crate::request::Failure;
use crate::rulebook::{Rulebook, Rulebooks};

/// Decisions that are remembered, for whoever asks why.
const REMEMBERED: usize = 4096;
/// How a version follows its model in a worker's model name.
const VERSION: char = '@';

/// What decides.
pub(crate) struct Rulings {
    rulebooks: Rulebooks,
    fleet: Fleet,
    sessions: Sessions,
    budgets: Arc<Budgets>,
    egress: Egress,
    /// Whether each route's overflow is in use.
    tides: Mutex<BTreeMap<Name, Tide>>,
    recent: Mutex<VecDeque<(RequestId, Arc<Decision>)>>,
}

/// What is asked.
#[derive(Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) class: &'a Classed,
    /// What the client gave as `model`.
    pub(crate) asked: &'a str,
    pub(crate) shape: Shape<'a>,
    pub(crate) session: Option<&'a str>,
}

impl Rulings {
    pub(crate) fn new(
        (rulebooks, fleet): (Rulebooks, Fleet),
        sessions: Sessions,
        budgets: Arc<Budgets>,
        egress: Egress,
    ) -> Self {
        Self { rulebooks, fleet, sessions, budgets, egress, tides: Mutex::default(), recent: Mutex::default() }
    }

    /// The catalogue in force, where it is known well enough to go by.
    pub(crate) fn book(&self) -> Result<Arc<Rulebook>, Failure> {
        self.rulebooks.current()
    }

    /// Waits until a version of the catalogue, or a later one, is in force.
    pub(crate) async fn reach(&self, version: Number) {
        self.rulebooks.reach(version).await;
    }

    /// The least class of a session's requests, where an operator gave one.
    pub(crate) fn session_class(&self, tenant: &str, session: &str) -> Option<DataClass> {
        self.sessions.class(tenant, session)
    }

    /// Decides for a request, and remembers it.
    pub(crate) fn decide(&self, book: &Rulebook, id: RequestId, question: &Question<'_>) -> Arc<Decision> {
        let (decision, _) = self.rule(book, &id.to_string(), question);
        if let Asked::Route(route) = &decision.asked {
            lock(&self.tides).insert(route.clone(), decision.tide);
        }
        let decision = Arc::new(decision);
        let mut recent = lock(&self.recent);
        if recent.len() >= REMEMBERED {
            recent.pop_front();
        }
        recent.push_back((id, Arc::clone(&decision)));
        decision
    }

    /// What would be decided now; nothing comes of it.
    pub(crate) fn foresee(&self, book: &Rulebook, question: &Question<'_>) -> Decision {
        self.rule(book, "", question).0
    }

    /// What was decided for a request, where that was not long ago.
    pub(crate) fn decided(&self, id: RequestId) -> Option<Arc<Decision>> {
        let recent = lock(&self.recent);
        recent.iter().rev().find(|(other, _)| *other == id).map(|(_, decision)| Arc::clone(decision))
    }

    fn rule(&self, book: &Rulebook, id: &str, question: &Question<'_>) -> (Decision, Load) {
        let Question { tenant, class, asked, shape, session } = *question;
        let load = load(book.catalog(), &self.fleet.snapshot());
        let broken = book.broken();
        let budget = book.catalog().tenants.get(tenant).and_then(|tenant| tenant.budget.as_ref());
        let tide = lock(&self.tides).get(asked).copied().unwrap_or_default();
        let inputs = Inputs {
            catalog: book.catalog(),
            version: book.version(),
            tenant,
            class,
            asked,
            shape,
            load: &load,
            bucket: bucket(asked, session.unwrap_or(id)),
            time: time(penstock_proto::time::unix_now()),
            egress: self.egress,
            broken: &broken,
            purse: self.budgets.purse(tenant, budget),
            tide,
        };
        (policy::decide(&inputs), load)
    }

    /// Who serves what now.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.fleet.snapshot()
    }

    /// The model that answers for a local target now; None where nobody serves it.
    pub(crate) fn model(&self, book: &Rulebook, target: &catalog::Target) -> Option<Arc<Model>> {
        find(book.catalog(), &self.fleet.snapshot(), target)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bucket of a session or a request under a route: the same on every router.
fn bucket(route: &str, key: &str) -> Bucket {
    // FNV-1a, and a last mix so that its low digits depend on all of it.
    let bytes = route.bytes().chain([0]).chain(key.bytes());
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    Bucket::of(mixed ^ (mixed >> 33))
}

/// Hour and weekday of a time since 1970, UTC.
fn time(now: Duration) -> Time {
    let hours = now.as_secs() / 3600;
    let part = |number: u64| u8::try_from(number).unwrap_or(0);
    // 1 January 1970 was a Thursday.
    Time { hour: part(hours % 24), weekday: part((hours / 24 + 3) % 7 + 1) }
}

/// What a worker's model is in the catalogue: the model, and the version that its name or its file says.
fn served_as(catalog: &Catalog, model: &Model) -> Option<(Name, Option<Name>)> {
    let (name, version) = match model.name.as_str().split_once(VERSION) {
        Some((name, version)) => (name, Some(Name::new(version).ok()?)),
        None => (model.name.as_str(), None),
    };
    let name = Name::new(name).ok()?;
    let by_digest = || {
        let versions = catalog.models.get(&name)?.versions.iter();
        let is_it = |version: &&catalog::Lined<catalog::Version>| {
            version.sha256.is_some_and(|digest| digest.to_string() == model.card.digest)
        };
        versions.into_iter().find(is_it).map(|version| version.id.clone())
    };
    let version = version.or_else(by_digest);
    Some((name, version))
}

fn load(catalog: &Catalog, snapshot: &Snapshot) -> Load {
    let served = snapshot.served().filter_map(|served| {
        let (model, version) = served_as(catalog, served)?;
        Some(Served { model, version, wait_ms: served.wait_ms() })
    });
    Load { served: served.collect() }
}

fn find(catalog: &Catalog, snapshot: &Snapshot, target: &catalog::Target) -> Option<Arc<Model>> {
    let catalog::Target::Local { model, version, .. } = target else { return None };
    let fits = |served: &&Arc<Model>| {
        served_as(catalog, served).is_some_and(|(name, known)| {
            name == *model && version.as_ref().is_none_or(|version| known.as_ref() == Some(version))
        })
    };
    // Of several versions that would do, the one that is served, and among those the one with the least to do.
    let fitting = snapshot.models.values().filter(fits);
    fitting.min_by_key(|model| (!model.is_served(), model.wait_ms())).map(Arc::clone)
}

/// What clients may ask for: what the catalogue lets the tenant, and where it has no tenants also what is served.
pub(crate) fn names(book: &Rulebook, snapshot: &Snapshot, tenant: &str) -> Vec<String> {
    let mut names = policy::allowed(book.catalog(), tenant);
    if book.is_keyless() {
        names.extend(snapshot.models.keys().map(ModelName::to_string));
    }
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_keeps_its_bucket_and_sessions_spread() {
        assert_eq!(bucket("assistant", "s1"), bucket("assistant", "s1"));
        assert_ne!(bucket("assistant", "s1"), bucket("other", "s1"));
        let mut halves = [0_u32; 2];
        for n in 0..10_000 {
            halves[usize::from(bucket("assistant", &format!("session-{n}")).get() < 5_000)] += 1;
        }
        assert!(halves.iter().all(|half| half.abs_diff(5_000) < 250), "{halves:?}");
    }

    #[test]
    fn a_time_has_its_hour_and_weekday() {
        assert_eq!(time(Duration::ZERO), Time { hour: 0, weekday: 4 });
        // 25 November 2026, a Wednesday, 07:04 UTC.
        assert_eq!(time(Duration::from_secs(1_795_590_240)), Time { hour: 7, weekday: 3 });
    }
}
