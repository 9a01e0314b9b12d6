//! What every store does alike. A test file includes this one and calls `contract!` with an expression that makes a
//! [`Rig`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use penstock_cluster::store::{
    Error, Event, Expect, Key, LeaseId, Outcome, Prefix, Revision, Store, Txn, Update, Watch,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// A fresh store, and what the suite must be able to do to it from outside.
pub(crate) trait Rig: Send + Sync {
    fn store(&self) -> Arc<dyn Store>;
    /// The shortest time to live that the store grants.
    fn ttl(&self) -> Duration;
    /// Makes the history up to now vanish.
    async fn compact(&self);
}

macro_rules! contract {
    ($rig:expr) => {
        crate::contract::contract!(@ $rig;
            puts_gets_and_deletes,
            lists_a_prefix_in_the_order_of_its_keys,
            applies_a_transaction_as_a_whole_or_not_at_all,
            refuses_what_can_never_be_applied_and_goes_on,
            loses_no_increment_of_racing_tasks,
            deletes_the_keys_of_a_lease_that_ends,
            keeps_a_lease_alive_until_it_is_revoked,
            frees_a_key_that_is_put_anew_without_its_lease,
            shows_every_change_once_and_in_order_to_every_watch,
            watches_only_its_prefix_and_keeps_a_revision_together,
            reports_a_compacted_history_and_goes_on_from_a_listing,
        );
    };
    (@ $rig:expr; $($name:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::contract::$name(&$rig.await).await;
            }
        )*
    };
}
pub(crate) use contract;

fn text(value: &str) -> Bytes {
    Bytes::copy_from_slice(value.as_bytes())
}

/// The next update; a watch that stays silent fails the test.
pub(crate) async fn next(watch: &mut Watch) -> Result<Update, Error> {
    let limit = Duration::from_secs(30);
    timeout(limit, watch.next()).await.expect("the watch is silent").expect("the watch ended")
}

pub(crate) async fn puts_gets_and_deletes(rig: &impl Rig) {
    let store = rig.store();
    let key = Key::new("/t/a");
    assert_eq!(store.get(&key).await.unwrap(), None);
    assert!(!store.delete(key.clone()).await.unwrap());

    let first = store.put(key.clone(), text("one")).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), first);
    let entry = store.get(&key).await.unwrap().unwrap();
    assert_eq!((entry.value, entry.created, entry.modified, entry.lease), (text("one"), first, first, None));

    let bytes = Bytes::from_static(&[0, 255, 10]);
    let second = store.put(key.clone(), bytes.clone()).await.unwrap();
    assert_eq!(second, first.next());
    let entry = store.get(&key).await.unwrap().unwrap();
    assert_eq!((entry.value, entry.created, entry.modified), (bytes, first, second));

    assert!(store.delete(key.clone()).await.unwrap());
    assert_eq!(store.get(&key).await.unwrap(), None);
    let third = store.put(key.clone(), text("")).await.unwrap();
    let entry = store.get(&key).await.unwrap().unwrap();
    assert_eq!((entry.value, entry.created), (text(""), third));
}

pub(crate) async fn lists_a_prefix_in_the_order_of_its_keys(rig: &impl Rig) {
    let store = rig.store();
    let mut last = Revision::ZERO;
    for key in ["/t/b", "/t/a/x", "/t0", "/s/z", "/t/ü", "/t", "/t/"] {
        last = store.put(Key::new(key), text(key)).await.unwrap();
    }
    let listing = store.list(&Prefix::new("/t/")).await.unwrap();
    let keys: Vec<&str> = listing.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["/t/", "/t/a/x", "/t/b", "/t/ü"]);
    assert_eq!(listing.revision, last);
    assert_eq!(store.list(&Prefix::new("")).await.unwrap().entries.len(), 7);
    assert_eq!(store.list(&Prefix::new("/none/")).await.unwrap().entries, []);
}

