//! Databases that are full, locked, read-only, slow or gone: requests are refused meanwhile, nothing is lost, and nobody
//! has to do anything when they are back.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use penstock_ledger::{Error, Ledger, Place, Reader, StoreError};
use penstock_proto::RequestId;

use crate::support::{Home, block_on, check, config, decided, settled, sound, until};

fn append(ledger: &Ledger) -> Result<(), Error> {
    block_on(async { ledger.append(&decided(RequestId::generate()))?.written().await })
}

/// Refused while it lasts; what happened meanwhile is kept.
fn trouble(ledger: &Ledger, expected: impl Fn(&Error) -> bool) -> RequestId {
    until("the ledger is in trouble", || {
        let _ = append(ledger);
        ledger.trouble().is_some_and(|error| expected(&error))
    });
    let refused = append(ledger).unwrap_err();
    assert!(expected(&refused), "{refused}");
    let happened = RequestId::generate();
    ledger.note(&settled(happened, "retail")).unwrap();
    happened
}

fn recovered(ledger: &Ledger, place: &Place, happened: RequestId) {
    until("the ledger is written again", || ledger.trouble().is_none());
    append(ledger).unwrap();
    let found = Reader::open(place).unwrap().request(happened).unwrap();
    assert_eq!(found.len(), 1, "what happened meanwhile is written once");
    sound(place);
}

#[test]
fn a_file_that_another_program_holds() {
    let home = Home::sqlite();
    let mut config = config(&home.place, "r1");
    config.patience = Duration::from_millis(100);
    let (ledger, writer) = Ledger::open(config).unwrap();
    append(&ledger).unwrap();
    let holder = rusqlite::Connection::open(home.file()).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let happened = trouble(&ledger, |error| matches!(error, Error::Unavailable(StoreError::Failed { .. })));
    assert!(ledger.trouble().unwrap().to_string().contains("another program has held its lock for too long"));
    holder.execute_batch("ROLLBACK").unwrap();
    recovered(&ledger, &home.place, happened);
    writer.close().unwrap();
}

/// Not a test of its own: a process whose files may not grow beyond what its parent says.
#[test]
fn bounded_child() {
    #[expect(clippy::disallowed_methods, reason = "how a parent tells its child")]
    let Ok(path) = std::env::var("PENSTOCK_TEST_LEDGER_FULL") else { return };
    let place = Place::Sqlite(path.into());
    let (ledger, writer) = Ledger::open(config(&place, "r1")).unwrap();
    let say = |what: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "said {what}").unwrap();
        out.flush().unwrap();
    };
    let mut durable = 0;
    let refused = loop {
        match append(&ledger) {
            Ok(()) => durable += 1,
            Err(error) => break error,
        }
    };
    let happened = RequestId::generate();
    ledger.note(&settled(happened, "retail")).unwrap();
    say(&format!("refused {durable} {happened} {refused}"));
    until("there is room again", || ledger.trouble().is_none());
    append(&ledger).unwrap();
    writer.close().unwrap();
    say("recovered");
}

