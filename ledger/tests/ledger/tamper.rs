//! Somebody with the database and without the key changes it: `verify` finds that and names the first bad record.
//!
//! The chain's hash is computed here a second time, from the format's description alone.

use penstock_ledger::{ChainName, Hash, Head, Ledger, Problem, Signature};
use proptest::prelude::*;
use ring::digest::{Context, SHA256};

use crate::support::{Home, chain, check, config, key, sound, write};

/// A stored record.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    seq: i64,
    time: i64,
    behind: i64,
    kind: String,
    request: String,
    hash: Vec<u8>,
    body: Vec<u8>,
}

/// A stored head or seal.
#[derive(Debug, Clone, PartialEq)]
struct Signed {
    seq: i64,
    time: i64,
    hash: Vec<u8>,
    signature: Vec<u8>,
}

/// All of one chain.
#[derive(Debug, Clone, PartialEq)]
struct Content {
    rows: Vec<Row>,
    heads: Vec<Signed>,
}

const CHAIN: i64 = 1 << 40;

fn read(home: &Home) -> Content {
    let Some(database) = &home.database else {
        let database = rusqlite::Connection::open(home.file()).unwrap();
        let mut rows = database.prepare("SELECT id, time, behind, kind, request, hash, body FROM records").unwrap();
        let rows = rows.query_map([], |row| {
            let seq = row.get::<_, i64>(0)? - CHAIN;
            let (time, behind, kind, request) = (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
            Ok(Row { seq, time, behind, kind, request, hash: row.get(5)?, body: row.get(6)? })
        });
        let rows = rows.unwrap().map(Result::unwrap).collect();
        let mut heads = database.prepare("SELECT id, time, hash, signature FROM heads").unwrap();
        let heads = heads.query_map([], |row| {
            Ok(Signed {
                seq: row.get::<_, i64>(0)? - CHAIN,
                time: row.get(1)?,
                hash: row.get(2)?,
                signature: row.get(3)?,
            })
        });
        return Content { rows, heads: heads.unwrap().map(Result::unwrap).collect() };
    };
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len() / 2).map(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).unwrap()).collect()
    };
    let number = |text: &str| text.parse::<i64>().unwrap();
    let cells = database.run(
        "SELECT seq, time, behind, kind, request, encode(hash, 'hex'), encode(body, 'hex') FROM penstock_ledger.records
         ORDER BY seq",
    );
    let row = |cells: &[String]| Row {
        seq: number(&cells[0]),
        time: number(&cells[1]),
        behind: number(&cells[2]),
        kind: cells[3].clone(),
        request: cells[4].clone(),
        hash: hex(&cells[5]),
        body: hex(&cells[6]),
    };
    let rows = cells.chunks_exact(7).map(row).collect();
    let cells = database
        .run("SELECT seq, time, encode(hash, 'hex'), encode(signature, 'hex') FROM penstock_ledger.heads ORDER BY seq");
    let head = |cells: &[String]| Signed {
        seq: number(&cells[0]),
        time: number(&cells[1]),
        hash: hex(&cells[2]),
        signature: hex(&cells[3]),
    };
    Content { rows, heads: cells.chunks_exact(4).map(head).collect() }
}

fn replace(home: &Home, content: &Content) {
    let Some(database) = &home.database else {
        let database = rusqlite::Connection::open(home.file()).unwrap();
        database.execute_batch("BEGIN; DELETE FROM records; DELETE FROM heads").unwrap();
        for Row { seq, time, behind, kind, request, hash, body } in &content.rows {
            let values = rusqlite::params![CHAIN + seq, time, behind, kind, request, hash, body];
            database.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", values).unwrap();
        }
        for Signed { seq, time, hash, signature } in &content.heads {
            let values = rusqlite::params![CHAIN + seq, time, hash, signature];
            database.execute("INSERT INTO heads VALUES (?, ?, ?, ?)", values).unwrap();
        }
        database.execute_batch("COMMIT").unwrap();
        return;
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut sql = "BEGIN; DELETE FROM penstock_ledger.records; DELETE FROM penstock_ledger.heads;\n".to_owned();
    for Row { seq, time, behind, kind, request, hash, body } in &content.rows {
        sql += &format!(
            "INSERT INTO penstock_ledger.records VALUES (1, {seq}, {time}, {behind}, '{kind}', '{request}', '\\x{}', '\\x{}');\n",
            hex(hash),
            hex(body)
        );
    }
    for Signed { seq, time, hash, signature } in &content.heads {
        let (hash, signature) = (hex(hash), hex(signature));
        sql +=
            &format!("INSERT INTO penstock_ledger.heads VALUES (1, {seq}, {time}, '\\x{hash}', '\\x{signature}');\n");
    }
    database.run(&(sql + "COMMIT;"));
}

/// A record's hash, as the format has it.
fn hash(before: &[u8], row: &Row) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    context.update(before);
    [row.seq, row.time, row.behind].iter().for_each(|number| context.update(&number.to_le_bytes()));
    for word in [&row.kind, &row.request] {
        context.update(&[word.len() as u8]);
        context.update(word.as_bytes());
    }
    context.update(&row.body);
    context.finish().as_ref().to_vec()
}

