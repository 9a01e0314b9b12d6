//! Membership on the store in memory, in tokio's paused time: what members and watchers see, also through outages.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/link.rs"]
mod link;
#[path = "support/members.rs"]
mod members;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use penstock_cluster::Membership;
use penstock_cluster::membership::{Error, LEASE_TTL as TTL, Lease, Member, MemberEvent, MemberState};
use penstock_cluster::store::{Expect, Key, MemoryStore, Prefix, Store, Txn};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use link::Link;
use members::{Router, Worker, member, name, serve};

fn key(worker: &str) -> Key {
    Key::new(format!("/penstock/v1/members/{worker}"))
}

struct Cluster {
    store: Arc<dyn Store>,
    /// The router's way to the store.
    link: Link,
    membership: Membership,
}

impl Cluster {
    fn new() -> Self {
        Self::over(MemoryStore::new())
    }

    fn over(store: MemoryStore) -> Self {
        let store: Arc<dyn Store> = Arc::new(store);
        let link = Link::to(store.clone());
        Self { membership: Membership::new(Arc::new(link.clone())), link, store }
    }

    fn worker(&self) -> Worker {
        Worker::new(self.store.clone(), TTL)
    }
}

#[tokio::test(start_paused = true)]
async fn members_are_seen_as_they_join_change_and_leave() {
    let cluster = Cluster::new();
    let worker = cluster.worker();
    let first = worker.join("w1").await;
    let mut router = Router::watching(&cluster.membership).await;
    assert_eq!(router.view.values().collect::<Vec<_>>(), [&Member { epoch: first.epoch(), ..member("w1") }]);

    let second = worker.membership.join(Member { state: MemberState::Loading, ..member("w2") }).await.unwrap();
    assert!(second.epoch() > first.epoch());
    let loading = Member { epoch: second.epoch(), state: MemberState::Loading, ..member("w2") };
    assert_eq!(router.next().await, MemberEvent::Joined(loading.clone()));
    second.update(MemberState::Ready).await.unwrap();
    assert_eq!(router.next().await, MemberEvent::Changed(Member { state: MemberState::Ready, ..loading }));

    assert_eq!(router.during(TTL * 5).await, [], "leases are kept alive");
    assert!(router.members.freshness().staleness() <= TTL / 8);
    first.leave().await;
    assert_eq!(cluster.store.get(&key("w1")).await.unwrap(), None, "leave waits until it is done");
    assert_eq!(router.next().await, MemberEvent::Left(name("w1")));
    drop(second);
    worker.membership.close().await;
    assert_eq!(cluster.store.get(&key("w2")).await.unwrap(), None, "close waits for leases that were dropped");
    assert_eq!(router.next().await, MemberEvent::Left(name("w2")));
}

