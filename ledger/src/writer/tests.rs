use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::chain::{Entry, Seal};
use crate::reader::Reader;
use crate::record::Catalogue;
use crate::store::{ChainId, Group, Range, Tail, Visit};
use crate::verify::verify;

/// What a commit comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Written,
    /// Nothing is written.
    Failed,
    /// It is written, and the answer is lost.
    Lost,
}

/// A ledger whose commits meet their fates in order, and are written after the last.
struct Flaky {
    inner: Box<dyn Backend>,
    fates: Arc<Mutex<VecDeque<Fate>>>,
}

impl Backend for Flaky {
    fn commit(&mut self, chain: ChainId, group: &Group) -> Result<(), StoreError> {
        let fate = self.fates.lock().unwrap().pop_front().unwrap_or(Fate::Written);
        if fate != Fate::Failed {
            self.inner.commit(chain, group)?;
        }
        match fate {
            Fate::Written => Ok(()),
            Fate::Failed => Err(StoreError::Full { place: "test".to_owned() }),
            Fate::Lost => Err(StoreError::Unreachable { place: "test".to_owned(), reason: "lost".to_owned() }),
        }
    }

    fn chain(&mut self, name: &ChainName) -> Result<ChainId, StoreError> {
        self.inner.chain(name)
    }
    fn chains(&mut self) -> Result<Vec<(ChainId, ChainName)>, StoreError> {
        self.inner.chains()
    }
    fn tail(&mut self, chain: ChainId) -> Result<Option<Tail>, StoreError> {
        self.inner.tail(chain)
    }
    fn scan(&mut self, chain: ChainId, range: Range, visit: Visit<'_>) -> Result<(), StoreError> {
        self.inner.scan(chain, range, visit)
    }
    fn find(&mut self, request: &str, visit: &mut dyn FnMut(ChainId, Entry<'_>)) -> Result<(), StoreError> {
        self.inner.find(request, visit)
    }
    fn heads(&mut self, chain: ChainId, name: &ChainName, after: u64) -> Result<Vec<Head>, StoreError> {
        self.inner.heads(chain, name, after)
    }
    fn seals(&mut self, chain: ChainId, name: &ChainName) -> Result<Vec<Seal>, StoreError> {
        self.inner.seals(chain, name)
    }
    fn seal(&mut self, chain: ChainId, seal: &Seal) -> Result<(), StoreError> {
        self.inner.seal(chain, seal)
    }
    fn delete(&mut self, chain: ChainId, through: u64) -> Result<u64, StoreError> {
        self.inner.delete(chain, through)
    }
    fn freeze(&mut self) -> Result<(), StoreError> {
        self.inner.freeze()
    }
}

fn config(path: &Path) -> Config {
    let key = LedgerKey::from_seed(&[5; 32]);
    let mut config = Config::new(Place::Sqlite(path.to_owned()), ChainName::new("r1").unwrap(), key);
    config.patience = Duration::from_secs(20);
    config
}

fn flaky(config: Config, fates: &[Fate]) -> (Ledger, Writer, Arc<Mutex<VecDeque<Fate>>>) {
    let inner = open(&config.place, Mode::Write, config.patience).unwrap();
    let fates = Arc::new(Mutex::new(fates.iter().copied().collect()));
    let (ledger, writer) = Ledger::start(config, Box::new(Flaky { inner, fates: Arc::clone(&fates) })).unwrap();
    (ledger, writer, fates)
}

fn record(version: u64) -> Record {
    Record::Catalogue(Catalogue { version, by: "test".to_owned(), restored: None })
}

/// The versions in the ledger, in order; the chain holds.
fn versions(path: &Path) -> Vec<u64> {
    let mut reader = Reader::open(&Place::Sqlite(path.to_owned())).unwrap();
    let report = verify(&mut reader, &LedgerKey::from_seed(&[5; 32]).public(), None, None).unwrap();
    assert_eq!(report.problem(), None);
    let mut versions = Vec::new();
    let read = |_: &ChainName, entry: Entry<'_>| {
        match Record::read(entry.kind, entry.body).unwrap() {
            Record::Catalogue(catalogue) => versions.push(catalogue.version),
            other => panic!("{other:?}"),
        }
        std::ops::ControlFlow::Continue(())
    };
    reader.records(Duration::ZERO, read).unwrap();
    versions
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn an_append_fails_while_a_note_is_kept_until_the_database_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let (ledger, writer, _) = flaky(config(&path), &[Fate::Written, Fate::Failed, Fate::Failed, Fate::Failed]);
    block_on(async {
        ledger.append(&record(1)).unwrap().written().await.unwrap();
        let mut trouble = ledger.watch_trouble();
        let refused = ledger.append(&record(2)).unwrap().written().await.unwrap_err();
        assert_eq!(refused, Error::Unavailable(StoreError::Full { place: "test".to_owned() }));
        assert_eq!(ledger.append(&record(3)).map(|_| ()), Err(refused));
        ledger.note(&record(4)).unwrap();
        trouble.wait_for(Option::is_none).await.unwrap();
        ledger.append(&record(5)).unwrap().written().await.unwrap();
    });
    writer.close().unwrap();
    // The refused one was in the group already; what was refused at the door was never in it.
    assert_eq!(versions(&path), [1, 2, 4, 5]);
}

