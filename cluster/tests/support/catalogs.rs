//! What the catalogue does in a store, whichever it is.

use std::sync::Arc;
use std::time::Duration;

use penstock_cluster::Store;
use penstock_cluster::catalog::{self, Catalog, Catalogs, Error, Source};
use penstock_cluster::store::Key;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

pub(crate) fn catalog(models: &[&str]) -> Catalog {
    let models: Vec<String> = models.iter().map(|name| format!("{{name: {name}}}")).collect();
    let text = format!("# as written\nmodels: [{}]\n", models.join(", "));
    Catalog::read(vec![Source { file: "c.yaml".to_owned(), text }]).unwrap()
}

pub(crate) async fn versions_are_counted_kept_and_brought_back(store: &dyn Store) {
    assert!(catalog::get(store, None).await.unwrap().is_none());
    assert!(matches!(catalog::rollback(store, "eve").await, Err(Error::NoEarlier)));
    for (number, models) in [(1, ["a"]), (2, ["b"]), (3, ["c"])] {
        assert_eq!(catalog::apply(store, &catalog(&models), "alice").await.unwrap().get(), number);
    }
    let newest = catalog::get(store, None).await.unwrap().unwrap();
    assert_eq!((newest.number.get(), newest.origin.by.as_str()), (3, "alice"));
    assert_eq!(newest.catalog, catalog(&["c"]));
    let first = catalog::rollback(store, "bob").await.unwrap();
    let back = catalog::get(store, Some(first)).await.unwrap().unwrap();
    assert_eq!((back.number.get(), back.origin.by.as_str()), (4, "bob"));
    assert_eq!(back.catalog, catalog(&["b"]));
    assert_eq!(back.origin.restored.unwrap().get(), 2);
    // Going back again goes further back, and then no further.
    catalog::rollback(store, "bob").await.unwrap();
    assert_eq!(catalog::get(store, None).await.unwrap().unwrap().catalog, catalog(&["a"]));
    assert!(matches!(catalog::rollback(store, "bob").await, Err(Error::NoEarlier)));
    let kept = catalog::get(store, Some(newest.number)).await.unwrap().unwrap();
    assert_eq!(kept.catalog.sources()[0].text, "# as written\nmodels: [{name: c}]\n");
}

pub(crate) async fn of_many_at_once_each_is_a_version_or_told_to_look(store: Arc<dyn Store>) {
    let mut all = tokio::task::JoinSet::new();
    for number in 0..8 {
        let store = store.clone();
        all.spawn(async move { catalog::apply(&*store, &catalog(&[&format!("m{number}")]), "alice").await });
    }
    let mut applied: Vec<u64> = Vec::new();
    while let Some(outcome) = all.join_next().await {
        match outcome.unwrap() {
            Ok(number) => applied.push(number.get()),
            Err(error) => assert!(matches!(error, Error::Raced) && error.retryable(), "{error}"),
        }
    }
    applied.sort_unstable();
    let expected: Vec<u64> = (1..=applied.len() as u64).collect();
    assert!(!applied.is_empty() && applied == expected, "{applied:?}");
    let newest = catalog::get(&*store, None).await.unwrap().unwrap();
    assert_eq!(newest.number.get(), *applied.last().unwrap());
}

pub(crate) async fn whoever_follows_sees_each_new_version(store: Arc<dyn Store>) {
    let tasks = TaskTracker::new();
    let mut catalogs = catalog::watch(store.clone(), &tasks);
    catalogs.synced().await;
    assert!(catalogs.newest().is_none() && catalogs.staleness().is_some());
    for models in [["a"], ["b"]] {
        let number = catalog::apply(&*store, &catalog(&models), "alice").await.unwrap();
        let seen = next(&mut catalogs).await;
        assert_eq!((seen.number, &seen.catalog), (number, &catalog(&models)));
    }
    // What is no catalogue does not come into force, and does not end the watch.
    store.put(Key::new("/penstock/v1/catalog/current"), "{}".into()).await.unwrap();
    let key = Key::new("/penstock/v1/catalog/history/0000000002");
    let second = store.get(&key).await.unwrap().unwrap().value;
    store.put(Key::new("/penstock/v1/catalog/current"), second).await.unwrap();
    assert_eq!(next(&mut catalogs).await.catalog, catalog(&["b"]));
    // One who comes later sees the newest.
    let mut late = catalog::watch(store, &tasks);
    assert_eq!(next(&mut late).await.number.get(), 2);
    drop((catalogs, late));
    tasks.close();
    timeout(Duration::from_secs(10), tasks.wait()).await.expect("the tasks end with their handles");
}

async fn next(catalogs: &mut Catalogs) -> Arc<catalog::Applied> {
    timeout(Duration::from_secs(10), catalogs.next()).await.expect("a version in time")
}
