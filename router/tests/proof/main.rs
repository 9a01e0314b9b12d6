//! What must not leave does not: requests at random through a whole router, whatever fails around it.

#![expect(clippy::unwrap_used, reason = "a test fails where something is not as it must be")]

mod audit;
mod canary;
mod client;
#[path = "../front/support/model.rs"]
mod model;
mod outside;
mod places;
mod plan;
mod reach;
mod rig;
mod run;
mod store;
mod worker;
mod world;

use run::run;

/// Requests in every run of the tests.
const REQUESTS: usize = 20_000;
/// Requests under catalogues that let too much out.
const FLAWED: usize = 2_000;
/// Requests of the long form, where the command line names none.
const LONG: usize = 1_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaves_above_a_ceiling() {
    let account = run(REQUESTS, 5, false).await;
    println!("{account}");
    account.check();
}

/// A proof that finds nothing wrong must be able to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_leave_is_found() {
    let account = run(FLAWED, 5, true).await;
    println!("{account}");
    assert!(account.leaks.iter().any(|told| told.contains("a canary was seen")), "{account}");
    assert!(account.missed.len() > FLAWED / 100 && account.strays.is_empty(), "{account}");
}

/// `cargo test --release -p penstock-router --test proof -- --ignored --nocapture long_form 1000000`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; `make prove` runs it"]
async fn long_form() {
    let requests = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(LONG);
    let account = run(requests, fastrand::u64(..), false).await;
    println!("{account}");
    account.check();
}