#[test]
fn a_commit_whose_answer_was_lost_is_not_written_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let (ledger, writer, _) = flaky(config(&path), &[Fate::Lost, Fate::Written, Fate::Lost]);
    for version in 1..=3 {
        ledger.note(&record(version)).unwrap();
        block_on(async { ledger.watch_trouble().wait_for(Option::is_none).await.map(|_| ()) }).unwrap();
    }
    writer.close().unwrap();
    assert_eq!(versions(&path), [1, 2, 3]);
}

#[test]
fn what_waits_is_written_at_the_end_or_counted_as_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let (ledger, writer, _) = flaky(config(&path), &[]);
    (1..=5_000).for_each(|version| ledger.note(&record(version)).unwrap());
    writer.close().unwrap();
    assert_eq!(versions(&path), (1..=5_000).collect::<Vec<_>>());
    assert_eq!(ledger.note(&record(1)), Err(Error::Closed));
    assert_eq!(ledger.append(&record(1)).map(|_| ()), Err(Error::Closed));

    let mut impatient = config(&path);
    impatient.patience = Duration::ZERO;
    let (ledger, writer, _) = flaky(impatient, &[Fate::Failed; 1_000]);
    ledger.note(&record(6_000)).unwrap();
    block_on(async { ledger.watch_trouble().wait_for(Option::is_some).await.map(|_| ()) }).unwrap();
    ledger.note(&record(6_001)).unwrap();
    let lost = writer.close().unwrap_err();
    assert_eq!(lost.reason, Error::Unavailable(StoreError::Full { place: "test".to_owned() }));
    assert!((1..=2).contains(&lost.records), "{lost}");
}

#[test]
fn a_full_queue_refuses_and_the_lag_is_told() {
    fn late() -> Duration {
        Duration::from_secs(1_000)
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir.path().join("ledger.db"));
    (config.queue, config.clock, config.patience) = (4, late, Duration::ZERO);
    let (ledger, writer, fates) = flaky(config, &[Fate::Failed; 10_000]);
    assert_eq!(ledger.lag(), Duration::ZERO);
    let noted = (0..100).take_while(|version| ledger.note(&record(*version)).is_ok()).count();
    // At most the group in hand, those kept and those queued.
    assert!((4..=12).contains(&noted), "{noted}");
    assert_eq!(ledger.note(&record(0)), Err(Error::Behind { waiting: 4 }));
    fates.lock().unwrap().clear();
    block_on(async { ledger.watch_trouble().wait_for(Option::is_none).await.map(|_| ()) }).unwrap();
    writer.close().unwrap();
    assert_eq!(ledger.lag(), Duration::ZERO);
}

#[test]
fn a_clock_that_is_set_back_is_told_of_and_stops_nothing() {
    static NOW: AtomicU64 = AtomicU64::new(5_000);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let at = |now: u64| {
        NOW.store(now, Ordering::SeqCst);
        let mut config = config(&path);
        config.clock = || Duration::from_micros(NOW.load(Ordering::SeqCst));
        let (ledger, writer) = Ledger::open(config).unwrap();
        ledger.note(&record(now)).unwrap();
        writer.close().unwrap();
    };
    [5_000, 3_000, 4_000, 6_000].into_iter().for_each(at);
    let mut reader = Reader::open(&Place::Sqlite(path.clone())).unwrap();
    let mut seen = Vec::new();
    let read = |_: &ChainName, entry: Entry<'_>| {
        seen.push((entry.seq, entry.time, entry.behind));
        std::ops::ControlFlow::Continue(())
    };
    reader.records(Duration::ZERO, read).unwrap();
    assert_eq!(seen, [(1, 5_000, 0), (2, 3_000, 2_000), (3, 4_000, 1_000), (4, 6_000, 0)]);
    let report = verify(&mut reader, &LedgerKey::from_seed(&[5; 32]).public(), None, None).unwrap();
    assert_eq!((report.problem(), report.chains[0].set_back), (None, 2));
}

