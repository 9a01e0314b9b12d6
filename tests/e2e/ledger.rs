//! `penstock ledger` and `penstock usage` on a ledger that no router writes any more.

use std::path::Path;
use std::process::{Command, Output};

use penstock_ledger::{ChainName, Config, FilterHit, Ledger, LedgerKey, Place, Record, Settled, Tokens};
use penstock_proto::RequestId;

use crate::up::PENSTOCK;

const CATALOGUE: &str = "
upstreams:
  - name: acme
    protocol: openai
    url: https://api.acme.example/v1
    ceiling: public
    price: {input: 2.50, output: 10.00, cached_input: 1.25}
    models:
      - {name: small, price: {input: 0.15, output: 0.60}}
      - {name: big}
";

fn settled(request: RequestId, tenant: &str) -> Record {
    Record::Settled(Box::new(Settled {
        request,
        tenant: tenant.to_owned(),
        task: String::new(),
        model: "assistant".to_owned(),
        target: Some("local/smollm2-135m@v1".to_owned()),
        worker: Some("w1".to_owned()),
        shadow: false,
        attempts: 1,
        outcome: "ok".to_owned(),
        finish: Some("stop".to_owned()),
        tokens: Tokens { prompt: 1_000, cached: 400, completion: 10 },
        estimated: false,
        compute_us: 500_000,
        cost_nanos: 100_000,
        duration_us: 640_000,
        first_token_us: Some(80_000),
        answer: None,
        filtered: vec![FilterHit { detector: "card".to_owned(), action: "redact".to_owned(), count: 1 }],
    }))
}

/// A ledger of three requests, the second of tenant `risk`.
fn written(dir: &Path) -> [RequestId; 3] {
    let key = LedgerKey::read_or_create(&dir.join("ledger.key")).unwrap();
    let place = Place::Sqlite(dir.join("ledger.db"));
    let (ledger, writer) = Ledger::open(Config::new(place, ChainName::new("r1").unwrap(), key)).unwrap();
    let ids = [(); 3].map(|()| RequestId::generate());
    for (request, tenant) in ids.iter().zip(["retail", "risk", "retail"]) {
        ledger.note(&settled(*request, tenant)).unwrap();
    }
    writer.close().unwrap();
    ids
}

fn penstock(dir: &Path, args: &[&str]) -> Output {
    Command::new(PENSTOCK).args(args).arg("--data-dir").arg(dir).output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Exit code and message of a command that fails.
fn fault(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_ledger_is_verified_from_its_public_key_and_a_flipped_byte_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    written(data);
    let public = json(&penstock(data, &["ledger", "key"]))["public_key"].as_str().unwrap().to_owned();
    let report = json(&penstock(data, &["ledger", "verify", "--public-key", &public]));
    assert_eq!((&report[0]["chain"], &report[0]["records"], &report[0]["ok"]), (&"r1".into(), &3.into(), &true.into()));
    let head = report[0]["head"].as_str().unwrap();
    let kept = data.join("r1.head");
    std::fs::write(&kept, head).unwrap();
    assert!(penstock(data, &["ledger", "verify", "--head", kept.to_str().unwrap()]).status.success());
    let table = penstock(data, &["ledger", "verify", "-o", "table"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("holds") && table.contains(&format!("head {head}")), "{table}");

    let file = data.join("ledger.db");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(6).position(|bytes| bytes == b"\"risk\"").unwrap();
    bytes[at + 1] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (code, message) = fault(&penstock(data, &["ledger", "verify", "--public-key", &public]));
    assert_eq!(code, Some(1));
    assert!(message.contains("the chain r1 does not hold: record 2 is not what was written"), "{message}");
    let (code, message) = fault(&penstock(data, &["ledger", "prune", "--before", "0s"]));
    assert!(code == Some(1) && message.contains("nothing was pruned"), "{message}");
}

#[test]
fn a_request_is_shown_and_records_are_exported_and_pruned() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    let ids = written(data);
    let shown = json(&penstock(data, &["ledger", "show", &ids[1].to_string()]));
    assert_eq!((&shown[0]["seq"], &shown[0]["record"]["tenant"]), (&2.into(), &"risk".into()));
    let lines = penstock(data, &["ledger", "export", "--since", "1h"]).stdout;
    assert_eq!(String::from_utf8(lines).unwrap().lines().count(), 3);
    let file = data.join("ledger.parquet");
    let file = file.to_str().unwrap();
    assert!(penstock(data, &["ledger", "export", "--format", "parquet", "--out", file]).status.success());
    assert!(std::fs::read(file).unwrap().ends_with(b"PAR1"));
    let pruned = json(&penstock(data, &["ledger", "prune", "--before", "0s"]));
    assert_eq!((&pruned[0]["records"], &pruned[0]["through"]), (&2.into(), &2.into()));
    assert!(penstock(data, &["ledger", "verify"]).status.success());
    let (code, message) = fault(&penstock(data, &["ledger", "show", &ids[0].to_string()]));
    assert!(code == Some(2) && message.contains("has no record of the request"), "{message}");
}

#[test]
fn usage_shows_the_cost_and_the_saving() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    written(data);
    let catalogue = data.join("catalogue.yaml");
    std::fs::write(&catalogue, CATALOGUE).unwrap();
    let (catalogue, html) = (catalogue.to_str().unwrap(), data.join("report.html"));
    let args = ["usage", "--by", "tenant", "-f", catalogue, "--html", html.to_str().unwrap()];
    let usage = json(&penstock(data, &args));
    assert_eq!(usage["elsewhere"][0]["name"], "acme/small");
    let retail = &usage["lines"][0];
    assert_eq!(
        (&retail["name"], &retail["requests"], &retail["cost_nanos"]),
        (&"retail".into(), &2.into(), &200_000.into())
    );
    // Twice 600 × 2,500 + 400 × 1,250 + 10 × 10,000 nanos.
    assert_eq!(retail["elsewhere_nanos"], serde_json::json!([312_000, 4_200_000]));
    assert_eq!(usage["total"]["requests"], 3);
    let page = std::fs::read_to_string(html).unwrap();
    assert!(page.contains("<svg") && page.contains("acme/big"));
    let table = penstock(data, &["usage", "--by", "target", "-f", catalogue, "-o", "table"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("local/smollm2-135m@v1") && table.contains("SAVED"), "{table}");
}

#[test]
fn what_is_wrong_is_told_with_the_contracts_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    let told = |args: &[&str], code: i32, words: &str| {
        let (found, message) = fault(&penstock(data, args));
        assert!(found == Some(code) && message.contains(words), "{args:?}: {found:?} {message}");
    };
    told(&["usage"], 2, "there is no ledger");
    told(&["ledger", "verify"], 2, "give --public-key");
    told(&["ledger", "verify", "--public-key", "abc"], 2, "64 hexadecimal digits");
    told(&["ledger", "verify", "--head", "abc"], 2, "this is no head");
    told(&["ledger", "show", "abc"], 2, "this is no request id");
    told(&["ledger", "export", "--since", "later"], 2, "no point in time");
    written(data);
    told(
        &["usage", "--ledger-url", "postgres://me:secret@127.0.0.1:1/x"],
        3,
        "postgres://127.0.0.1:1/x is not reachable",
    );
    told(&["usage", "--ledger-url", "mysql://x"], 2, "--ledger-url");
    std::fs::write(data.join("ledger.key"), "not a key").unwrap();
    told(&["ledger", "key"], 2, "does not hold 64 hexadecimal digits");
    std::fs::write(data.join("ledger.db"), "not a ledger").unwrap();
    told(&["usage"], 2, "is no ledger of Penstock's");
}