#[tokio::test(start_paused = true)]
async fn a_member_is_one_json_document_and_what_is_none_is_passed_over() {
    let cluster = Cluster::new();
    let worker = cluster.worker();
    let lease = worker.join("w1").await;
    let entry = cluster.store.get(&key("w1")).await.unwrap().unwrap();
    assert_eq!(
        entry.value,
        r#"{"name":"w1","endpoint":"http://w1:50051","models":[{"name":"m","digest":"d"}],"state":"ready","protocol":1}"#
    );
    let newer = r#"{"name":"w2","endpoint":"e","models":[],"state":"ready","protocol":2,"later":{}}"#;
    for (at, document) in [("w2", newer), ("w3", newer), ("w4", "{"), ("", "{}")] {
        cluster.store.put(key(at), document.into()).await.unwrap();
    }
    let mut router = Router::watching(&cluster.membership).await;
    assert_eq!(router.view.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["w1", "w2"]);
    assert_eq!(router.view[&name("w2")].protocol, 2);
    cluster.store.put(key("w2"), "no longer one".into()).await.unwrap();
    assert_eq!(router.next().await, MemberEvent::Left(name("w2")));
    lease.leave().await;
    assert_eq!(router.next().await, MemberEvent::Left(name("w1")));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_dies_is_gone_within_its_lease() {
    let cluster = Cluster::new();
    let worker = cluster.worker();
    let _lease = worker.join("w1").await;
    let mut router = Router::watching(&cluster.membership).await;
    sleep(TTL * 3).await;
    worker.link.cut();
    let died = Instant::now();
    assert_eq!(router.next().await, MemberEvent::Left(name("w1")));
    assert!(died.elapsed() <= TTL && died.elapsed() >= TTL / 2, "{:?}", died.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_name_has_one_holder() {
    let cluster = Cluster::new();
    let [first, second] = [cluster.worker(), cluster.worker()];
    let lease = first.join("w1").await;
    let impostor = Member { endpoint: "http://elsewhere".to_owned(), ..member("w1") };
    let error = second.membership.join(impostor.clone()).await.unwrap_err();
    let Error::NameTaken { endpoint, epoch, .. } = &error else { panic!("{error:?}") };
    assert_eq!((endpoint.as_str(), *epoch), ("http://w1:50051", lease.epoch()));
    assert_eq!(cluster.store.get(&key("w1")).await.unwrap().unwrap().created.get(), lease.epoch().get());

    // One that is waiting gets the name as soon as it is free.
    let waiting = second.membership.join(impostor.clone());
    let (heir, ()) = tokio::join!(waiting, async {
        sleep(TTL / 2).await;
        lease.leave().await;
    });
    let heir = heir.unwrap();
    drop(heir);

    // And a worker that comes back after a crash does not have to be started twice.
    let crashed = first.join("w2").await;
    first.link.cut();
    let back = second.join("w2").await;
    assert!(back.epoch() > crashed.epoch());
}

#[tokio::test(start_paused = true)]
async fn of_many_that_want_a_name_at_once_one_gets_it() {
    let cluster = Cluster::new();
    let mut tasks = JoinSet::new();
    for i in 0..8 {
        let worker = cluster.worker();
        let wanted = Member { endpoint: format!("http://{i}"), ..member("w1") };
        tasks.spawn(async move {
            let joined = worker.membership.join(wanted).await;
            (joined, worker)
        });
    }
    let outcomes = tasks.join_all().await;
    let holders: Vec<&Lease> = outcomes.iter().filter_map(|(joined, _)| joined.as_ref().ok()).collect();
    assert_eq!(holders.len(), 1);
    let others = outcomes.iter().filter(|(joined, _)| matches!(joined, Err(Error::NameTaken { .. })));
    assert_eq!(others.count(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_join_whose_answer_got_lost_is_found_again() {
    let cluster = Cluster::new();
    let mut router = Router::watching(&cluster.membership).await;
    let worker = cluster.worker();
    worker.link.lost_answers.store(1, Ordering::Relaxed);
    let started = Instant::now();
    let lease = worker.join("w1").await;
    assert!(started.elapsed() < TTL / 2, "it does not wait for itself");
    worker.link.lost_answers.store(2, Ordering::Relaxed);
    lease.update(MemberState::Draining).await.unwrap();
    let joined = Member { epoch: lease.epoch(), ..member("w1") };
    let drained = Member { state: MemberState::Draining, ..joined.clone() };
    assert_eq!(router.during(TTL * 3).await, [MemberEvent::Joined(joined), MemberEvent::Changed(drained)]);
}

#[tokio::test(start_paused = true)]
async fn a_holder_learns_that_its_lease_is_lost_and_can_write_no_more() {
    let cluster = Cluster::new();
    let [first, second] = [cluster.worker(), cluster.worker()];
    let old = first.join("w1").await;
    assert!(timeout(TTL * 2, old.lost()).await.is_err(), "it is held");
    first.link.cut();
    let new = second.join("w1").await;
    // It cannot know yet, and its writes cannot arrive; nor may they once they can.
    let delayed = Txn::new().expect(old.fence()).put(Key::new("/penstock/v1/other"), "x");
    first.link.mend();
    assert!(!first.link.commit(delayed).await.unwrap().is_committed());
    assert!(matches!(old.update(MemberState::Draining).await, Err(Error::Lost { epoch, .. }) if epoch == old.epoch()));
    timeout(TTL / 10, old.lost()).await.unwrap();
    old.leave().await;
    let entry = cluster.store.get(&key("w1")).await.unwrap().unwrap();
    assert_eq!(entry.created.get(), new.epoch().get());
    assert_eq!(new.fence(), Expect::Created(key("w1"), entry.created));

    // Somebody takes the lease away: the keeper finds out by itself.
    cluster.store.revoke(entry.lease.unwrap()).await.unwrap();
    let taken = Instant::now();
    new.lost().await;
    assert!(taken.elapsed() <= TTL / 2, "{:?}", taken.elapsed());
    assert!(matches!(new.update(MemberState::Ready).await, Err(Error::Lost { .. })));
    assert_eq!(cluster.store.get(&key("w1")).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_document_that_is_deleted_under_its_holder_is_lost_though_the_lease_lives() {
    let cluster = Cluster::new();
    let [first, second] = [cluster.worker(), cluster.worker()];
    let old = first.join("w1").await;
    cluster.store.delete(key("w1")).await.unwrap();
    let deleted = Instant::now();
    let new = second.join("w1").await;
    assert!(matches!(old.update(MemberState::Draining).await, Err(Error::Lost { .. })));
    let entry = cluster.store.get(&key("w1")).await.unwrap().unwrap();
    assert_eq!(entry.created.get(), new.epoch().get());
    assert_eq!(entry.modified, entry.created, "nobody else wrote");

    cluster.store.delete(key("w1")).await.unwrap();
    new.lost().await;
    assert!(deleted.elapsed() <= TTL / 2, "{:?}", deleted.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_router_alone_shows_only_in_its_staleness() {
    let cluster = Cluster::new();
    let worker = cluster.worker();
    let first = worker.join("w1").await;
    let _second = worker.join("w2").await;
    let mut router = Router::watching(&cluster.membership).await;
    let freshness = router.members.freshness();
    cluster.link.cut();
    assert_eq!(router.during(TTL * 10).await, []);
    assert!(freshness.staleness() >= TTL * 9, "{:?}", freshness.staleness());
    first.update(MemberState::Draining).await.unwrap();
    let third = worker.join("w3").await;
    cluster.link.mend();
    let mut events = [router.next().await, router.next().await];
    events.sort_by_key(|event| matches!(event, MemberEvent::Joined(_)));
    let drained = Member { epoch: first.epoch(), state: MemberState::Draining, ..member("w1") };
    let joined = Member { epoch: third.epoch(), ..member("w3") };
    assert_eq!(events, [MemberEvent::Changed(drained), MemberEvent::Joined(joined)]);
    assert_eq!(router.next().await, MemberEvent::Synced);
    assert!(freshness.staleness() < TTL / 2);
    assert_eq!(router.during(TTL * 5).await, []);
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_costs_everybody_its_lease_removes_only_who_died_in_it() {
    let cluster = Cluster::new();
    let workers: Vec<Arc<Worker>> = (0..3).map(|_| Arc::new(cluster.worker())).collect();
    let mut tasks = JoinSet::new();
    for (worker, who) in workers.iter().zip(["w1", "w2", "w3"]) {
        tasks.spawn(serve(worker.clone(), who));
    }
    let drained = cluster.worker();
    let leaving = drained.join("w4").await;
    sleep(TTL).await;
    leaving.update(MemberState::Draining).await.unwrap();
    let mut router = Router::watching(&cluster.membership).await;
    assert_eq!(router.view.len(), 4);
    let before = router.view.clone();

    for link in workers.iter().map(|worker| &worker.link).chain([&cluster.link, &drained.link]) {
        link.cut();
    }
    assert_eq!(router.during(TTL * 3).await, []);
    // w3 and w4 never come back.
    cluster.link.mend();
    for worker in &workers[..2] {
        worker.link.mend();
    }
    let mended = Instant::now();
    let mut events = router.until(mended + TTL / 2).await;
    events.sort_by_key(|event| format!("{event:?}"));
    let [MemberEvent::Changed(first), MemberEvent::Changed(second), MemberEvent::Left(gone)] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(*gone, name("w4"), "one that was draining is let go at once");
    for member in [first, second] {
        assert!(member.epoch > before[&member.name].epoch);
        assert_eq!(Member { epoch: before[&member.name].epoch, ..member.clone() }, before[&member.name]);
    }
    assert_eq!(router.during(TTL * 2).await, [MemberEvent::Left(name("w3"))]);
    assert!(mended.elapsed() >= TTL, "its grace is one lease");
    assert_eq!(router.view.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_router_that_reads_slowly_ends_up_with_the_truth() {
    let cluster = Cluster::over(MemoryStore::with_history(8));
    let worker = cluster.worker();
    let lease = worker.join("w1").await;
    let mut router = Router::watching(&cluster.membership).await;
    // Far more than the stream holds, and than the store remembers.
    for _ in 0..200 {
        lease.update(MemberState::Draining).await.unwrap();
        lease.update(MemberState::Ready).await.unwrap();
    }
    let passing = worker.join("w2").await;
    passing.leave().await;
    let _third = worker.join("w3").await;
    let events = router.during(TTL * 3).await;
    assert!(!events.contains(&MemberEvent::Left(name("w1"))));
    let now: Vec<_> = router.view.values().map(|member| (member.name.as_str(), member.state)).collect();
    assert_eq!(now, [("w1", MemberState::Ready), ("w3", MemberState::Ready)]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_restored_from_a_backup_is_followed_anew() {
    let cluster = Cluster::new();
    let worker = cluster.worker();
    let _gone = worker.join("w1").await;
    for _ in 0..50 {
        cluster.store.put(Key::new("/other"), "x".into()).await.unwrap();
    }
    let mut router = Router::watching(&cluster.membership).await;
    let restored: Arc<dyn Store> = Arc::new(MemoryStore::new());
    *cluster.link.store.lock().unwrap() = restored.clone();
    let other = Worker::new(restored, TTL);
    let lease = other.join("w2").await;
    let mut events = [router.next().await, router.next().await];
    events.sort_by_key(|event| matches!(event, MemberEvent::Joined(_)));
    let joined = Member { epoch: lease.epoch(), ..member("w2") };
    assert_eq!(events, [MemberEvent::Left(name("w1")), MemberEvent::Joined(joined)]);
    lease.update(MemberState::Draining).await.unwrap();
    assert!(timeout(TTL / 10, router.next()).await.is_ok(), "by the watch, not by the next listing");
}

/// Random outages of every link, of any length, while workers serve: none is ever missed that is there, and when all
/// is quiet the view is the store's state.
#[tokio::test(start_paused = true)]
async fn through_random_outages_nobody_who_serves_is_missed() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let cluster = Cluster::new();
        let workers: Vec<Arc<Worker>> = (0..3).map(|_| Arc::new(cluster.worker())).collect();
        let mut tasks = JoinSet::new();
        for (worker, who) in workers.iter().zip(["w1", "w2", "w3"]) {
            tasks.spawn(serve(worker.clone(), who));
        }
        sleep(TTL).await;
        let mut router = Router::watching(&cluster.membership).await;
        let mut links: Vec<&Link> = workers.iter().map(|worker| &worker.link).chain([&cluster.link]).collect();
        for _ in 0..6 {
            // The whole store is away; whoever was cut off comes back within a second of it.
            links.iter().for_each(|link| link.cut());
            let mut events = router.during(TTL.mul_f64(3.0 * random.f64())).await;
            random.shuffle(&mut links);
            for link in &links {
                link.mend();
                events.extend(router.during(Duration::from_millis(random.u64(0..1000) / 4)).await);
            }
            events.extend(router.during(TTL.mul_f64(3.0 * random.f64())).await);
            assert!(!events.iter().any(|event| matches!(event, MemberEvent::Left(_))), "seed {seed}: {events:?}");
        }
        router.during(TTL * 3).await;
        let listed = cluster.store.list(&Prefix::new("/penstock/v1/members/")).await.unwrap().entries;
        let listed: Vec<i64> = listed.iter().map(|entry| entry.created.get()).collect();
        assert_eq!(router.view.values().map(|member| member.epoch.get()).collect::<Vec<_>>(), listed, "seed {seed}");
        assert_eq!(listed.len(), 3);
    }
}
