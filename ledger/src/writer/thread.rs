//! The thread that owns a chain.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{Config, Error, Mirror, OpenError, Shared, Unwritten, Waiting, micros};
use crate::chain::{ChainName, Entry, Hash, Head};
use crate::key::LedgerKey;
use crate::store::{Backend, ChainId, Group, Range, Sealed, StoreError, Tail};

/// The wait before a group is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

pub(super) struct Thread {
    backend: Box<dyn Backend>,
    chain: ChainId,
    name: ChainName,
    key: LedgerKey,
    mirror: Option<Mirror>,
    group: usize,
    queued: mpsc::Receiver<Waiting>,
    /// Taken out of the queue while the database was away.
    kept: VecDeque<Waiting>,
    shared: Arc<Shared>,
    tail: Tail,
}

impl Thread {
    /// Checks that the chain can be gone on with.
    pub(super) fn new(
        config: Config,
        mut backend: Box<dyn Backend>,
        queued: mpsc::Receiver<Waiting>,
        shared: Arc<Shared>,
    ) -> Result<Self, OpenError> {
        let Config { place, chain: name, key, head: mirrored, mirror, group, .. } = config;
        let place = place.to_string();
        let chain = backend.chain(&name)?;
        let empty = Tail { seq: 0, hash: name.genesis(), time: 0 };
        let tail = backend.tail(chain)?.unwrap_or(empty);
        let (public, last) = (key.public(), backend.heads(chain, &name, tail.seq.saturating_sub(1))?.pop());
        if last.as_ref().is_some_and(|head| !head.is_signed_by(&public)) {
            return Err(OpenError::WrongKey { chain: name, place, public: public.to_string() });
        }
        // A pruned chain keeps its newest record, so the head of an empty one is that of a chain that never began.
        if last.map_or((0, empty.hash), |head| (head.seq, head.hash)) != (tail.seq, tail.hash) {
            return Err(OpenError::Changed { chain: name, place, seq: tail.seq });
        }
        if let Some(head) = mirrored.filter(|head| head.chain == name) {
            check_mirrored(backend.as_mut(), chain, &tail, &head, &place)?;
        }
        Ok(Self { backend, chain, name, key, mirror, group: group.max(1), queued, kept: VecDeque::new(), shared, tail })
    }

