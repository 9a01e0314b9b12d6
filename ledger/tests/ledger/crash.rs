//! A writer that is killed in the middle of its groups has written everything that it said was written.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use penstock_ledger::{Ledger, Place, Reader};
use penstock_proto::RequestId;

use crate::support::{Home, block_on, config, decided, settled, sound};

/// Where the child writes; set for the child alone.
const PLACE: &str = "PENSTOCK_TEST_LEDGER_PLACE";

/// Not a test of its own: the process that is killed. It says what is durable, line by line.
#[test]
fn child() {
    #[expect(clippy::disallowed_methods, reason = "how a parent tells its child")]
    let Ok(place) = std::env::var(PLACE) else { return };
    let place = match place.strip_prefix("file:") {
        Some(path) => Place::Sqlite(path.into()),
        None => Place::Postgres(place),
    };
    let (ledger, _writer) = Ledger::open(config(&place, "r1")).unwrap();
    block_on(async {
        let mut tasks = tokio::task::JoinSet::<()>::new();
        for _ in 0..16 {
            let ledger = ledger.clone();
            tasks.spawn(async move {
                loop {
                    let request = RequestId::generate();
                    ledger.append(&decided(request)).unwrap().written().await.unwrap();
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "durable {request}").unwrap();
                    out.flush().unwrap();
                    drop(out);
                    ledger.note(&settled(request, "retail")).unwrap();
                }
            });
        }
        tasks.join_all().await;
    });
}

/// Lets a child write until it has said so much, and kills it.
fn killed_after(place: &Place, lines: usize) -> Vec<RequestId> {
    let place = match place {
        Place::Sqlite(path) => format!("file:{}", path.display()),
        Place::Postgres(url) => url.clone(),
    };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--nocapture"])
        .env(PLACE, place)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    loop {
        line.clear();
        // After the kill, what it had said before is still read.
        if out.read_line(&mut line).unwrap() == 0 {
            break;
        }
        if let Some(id) = line.trim().strip_prefix("durable ") {
            said.extend(id.parse::<RequestId>());
            if said.len() == lines {
                child.kill().unwrap();
            }
        }
    }
    assert!(!child.wait().unwrap().success());
    assert!(said.len() >= lines);
    said
}

#[test]
fn kill_9_loses_no_record_that_was_said_to_be_written() {
    for home in Home::both() {
        let mut said = HashSet::new();
        for round in 0..12usize {
            said.extend(killed_after(&home.place, 1 + round * round * 7 % 400));
            sound(&home.place);
        }
        let mut kept = HashSet::new();
        let mut reader = Reader::open(&home.place).unwrap();
        let read = |_: &_, entry: penstock_ledger::Entry<'_>| {
            if entry.kind == "decided" {
                kept.insert(entry.request.parse::<RequestId>().unwrap());
            }
            std::ops::ControlFlow::Continue(())
        };
        reader.records(Duration::ZERO, read).unwrap();
        assert!(said.is_subset(&kept), "{} of {} are lost", said.difference(&kept).count(), said.len());
        // And another router goes on where the last one was killed.
        let (ledger, writer) = Ledger::open(config(&home.place, "r1")).unwrap();
        block_on(async { ledger.append(&decided(RequestId::generate())).unwrap().written().await }).unwrap();
        writer.close().unwrap();
        sound(&home.place);
    }
}
