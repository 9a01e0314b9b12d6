//! Random sequences of calls, what a store makes of them, and a plain model of what it should.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use penstock_cluster::store::{Error, Event, Expect, Key, LeaseId, Outcome, Prefix, Revision, Store, Txn};
use proptest::prelude::*;

const PREFIX: &str = "/t/";

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Grant,
    /// Of the lease granted as the so-many-th; perhaps of none.
    Revoke(usize),
    Commit {
        expects: Vec<Expected>,
        changes: Vec<Change>,
    },
}

#[derive(Debug, Clone)]
pub(crate) enum Expected {
    Absent(u8),
    Modified(u8, i64),
    Created(u8, i64),
}

#[derive(Debug, Clone)]
pub(crate) enum Change {
    Put { key: u8, value: u8, lease: Option<usize> },
    Delete { key: u8 },
}

/// Revisions count from the script's start, leases in the order of their grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Done,
    Committed { revision: i64, deleted: usize },
    Conflict { revision: i64 },
    LeaseNotFound,
    Invalid,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    key: String,
    value: Vec<u8>,
    created: i64,
    modified: i64,
    lease: Option<usize>,
}

/// Everything that can be seen of a script's run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Trace {
    seen: Vec<Seen>,
    rows: Vec<Row>,
    /// By revision: the rows put, and the keys deleted, in the order of their keys.
    updates: Vec<(i64, Vec<Result<Row, String>>)>,
}

pub(crate) fn script() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..5_u8;
    let expected = prop_oneof![
        key.clone().prop_map(Expected::Absent),
        (key.clone(), 0..20_i64).prop_map(|(key, at)| Expected::Modified(key, at)),
        (key.clone(), 0..20_i64).prop_map(|(key, at)| Expected::Created(key, at)),
    ];
    let change = prop_oneof![
        3 => (key.clone(), any::<u8>(), proptest::option::of(0..4_usize))
            .prop_map(|(key, value, lease)| Change::Put { key, value, lease }),
        2 => key.prop_map(|key| Change::Delete { key }),
    ];
    let commit = (proptest::collection::vec(expected, 0..2), proptest::collection::vec(change, 0..4));
    let step = prop_oneof![
        1 => Just(Step::Grant),
        1 => (0..4_usize).prop_map(Step::Revoke),
        6 => commit.prop_map(|(expects, changes)| Step::Commit { expects, changes }),
    ];
    proptest::collection::vec(step, 1..40)
}

fn key(number: u8) -> String {
    format!("{PREFIX}{number}")
}

