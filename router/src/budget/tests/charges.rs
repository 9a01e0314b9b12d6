//! Calls and what they cost, by their usage.

use super::*;
use crate::request::{Delta, Finish};

/// A charge for 100 tokens of prompt and 50 of answer, a nano-dollar each, of which the call was made.
async fn charge(router: &Router, budget: &Budget) -> Charge {
    let price = Price { input: Usd::from_nanos(1_000_000), output: Usd::from_nanos(1_000_000), cached_input: None };
    let bound = Usage { prompt_tokens: 100, cached_tokens: 0, completion_tokens: 50 };
    let target = "acme/big".to_owned();
    let bill = Bill { tenant: TENANT, budget: Some(budget), price: Some(price), target, bound };
    let mut charge = router.budgets.charge(bill).await.unwrap();
    charge.called();
    charge
}

async fn spent(router: &Router, budget: &Budget) -> u64 {
    let standing = router.budgets.statement(TENANT, budget).await.unwrap();
    assert_eq!(standing.reserved.nanos(), 0);
    standing.spent.nanos()
}

#[tokio::test(start_paused = true)]
async fn a_usage_that_cannot_be_is_settled_at_the_reserve() {
    let (store, wall) = (MemoryStore::new(), Wall::new());
    let [one] = routers(&store, &wall);
    let budget = month(10_000);
    let bound = Usage { prompt_tokens: 100, cached_tokens: 0, completion_tokens: 50 };
    let mut expected = 0;
    let usage =
        |prompt_tokens, cached_tokens, completion_tokens| Usage { prompt_tokens, cached_tokens, completion_tokens };
    for (told, cost) in [
        (usage(100, 100, 50), Some(150)),
        (usage(0, 0, 0), Some(0)),
        (usage(101, 0, 1), None),
        (usage(1, 0, 51), None),
        (usage(10, 11, 1), None),
        (usage(u32::MAX, u32::MAX, u32::MAX), None),
    ] {
        let settled = charge(&one, &budget).await.settle(told, UsageSource::Reported);
        assert_eq!(settled, if cost.is_some() { told } else { bound });
        expected += cost.unwrap_or(150);
        assert_eq!(spent(&one, &budget).await, expected, "{told:?}");
    }
    charge(&one, &budget).await.failed(&Failure::new(ErrorCode::ProviderRateLimited, ""));
    assert_eq!(spent(&one, &budget).await, expected, "an upstream that said no has done nothing");
    charge(&one, &budget).await.failed(&Failure::new(ErrorCode::ProviderTimeout, ""));
    assert_eq!(spent(&one, &budget).await, expected + 150, "nobody knows what it has done");
    let cost =
        |line: &str| line.strip_prefix(r#"penstock_cost_usd_total{target="acme/big",tenant="web"} "#)?.parse().ok();
    let told: Vec<f64> = crate::render(&[one.registry]).lines().filter_map(cost).collect();
    assert!((told[0] * 1e9 - (expected + 150) as f64).abs() < 1e-3, "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_never_made_costs_nothing_and_one_without_a_price_is_not_covered() {
    let (store, wall) = (MemoryStore::new(), Wall::new());
    let [one] = routers(&store, &wall);
    let budget = month(150);
    let mut first = charge(&one, &budget).await;
    first.state = State::Reserved;
    drop(first);
    assert_eq!(spent(&one, &budget).await, 0);
    let bound = Usage::default();
    let bill = Bill { tenant: TENANT, budget: Some(&budget), price: None, target: String::new(), bound };
    assert!(one.budgets.charge(bill.clone()).await.is_err());
    assert!(one.budgets.charge(Bill { budget: None, ..bill }).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_answer_longer_than_the_reserve_pays_for_is_ended() {
    let (store, wall) = (MemoryStore::new(), Wall::new());
    let [one] = routers(&store, &wall);
    let budget = month(1_000);
    let mut charge = charge(&one, &budget).await;
    // The longest that 50 tokens may be.
    let mut delta = Delta { text: "x".repeat(50 * 128), ..Delta::default() };
    charge.received(&mut delta);
    assert_eq!(delta.finish, None);
    charge.received(&mut delta);
    let Some(Finish { usage, .. }) = delta.finish else { panic!("it goes on") };
    charge.settle(usage, UsageSource::Estimated);
    assert_eq!(spent(&one, &budget).await, 150);
}
