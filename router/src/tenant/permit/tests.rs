//! Several routers over one store, with time and the store's health in the test's hand.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::atomic::AtomicUsize;

use penstock_cluster::store::MemoryStore;
use proptest::prelude::*;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep};

use super::*;
use crate::tenant::link::Link;

/// A wall clock that stands still until it is set.
#[derive(Clone, Default)]
struct Wall(Arc<AtomicU64>);

impl Wall {
    fn set(&self, seconds: u64) {
        self.0.store(seconds, Ordering::Release);
    }
}

struct Router {
    limiter: Limiter,
    link: Link,
    tasks: TaskTracker,
}

impl Router {
    fn new(link: Link, name: &str, wall: &Wall) -> Self {
        let (tasks, wall) = (TaskTracker::new(), wall.clone());
        let clock = Box::new(move || Duration::from_secs(wall.0.load(Ordering::Acquire)));
        let limiter = Limiter::with_clock(Arc::new(link.clone()), name, &tasks, clock);
        Self { limiter, link, tasks }
    }

    async fn admit(&self, limits: &Limits) -> Result<Permit, Failure> {
        self.limiter.admit(&tenant(), limits).await
    }

    /// As many as the limits allow at once.
    async fn fill(&self, limits: &Limits) -> Vec<Permit> {
        let mut permits = Vec::new();
        while let Ok(permit) = self.admit(limits).await {
            permits.push(permit);
        }
        permits
    }
}

fn routers<const N: usize>(store: &MemoryStore, wall: &Wall) -> [Router; N] {
    std::array::from_fn(|at| Router::new(Link::new(store), &format!("r{at}"), wall))
}

fn tenant() -> Name {
    Name::new("retail").unwrap()
}

fn requests(limit: u32) -> Limits {
    Limits { requests_per_minute: NonZeroU32::new(limit), ..Limits::default() }
}

fn tokens(limit: u64) -> Limits {
    Limits { tokens_per_minute: NonZeroU64::new(limit), ..Limits::default() }
}

