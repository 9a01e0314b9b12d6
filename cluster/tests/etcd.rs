//! The store in a real etcd that the test starts: against the contract, against the store in memory, and through
//! outages. `make test` provides etcd; without one these tests fail.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/catalogs.rs"]
mod catalogs;
#[path = "support/contract.rs"]
mod contract;
#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/link.rs"]
mod link;
#[path = "support/members.rs"]
mod members;
#[path = "support/script.rs"]
mod script;

use std::sync::Arc;
use std::time::Duration;

use penstock_cluster::Membership;
use penstock_cluster::catalog;
use penstock_cluster::membership::{self, MemberEvent};
use penstock_cluster::store::{Error, EtcdConfig, EtcdStore, EtcdTls, Key, Login, MemoryStore, Prefix, Store};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

use contract::{Rig, next};
use etcd::{Etcd, Security, TTL};
use members::{Router, Worker};

struct Real {
    etcd: Etcd,
    store: Arc<dyn Store>,
}

impl Real {
    async fn start() -> Self {
        let etcd = Etcd::start().await;
        let store = etcd.store();
        Self { etcd, store }
    }
}

impl Rig for Real {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn ttl(&self) -> Duration {
        TTL
    }

    async fn compact(&self) {
        self.etcd.compact().await;
    }
}

contract::contract!(Real::start());

#[tokio::test]
async fn does_what_the_store_in_memory_does() {
    let etcd = Etcd::start().await;
    let (real, memory) = (etcd.store(), MemoryStore::new());
    let mut runner = TestRunner::deterministic();
    for _ in 0..25 {
        let script = script::script().new_tree(&mut runner).unwrap().current();
        let trace = script::run(&*real, &script).await;
        assert_eq!(trace, script::run(&memory, &script).await, "{script:#?}");
        assert_eq!(trace, script::model(&script), "{script:#?}");
    }
}

