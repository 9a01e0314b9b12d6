//! Several routers over one store, with time and the store's health in the test's hand.

mod charges;

use std::sync::atomic::{AtomicU64, Ordering};

use penstock_cluster::Store as _;
use penstock_cluster::catalog::{Lined, WhenSpent};
use penstock_cluster::store::{MemoryStore, Prefix};
use penstock_proto::ErrorCode;
use prometheus::Registry;
use proptest::prelude::*;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{advance, sleep};

use super::*;
use crate::tenant::Limiter;
use crate::tenant::link::Link;
use crate::upstream::UsageSource;

const TENANT: &str = "web";
/// 25 November 2026, 07:04 UTC.
const NOW: u64 = 1_795_590_240;
const DAY: u64 = 24 * 60 * 60;

#[derive(Clone)]
struct Wall(Arc<AtomicU64>);

impl Wall {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(NOW)))
    }

    fn pass(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::AcqRel);
    }
}

struct Router {
    budgets: Budgets,
    limiter: Limiter,
    link: Link,
    registry: Registry,
}

impl Router {
    fn new(store: &MemoryStore, name: &str, wall: &Wall) -> Self {
        let (link, registry, tasks, wall) = (Link::new(store), Registry::new(), TaskTracker::new(), wall.clone());
        let limiter = Limiter::new(Arc::new(link.clone()), name, &tasks);
        let metrics = Arc::new(Metrics::new(&registry).unwrap());
        let clock = Box::new(move || Duration::from_secs(wall.0.load(Ordering::Acquire)));
        let budgets = Budgets::with_clock(limiter.backing(), metrics, &tasks, clock);
        Self { budgets, limiter, link, registry }
    }

    async fn reserve(&self, budget: &Budget, nanos: u64) -> Option<Reservation> {
        self.budgets.reserve(TENANT, budget, nanos).await.ok()
    }

    /// Spends what can be had, in such amounts.
    async fn spend_all(&self, budget: &Budget, nanos: u64) -> u64 {
        let mut spent = 0;
        while let Some(reservation) = self.reserve(budget, nanos).await {
            reservation.settle(nanos);
            spent += nanos;
        }
        spent
    }

    fn left(&self, budget: &Budget) -> Option<u64> {
        match self.budgets.purse(TENANT, Some(budget)) {
            Purse::Budget { left, .. } => left.map(Usd::nanos),
            Purse::Unbounded => panic!("there is a budget"),
        }
    }

    fn metric(&self, line: &str) -> bool {
        crate::render(std::slice::from_ref(&self.registry)).lines().any(|other| other == line)
    }
}

fn routers<const N: usize>(store: &MemoryStore, wall: &Wall) -> [Router; N] {
    std::array::from_fn(|at| Router::new(store, &format!("r{at}"), wall))
}

fn budget(nanos: u64, period: Period) -> Budget {
    Budget { usd: Lined { value: Usd::from_nanos(nanos), line: 1 }, period, when_spent: WhenSpent::LocalOnly }
}

fn month(nanos: u64) -> Budget {
    budget(nanos, Period::Month)
}

/// What the store has: spent, and the sum of all slices.
async fn records(store: &MemoryStore, span: &str) -> (u64, u64) {
    let list = async |prefix: String| store.list(&Prefix::new(&prefix)).await.unwrap().entries;
    let spent = list(format!("/penstock/v1/budgets/spent/{TENANT}/{span}")).await;
    let spent = spent.first().map_or(0, |entry| std::str::from_utf8(&entry.value).unwrap().parse().unwrap());
    let slices = list(format!("/penstock/v1/budgets/routers/{TENANT}/{span}/")).await;
    let left = |value: &[u8]| {
        let record: serde_json::Value = serde_json::from_slice(value).unwrap();
        record["granted"].as_u64().unwrap() - record["written"].as_u64().unwrap()
    };
    (spent, slices.iter().map(|entry| left(&entry.value)).sum())
}

/// Long enough for every router to have written and given back.
async fn settle_down() {
    sleep(Duration::from_secs(3)).await;
}

