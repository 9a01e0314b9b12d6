//! How fast a ledger is written and checked: `cargo run --release -p penstock-ledger --example ledger_speed [DIR]`.
//!
//! Records are those of requests, a `decided` and a `settled` each. DIR is where the file lies; its disk is what is measured.

#![expect(clippy::print_stdout, reason = "an example that prints figures")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use penstock_ledger::{
    Candidate, ChainName, Class, Config, Decided, Egress, Inputs, Ledger, LedgerKey, Place, Raised, Raiser, Reader,
    Record, Served, Settled, Shape, Target, Tide, Time, Tokens, verify,
};
use penstock_proto::{DataClass, RequestId};

const RECORDS: usize = 400_000;
/// Requests a second while latencies are taken, and for how long.
const LOAD: (u64, Duration) = (2_000, Duration::from_secs(5));

fn main() {
    let base = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(base).expect("a directory");
    let place = Place::Sqlite(dir.path().join("ledger.db"));
    let key = LedgerKey::from_seed(&[7; 32]);
    let config = || {
        let chain = ChainName::new("r1").expect("a name");
        Config::new(place.clone(), chain, key.clone())
    };
    let records: Vec<Record> = (0..1_000).flat_map(|_| request(&key)).collect();

    let (ledger, writer) = Ledger::open(config()).expect("a ledger");
    let begun = now();
    for record in records.iter().cycle().take(RECORDS) {
        while ledger.note(record).is_err() {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    writer.close().expect("all written");
    let written = begun.elapsed();
    let bytes = std::fs::metadata(dir.path().join("ledger.db")).map_or(0, |file| file.len());
    println!("written: {} records/s, {} bytes a record", rate(RECORDS, written), bytes / RECORDS as u64);

    let mut reader = Reader::open(&place).expect("a ledger");
    let begun = now();
    let report = verify(&mut reader, &key.public(), None, None).expect("a ledger");
    assert!(report.problem().is_none() && report.records() == RECORDS as u64);
    println!("verified: {} records/s", rate(RECORDS, begun.elapsed()));
    drop(reader);

    let (ledger, writer) = Ledger::open(config()).expect("a ledger");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut latencies = runtime.block_on(load(&ledger, &key));
    writer.close().expect("all written");
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "append under {} requests/s: p50 {:.2?}, p99 {:.2?}, p99.9 {:.2?}, {} appends",
        LOAD.0,
        at(0.5),
        at(0.99),
        at(0.999),
        latencies.len()
    );
}

/// An open loop: each request's `decided` is awaited and its `settled` noted, whatever the others wait for.
async fn load(ledger: &Ledger, key: &LedgerKey) -> Vec<Duration> {
    let mut tasks = tokio::task::JoinSet::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let begun = now();
    while begun.elapsed() < LOAD.1 {
        ticks.tick().await;
        for _ in 0..LOAD.0 / 1_000 {
            let ledger = ledger.clone();
            let [decided, settled] = request(key);
            tasks.spawn(async move {
                let begun = now();
                ledger.append(&decided).expect("room").written().await.expect("written");
                let took = begun.elapsed();
                ledger.note(&settled).expect("room");
                took
            });
        }
    }
    tasks.join_all().await
}

#[expect(clippy::disallowed_methods, reason = "an example that measures")]
fn now() -> Instant {
    Instant::now()
}

fn rate(count: usize, time: Duration) -> u64 {
    (count as f64 / time.as_secs_f64()) as u64
}

fn request(key: &LedgerKey) -> [Record; 2] {
    let request = RequestId::generate();
    let local = Target::Local { model: "smollm2-135m".to_owned(), version: Some("v1".to_owned()), adapter: None };
    let mac = key.mac(request.to_string());
    let decided = Decided {
        request,
        key: Some("k1".to_owned()),
        session: Some(mac),
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
        candidates: vec![Candidate { target: local, stage: "split".to_owned(), price: None }],
        refusals: Vec::new(),
        shadows: Vec::new(),
        failed_rules: Vec::new(),
        prompt: mac,
    };
    let settled = Settled {
        request,
        tenant: "retail".to_owned(),
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
        answer: Some(mac),
        filtered: Vec::new(),
    };
    [Record::Decided(Box::new(decided)), Record::Settled(Box::new(settled))]
}
