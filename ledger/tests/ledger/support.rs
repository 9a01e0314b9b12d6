//! Records to write, ledgers to write them to, and a PostgreSQL to keep them in.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use penstock_ledger::{
    Candidate, ChainName, Class, Config, Decided, Egress, Head, Inputs, Ledger, LedgerKey, Place, Raised, Raiser,
    Reader, Record, Report, Served, Settled, Shape, Target, Tide, Time, Tokens, verify,
};
use penstock_proto::{DataClass, RequestId};

use crate::postgres::{Database, SERVER};

/// The key that test ledgers are signed with.
pub(crate) fn key() -> LedgerKey {
    LedgerKey::from_seed(&[9; 32])
}

pub(crate) fn chain(name: &str) -> ChainName {
    ChainName::new(name).unwrap()
}

pub(crate) fn config(place: &Place, name: &str) -> Config {
    Config::new(place.clone(), chain(name), key())
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    static RUNTIME: LazyLock<tokio::runtime::Runtime> =
        LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());
    RUNTIME.block_on(future)
}

/// Somewhere to keep a ledger, fresh for a test.
pub(crate) struct Home {
    pub(crate) place: Place,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) database: Option<Database>,
}

impl Home {
    pub(crate) fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { place: Place::Sqlite(dir.path().join("ledger.db")), dir, database: None }
    }

    pub(crate) fn postgres() -> Self {
        let database = SERVER.database();
        let place = Place::Postgres(database.url());
        Self { place, dir: tempfile::tempdir().unwrap(), database: Some(database) }
    }

    /// One of each.
    pub(crate) fn both() -> [Self; 2] {
        [Self::sqlite(), Self::postgres()]
    }

    pub(crate) fn file(&self) -> PathBuf {
        match &self.place {
            Place::Sqlite(path) => path.clone(),
            Place::Postgres(_) => panic!("no file"),
        }
    }
}

pub(crate) fn decided(request: RequestId) -> Record {
    let target = Target::Local { model: "smollm2-135m".to_owned(), version: Some("v1".to_owned()), adapter: None };
    Record::Decided(Box::new(Decided {
        request,
        key: Some("k1".to_owned()),
        session: Some(key().mac("session")),
        inputs: Inputs {
            version: Some(3),
            tenant: "retail".to_owned(),
            class: Class {
                class: DataClass::Internal,
                raised_by: vec![Raised { by: Raiser::Tenant, to: DataClass::Internal }],
            },
            asked: "assistant".to_owned(),
            shape: Shape { prompt_bytes: 812, messages: 3, task: "support".to_owned(), stream: true, tools: 0 },
            load: vec![Served { model: "smollm2-135m".to_owned(), version: Some("v1".to_owned()), wait_ms: 12 }],
            bucket: 4_711,
            time: Time { hour: 14, weekday: 3 },
            egress: Egress::Allowed,
            broken: Vec::new(),
            tide: Tide::Low,
        },
        arm: "the split of the traffic, bucket 4711".to_owned(),
        candidates: vec![Candidate { target, stage: "split".to_owned(), price: None }],
        refusals: Vec::new(),
        shadows: Vec::new(),
        failed_rules: Vec::new(),
        prompt: key().mac("a prompt"),
    }))
}

pub(crate) fn settled(request: RequestId, tenant: &str) -> Record {
    Record::Settled(Box::new(Settled {
        request,
        tenant: tenant.to_owned(),
        task: "support".to_owned(),
        model: "assistant".to_owned(),
        target: Some("local/smollm2-135m@v1".to_owned()),
        worker: Some("w1".to_owned()),
        shadow: false,
        attempts: 1,
        outcome: "ok".to_owned(),
        finish: Some("stop".to_owned()),
        tokens: Tokens { prompt: 200, cached: 64, completion: 31 },
        estimated: false,
        compute_us: 81_000,
        cost_nanos: 47_250,
        duration_us: 640_000,
        first_token_us: Some(80_000),
        answer: Some(key().mac("an answer")),
        filtered: Vec::new(),
    }))
}

/// Writes so many records, and gives their requests' ids.
pub(crate) fn write(config: Config, records: usize) -> Vec<RequestId> {
    let (ledger, writer) = Ledger::open(config).unwrap();
    let ids: Vec<RequestId> = (0..records.div_ceil(2)).map(|_| RequestId::generate()).collect();
    for at in 0..records {
        let request = ids[at / 2];
        let record = if at % 2 == 0 { decided(request) } else { settled(request, "retail") };
        block_on(async { ledger.append(&record).unwrap().written().await }).unwrap();
    }
    writer.close().unwrap();
    ids
}

pub(crate) fn check(place: &Place, head: Option<&Head>) -> Report {
    verify(&mut Reader::open(place).unwrap(), &key().public(), None, head).unwrap()
}

/// A ledger that holds; gives how many records that are.
pub(crate) fn sound(place: &Place) -> u64 {
    let report = check(place, None);
    assert_eq!(report.problem(), None);
    report.records()
}

/// Waits for a condition; how long that may take is a bound against hanging, no claim.
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = (0..6_000).take_while(|_| {
        let done = condition();
        if !done {
            std::thread::sleep(Duration::from_millis(10));
        }
        !done
    });
    assert!(waited.count() < 6_000, "waited in vain until {what}");
}

pub(crate) fn executable(path: &Path) -> bool {
    path.is_file()
}