    /// Writes until the ledger is closed: by its owner, or since nobody is left who could add to it.
    pub(super) fn run(&mut self) -> Result<(), Unwritten> {
        // A little runtime, to wait for two things at once.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|error| Unwritten {
            records: 0,
            reason: Error::Unavailable(StoreError::Failed {
                place: "this machine".to_owned(),
                reason: error.to_string(),
            }),
        })?;
        let mut waiting = Vec::with_capacity(self.group);
        let mut closed = self.shared.closed.subscribe();
        loop {
            let kept = self.kept.len().min(self.group);
            waiting.extend(self.kept.drain(..kept));
            if waiting.is_empty() {
                let (queued, group) = (&mut self.queued, self.group);
                let received = runtime.block_on(async {
                    tokio::select! {
                        biased;
                        received = queued.recv_many(&mut waiting, group) => received,
                        _ = closed.wait_for(|closed| *closed) => 0,
                    }
                });
                if received == 0 {
                    // What was queued before the end is written still; nothing comes after it.
                    self.queued.close();
                    match self.queued.blocking_recv() {
                        Some(record) => waiting.push(record),
                        None => return Ok(()),
                    }
                }
            }
            let records: Vec<Waiting> = std::mem::take(&mut waiting);
            self.commit(records)?;
            let oldest = self.kept.front().map_or(0, |record| record.since);
            let oldest = if self.queued.is_empty() { oldest } else { oldest.max(micros((self.shared.clock)())) };
            self.shared.oldest.store(oldest, Ordering::Relaxed);
        }
    }

    /// Writes a group, however long that takes, unless the ledger is closed meanwhile.
    fn commit(&mut self, waiting: Vec<Waiting>) -> Result<(), Unwritten> {
        let (group, mut done) = self.seal(waiting);
        let mut wait = RETRY.0;
        // Since when the owner waits for the end.
        let mut ending: Option<Duration> = None;
        let mut tried = false;
        loop {
            let failed = match self.try_commit(&group, tried) {
                Ok(()) => break,
                Err(error) => error,
            };
            tried = true;
            self.refuse(&failed, &mut done);
            let now = (self.shared.clock)();
            if *self.shared.closed.borrow() {
                let since = *ending.get_or_insert(now);
                // A clock that was set back ends the wait, too.
                if now.checked_sub(since).is_none_or(|waited| waited >= self.shared.patience) {
                    let records = group.records.len() + self.kept.len();
                    return Err(Unwritten { records, reason: failed });
                }
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(RETRY.1);
        }
        if tried {
            tracing::info!(chain = %self.name, "ledger written again");
            self.shared.trouble.send_replace(None);
        }
        let last = group.records.last().expect("a group has a record");
        self.tail = Tail { seq: last.seq, hash: last.hash, time: last.time + last.behind };
        if let Some(mirror) = &self.mirror {
            mirror(&group.head);
        }
        for done in done {
            // Whoever waited may have gone.
            let _ = done.send(Ok(()));
        }
        Ok(())
    }

    fn try_commit(&mut self, group: &Group, tried: bool) -> Result<(), Error> {
        if tried {
            // The try before may have been written although its answer was lost.
            let tail = self.backend.tail(self.chain).map_err(Error::Unavailable)?;
            let (seq, hash) = tail.map_or((0, self.name.genesis()), |tail| (tail.seq, tail.hash));
            if (seq, hash) == (group.head.seq, group.head.hash) {
                return Ok(());
            }
            if (seq, hash) != (self.tail.seq, self.tail.hash) {
                return Err(Error::Taken { chain: self.name.clone() });
            }
        }
        self.backend.commit(self.chain, group).map_err(Error::Unavailable)
    }

    /// Tells all who wait that their records are not written, and makes room in the queue for those of what happened.
    fn refuse(&mut self, error: &Error, done: &mut Vec<oneshot::Sender<Result<(), Error>>>) {
        let first = self.shared.trouble.send_if_modified(|trouble| {
            let changed = trouble.as_ref() != Some(error);
            *trouble = Some(error.clone());
            changed
        });
        if first {
            tracing::error!(chain = %self.name, %error, "ledger not written; requests are refused until it is");
        }
        for done in done.drain(..) {
            let _ = done.send(Err(error.clone()));
        }
        while self.kept.len() < self.shared.queue
            && let Ok(record) = self.queued.try_recv()
        {
            match record.done {
                Some(done) => {
                    let _ = done.send(Err(error.clone()));
                }
                None => self.kept.push_back(record),
            }
        }
    }

    /// Gives records their places in the chain.
    fn seal(&self, waiting: Vec<Waiting>) -> (Group, Vec<oneshot::Sender<Result<(), Error>>>) {
        let time = micros((self.shared.clock)());
        // A clock that was set back is told of in the records, and stops nothing.
        let behind = self.tail.time.saturating_sub(time);
        let (mut seq, mut hash) = (self.tail.seq, self.tail.hash);
        let mut records = Vec::with_capacity(waiting.len());
        let mut done = Vec::new();
        for record in waiting {
            seq += 1;
            let entry = Entry {
                seq,
                time,
                behind,
                kind: record.kind,
                request: &record.request,
                hash: Hash::from_bytes([0; 32]),
                body: &record.body,
            };
            hash = entry.hash_after(&hash);
            let Waiting { kind, request, body, .. } = record;
            records.push(Sealed { seq, time, behind, kind, request, hash, body });
            done.extend(record.done);
        }
        (Group { records, head: Head::sign(&self.key, &self.name, seq, time, hash) }, done)
    }
}

/// A chain that does not have the record of a mirrored head was cut; one that has another there was changed.
fn check_mirrored(
    backend: &mut dyn Backend,
    chain: ChainId,
    tail: &Tail,
    head: &Head,
    place: &str,
) -> Result<(), OpenError> {
    let (name, place) = (head.chain.clone(), place.to_owned());
    if head.seq > tail.seq {
        return Err(OpenError::Cut { chain: name, place, seq: tail.seq, mirrored: head.seq });
    }
    let mut found = None;
    let after = head.seq.saturating_sub(1);
    backend.scan(chain, Range { after, until: head.seq, since: 0 }, &mut |entry| {
        found = Some(entry.hash);
        ControlFlow::Break(())
    })?;
    match found {
        Some(hash) if hash != head.hash => Err(OpenError::Changed { chain: name, place, seq: head.seq }),
        // None: it was pruned since.
        Some(_) | None => Ok(()),
    }
}