#[test]
fn a_disk_that_is_full_for_a_while() {
    let home = Home::sqlite();
    let path = home.file();
    // The limit on a file's size is what an unprivileged test can set; the signal that comes with it is ignored, as a
    // disk that is full sends none.
    let mut child = Command::new("/bin/sh")
        .args(["-c", "trap '' XFSZ; ulimit -S -f 4000; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "trouble::bounded_child", "--nocapture"])
        .env("PENSTOCK_TEST_LEDGER_FULL", &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut said = || lines.find_map(|line| line.strip_prefix("said ").map(str::to_owned)).unwrap();
    let refused = said();
    let words: Vec<&str> = refused.splitn(4, ' ').collect();
    let (durable, happened): (u64, RequestId) = (words[1].parse().unwrap(), words[2].parse().unwrap());
    assert!(durable > 10 && words[3].contains("the ledger cannot be written"), "{refused}");
    assert!(check(&home.place, None).problem().is_none());
    let freed = Command::new("prlimit").args(["--fsize=unlimited", "--pid", &child.id().to_string()]).status().unwrap();
    assert!(freed.success());
    assert_eq!(said(), "recovered");
    assert!(child.wait().unwrap().success());
    assert_eq!(Reader::open(&home.place).unwrap().request(happened).unwrap().len(), 1);
    // All that were durable before, the one that was refused in its group, what happened, and the one after.
    assert!(sound(&home.place) >= durable + 2);
}

#[test]
fn a_server_that_ends_its_connections() {
    let home = Home::postgres();
    let database = home.database.clone().unwrap();
    let (ledger, writer) = Ledger::open(config(&home.place, "r1")).unwrap();
    let mut durable = Vec::new();
    for round in 0..60 {
        if round % 10 == 5 {
            database.drop_connections();
        }
        let request = RequestId::generate();
        let written = ledger.append(&decided(request)).map(penstock_ledger::Written::written);
        match written.map(block_on) {
            Ok(Ok(())) => durable.push(request),
            Ok(Err(_)) | Err(_) => until("the ledger is written again", || ledger.trouble().is_none()),
        }
    }
    writer.close().unwrap();
    assert!(durable.len() >= 50, "{}", durable.len());
    let mut reader = Reader::open(&home.place).unwrap();
    assert!(durable.into_iter().all(|request| reader.request(request).unwrap().len() == 1));
    sound(&home.place);
}

#[test]
fn a_server_that_takes_no_writes() {
    let home = Home::postgres();
    let database = home.database.clone().unwrap();
    let (ledger, writer) = Ledger::open(config(&home.place, "r1")).unwrap();
    append(&ledger).unwrap();
    let name = database.run("SELECT current_database()").remove(0);
    database.run(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on"));
    database.drop_connections();
    let happened = trouble(&ledger, |error| matches!(error, Error::Unavailable(StoreError::ReadOnly { .. })));
    database.run(&format!("BEGIN READ WRITE; ALTER DATABASE {name} SET default_transaction_read_only = off; COMMIT"));
    database.drop_connections();
    recovered(&ledger, &home.place, happened);
    writer.close().unwrap();
}

#[test]
fn a_server_whose_answers_do_not_come() {
    let home = Home::postgres();
    let way = home.database.clone().unwrap().by_way();
    let mut config = config(&Place::Postgres(way.url()), "r1");
    config.patience = Duration::from_millis(500);
    let (ledger, writer) = Ledger::open(config).unwrap();
    append(&ledger).unwrap();
    way.block();
    // The server writes the group, and its answer is lost.
    let lost = RequestId::generate();
    let error = block_on(async { ledger.append(&decided(lost)).unwrap().written().await }).unwrap_err();
    assert!(matches!(error, Error::Slow { .. } | Error::Unavailable(StoreError::Slow { .. })), "{error}");
    let happened = trouble(&ledger, |error| matches!(error, Error::Unavailable(StoreError::Slow { .. })));
    way.unblock();
    recovered(&ledger, &home.place, happened);
    assert_eq!(Reader::open(&home.place).unwrap().request(lost).unwrap().len(), 1, "written once");
    writer.close().unwrap();
}

#[test]
fn a_newer_ledger_and_none_at_all_are_told_apart() {
    for home in Home::both() {
        let missing = Reader::open(&home.place).unwrap_err();
        assert!(missing.to_string().contains("there is no ledger"), "{missing}");
        crate::support::write(config(&home.place, "r1"), 2);
        match &home.database {
            Some(database) => drop(database.run("UPDATE penstock_ledger.format SET version = 7")),
            None => {
                let database = rusqlite::Connection::open(home.file()).unwrap();
                database.execute_batch("PRAGMA user_version = 7").unwrap();
            }
        }
        let newer = Reader::open(&home.place).unwrap_err().to_string();
        assert!(newer.contains("format 7, of a newer Penstock") && newer.contains("use the newer program"), "{newer}");
        let newer = Ledger::open(config(&home.place, "r1")).map(|_| ()).unwrap_err().to_string();
        assert!(newer.contains("format 7"), "{newer}");
    }
}