fn genesis(chain: &str) -> Vec<u8> {
    ring::digest::digest(&SHA256, format!("penstock ledger chain 1\0{chain}").as_bytes()).as_ref().to_vec()
}

/// Makes the records fit one another from one on, as somebody would who hides a change.
fn recompute(content: &mut Content, from: usize) {
    for at in from..content.rows.len() {
        let before = if at == 0 { genesis("r1") } else { content.rows[at - 1].hash.clone() };
        content.rows[at].hash = hash(&before, &content.rows[at]);
    }
}

fn head(content: &Content, at: usize) -> Head {
    let Signed { seq, time, hash, signature } = content.heads[at].clone();
    Head {
        chain: chain("r1"),
        seq: seq as u64,
        time: time as u64,
        hash: Hash::from_bytes(hash.try_into().unwrap()),
        signature: Signature::from_bytes(signature.try_into().unwrap()),
    }
}

fn problem(home: &Home, content: &Content, head: Option<&Head>) -> Option<Problem> {
    replace(home, content);
    let report = check(&home.place, head);
    report.problem().map(|(name, problem)| {
        assert_eq!(name, &chain("r1"));
        problem.clone()
    })
}

/// Records that were put in other places, with the numbers of those places.
fn renumber(rows: &mut [Row]) {
    rows.iter_mut().zip(1..).for_each(|(row, seq)| row.seq = seq);
}