#[test]
fn a_chain_is_gone_on_with_only_as_it_was_signed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let heads = Arc::new(Mutex::new(Vec::new()));
    let mut first = config(&path);
    let told = Arc::clone(&heads);
    first.mirror = Some(Box::new(move |head| told.lock().unwrap().push(head.clone())));
    let (ledger, writer) = Ledger::open(first).unwrap();
    for version in 1..=3 {
        block_on(async { ledger.append(&record(version)).unwrap().written().await }).unwrap();
    }
    writer.close().unwrap();
    let mirrored = heads.lock().unwrap().last().cloned().unwrap();
    assert_eq!((mirrored.seq, heads.lock().unwrap().len()), (3, 3));

    let wrong = Config { key: LedgerKey::from_seed(&[6; 32]), ..config(&path) };
    let error = Ledger::open(wrong).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("signed with another key") && error.contains("--ledger-key"), "{error}");

    let database = rusqlite::Connection::open(&path).unwrap();
    let copy = dir.path().join("copy.db");
    database.execute("VACUUM INTO ?", [copy.to_str().unwrap()]).unwrap();
    let copied = rusqlite::Connection::open(&copy).unwrap();
    // Up to a record that had a head of its own, so that the ledger alone shows nothing.
    copied.execute_batch("DELETE FROM records WHERE id & 0xff > 1; DELETE FROM heads").unwrap();
    let head = &heads.lock().unwrap()[0].clone();
    let row = rusqlite::params![(1i64 << 40) | 1, head.time as i64, head.hash.as_bytes(), head.signature.as_bytes()];
    copied.execute("INSERT INTO heads VALUES (?, ?, ?, ?)", row).unwrap();
    let cut = Config { head: Some(mirrored), ..config(&copy) };
    let error = Ledger::open(cut).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("ends at record 1, and record 3 was signed"), "{error}");

    database.execute_batch("DELETE FROM records WHERE id & 0xff = 3").unwrap();
    let error = Ledger::open(config(&path)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("does not end as it was signed"), "{error}");
    database.execute_batch("PRAGMA user_version = 2").unwrap();
    let error = Ledger::open(config(&path)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("format 2, of a newer Penstock"), "{error}");
    let foreign = dir.path().join("foreign.db");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let error = Ledger::open(config(&foreign)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("is no ledger of Penstock's"), "{error}");
}

#[test]
fn of_two_routers_of_one_name_one_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let (first, first_writer) = Ledger::open(config(&path)).unwrap();
    let mut late = config(&path);
    late.patience = Duration::ZERO;
    let (second, second_writer) = Ledger::open(late).unwrap();
    block_on(async {
        first.append(&record(1)).unwrap().written().await.unwrap();
        second.note(&record(2)).unwrap();
        let mut trouble = second.watch_trouble();
        let taken = |error: &Option<Error>| matches!(error, Some(Error::Taken { .. }));
        trouble.wait_for(taken).await.unwrap();
        let error = second.append(&record(3)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("another router writes the chain r1"), "{error}");
        first.append(&record(4)).unwrap().written().await.unwrap();
    });
    assert_eq!(second_writer.close().unwrap_err().records, 1);
    first_writer.close().unwrap();
    assert_eq!(versions(&path), [1, 4]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn whatever_commits_come_to_nothing_that_was_taken_is_lost_or_doubled(
        fates in prop::collection::vec(prop_oneof![
            4 => Just(Fate::Written), 1 => Just(Fate::Failed), 1 => Just(Fate::Lost)
        ], 0..8),
        appended in prop::collection::vec(any::<bool>(), 1..40),
        group in 1usize..5,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let mut config = config(&path);
        config.group = group;
        let (ledger, writer, _) = flaky(config, &fates);
        let mut taken = Vec::new();
        let mut waiting = Vec::new();
        for (version, append) in (0u64..).zip(&appended) {
            if *append {
                waiting.extend(ledger.append(&record(version)).map(|written| (version, written)));
            } else {
                ledger.note(&record(version)).unwrap();
                taken.push(version);
            }
        }
        writer.close().unwrap();
        for (version, written) in waiting {
            if block_on(written.written()).is_ok() {
                taken.push(version);
            }
        }
        let written = versions(&path);
        let mut sorted = written.clone();
        sorted.sort_unstable();
        let unique: std::collections::BTreeSet<u64> = written.iter().copied().collect();
        prop_assert_eq!(unique.len(), written.len(), "doubled: {:?}", sorted);
        prop_assert!(taken.iter().all(|version| unique.contains(version)), "lost of {:?}: {:?}", taken, sorted);
    }
}