fn places(limit: u32) -> Limits {
    Limits { concurrent: NonZeroU32::new(limit), ..Limits::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_routers_and_many_clients_send_the_minutes_limit_and_no_more() {
    let (store, wall) = (MemoryStore::new(), Wall::default());
    let routers: [Arc<Router>; 3] = routers(&store, &wall).map(Arc::new);
    for minute in 1..=3 {
        wall.set(minute * 60 + 59);
        let mut clients = JoinSet::new();
        for client in 0..60 {
            let router = Arc::clone(&routers[client % 3]);
            clients.spawn(async move {
                let mut admitted = 0;
                for _ in 0..20 {
                    match router.admit(&requests(250)).await {
                        Ok(_) => admitted += 1,
                        Err(failure) => {
                            assert_eq!((failure.code, failure.retry_after), (ErrorCode::RateLimited, Some(1)))
                        }
                    }
                    yield_now().await;
                }
                admitted
            });
        }
        assert_eq!(clients.join_all().await.iter().sum::<u32>(), 250, "minute {minute}");
    }
}

#[tokio::test]
async fn a_refusal_says_which_limit_of_which_size_and_when_there_is_more() {
    let (store, wall) = (MemoryStore::new(), Wall::default());
    let [router] = routers(&store, &wall);
    wall.set(60 + 18);
    let all = Limits { requests_per_minute: NonZeroU32::new(2), concurrent: NonZeroU32::new(1), ..tokens(100) };
    let permit = router.admit(&all).await.unwrap();
    let refusal = |failure: Failure| (failure.code, failure.message, failure.retry_after);
    let full = "tenant retail has 1 requests under way, which is its limit (concurrent)".to_owned();
    let refused = refusal(router.admit(&all).await.unwrap_err());
    assert_eq!(refused, (ErrorCode::RateLimited, full, Some(1)));
    let _hold = permit.tokens(60).await.unwrap();
    let (code, message, retry_after) = refusal(permit.tokens(60).await.unwrap_err());
    assert_eq!((code, retry_after), (ErrorCode::RateLimited, Some(42)));
    assert!(message.contains("60 tokens") && message.contains("100 of this minute (tokens_per_minute)"), "{message}");
    drop(permit);
    drop(router.admit(&all).await.unwrap());
    let spent = "tenant retail has sent its 2 requests of this minute (requests_per_minute)".to_owned();
    let refused = refusal(router.admit(&all).await.unwrap_err());
    assert_eq!(refused, (ErrorCode::RateLimited, spent, Some(42)), "the place that was refused cost no request");
    wall.set(120);
    assert!(router.admit(&all).await.is_ok(), "and what was refused holds no place");
}

#[tokio::test]
async fn without_limits_nothing_is_asked_and_from_slices_in_hand_nothing_more() {
    let (store, wall) = (MemoryStore::new(), Wall::default());
    let [router] = routers(&store, &wall);
    for _ in 0..100 {
        let permit = router.admit(&Limits::default()).await.unwrap();
        permit.tokens(u64::MAX).await.unwrap().settle(7);
    }
    assert_eq!(router.link.calls(), 0);
    let wide = Limits { requests_per_minute: NonZeroU32::new(1600), concurrent: NonZeroU32::new(160), ..tokens(3200) };
    router.admit(&wide).await.unwrap().tokens(1).await.unwrap().settle(1);
    let leased = router.link.calls();
    for _ in 0..99 {
        router.admit(&wide).await.unwrap().tokens(50).await.unwrap().settle(1);
    }
    assert_eq!(router.link.calls(), leased, "one slice of each held for a hundred requests");
}

#[tokio::test]
async fn tokens_are_accounted_to_the_last() {
    let (store, wall) = (MemoryStore::new(), Wall::default());
    let [router] = routers(&store, &wall);
    let permit = router.admit(&tokens(1000)).await.unwrap();
    let all_but = async |taken: u64| {
        assert!(permit.tokens(1000 - taken + 1).await.is_err(), "{taken}");
        permit.tokens(1000 - taken).await.unwrap().settle(0);
    };
    permit.tokens(100).await.unwrap().settle(30);
    all_but(30).await;
    drop(permit.tokens(70).await.unwrap());
    all_but(100).await;
    permit.tokens(100).await.unwrap().settle(150);
    all_but(250).await;
    permit.tokens(u64::MAX).await.expect_err("the whole limit is not left");
    let late = permit.tokens(50).await.unwrap();
    wall.set(60);
    let whole = permit.tokens(u64::MAX).await.unwrap();
    late.settle(0);
    assert!(permit.tokens(1).await.is_err(), "what is left of another minute is not of this one");
    whole.settle(900);
    all_but(900).await;
}

#[tokio::test]
async fn a_limit_that_changes_lets_no_more_through_in_that_minute_than_the_higher() {
    let (store, wall) = (MemoryStore::new(), Wall::default());
    let routers: [Router; 3] = routers(&store, &wall);
    let take = async |limit: u32, times: usize| {
        let mut admitted = 0;
        for at in 0..times {
            admitted += usize::from(routers[at % 3].admit(&requests(limit)).await.is_ok());
        }
        admitted
    };
    assert_eq!(take(60, 30).await, 30);
    let lowered = take(40, 300).await;
    assert!((1..=30).contains(&lowered), "{lowered}");
    let raised = take(100, 300).await;
    assert_eq!(30 + lowered + raised, 100);
    wall.set(60);
    assert_eq!(take(40, 300).await, 40);
    assert_eq!(take(100, 300).await, 60);
}

#[tokio::test(start_paused = true)]
async fn a_router_that_leaves_or_is_lost_frees_its_places() {
    let (store, wall) = (MemoryStore::new(), Wall::default());
    let [leaving, lost, other] = routers(&store, &wall);
    let at_leaving = leaving.fill(&places(12)).await;
    assert_eq!(at_leaving.len(), 12);
    assert!(other.admit(&places(12)).await.is_err());
    leaving.limiter.stop();
    leaving.tasks.close();
    leaving.tasks.wait().await;
    sleep(Duration::from_millis(200)).await;
    let at_lost = lost.fill(&places(12)).await;
    assert_eq!(at_lost.len(), 12);
    assert!(other.admit(&places(12)).await.is_err());
    assert!(leaving.admit(&places(12)).await.is_err(), "it counts by itself what it still has");
    lost.link.cut(true);
    sleep(Duration::from_secs(5)).await;
    assert!(other.admit(&places(12)).await.is_err(), "it may come back");
    sleep(Duration::from_secs(7)).await;
    assert_eq!(other.fill(&places(12)).await.len(), 12);
    drop((at_leaving, at_lost));
}

#[tokio::test(start_paused = true)]
async fn places_go_to_where_they_are_needed_and_never_beyond_the_limit() {
    let (store, wall) = (MemoryStore::new(), Wall::default());
    let routers: [Arc<Router>; 3] = routers(&store, &wall).map(Arc::new);
    let held = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for client in 0..90_usize {
        let (router, held) = (Arc::clone(&routers[client % 3]), Arc::clone(&held));
        clients.spawn(async move {
            let mut served = 0;
            for round in 0..40 {
                if let Ok(permit) = router.admit(&places(20)).await {
                    assert!(held.fetch_add(1, Ordering::AcqRel) < 20);
                    sleep(Duration::from_millis(u64::try_from((client * 7 + round * 13) % 400).unwrap())).await;
                    held.fetch_sub(1, Ordering::AcqRel);
                    drop(permit);
                    served += 1;
                }
                sleep(Duration::from_millis(50)).await;
            }
            served
        });
    }
    assert!(clients.join_all().await.iter().sum::<u32>() > 60);
    for router in &routers {
        sleep(Duration::from_secs(3)).await;
        assert_eq!(router.fill(&places(20)).await.len(), 20, "the others have given theirs back");
    }
    assert_eq!(held.load(Ordering::Acquire), 0);
}

/// Counts warnings.
#[derive(Default)]
struct Warnings(Arc<AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN && metadata.target().contains("tenant")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_each_router_counts_by_itself_says_so_once_and_shares_again_afterwards() {
    let warnings = Warnings::default();
    let warned = Arc::clone(&warnings.0);
    let _guard = tracing::subscriber::set_default(warnings);
    let (store, wall) = (MemoryStore::new(), Wall::default());
    let routers: [Router; 3] = routers(&store, &wall);
    let limits = Limits { concurrent: NonZeroU32::new(10), ..requests(30) };
    let ask = async |times: usize| {
        let mut admitted = [0; 3];
        for at in 0..times {
            admitted[at % 3] += usize::from(routers[at % 3].admit(&limits).await.is_ok());
        }
        admitted
    };
    assert_eq!(ask(300).await.iter().sum::<usize>(), 30);
    wall.set(60);
    let before: usize = ask(12).await.iter().sum();
    assert_eq!(before, 12);
    routers.iter().for_each(|router| router.link.cut(true));
    sleep(Duration::from_secs(20)).await;
    let alone = ask(300).await;
    assert_eq!(alone, [26; 3], "each up to the whole limit, of which it had taken four");
    assert_eq!(warned.load(Ordering::Acquire), 3, "each router says so once");
    let calls: usize = routers.iter().map(|router| router.link.calls()).sum();
    assert_eq!(ask(300).await, [0; 3]);
    assert_eq!(calls, routers.iter().map(|router| router.link.calls()).sum::<usize>(), "nobody waits for the store");
    wall.set(120);
    let (one, two) = (routers[0].fill(&limits).await, routers[1].fill(&limits).await);
    assert_eq!((one.len(), two.len()), (10, 10), "and each has all places");
    routers.iter().for_each(|router| router.link.cut(false));
    sleep(Duration::from_secs(3)).await;
    let third = routers[2].fill(&limits).await.len();
    assert!(third <= 10 && routers[0].admit(&limits).await.is_err(), "{third}");
    drop((one, two));
    sleep(Duration::from_secs(3)).await;
    let rest: usize = ask(300).await.iter().sum();
    // One router may have taken alone what there is no room for any more.
    assert!(20 + third + rest <= 30 + 10, "what was taken alone is leased first: {third} {rest}");
    wall.set(180);
    assert_eq!(ask(300).await.iter().sum::<usize>(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_silent_holds_a_request_up_for_a_second_and_no_second_one() {
    let (store, wall) = (MemoryStore::new(), Wall::default());
    let link = Link::silent(&store);
    link.cut(true);
    let router = Arc::new(Router::new(link, "r", &wall));
    let start = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..50 {
        let router = Arc::clone(&router);
        clients.spawn(async move { router.admit(&requests(40)).await.is_ok() });
    }
    let admitted = clients.join_all().await.into_iter().filter(|admitted| *admitted).count();
    assert_eq!(admitted, 40);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?} of the test's own time", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_is_gone_is_forgotten() {
    let (store, wall) = (MemoryStore::new(), Wall::default());
    let [router] = routers(&store, &wall);
    drop(router.admit(&Limits { concurrent: NonZeroU32::new(4), ..requests(9) }).await.unwrap());
    sleep(Duration::from_secs(5)).await;
    let known = || router.limiter.shared.accounts.read().unwrap().len();
    assert_eq!(known(), 1, "its minute is not over");
    wall.set(60);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(known(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Against a reference that counts what was used of each minute.
    #[test]
    fn never_more_than_the_limit_whatever_the_load(
        limit in 1..3000_u64,
        count in 1..5_usize,
        steps in prop::collection::vec((0..5_usize, 0..900_u64, 0..1000_u64, 0..40_u8), 1..250),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (store, wall) = (MemoryStore::new(), Wall::default());
            let routers: Vec<Router> =
                (0..count).map(|at| Router::new(Link::new(&store), &format!("r{at}"), &wall)).collect();
            let limits = Limits { tokens_per_minute: NonZeroU64::new(limit), ..requests(u32::try_from(limit).unwrap() / 8 + 1) };
            let (mut minute, mut admitted, mut used) = (0, 0, 0);
            let mut open: Vec<(TokenHold, u64)> = Vec::new();
            for (at, bound, share, chance) in steps {
                if chance == 0 {
                    minute += 1;
                    wall.set(minute * 60);
                    (admitted, used) = (0, 0);
                    open.clear();
                }
                if let Ok(permit) = routers[at % count].admit(&limits).await {
                    admitted += 1;
                    if let Ok(hold) = permit.tokens(bound).await {
                        used += bound.min(limit);
                        open.push((hold, bound.min(limit)));
                    }
                }
                assert!(admitted <= limit / 8 + 1 && used <= limit, "{admitted} {used} of {limit}");
                if chance % 2 == 1 && let Some((hold, reserved)) = open.pop() {
                    let spent = reserved * share / 1000;
                    hold.settle(spent);
                    used -= reserved - spent;
                }
            }
            // Nothing is lost either.
            wall.set((minute + 1) * 60);
            let mut total = 0;
            for router in routers.iter().cycle().take(count * 4000) {
                total += u64::from(router.admit(&limits).await.is_ok());
            }
            assert_eq!(total, limit / 8 + 1);
        });
    }
}