pub(crate) async fn applies_a_transaction_as_a_whole_or_not_at_all(rig: &impl Rig) {
    let store = rig.store();
    let [a, b, c] = ["/t/a", "/t/b", "/t/c"].map(Key::new);
    let both = Txn::new().expect(Expect::Absent(a.clone())).put(a.clone(), "1").put(b.clone(), "1");
    let Outcome::Committed { revision: first, deleted: 0 } = store.commit(both.clone()).await.unwrap() else {
        panic!("the keys are absent");
    };
    assert_eq!(store.get(&b).await.unwrap().unwrap().modified, first);
    assert_eq!(store.commit(both).await.unwrap(), Outcome::Conflict { revision: first });

    let second = store.put(a.clone(), text("2")).await.unwrap();
    for (expect, holds) in [
        (Expect::Modified(a.clone(), first), false),
        (Expect::Modified(a.clone(), second), true),
        (Expect::Created(a.clone(), second), false),
        (Expect::Created(a.clone(), first), true),
        (Expect::Modified(c.clone(), first), false),
        (Expect::Created(c.clone(), first), false),
        (Expect::Absent(c.clone()), true),
        (Expect::Absent(b.clone()), false),
    ] {
        let probe = Txn::new().expect(expect.clone());
        assert_eq!(store.commit(probe).await.unwrap().is_committed(), holds, "{expect:?}");
    }
    assert_eq!(store.revision().await.unwrap(), second, "a transaction that changes nothing has no revision");

    let half = Txn::new().expect(Expect::Modified(a.clone(), second)).expect(Expect::Absent(b.clone()));
    let half = half.put(c.clone(), "3").delete(a.clone());
    assert_eq!(store.commit(half).await.unwrap(), Outcome::Conflict { revision: second });
    assert_eq!(store.get(&c).await.unwrap(), None);

    let swap = Txn::new().delete(a).delete(b).delete(Key::new("/t/none")).put(c, "4");
    assert_eq!(store.commit(swap).await.unwrap(), Outcome::Committed { revision: second.next(), deleted: 2 });
}

pub(crate) async fn refuses_what_can_never_be_applied_and_goes_on(rig: &impl Rig) {
    let store = rig.store();
    let key = Key::new("/t/a");
    let many = (0..129).fold(Txn::new(), |txn, i| txn.put(Key::new(format!("/t/{i}")), "x"));
    let bad = [
        Txn::new().put(key.clone(), "1").put(key.clone(), "2"),
        Txn::new().put(key.clone(), "1").delete(key.clone()),
        Txn::new().put(Key::new(""), "1"),
        Txn::new().expect(Expect::Absent(Key::new(""))),
        Txn::new().put(key.clone(), vec![b'x'; 2 << 20]),
        many,
    ];
    for txn in bad {
        let error = store.commit(txn).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
        assert!(!error.retryable());
    }
    let full = (0..128).fold(Txn::new(), |txn, i| txn.put(Key::new(format!("/t/{i}")), "x"));
    assert!(store.commit(full).await.unwrap().is_committed());
    assert!(store.put(key, vec![b'x'; 1_000_000].into()).await.is_ok());
}

pub(crate) async fn loses_no_increment_of_racing_tasks(rig: &impl Rig) {
    const TASKS: usize = 12;
    const INCREMENTS: usize = 20;
    let key = Key::new("/t/counter");
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (store, key) = (rig.store(), key.clone());
        tasks.spawn(async move {
            let mut lost_races = 0;
            for _ in 0..INCREMENTS {
                while !increment(&*store, &key).await {
                    lost_races += 1;
                }
            }
            lost_races
        });
    }
    let lost_races: usize = tasks.join_all().await.into_iter().sum();
    assert!(lost_races > 0, "no race was run");
    let value = rig.store().get(&key).await.unwrap().unwrap().value;
    assert_eq!(value, (TASKS * INCREMENTS).to_string());
}

async fn increment(store: &dyn Store, key: &Key) -> bool {
    let (expect, count) = match store.get(key).await.unwrap() {
        None => (Expect::Absent(key.clone()), 0),
        Some(entry) => {
            let count: usize = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
            (Expect::Modified(key.clone(), entry.modified), count)
        }
    };
    // Others may come between, also where the store never waits for anything.
    tokio::task::yield_now().await;
    let txn = Txn::new().expect(expect).put(key.clone(), (count + 1).to_string());
    store.commit(txn).await.unwrap().is_committed()
}