#[tokio::test(start_paused = true)]
async fn routers_together_spend_the_budget_and_no_more() {
    let (store, wall) = (MemoryStore::new(), Wall::new());
    let [one, two, three] = routers(&store, &wall);
    let budget = month(1_000);
    assert_eq!(one.spend_all(&budget, 7).await, 994);
    assert_eq!(two.spend_all(&budget, 7).await, 0, "6 are left");
    settle_down().await;
    assert_eq!(records(&store, "2026-11").await, (994, 0), "what is not needed has gone back");
    assert_eq!(three.reserve(&budget, 6).await.map(|reservation| reservation.settle(6)), Some(()));
    settle_down().await;
    assert_eq!(records(&store, "2026-11").await, (1_000, 0));
    assert_eq!(three.left(&budget), None, "nobody has looked lately");
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(three.left(&budget), Some(0));
    assert!(three.metric(r#"penstock_budget_remaining_usd{tenant="web"} 0"#));
    let spent = two.budgets.reserve(TENANT, &budget, 2_500_000_000).await.unwrap_err();
    let failure = Failure::from(spent);
    assert_eq!(failure.code, ErrorCode::PolicyBudget);
    assert_eq!(
        failure.message,
        "this call may cost 2.50 USD, and tenant web has less left of its 0.000001 USD a month"
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_call_did_not_cost_can_be_spent_again_and_a_call_that_nobody_settles_costs_its_reserve() {
    let (store, wall) = (MemoryStore::new(), Wall::new());
    let [one] = routers(&store, &wall);
    let budget = month(100);
    let reservation = one.reserve(&budget, 100).await.unwrap();
    assert!(one.reserve(&budget, 1).await.is_none());
    reservation.settle(40);
    let reservation = one.reserve(&budget, 60).await.unwrap();
    drop(reservation);
    assert!(one.reserve(&budget, 1).await.is_none());
    settle_down().await;
    assert_eq!(records(&store, "2026-11").await, (100, 0));
}

/// What the store says of three routers after a thousand requests each, and what the requests have cost: a third of them
/// told what they used, a third did not, a third were cancelled.
#[tokio::test(start_paused = true)]
async fn a_thousand_requests_on_each_of_three_routers_never_overspend_a_budget_for_fifty() {
    let price = Price { input: Usd::from_nanos(1_000_000), output: Usd::from_nanos(2_000_000), cached_input: None };
    let bound = Usage { prompt_tokens: 100, cached_tokens: 0, completion_tokens: 50 };
    let most = 200;
    let (store, wall) = (MemoryStore::new(), Wall::new());
    let budget = Arc::new(month(50 * most));
    let routers: [Arc<Router>; 3] = routers(&store, &wall).map(Arc::new);
    let mut requests = JoinSet::new();
    for at in 0..3_000_u32 {
        let (router, budget) = (Arc::clone(&routers[at as usize % 3]), Arc::clone(&budget));
        requests.spawn(async move {
            let target = "acme/big".to_owned();
            let bill = Bill { tenant: TENANT, budget: Some(&budget), price: Some(price), target, bound };
            let Ok(mut charge) = router.budgets.charge(bill).await else { return (0, 0) };
            charge.called();
            // Calls overlap, and end in another order than they began.
            for _ in 0..fastrand::u32(0..20) {
                yield_now().await;
            }
            match at / 3 % 3 {
                0 => {
                    let usage = Usage { prompt_tokens: 50, cached_tokens: 0, completion_tokens: 25 };
                    assert_eq!(charge.settle(usage, UsageSource::Reported), usage);
                    (1, 100)
                }
                1 => {
                    charge.settle(bound, UsageSource::Estimated);
                    (1, most)
                }
                _ => {
                    drop(charge);
                    (1, most)
                }
            }
        });
    }
    let mut done = (0_u64, 0_u64);
    while let Some(request) = requests.join_next().await {
        let (calls, cost) = request.unwrap();
        done = (done.0 + calls, done.1 + cost);
        let (spent, slices) = records(&store, "2026-11").await;
        assert!(spent + slices <= 50 * most && done.1 <= 50 * most, "{done:?} {spent} {slices}");
    }
    settle_down().await;
    assert_eq!(records(&store, "2026-11").await, (done.1, 0), "every call is written down, once");
    // What some kept from others until now can be spent to the end.
    let mut rest = 0;
    for router in &routers {
        rest += router.spend_all(&budget, most).await;
    }
    assert!(done.0 >= 16 && done.1 + rest > 49 * most && done.1 + rest <= 50 * most, "{done:?} {rest}");
}

#[tokio::test(start_paused = true)]
async fn a_killed_routers_slice_comes_back_with_its_lease_and_what_it_had_written_down_stays_spent() {
    let (store, wall) = (MemoryStore::new(), Wall::new());
    let [killed, other] = routers(&store, &wall);
    let budget = month(1_000);
    killed.reserve(&budget, 300).await.unwrap().settle(300);
    let under_way = killed.reserve(&budget, 500).await.unwrap();
    settle_down().await;
    assert_eq!(records(&store, "2026-11").await, (300, 500));
    assert_eq!(other.budgets.statement(TENANT, &budget).await.unwrap().reserved.nanos(), 500);
    killed.link.cut(true);
    assert!(other.reserve(&budget, 201).await.is_none());
    sleep(Duration::from_secs(11)).await;
    assert_eq!(records(&store, "2026-11").await, (300, 0));
    assert_eq!(other.spend_all(&budget, 100).await, 700);
    drop(under_way);
}

#[tokio::test(start_paused = true)]
async fn a_router_that_the_store_gave_up_spends_nothing_more_and_writes_down_what_it_had_spent() {
    let (store, wall) = (MemoryStore::new(), Wall::new());
    let [lost, other] = routers(&store, &wall);
    let budget = month(1_000);
    let under_way = lost.reserve(&budget, 500).await.unwrap();
    lost.reserve(&budget, 1).await.unwrap().settle(1);
    lost.link.cut(true);
    sleep(Duration::from_secs(2)).await;
    // What it has in hand, a sixteenth of what was left, it may spend as long as the lease is sure.
    assert_eq!(lost.left(&budget), Some(30));
    lost.reserve(&budget, 10).await.unwrap().settle(10);
    let spent = lost.budgets.reserve(TENANT, &budget, 300).await.unwrap_err();
    assert!(spent.to_string().ends_with("as far as this router can know while the store is away"), "{spent}");
    sleep(Duration::from_secs(11)).await;
    assert!(lost.reserve(&budget, 1).await.is_none(), "the lease is over");
    assert_eq!(other.reserve(&budget, 600).await.map(|reservation| reservation.settle(600)), Some(()));
    settle_down().await;
    under_way.settle(400);
    lost.link.cut(false);
    settle_down().await;
    assert_eq!(records(&store, "2026-11").await, (1_011, 0), "nothing that was spent is forgotten");
    assert!(lost.reserve(&budget, 1).await.is_none() && other.reserve(&budget, 1).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_while_a_lease_is_lost_is_backed_by_the_next() {
    let (store, wall) = (MemoryStore::new(), Wall::new());
    let [lost, other] = routers(&store, &wall);
    let budget = month(1_000);
    let under_way = lost.reserve(&budget, 600).await.unwrap();
    lost.link.cut(true);
    sleep(Duration::from_secs(12)).await;
    lost.link.cut(false);
    settle_down().await;
    assert_eq!(records(&store, "2026-11").await, (0, 600));
    assert_eq!(other.spend_all(&budget, 100).await, 400);
    under_way.settle(600);
    settle_down().await;
    assert_eq!(records(&store, "2026-11").await, (1_000, 0));
}

#[tokio::test(start_paused = true)]
async fn days_and_months_begin_anew_and_a_late_call_counts_where_it_began() {
    let (store, wall) = (MemoryStore::new(), Wall::new());
    let [one, two] = routers(&store, &wall);
    let daily = budget(100, Period::Day);
    let late = one.reserve(&daily, 60).await.unwrap();
    assert_eq!(two.spend_all(&daily, 20).await, 40);
    wall.pass(DAY);
    assert_eq!(two.spend_all(&daily, 20).await, 100);
    late.settle(50);
    settle_down().await;
    assert_eq!((records(&store, "2026-11-25").await, records(&store, "2026-11-26").await), ((90, 0), (100, 0)));
    let statement = one.budgets.statement(TENANT, &daily).await.unwrap();
    assert_eq!((statement.span.as_str(), statement.spent.nanos(), statement.left.nanos()), ("2026-11-26", 100, 0));
    wall.pass(DAY);
    assert_eq!(one.spend_all(&daily, 50).await, 100);
    settle_down().await;
    assert_eq!(records(&store, "2026-11-25").await, (0, 0), "days before the last are forgotten");
    assert_eq!(records(&store, "2026-11-26").await, (100, 0));
    // A month has a budget of its own.
    assert_eq!(one.spend_all(&month(100), 50).await, 100);
    wall.pass(3 * DAY);
    assert_eq!(one.spend_all(&month(100), 50).await, 0);
    wall.pass(DAY);
    assert_eq!(one.spend_all(&month(100), 50).await, 100, "it is December");
}

#[tokio::test(start_paused = true)]
async fn another_cap_counts_from_the_next_request_on() {
    let (store, wall) = (MemoryStore::new(), Wall::new());
    let [one, two] = routers(&store, &wall);
    assert_eq!(one.spend_all(&month(100), 10).await, 100);
    assert_eq!(one.spend_all(&month(150), 10).await, 50);
    let under_way = two.reserve(&month(1_000), 200).await.unwrap();
    assert!(one.reserve(&month(150), 1).await.is_none());
    assert!(two.reserve(&month(150), 1).await.is_none());
    under_way.settle(0);
    settle_down().await;
    assert_eq!(records(&store, "2026-11").await, (150, 0));
}

#[tokio::test(start_paused = true)]
async fn a_router_that_leaves_writes_down_everything_and_what_is_under_way_at_its_reserve() {
    let (store, wall) = (MemoryStore::new(), Wall::new());
    let [one] = routers(&store, &wall);
    let budget = month(1_000);
    one.reserve(&budget, 100).await.unwrap().settle(70);
    let under_way = one.reserve(&budget, 200).await.unwrap();
    one.budgets.close().await;
    assert_eq!(records(&store, "2026-11").await, (270, 0));
    under_way.settle(10);
    assert!(one.reserve(&budget, 1).await.is_none());
    one.limiter.stop();
    settle_down().await;
    assert_eq!(records(&store, "2026-11").await, (270, 0));
}

#[tokio::test(start_paused = true)]
async fn a_flood_on_a_spent_budget_is_no_flood_of_the_store() {
    let (store, wall) = (MemoryStore::new(), Wall::new());
    let [one] = routers(&store, &wall);
    let budget = month(100);
    assert_eq!(one.spend_all(&budget, 10).await, 100);
    let before = one.link.calls();
    for _ in 0..1_000 {
        assert!(one.reserve(&budget, 10).await.is_none());
    }
    assert!(one.link.calls() - before <= 3, "{}", one.link.calls() - before);
    advance(Duration::from_secs(1)).await;
    assert!(one.reserve(&budget, 10).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_counts_as_all_there_is() {
    for key in ["spent/web/2026-11", "routers/web/2026-11/r9"] {
        let (store, wall) = (MemoryStore::new(), Wall::new());
        let [one] = routers(&store, &wall);
        store.put(Prefix::new("/penstock/v1/budgets/").key(key), "much".into()).await.unwrap();
        assert!(one.reserve(&month(1_000), 1).await.is_none(), "{key}");
    }
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Reserve(usize, u64),
    Settle(usize, u64),
    Drop(usize),
    Wait(u64),
    Cut(usize, bool),
    LoseAnswers(usize, bool),
    Cap(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0..3_usize, 0..200_u64).prop_map(|(router, nanos)| Act::Reserve(router, nanos)),
        6 => (any::<usize>(), 0..250_u64).prop_map(|(at, nanos)| Act::Settle(at, nanos)),
        2 => any::<usize>().prop_map(Act::Drop),
        3 => (0..1_500_u64).prop_map(Act::Wait),
        // Shorter than the lease: no slice is lost.
        1 => (0..3_usize, any::<bool>()).prop_map(|(router, cut)| Act::Cut(router, cut)),
        1 => (0..3_usize, any::<bool>()).prop_map(|(router, lossy)| Act::LoseAnswers(router, lossy)),
        1 => (900..1_000_u64).prop_map(Act::Cap),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// As long as no router is given up: what was spent and what may still be is never above the highest cap, in whatever
    /// order; and once all is quiet the store knows every cent of it.
    #[test]
    fn no_order_of_events_overspends(acts in prop::collection::vec(act(), 0..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (store, wall) = (MemoryStore::new(), Wall::new());
            let routers: [Router; 3] = routers(&store, &wall);
            let mut held: Vec<(u64, Reservation)> = Vec::new();
            let (mut paid, mut cap, mut cut_for) = (0, 1_000, 0);
            for act in acts {
                match act {
                    Act::Reserve(router, nanos) => {
                        let reserved = routers[router].reserve(&month(cap), nanos).await;
                        held.extend(reserved.map(|reservation| (nanos, reservation)));
                    }
                    Act::Settle(at, nanos) if !held.is_empty() => {
                        let (reserved, reservation) = held.swap_remove(at % held.len());
                        reservation.settle(nanos);
                        paid += nanos.min(reserved);
                    }
                    Act::Drop(at) if !held.is_empty() => {
                        paid += held.swap_remove(at % held.len()).0;
                    }
                    Act::Settle(..) | Act::Drop(_) => {}
                    Act::Wait(millis) => {
                        sleep(Duration::from_millis(millis)).await;
                        cut_for += millis;
                        if cut_for > 5_000 {
                            routers.iter().for_each(|router| router.link.heal());
                            settle_down().await;
                            cut_for = 0;
                        }
                    }
                    Act::LoseAnswers(router, lossy) => routers[router].link.lose_answers(lossy),
                    Act::Cut(router, cut) => routers[router].link.cut(cut),
                    Act::Cap(nanos) => cap = nanos,
                }
                let under_way: u64 = held.iter().map(|(nanos, _)| nanos).sum();
                let (spent, slices) = records(&store, "2026-11").await;
                assert!(paid + under_way <= 1_000 && spent + slices <= 1_000 && spent <= paid, "{paid} {under_way} {spent} {slices}");
            }
            paid += held.iter().map(|(nanos, _)| nanos).sum::<u64>();
            held.clear();
            routers.iter().for_each(|router| router.link.heal());
            settle_down().await;
            settle_down().await;
            assert_eq!(records(&store, "2026-11").await, (paid, 0));
        });
    }
}
