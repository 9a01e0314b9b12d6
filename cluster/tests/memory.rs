//! The store in one process, in memory and on disk, against the contract and against a plain model.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/catalogs.rs"]
mod catalogs;
#[path = "support/contract.rs"]
mod contract;
#[path = "support/script.rs"]
mod script;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use penstock_cluster::catalog;
use penstock_cluster::store::{Error, Key, MemoryStore, Prefix, Store, Txn};
use proptest::prelude::*;

use contract::Rig;

/// A store with the directory that it lives in, if it does.
struct Local {
    store: Arc<MemoryStore>,
    _directory: Option<tempfile::TempDir>,
}

impl Local {
    fn in_memory() -> Self {
        Self { store: Arc::new(MemoryStore::new()), _directory: None }
    }

    async fn on_disk() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = MemoryStore::open(directory.path()).await.unwrap();
        Self { store: Arc::new(store), _directory: Some(directory) }
    }
}

impl Rig for Local {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// Leased keys go through history without going to disk.
    async fn compact(&self) {
        let grant = self.store.grant(Duration::from_secs(60)).await.unwrap();
        for _ in 0..1100 {
            self.store.commit(Txn::new().put_leased(Key::new("/other"), "x", grant.lease)).await.unwrap();
        }
    }
}

mod in_memory {
    use super::Local;
    crate::contract::contract!(std::future::ready(Local::in_memory()));
}

mod on_disk {
    use super::Local;
    crate::contract::contract!(Local::on_disk());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn does_what_the_model_does(script in script::script()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let trace = runtime.block_on(script::run(&MemoryStore::new(), &script));
        prop_assert_eq!(trace, script::model(&script));
    }
}

#[tokio::test]
async fn what_no_lease_bounds_outlives_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let [kept, leased, freed, taken, bytes] =
        ["/t/kept", "/t/leased", "/t/freed", "/t/taken", "/t/bytes"].map(Key::new);
    let store = MemoryStore::open(directory.path()).await.unwrap();
    let grant = store.grant(Duration::from_secs(60)).await.unwrap();
    store.put(kept.clone(), "1".into()).await.unwrap();
    let before = store.put(kept.clone(), "2".into()).await.unwrap();
    store.put(taken.clone(), "1".into()).await.unwrap();
    store.put(bytes.clone(), vec![0, 255].into()).await.unwrap();
    let txn = Txn::new().put_leased(leased.clone(), "1", grant.lease).put_leased(freed.clone(), "1", grant.lease);
    store.commit(txn.put_leased(taken.clone(), "2", grant.lease)).await.unwrap();
    let last = store.put(freed.clone(), "2".into()).await.unwrap();
    let was = store.get(&kept).await.unwrap();
    drop(store);

    let store = MemoryStore::open(directory.path()).await.unwrap();
    assert_eq!(store.get(&kept).await.unwrap(), was);
    assert_eq!(store.get(&freed).await.unwrap().unwrap().lease, None);
    assert_eq!(store.get(&bytes).await.unwrap().unwrap().value, vec![0, 255]);
    assert_eq!(store.get(&leased).await.unwrap(), None);
    assert_eq!(store.get(&taken).await.unwrap(), None, "a lease took the key over, and is gone");
    assert_eq!(store.revision().await.unwrap(), last);
    let mut watch = store.watch(&Prefix::new("/t/"), before).await.unwrap();
    assert!(matches!(contract::next(&mut watch).await, Err(Error::Compacted { at }) if at == last));
}

#[tokio::test]
async fn a_directory_belongs_to_one_store_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let first = MemoryStore::open(directory.path()).await.unwrap();
    let error = MemoryStore::open(directory.path()).await.unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error:?}");
    drop(first);
    MemoryStore::open(directory.path()).await.unwrap();
}