/// Runs a script against a store that has nothing under the script's keys, and takes those away again.
pub(crate) async fn run(store: &dyn Store, script: &[Step]) -> Trace {
    let start = store.revision().await.unwrap().get();
    let mut leases = Vec::new();
    let mut trace = Trace::default();
    for step in script {
        let seen = match step {
            Step::Grant => {
                leases.push(store.grant(Duration::from_secs(600)).await.unwrap().lease);
                Seen::Done
            }
            Step::Revoke(index) => match store.revoke(lease(&leases, *index)).await {
                Ok(()) => Seen::Done,
                Err(Error::LeaseNotFound { .. }) => Seen::LeaseNotFound,
                Err(error) => panic!("{error}"),
            },
            Step::Commit { expects, changes } => {
                match store.commit(transaction(expects, changes, &leases, start)).await {
                    Ok(Outcome::Committed { revision, deleted }) => {
                        Seen::Committed { revision: revision.get() - start, deleted }
                    }
                    Ok(Outcome::Conflict { revision }) => Seen::Conflict { revision: revision.get() - start },
                    Err(Error::LeaseNotFound { .. }) => Seen::LeaseNotFound,
                    Err(Error::Invalid { .. }) => Seen::Invalid,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        trace.seen.push(seen);
    }
    let row = |entry: &penstock_cluster::store::Entry| Row {
        key: entry.key.as_str().to_owned(),
        value: entry.value.to_vec(),
        created: entry.created.get() - start,
        modified: entry.modified.get() - start,
        lease: entry.lease.map(|lease| leases.iter().position(|other| *other == lease).unwrap()),
    };
    let prefix = Prefix::new(PREFIX);
    let listing = store.list(&prefix).await.unwrap();
    trace.rows = listing.entries.iter().map(row).collect();

    // A last change, to know where the watch may stop.
    let end = store.put(prefix.key("end"), Bytes::new()).await.unwrap();
    let mut watch = store.watch(&prefix, Revision::new(start)).await.unwrap();
    loop {
        let update = watch.next().await.unwrap().unwrap();
        if update.revision == end {
            break;
        }
        let events = update.events.iter().map(|event| match event {
            Event::Put(entry) => Ok(row(entry)),
            Event::Delete(key) => Err(key.as_str().to_owned()),
        });
        trace.updates.push((update.revision.get() - start, events.collect()));
    }
    for lease in leases {
        let _ = store.revoke(lease).await;
    }
    for entry in store.list(&prefix).await.unwrap().entries {
        store.delete(entry.key).await.unwrap();
    }
    trace
}

fn lease(leases: &[LeaseId], index: usize) -> LeaseId {
    leases.get(index).copied().unwrap_or(LeaseId::new(0x6666_6666))
}

fn transaction(expects: &[Expected], changes: &[Change], leases: &[LeaseId], start: i64) -> Txn {
    let mut txn = Txn::new();
    for expect in expects {
        txn = txn.expect(match expect {
            Expected::Absent(number) => Expect::Absent(Key::new(key(*number))),
            Expected::Modified(number, at) => Expect::Modified(Key::new(key(*number)), Revision::new(start + at)),
            Expected::Created(number, at) => Expect::Created(Key::new(key(*number)), Revision::new(start + at)),
        });
    }
    for change in changes {
        txn = match change {
            Change::Put { key: number, value, lease: None } => txn.put(Key::new(key(*number)), vec![*value]),
            Change::Put { key: number, value, lease: Some(index) } => {
                txn.put_leased(Key::new(key(*number)), vec![*value], lease(leases, *index))
            }
            Change::Delete { key: number } => txn.delete(Key::new(key(*number))),
        };
    }
    txn
}

/// The model: rows in a map, written for plainness alone.
pub(crate) fn model(script: &[Step]) -> Trace {
    let mut revision = 0;
    let mut alive: Vec<bool> = Vec::new();
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let mut trace = Trace::default();
    for step in script {
        let seen = match step {
            Step::Grant => {
                alive.push(true);
                Seen::Done
            }
            Step::Revoke(index) if alive.get(*index) == Some(&true) => {
                alive[*index] = false;
                let doomed: Vec<String> =
                    rows.values().filter(|row| row.lease == Some(*index)).map(|row| row.key.clone()).collect();
                if !doomed.is_empty() {
                    revision += 1;
                    rows.retain(|key, _| !doomed.contains(key));
                    trace.updates.push((revision, doomed.into_iter().map(Err).collect()));
                }
                Seen::Done
            }
            Step::Revoke(_) => Seen::LeaseNotFound,
            Step::Commit { expects, changes } => {
                let expected = expects.iter().all(|expect| match expect {
                    Expected::Absent(number) => !rows.contains_key(&key(*number)),
                    Expected::Modified(number, at) => rows.get(&key(*number)).is_some_and(|row| row.modified == *at),
                    Expected::Created(number, at) => rows.get(&key(*number)).is_some_and(|row| row.created == *at),
                });
                let mut numbers: Vec<u8> = changes
                    .iter()
                    .map(|change| match change {
                        Change::Put { key, .. } | Change::Delete { key } => *key,
                    })
                    .collect();
                numbers.sort_unstable();
                let orphaned = changes.iter().any(|change| match change {
                    Change::Put { lease: Some(index), .. } => alive.get(*index) != Some(&true),
                    Change::Put { lease: None, .. } | Change::Delete { .. } => false,
                });
                if numbers.windows(2).any(|pair| pair[0] == pair[1]) {
                    Seen::Invalid
                } else if !expected {
                    Seen::Conflict { revision }
                } else if orphaned {
                    Seen::LeaseNotFound
                } else {
                    let (events, deleted) = change(&mut rows, changes, revision + 1);
                    if !events.is_empty() {
                        revision += 1;
                        trace.updates.push((revision, events));
                    }
                    Seen::Committed { revision, deleted }
                }
            }
        };
        trace.seen.push(seen);
    }
    trace.rows = rows.into_values().collect();
    trace
}

fn change(rows: &mut BTreeMap<String, Row>, changes: &[Change], revision: i64) -> (Vec<Result<Row, String>>, usize) {
    let mut events = BTreeMap::new();
    let mut deleted = 0;
    for change in changes {
        match change {
            Change::Put { key: number, value, lease } => {
                let key = key(*number);
                let created = rows.get(&key).map_or(revision, |row| row.created);
                let row = Row { key: key.clone(), value: vec![*value], created, modified: revision, lease: *lease };
                rows.insert(key.clone(), row.clone());
                events.insert(key, Ok(row));
            }
            Change::Delete { key: number } => {
                if let Some(row) = rows.remove(&key(*number)) {
                    deleted += 1;
                    events.insert(row.key.clone(), Err(row.key));
                }
            }
        }
    }
    (events.into_values().collect(), deleted)
}