/// Puts numbers under `/t/` from `from` on, one at a time, until each is there.
async fn put_all(store: &dyn Store, from: usize, count: usize) {
    for i in from..from + count {
        while let Err(error) = store.put(Key::new(format!("/t/{i:03}")), "x".into()).await {
            assert!(error.retryable(), "{error}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn a_watch_goes_on_through_restarts_without_a_gap_or_a_double() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store();
    let start = store.revision().await.unwrap();
    let mut watch = store.watch(&Prefix::new("/t/"), start).await.unwrap();
    put_all(&*store, 0, 10).await;
    assert_eq!(next(&mut watch).await.unwrap().revision, start.next());
    for round in 1..=3 {
        etcd.restart();
        put_all(&*store, round * 10, 10).await;
    }
    let mut last = start.next();
    let end = store.revision().await.unwrap();
    while last < end {
        let update = next(&mut watch).await.unwrap();
        assert_eq!(update.revision, last.next(), "no gap, no double");
        last = update.revision;
    }
    assert_eq!(store.list(&Prefix::new("/t/")).await.unwrap().entries.len(), 40);
}

#[tokio::test]
async fn a_watch_does_not_pass_over_a_delete_at_the_very_revision_of_a_compaction() {
    let etcd = Etcd::start().await;
    let store = etcd.store();
    put_all(&*store, 0, 3).await;
    // etcd would let a watch start at this revision, and has forgotten the delete.
    let before = store.revision().await.unwrap();
    assert!(store.delete(Key::new("/t/000")).await.unwrap());
    etcd.compact().await;
    let mut watch = store.watch(&Prefix::new("/t/"), before).await.unwrap();
    let seen = next(&mut watch).await;
    assert!(matches!(seen, Err(Error::Compacted { at }) if at == before.next()), "{seen:?}");
}

#[tokio::test]
async fn a_call_in_an_outage_ends_soon_with_a_retryable_error_and_works_again_after_it() {
    let etcd = Etcd::start().await;
    let store = etcd.store();
    let key = Key::new("/t/a");
    store.put(key.clone(), "1".into()).await.unwrap();
    etcd.pause();
    let started = Instant::now();
    let (read, write) = tokio::join!(store.get(&key), store.put(key.clone(), "2".into()));
    for error in [read.unwrap_err(), write.unwrap_err()] {
        assert!(matches!(error, Error::Unavailable { .. }) && error.retryable(), "{error:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    etcd.resume();
    let first = store.get(&key).await.unwrap().unwrap();
    assert!(["1", "2"].iter().any(|value| first.value == *value), "the outcome was open");
    store.put(key.clone(), "3".into()).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().unwrap().value, "3");
}

#[tokio::test]
async fn nobody_at_an_address_is_an_outage_that_names_the_cause() {
    let [port] = [std::net::TcpListener::bind("127.0.0.1:0").unwrap()].map(|l| l.local_addr().unwrap().port());
    let endpoints = vec![format!("http://127.0.0.1:{port}")];
    let store = EtcdStore::new(EtcdConfig { endpoints, login: None, tls: None }).unwrap();
    let error = store.revision().await.unwrap_err();
    assert!(error.retryable() && error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn an_address_that_does_not_answer_makes_room_for_the_next() {
    let [dead, live] = [Etcd::start().await, Etcd::start().await];
    dead.pause();
    let endpoints = [dead.config(), live.config()].map(|config| config.endpoints).concat();
    let store = EtcdStore::new(EtcdConfig { endpoints, login: None, tls: None }).unwrap();
    let key = Key::new("/t/a");
    let error = store.put(key.clone(), "1".into()).await.unwrap_err();
    assert!(error.retryable(), "the first one has it, perhaps: {error}");
    store.put(key.clone(), "2".into()).await.unwrap();
    assert_eq!(live.store().get(&key).await.unwrap().unwrap().value, "2");
}

#[test]
fn addresses_that_make_no_sense_are_refused_by_name() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _entered = runtime.enter();
    for (endpoints, named) in [
        (vec![], "no address"),
        (vec!["127.0.0.1:2379"], "127.0.0.1:2379"),
        (vec!["ftp://etcd:2379"], "neither http:// nor https://"),
        (vec!["https://etcd:2379"], "certificate"),
    ] {
        let endpoints = endpoints.into_iter().map(str::to_owned).collect();
        let error = EtcdStore::new(EtcdConfig { endpoints, login: None, tls: None }).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains(named), "{error}");
    }
}

#[tokio::test]
async fn a_user_with_a_password_gets_what_its_role_covers_and_nobody_else_does() {
    let mut etcd = Etcd::start().await;
    let range = r#""key":"L3BlbnN0b2NrLw==","range_end":"L3BlbnN0b2NrMA==""#; // /penstock/ to /penstock0
    for (path, body) in [
        ("user/add", r#"{"name":"root","password":"deep"}"#.to_owned()),
        ("user/grant", r#"{"user":"root","role":"root"}"#.to_owned()),
        ("user/add", r#"{"name":"router","password":"secret"}"#.to_owned()),
        ("role/add", r#"{"name":"penstock"}"#.to_owned()),
        ("role/grant", format!(r#"{{"name":"penstock","perm":{{"permType":"READWRITE",{range}}}}}"#)),
        ("user/grant", r#"{"user":"router","role":"penstock"}"#.to_owned()),
        ("auth_enable", "{}".to_owned()),
    ] {
        let path = if path == "auth_enable" { "/v3/auth/enable".to_owned() } else { format!("/v3/auth/{path}") };
        etcd.post(&path, &body).await;
    }
    let store_of = |login: Option<(&str, &str)>| {
        let login = login.map(|(user, password)| Login { user: user.to_owned(), password: password.to_owned() });
        EtcdStore::new(EtcdConfig { login, ..etcd.config() }).unwrap()
    };
    for login in [None, Some(("router", "wrong")), Some(("nobody", "secret"))] {
        let error = store_of(login).revision().await.unwrap_err();
        assert!(matches!(error, Error::Denied { .. }) && !error.retryable(), "{login:?}: {error:?}");
    }
    let store = store_of(Some(("router", "secret")));
    store.revision().await.unwrap();
    let prefix = Prefix::new("/penstock/");
    let mut watch = store.watch(&prefix, store.revision().await.unwrap()).await.unwrap();
    let first = store.put(prefix.key("a"), "1".into()).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, first);
    let error = store.get(&Key::new("/other")).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    let mut forbidden = store.watch(&Prefix::new("/other/"), first).await.unwrap();
    assert!(matches!(next(&mut forbidden).await, Err(Error::Denied { .. })));

    // A restart forgets every token: calls and watches log in anew.
    etcd.restart();
    let second = loop {
        match store.put(prefix.key("b"), "1".into()).await {
            Ok(revision) => break revision,
            Err(error) => assert!(error.retryable(), "{error}"),
        }
    };
    assert_eq!(next(&mut watch).await.unwrap().revision, second);
    assert!(!format!("{:?}", store).contains("secret"));
}

/// An authority, and what it signs for a name.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

#[tokio::test]
async fn tls_with_certificates_on_both_sides_works_and_anything_less_is_refused_with_its_cause() {
    let authority = Authority::new("ours");
    let security =
        Security { ca: authority.pem(), server: authority.sign("127.0.0.1"), client: authority.sign("penstock") };
    let etcd = Etcd::start_with(Some(security)).await;
    let store = etcd.store();
    let put = store.put(Key::new("/t/a"), "1".into()).await.unwrap();
    assert_eq!(store.get(&Key::new("/t/a")).await.unwrap().unwrap().modified, put);

    let good = etcd.config();
    let tls = good.tls.clone().unwrap();
    let stranger = EtcdTls { ca: Authority::new("stranger").pem().into(), ..tls.clone() };
    let nameless = EtcdTls { identity: None, ..tls };
    let plain: Vec<String> = good.endpoints.iter().map(|address| address.replace("https", "http")).collect();
    for (config, named) in [
        (EtcdConfig { tls: Some(stranger), ..good.clone() }, "UnknownIssuer"),
        (EtcdConfig { tls: Some(nameless), ..good.clone() }, "https://127.0.0.1"),
        (EtcdConfig { endpoints: plain, tls: None, ..good.clone() }, "http://127.0.0.1"),
    ] {
        let error = EtcdStore::new(config).unwrap().revision().await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }) && error.to_string().contains(named), "{error}");
    }
}

/// Two workers as their processes would run them, each with its own link, and a router that has seen them.
async fn cluster(etcd: &Etcd) -> (Vec<Arc<Worker>>, JoinSet<()>, Membership, Router) {
    let workers: Vec<Arc<Worker>> = (0..2).map(|_| Arc::new(Worker::new(etcd.store(), TTL))).collect();
    let mut tasks = JoinSet::new();
    for (worker, who) in workers.iter().zip(["w1", "w2"]) {
        tasks.spawn(members::serve(worker.clone(), who));
    }
    let membership = Membership::with_ttl(etcd.store(), TTL);
    let mut router = Router::watching(&membership).await;
    while router.view.len() < 2 {
        router.next().await;
    }
    (workers, tasks, membership, router)
}

fn left(events: &[MemberEvent]) -> Vec<&MemberEvent> {
    events.iter().filter(|event| matches!(event, MemberEvent::Left(_))).collect()
}

#[tokio::test]
async fn members_stay_through_pauses_of_etcd_that_cost_them_their_leases() {
    let etcd = Etcd::start().await;
    let (_workers, _tasks, _membership, mut router) = cluster(&etcd).await;
    let freshness = router.members.freshness();
    let before = router.view.clone();
    // The long one also outlasts the pings that find a dead connection, so that every call and watch connects anew.
    for pause in [TTL / 2, TTL * 6] {
        etcd.pause();
        let silent = router.during(pause).await;
        assert_eq!(silent, []);
        assert!(freshness.staleness() >= pause / 2);
        etcd.resume();
        let events = router.during(TTL * 3).await;
        assert_eq!(left(&events), [] as [&MemberEvent; 0], "{events:?}");
        assert!(freshness.staleness() < TTL);
    }
    assert_eq!(router.view.len(), 2);
    assert!(router.view.iter().all(|(name, member)| member.epoch > before[name].epoch), "the leases had ended");
}

#[tokio::test]
async fn members_stay_through_restarts_of_etcd_and_who_dies_meanwhile_is_gone_after_it() {
    let mut etcd = Etcd::start().await;
    let (workers, _tasks, _membership, mut router) = cluster(&etcd).await;
    etcd.restart();
    let mut events = router.during(TTL * 2).await;
    etcd.kill();
    events.extend(router.during(TTL * 2).await);
    etcd.restart();
    events.extend(router.during(TTL * 3).await);
    assert_eq!(left(&events), [] as [&MemberEvent; 0], "{events:?}");
    assert_eq!(router.view.len(), 2);

    workers[1].link.cut();
    etcd.kill();
    assert_eq!(router.during(TTL).await, []);
    etcd.restart();
    let restarted = Instant::now();
    while router.view.len() == 2 {
        router.next().await;
    }
    assert_eq!(router.view.keys().next(), Some(&members::name("w1")));
    // A restart gives every lease its whole time to live again, and the router one more.
    assert!(restarted.elapsed() < TTL * 4, "{:?}", restarted.elapsed());
}

#[tokio::test]
async fn membership_goes_on_through_a_compaction_and_a_dead_member_is_gone_within_its_lease() {
    let etcd = Etcd::start().await;
    let (workers, _tasks, membership, mut router) = cluster(&etcd).await;
    etcd.compact().await;
    let third = Worker::new(etcd.store(), TTL);
    let lease = third.join("w3").await;
    assert!(matches!(router.next().await, MemberEvent::Joined(member) if member.epoch == lease.epoch()));
    let taken = membership.join(members::member("w3")).await.unwrap_err();
    assert!(matches!(taken, membership::Error::NameTaken { .. }), "{taken}");
    lease.leave().await;
    assert_eq!(router.next().await, MemberEvent::Left(members::name("w3")));

    workers[0].link.cut();
    let died = Instant::now();
    assert_eq!(router.next().await, MemberEvent::Left(members::name("w1")));
    // etcd looks for ended leases every half second.
    assert!(died.elapsed() < TTL + Duration::from_millis(1500), "{:?}", died.elapsed());
    workers[0].link.mend();
    assert!(matches!(router.next().await, MemberEvent::Joined(member) if member.name == members::name("w1")));
}

#[tokio::test]
async fn a_catalogue_has_versions() {
    catalogs::versions_are_counted_kept_and_brought_back(&*Etcd::start().await.store()).await;
}

#[tokio::test]
async fn of_many_catalogues_at_once_each_is_a_version_or_told_to_look() {
    let etcd = Etcd::start().await;
    catalogs::of_many_at_once_each_is_a_version_or_told_to_look(etcd.store()).await;
}

#[tokio::test]
async fn whoever_follows_the_catalogue_sees_each_new_version() {
    let etcd = Etcd::start().await;
    catalogs::whoever_follows_sees_each_new_version(etcd.store()).await;
}

#[tokio::test]
async fn following_the_catalogue_rides_out_a_restart_and_a_compaction() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store();
    let tasks = TaskTracker::new();
    let mut catalogs = catalog::watch(store.clone(), &tasks);
    catalog::apply(&*store, &catalogs::catalog(&["a"]), "alice").await.unwrap();
    assert_eq!(catalogs.next().await.number.get(), 1);
    etcd.restart();
    while catalog::apply(&*store, &catalogs::catalog(&["b"]), "alice").await.is_err() {
        tokio::task::yield_now().await;
    }
    etcd.compact().await;
    let seen = timeout(Duration::from_secs(20), catalogs.next()).await.expect("it comes once the store is back");
    assert_eq!(seen.catalog, catalogs::catalog(&["b"]));
    assert!(catalogs.newest().is_some());
}