pub(crate) async fn deletes_the_keys_of_a_lease_that_ends(rig: &impl Rig) {
    let store = rig.store();
    let [leased, other, free] = ["/t/leased", "/t/other", "/t/free"].map(Key::new);
    let start = store.revision().await.unwrap();
    let grant = store.grant(rig.ttl()).await.unwrap();
    let granted_at = Instant::now();
    assert!(grant.ttl >= rig.ttl());
    let txn = Txn::new().put_leased(leased.clone(), "x", grant.lease).put_leased(other.clone(), "x", grant.lease);
    let put = store.commit(txn.put(free.clone(), "x")).await.unwrap().revision();
    assert_eq!(store.get(&leased).await.unwrap().unwrap().lease, Some(grant.lease));

    let mut watch = store.watch(&Prefix::new("/t/"), start).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, put);
    let end = next(&mut watch).await.unwrap();
    assert_eq!(
        end,
        Update { revision: put.next(), events: vec![Event::Delete(leased.clone()), Event::Delete(other.clone())] }
    );
    let lived = granted_at.elapsed();
    assert!(lived + Duration::from_millis(500) > grant.ttl, "it lived for only {lived:?} of {:?}", grant.ttl);
    assert!(lived < grant.ttl * 3 + Duration::from_secs(2), "it lived for {lived:?} of {:?}", grant.ttl);

    assert_eq!(store.get(&leased).await.unwrap(), None);
    assert!(store.get(&free).await.unwrap().is_some());
    let gone = |error: Error| matches!(error, Error::LeaseNotFound { lease } if lease == grant.lease);
    assert!(gone(store.keep_alive(grant.lease).await.unwrap_err()));
    assert!(gone(store.revoke(grant.lease).await.unwrap_err()));
    assert!(gone(store.commit(Txn::new().put_leased(leased, "x", grant.lease)).await.unwrap_err()));
}

pub(crate) async fn keeps_a_lease_alive_until_it_is_revoked(rig: &impl Rig) {
    let store = rig.store();
    let grant = store.grant(rig.ttl()).await.unwrap();
    let other = store.grant(Duration::from_secs(60)).await.unwrap();
    let keys = ["/t/a", "/t/b"].map(Key::new);
    let txn = keys.iter().fold(Txn::new(), |txn, key| txn.put_leased(key.clone(), "x", grant.lease));
    let put = store.commit(txn.put_leased(Key::new("/t/c"), "x", other.lease)).await.unwrap().revision();
    for _ in 0..10 {
        sleep(grant.ttl / 4).await;
        assert_eq!(store.keep_alive(grant.lease).await.unwrap(), grant.ttl);
    }
    assert_eq!(store.list(&Prefix::new("/t/")).await.unwrap().entries.len(), 3);

    store.revoke(grant.lease).await.unwrap();
    let left = store.list(&Prefix::new("/t/")).await.unwrap();
    assert_eq!((left.revision, left.entries.len()), (put.next(), 1), "the keys went together");
    let nobodys = LeaseId::new(0x7777_7777);
    assert!(matches!(store.keep_alive(nobodys).await, Err(Error::LeaseNotFound { lease }) if lease == nobodys));
}

pub(crate) async fn frees_a_key_that_is_put_anew_without_its_lease(rig: &impl Rig) {
    let store = rig.store();
    let [first, second] = [store.grant(rig.ttl() * 30).await.unwrap(), store.grant(rig.ttl() * 30).await.unwrap()];
    let [freed, moved, back] = ["/t/freed", "/t/moved", "/t/back"].map(Key::new);
    let txn =
        [&freed, &moved, &back].iter().fold(Txn::new(), |txn, key| txn.put_leased(Key::clone(key), "1", first.lease));
    store.commit(txn).await.unwrap();
    store.put(freed.clone(), text("2")).await.unwrap();
    store.delete(back.clone()).await.unwrap();
    store.put(back.clone(), text("2")).await.unwrap();
    store.commit(Txn::new().put_leased(moved.clone(), "2", second.lease)).await.unwrap();
    store.revoke(first.lease).await.unwrap();
    assert_eq!(store.list(&Prefix::new("/t/")).await.unwrap().entries.len(), 3);
    store.revoke(second.lease).await.unwrap();
    assert_eq!(store.get(&moved).await.unwrap(), None);
    assert_eq!(store.get(&freed).await.unwrap().unwrap().lease, None);
}