#[test]
fn every_way_to_change_a_ledger_is_found_at_its_first_record() {
    for home in Home::both() {
        // Heads at 256, 512 and 600.
        write(config(&home.place, "r1"), 600);
        let good = read(&home);
        assert_eq!(good.heads.iter().map(|head| head.seq).collect::<Vec<_>>(), [256, 512, 600]);
        assert_eq!(good.rows[0].hash, hash(&genesis("r1"), &good.rows[0]), "the format is as described");
        let changed = |change: &dyn Fn(&mut Content)| {
            let mut content = good.clone();
            change(&mut content);
            problem(&home, &content, None)
        };
        let at = |seq| Some(Problem::Changed { seq });
        let missing = |from, to| Some(Problem::Missing { from, to });

        assert_eq!(changed(&|_| ()), None);
        // Flip: a bit of the body, of the hash, of a number, of a word; of a head.
        assert_eq!(changed(&|content| content.rows[299].body[40] ^= 1), at(300));
        assert_eq!(changed(&|content| content.rows[299].hash[31] ^= 0x80), at(300));
        assert_eq!(changed(&|content| content.rows[0].time += 1), at(1));
        assert_eq!(changed(&|content| content.rows[599].behind = 7), at(600));
        assert_eq!(changed(&|content| content.rows[9].kind = "settled".to_owned()), None, "it is one already");
        assert_eq!(changed(&|content| content.rows[9].kind = "decided".to_owned()), at(10));
        assert_eq!(changed(&|content| content.rows[9].request = content.rows[11].request.clone()), at(10));
        assert_eq!(changed(&|content| content.heads[1].signature[5] ^= 4), Some(Problem::Signature { seq: 512 }));
        assert_eq!(changed(&|content| content.heads[1].hash[5] ^= 4), Some(Problem::Signature { seq: 512 }));
        // Drop: a record, some, the first, a head.
        assert_eq!(changed(&|content| drop(content.rows.remove(99))), missing(100, 100));
        assert_eq!(changed(&|content| drop(content.rows.drain(100..110))), missing(101, 110));
        assert_eq!(changed(&|content| drop(content.rows.remove(0))), missing(1, 1));
        assert_eq!(changed(&|content| drop(content.heads.pop())), Some(Problem::Unsigned { from: 513, to: 600 }));
        // Drop and close the gap.
        let closed = |content: &mut Content| {
            content.rows.remove(99);
            renumber(&mut content.rows);
        };
        assert_eq!(changed(&closed), at(100));
        // Swap two, and reorder all.
        let swapped = |content: &mut Content| {
            content.rows.swap(19, 499);
            renumber(&mut content.rows);
        };
        assert_eq!(changed(&swapped), at(20));
        let reversed = |content: &mut Content| {
            content.rows.reverse();
            renumber(&mut content.rows);
        };
        assert_eq!(changed(&reversed), at(1));
        // Truncate: the records alone, and the heads with them.
        assert_eq!(changed(&|content| content.rows.truncate(550)), missing(551, 600));
        let cut = |content: &mut Content| {
            content.rows.truncate(550);
            content.heads.pop();
        };
        assert_eq!(changed(&cut), Some(Problem::Unsigned { from: 513, to: 550 }));
        // Recompute from the middle.
        let recomputed = |content: &mut Content| {
            content.rows[299].body[40] ^= 1;
            recompute(content, 299);
        };
        assert_eq!(changed(&recomputed), Some(Problem::Recomputed { from: 257, to: 512 }));
        let forged = |content: &mut Content| {
            recomputed(content);
            let hash = content.rows[511].hash.clone();
            content.heads[1].hash = hash;
        };
        assert_eq!(changed(&forged), Some(Problem::Signature { seq: 512 }));
        // Swap two segments, whole, with or without making them fit.
        let segments = |content: &mut Content| {
            let moved: Vec<Row> = content.rows.drain(..256).collect();
            content.rows.splice(256..256, moved);
            renumber(&mut content.rows);
        };
        assert_eq!(changed(&segments), at(1));
        let fitting = |content: &mut Content| {
            segments(content);
            recompute(content, 0);
        };
        assert_eq!(changed(&fitting), Some(Problem::Recomputed { from: 1, to: 256 }));
        // Added at the end, fitting.
        let added = |content: &mut Content| {
            let last = content.rows[599].clone();
            content.rows.push(Row { seq: 601, ..last });
            recompute(content, 600);
        };
        assert_eq!(changed(&added), Some(Problem::Unsigned { from: 601, to: 601 }));
        // Everything gone.
        let nothing = |content: &mut Content| *content = Content { rows: Vec::new(), heads: Vec::new() };
        assert_eq!(changed(&nothing), None, "what is gone altogether shows by a head that was kept elsewhere");
    }
}

#[test]
fn a_cut_tail_and_another_history_show_by_a_head_that_was_kept() {
    for home in Home::both() {
        write(config(&home.place, "r1"), 600);
        let good = read(&home);
        let kept = head(&good, 2);
        assert_eq!(problem(&home, &good, Some(&kept)), None);
        // Cut back to a signed head: the ledger alone shows nothing.
        let cut = Content { rows: good.rows[..512].to_vec(), heads: good.heads[..2].to_vec() };
        assert_eq!(problem(&home, &cut, None), None);
        assert_eq!(problem(&home, &cut, Some(&kept)), Some(Problem::Cut { last: 512, head: 600 }));
        let empty = Content { rows: Vec::new(), heads: Vec::new() };
        assert_eq!(problem(&home, &empty, Some(&kept)), Some(Problem::Cut { last: 0, head: 600 }));
        let mut forged = kept.clone();
        forged.seq = 512;
        assert_eq!(problem(&home, &good, Some(&forged)), Some(Problem::GivenHead { seq: 512 }));
        // The owner itself signed another history, from the cut on.
        replace(&home, &cut);
        write(config(&home.place, "r1"), 100);
        let report = check(&home.place, None);
        assert_eq!((report.problem(), report.records()), (None, 612));
        let other = check(&home.place, Some(&kept)).problem().map(|(_, problem)| problem.clone());
        assert_eq!(other, Some(Problem::OtherHistory { seq: 600 }));
        // A router that starts with the mirrored head refuses to go on, too.
        let mut again = config(&home.place, "r1");
        again.head = Some(kept.clone());
        let error = Ledger::open(again).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("does not end as it was signed (record 600)"), "{error}");
        // A head of a chain that is not there.
        let stranger = Head { chain: ChainName::new("r9").unwrap(), ..kept };
        assert!(check(&home.place, Some(&stranger)).problem().is_some());
    }
}

