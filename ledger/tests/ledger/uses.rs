//! What a ledger is read for: looking up, exporting, pruning.

use std::time::Duration;

use penstock_ledger::{Ledger, Place, PruneError, Reader, Record, jsonl, parquet, prune};

use crate::support::{Home, block_on, chain, check, config, decided, key, sound, write};

const HOUR: Duration = Duration::from_secs(3_600);

#[test]
fn a_request_is_found_with_all_that_is_known_of_it() {
    for home in Home::both() {
        let ids = write(config(&home.place, "r1"), 20);
        let mut reader = Reader::open(&home.place).unwrap();
        let found = reader.request(ids[4]).unwrap();
        let kinds: Vec<&str> = found.iter().map(|found| found.record.as_ref().unwrap().kind().as_str()).collect();
        assert_eq!((kinds.as_slice(), found[0].seq), (["decided", "settled"].as_slice(), 9));
        assert!(found.iter().all(|found| found.record.as_ref().unwrap().request() == Some(ids[4])));
        assert!(reader.request(penstock_proto::RequestId::generate()).unwrap().is_empty());
    }
}

#[test]
fn chains_share_a_database_and_are_told_apart() {
    for home in Home::both() {
        let one = write(config(&home.place, "r1"), 6);
        write(config(&home.place, "r2"), 4);
        write(config(&home.place, "r1"), 2);
        let report = check(&home.place, None);
        let chains: Vec<_> = report.chains.iter().map(|checked| (checked.chain.as_str(), checked.records)).collect();
        assert_eq!((report.problem(), chains), (None, vec![("r1", 8), ("r2", 4)]));
        let found = Reader::open(&home.place).unwrap().request(one[0]).unwrap();
        assert_eq!(found[0].chain, chain("r1"));
    }
}

#[test]
fn exports_have_every_record_since_a_time() {
    for home in Home::both() {
        write(Config { clock: || HOUR, ..config(&home.place, "r1") }, 10);
        write(Config { clock: || HOUR * 3, ..config(&home.place, "r1") }, 4);
        let mut reader = Reader::open(&home.place).unwrap();
        let mut lines = Vec::new();
        assert_eq!(jsonl(&mut reader, Duration::ZERO, &mut lines).unwrap(), 14);
        let lines = String::from_utf8(lines).unwrap();
        let values: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((values.len(), &values[9]["seq"], &values[9]["kind"]), (14, &10.into(), &"settled".into()));
        assert_eq!(values[9]["time"], "1970-01-01T01:00:00.000000Z");
        assert_eq!(values[9]["record"]["tokens"]["completion"], 31);
        let read = Record::read("settled", values[9]["record"].to_string().as_bytes()).unwrap();
        assert_eq!(read.request().unwrap().to_string(), values[9]["request"]);
        assert_eq!(jsonl(&mut reader, HOUR * 2, &mut Vec::new()).unwrap(), 4);
        let mut file = Vec::new();
        assert_eq!(parquet(&mut reader, HOUR * 2, &mut file).unwrap(), 4);
        assert!(file.starts_with(b"PAR1") && file.ends_with(b"PAR1"));
    }
}

use penstock_ledger::Config;

#[test]
fn what_is_pruned_is_sealed_and_the_rest_still_verifies() {
    for home in Home::both() {
        write(Config { clock: || HOUR, ..config(&home.place, "r1") }, 300);
        let (ledger, writer) = Ledger::open(Config { clock: || HOUR * 3, ..config(&home.place, "r1") }).unwrap();
        let append = || {
            block_on(async { ledger.append(&decided(penstock_proto::RequestId::generate())).unwrap().written().await })
        };
        append().unwrap();
        let head = check(&home.place, None).chains[0].head.clone().unwrap();
        // A router writes the chain meanwhile.
        let pruned = prune(&home.place, &key(), None, HOUR * 2, HOUR * 4).unwrap();
        assert_eq!((pruned[0].records, pruned[0].through), (300, 300));
        append().unwrap();
        writer.close().unwrap();
        let report = check(&home.place, Some(&head));
        assert_eq!((report.problem(), report.records(), report.chains[0].pruned), (None, 2, 300));
        // The newest record stays, whatever its age.
        let pruned = prune(&home.place, &key(), Some(&chain("r1")), HOUR * 9, HOUR * 9).unwrap();
        assert_eq!((pruned[0].records, pruned[0].through), (1, 301));
        let again = prune(&home.place, &key(), None, HOUR * 9, HOUR * 9).unwrap();
        assert_eq!((again[0].records, again[0].through), (0, 301));
        write(config(&home.place, "r1"), 3);
        assert_eq!(sound(&home.place), 4);
    }
}

#[test]
fn nobody_else_prunes_and_nothing_is_pruned_that_does_not_verify() {
    let home = Home::sqlite();
    write(Config { clock: || HOUR, ..config(&home.place, "r1") }, 10);
    let stranger = penstock_ledger::LedgerKey::from_seed(&[1; 32]);
    let refused = prune(&home.place, &stranger, None, HOUR * 2, HOUR * 3).unwrap_err();
    assert!(matches!(refused, PruneError::Problem { .. }), "{refused}");
    let unknown = prune(&home.place, &key(), Some(&chain("r7")), HOUR * 2, HOUR * 3).unwrap_err();
    assert!(matches!(unknown, PruneError::Unknown(_)), "{unknown}");
    let database = rusqlite::Connection::open(home.file()).unwrap();
    // Records that go without a seal were not pruned.
    database.execute_batch("DELETE FROM records WHERE id & 0xff <= 5").unwrap();
    let report = check(&home.place, None);
    assert_eq!(report.problem().unwrap().1.to_string(), "records 1 to 5 are missing");
    let refused = prune(&home.place, &key(), None, HOUR * 2, HOUR * 3).unwrap_err();
    assert!(refused.to_string().contains("nothing was pruned, since the chain r1 does not verify"), "{refused}");
    // Nor with a seal that somebody else signed.
    let seal = "INSERT INTO seals SELECT (1 << 40) | 5, 0, zeroblob(32), zeroblob(64)";
    database.execute_batch(seal).unwrap();
    assert!(check(&home.place, None).problem().unwrap().1.to_string().contains("is not signed by this key"));
}

#[test]
fn evidence_is_read_where_nothing_can_be_written() {
    let home = Home::sqlite();
    write(config(&home.place, "r1"), 10);
    let copy = home.dir.path().join("a copy of 100%? yes.db");
    std::fs::copy(home.file(), &copy).unwrap();
    let mut permissions = std::fs::metadata(&copy).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&copy, permissions).unwrap();
    assert_eq!(sound(&Place::Sqlite(copy)), 10);
}