#[tokio::test]
async fn damage_on_disk_is_refused_by_name_and_a_write_that_broke_off_is_not_damage() {
    let directory = tempfile::tempdir().unwrap();
    let key = Key::new("/t/a");
    MemoryStore::open(directory.path()).await.unwrap().put(key.clone(), "1".into()).await.unwrap();
    // A crash in the midst of a write leaves the new file half written beside the old one.
    std::fs::write(directory.path().join("store.json.new"), "{\"format\":1,\"rev").unwrap();
    let store = MemoryStore::open(directory.path()).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().unwrap().value, "1");
    drop(store);

    let file = directory.path().join("store.json");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let error = MemoryStore::open(directory.path()).await.unwrap_err();
    assert!(matches!(&error, Error::Corrupt { path, .. } if *path == file), "{error:?}");
    std::fs::write(&file, r#"{"format":9,"revision":1,"entries":[]}"#).unwrap();
    assert!(MemoryStore::open(directory.path()).await.unwrap_err().to_string().contains("format 9"));
}

#[tokio::test]
async fn a_change_that_cannot_be_written_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let key = Key::new("/t/a");
    let store = MemoryStore::open(directory.path()).await.unwrap();
    let first = store.put(key.clone(), "1".into()).await.unwrap();
    // A directory in the way of the temporary file, which works whoever runs the test.
    std::fs::create_dir(directory.path().join("store.json.new")).unwrap();
    let error = store.put(key.clone(), "2".into()).await.unwrap_err();
    assert!(matches!(error, Error::Disk { .. }), "{error:?}");
    assert_eq!(store.get(&key).await.unwrap().unwrap().value, "1");
    assert_eq!(store.revision().await.unwrap(), first);
}

#[tokio::test]
async fn a_catalogue_has_versions() {
    catalogs::versions_are_counted_kept_and_brought_back(&MemoryStore::new()).await;
    catalogs::of_many_at_once_each_is_a_version_or_told_to_look(Arc::new(MemoryStore::new())).await;
    catalogs::whoever_follows_sees_each_new_version(Arc::new(MemoryStore::new())).await;
}

#[tokio::test]
async fn the_history_of_the_catalogue_is_bounded() {
    let store = MemoryStore::new();
    let first = catalog::apply(&store, &catalogs::catalog(&["a"]), "alice").await.unwrap();
    for _ in 0..64 {
        catalog::apply(&store, &catalogs::catalog(&["b"]), "alice").await.unwrap();
    }
    let gone = catalog::get(&store, Some(first)).await;
    assert!(matches!(gone, Err(catalog::Error::NoVersion(number)) if number == first), "{gone:?}");
    assert_eq!(catalog::get(&store, None).await.unwrap().unwrap().number.get(), 65);
}

#[tokio::test]
async fn a_catalogue_that_does_not_fit_is_refused() {
    let store = MemoryStore::new();
    let sources = vec![catalog::Source { file: "c.yaml".to_owned(), text: format!("#{}\n", "x".repeat(500 << 10)) }];
    let large = catalog::Catalog::read(sources).unwrap();
    let error = catalog::apply(&store, &large, "alice").await.unwrap_err();
    assert!(matches!(error, catalog::Error::TooLarge { .. }) && !error.retryable(), "{error}");
}

#[tokio::test]
async fn a_watch_that_nobody_polls_keeps_nobody_waiting() {
    let local = Local::on_disk().await;
    let prefix = Prefix::new("/");
    let writes = async {
        for write in 0..64 {
            local.store.commit(Txn::new().put(Key::new("/key"), write.to_string())).await.unwrap();
        }
    };
    let mut watch = local.store.watch(&prefix, local.store.revision().await.unwrap()).await.unwrap();
    // As a `select!` does in which something else comes first: one look, and on to the next call.
    let looks = async {
        loop {
            let _ = watch.next().now_or_never();
            local.store.list(&prefix).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let both = async {
        tokio::select! { () = writes => {}, () = looks => {} }
    };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("nobody waits for ever");
}