pub(crate) async fn shows_every_change_once_and_in_order_to_every_watch(rig: &impl Rig) {
    const WRITERS: usize = 4;
    const CHANGES: usize = 40;
    let store = rig.store();
    let prefix = Prefix::new("/t/");
    let start = store.revision().await.unwrap();
    let changes = WRITERS * CHANGES;
    let early = store.watch(&prefix, start).await.unwrap();
    let mut watchers = JoinSet::new();
    watchers.spawn(collect(early, changes));

    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = rig.store();
        let key = prefix.key(format!("{writer}"));
        writers.spawn(async move {
            for i in 0..CHANGES {
                if i % 5 == 4 {
                    assert!(store.delete(key.clone()).await.unwrap());
                } else {
                    store.put(key.clone(), text(&i.to_string())).await.unwrap();
                }
            }
        });
    }
    // One that begins in the midst of it, at the beginning.
    watchers.spawn(collect(store.watch(&prefix, start).await.unwrap(), changes));
    writers.join_all().await;
    watchers.spawn(collect(store.watch(&prefix, start).await.unwrap(), changes));

    let seen = watchers.join_all().await;
    let revisions: Vec<i64> = seen[0].iter().map(|update| update.revision.get()).collect();
    let all: Vec<i64> = (1..=changes as i64).map(|i| start.get() + i).collect();
    assert_eq!(revisions, all, "every change has its revision, in order, once");
    assert!(seen.iter().all(|other| *other == seen[0]), "every watch saw the same");

    let middle = Revision::new(start.get() + changes as i64 / 2);
    let rest = collect(store.watch(&prefix, middle).await.unwrap(), changes / 2).await;
    assert_eq!(rest, seen[0][changes / 2..]);

    let mut replayed = BTreeMap::new();
    for event in seen[0].iter().flat_map(|update| &update.events) {
        match event {
            Event::Put(entry) => replayed.insert(entry.key.clone(), entry.clone()),
            Event::Delete(key) => replayed.remove(key),
        };
    }
    assert_eq!(replayed.into_values().collect::<Vec<_>>(), store.list(&prefix).await.unwrap().entries);
}

async fn collect(mut watch: Watch, updates: usize) -> Vec<Update> {
    let mut seen = Vec::new();
    while seen.len() < updates {
        seen.push(next(&mut watch).await.unwrap());
    }
    seen
}

pub(crate) async fn watches_only_its_prefix_and_keeps_a_revision_together(rig: &impl Rig) {
    let store = rig.store();
    let start = store.revision().await.unwrap();
    let mut watch = store.watch(&Prefix::new("/t/"), start).await.unwrap();
    store.put(Key::new("/t0"), text("x")).await.unwrap();
    store.put(Key::new("/s/a"), text("x")).await.unwrap();
    let txn = Txn::new().put(Key::new("/t/b"), "1").put(Key::new("/s/b"), "1").put(Key::new("/t/a"), "1");
    let both = store.commit(txn).await.unwrap().revision();
    let update = next(&mut watch).await.unwrap();
    assert_eq!(update.revision, both);
    let keys: Vec<&str> = update.events.iter().map(|event| event.key().as_str()).collect();
    assert_eq!(keys, ["/t/a", "/t/b"]);

    let mut ahead = store.watch(&Prefix::new("/t/"), both.next()).await.unwrap();
    store.put(Key::new("/t/c"), text("not this one")).await.unwrap();
    let later = store.put(Key::new("/t/c"), text("this one")).await.unwrap();
    assert_eq!(next(&mut ahead).await.unwrap().revision, later);
}

pub(crate) async fn reports_a_compacted_history_and_goes_on_from_a_listing(rig: &impl Rig) {
    let store = rig.store();
    let prefix = Prefix::new("/t/");
    let old = store.put(prefix.key("a"), text("1")).await.unwrap();
    store.put(prefix.key("b"), text("1")).await.unwrap();
    store.delete(prefix.key("a")).await.unwrap();
    rig.compact().await;

    let mut late = store.watch(&prefix, old).await.unwrap();
    match next(&mut late).await {
        Err(error @ Error::Compacted { at }) => {
            assert!(at > old, "{at:?}");
            assert!(!error.retryable());
        }
        other => panic!("history is gone, and yet: {other:?}"),
    }
    assert!(late.next().await.is_none(), "nothing follows");

    let listing = store.list(&prefix).await.unwrap();
    let mut anew = store.watch(&prefix, listing.revision).await.unwrap();
    let put = store.put(prefix.key("c"), text("1")).await.unwrap();
    assert_eq!(next(&mut anew).await.unwrap().revision, put);
}