#[test]
fn records_do_not_move_between_chains() {
    let (one, two) = (Home::sqlite(), Home::sqlite());
    write(config(&one.place, "r1"), 10);
    write(config(&two.place, "r2"), 10);
    let moved = read(&two);
    replace(&one, &moved);
    let report = check(&one.place, None);
    assert_eq!(report.problem().map(|(_, problem)| problem.first_bad()), Some(1));
}

#[test]
fn another_key_verifies_nothing() {
    let home = Home::sqlite();
    write(config(&home.place, "r1"), 10);
    let other = penstock_ledger::LedgerKey::from_seed(&[8; 32]).public();
    let mut reader = penstock_ledger::Reader::open(&home.place).unwrap();
    let report = penstock_ledger::verify(&mut reader, &other, None, None).unwrap();
    assert_eq!(report.problem().map(|(_, problem)| problem.clone()), Some(Problem::Signature { seq: 10 }));
    assert_ne!(other, key().public());
}

/// One change of what is stored.
#[derive(Debug, Clone)]
enum Change {
    Body { at: usize, byte: usize, bit: u8 },
    Hash { at: usize, byte: usize, bit: u8 },
    Time { at: usize, by: i64 },
    Drop { at: usize },
    Double { at: usize },
    Swap { one: usize, two: usize },
    Truncate { to: usize },
    Head { at: usize, byte: usize, bit: u8 },
    HeadTime { at: usize, by: i64 },
}

fn change() -> impl Strategy<Value = Change> {
    let at = || any::<prop::sample::Index>().prop_map(|index| index.index(300));
    let byte = || any::<prop::sample::Index>().prop_map(|index| index.index(1_000));
    prop_oneof![
        (at(), byte(), 0u8..8).prop_map(|(at, byte, bit)| Change::Body { at, byte, bit }),
        (at(), byte(), 0u8..8).prop_map(|(at, byte, bit)| Change::Hash { at, byte, bit }),
        (at(), 1i64..1_000).prop_map(|(at, by)| Change::Time { at, by }),
        at().prop_map(|at| Change::Drop { at }),
        at().prop_map(|at| Change::Double { at }),
        (at(), at()).prop_map(|(one, two)| Change::Swap { one, two }),
        at().prop_map(|to| Change::Truncate { to }),
        (at(), byte(), 0u8..8).prop_map(|(at, byte, bit)| Change::Head { at, byte, bit }),
        (at(), 1i64..1_000).prop_map(|(at, by)| Change::HeadTime { at, by }),
    ]
}

fn apply(content: &mut Content, change: &Change) {
    let (rows, heads) = (&mut content.rows, &mut content.heads);
    if rows.is_empty() {
        return;
    }
    let (count, signed) = (rows.len(), heads.len());
    match *change {
        Change::Body { at, byte, bit } => {
            let body = &mut rows[at % count].body;
            let byte = byte % body.len();
            body[byte] ^= 1 << bit;
        }
        Change::Hash { at, byte, bit } => rows[at % count].hash[byte % 32] ^= 1 << bit,
        Change::Time { at, by } => rows[at % count].time += by,
        Change::Drop { at } => drop(rows.remove(at % count)),
        Change::Double { at } => {
            let row = rows[at % count].clone();
            rows.insert(at % count, row);
            renumber(rows);
        }
        Change::Swap { one, two } => {
            rows.swap(one % count, two % count);
            renumber(rows);
        }
        Change::Truncate { to } => rows.truncate(to % count),
        Change::Head { at, byte, bit } => heads[at % signed].signature[byte % 64] ^= 1 << bit,
        Change::HeadTime { at, by } => heads[at % signed].time += by,
    }
}

#[test]
fn whatever_is_changed_is_found() {
    let home = Home::sqlite();
    write(config(&home.place, "r1"), 300);
    assert_eq!(sound(&home.place), 300);
    let good = read(&home);
    let runner_config = ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(runner_config, |(changes in prop::collection::vec(change(), 1..4), hidden in any::<bool>())| {
        let mut content = good.clone();
        changes.iter().for_each(|change| apply(&mut content, change));
        if hidden {
            renumber(&mut content.rows);
            recompute(&mut content, 0);
        }
        // Changes may cancel each other out; then there is nothing to find.
        let same = content == good;
        prop_assert_eq!(problem(&home, &content, None).is_none(), same, "{:?}", changes);
    });
}
