//! Reading a ledger, without the router that writes it.

use std::ops::ControlFlow;
use std::time::Duration;

use penstock_proto::RequestId;

use crate::calendar;
use crate::chain::{ChainName, Entry, Hash, Head, Seal};
use crate::record::{InvalidRecord, Record};
use crate::store::{Backend, ChainId, Mode, Place, Range, StoreError, open};

/// How long a database may take for a part of what is read.
const PATIENCE: Duration = Duration::from_secs(60);

/// A ledger as it was when it was opened; what is written meanwhile is not seen.
pub struct Reader {
    backend: Box<dyn Backend>,
    chains: Vec<(ChainId, ChainName)>,
}

/// A record that was looked up.
#[derive(Debug)]
pub struct Found {
    /// Its chain.
    pub chain: ChainName,
    /// Its number there.
    pub seq: u64,
    /// When it was written, in microseconds since 1970.
    pub time: u64,
    /// Its hash.
    pub hash: Hash,
    /// What it says; what cannot be read was written by a newer program, or changed.
    pub record: Result<Record, InvalidRecord>,
}

impl Found {
    /// When it was written, RFC 3339.
    pub fn timestamp(&self) -> String {
        calendar::timestamp(self.time)
    }
}

impl Reader {
    /// Opens a ledger. This and all reading blocks: async code calls it through `spawn_blocking`.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: there is none, it is of a newer program, it cannot be reached.
    pub fn open(place: &Place) -> Result<Self, StoreError> {
        let mut backend = open(place, Mode::Read, PATIENCE)?;
        backend.freeze()?;
        let chains = backend.chains()?;
        Ok(Self { backend, chains })
    }

    /// The chains, one a router, in the order in which they were begun.
    pub fn chains(&self) -> impl Iterator<Item = &ChainName> {
        self.chains.iter().map(|(_, name)| name)
    }

    /// Reads all records that were written since a time (since 1970), chain by chain, until the visitor breaks off.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn records(
        &mut self,
        since: Duration,
        mut visit: impl FnMut(&ChainName, Entry<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let range = Range { since: u64::try_from(since.as_micros()).unwrap_or(u64::MAX), ..Range::ALL };
        for (chain, name) in &self.chains {
            let mut flow = ControlFlow::Continue(());
            self.backend.scan(*chain, range, &mut |entry| {
                flow = visit(name, entry);
                flow
            })?;
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The records of a request, in the order of their writing.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn request(&mut self, id: RequestId) -> Result<Vec<Found>, StoreError> {
        let Self { backend, chains } = self;
        let mut found = Vec::new();
        backend.find(&id.to_string(), &mut |chain, entry| {
            if let Some((_, name)) = chains.iter().find(|(known, _)| *known == chain) {
                let record = Record::read(entry.kind, entry.body);
                let Entry { seq, time, hash, .. } = entry;
                found.push(Found { chain: name.clone(), seq, time, hash, record });
            }
        })?;
        found.sort_by_key(|found| (found.time, found.seq));
        Ok(found)
    }

    pub(crate) fn ids(&self) -> Vec<(ChainId, ChainName)> {
        self.chains.clone()
    }

    pub(crate) fn heads(&mut self, chain: ChainId, name: &ChainName) -> Result<Vec<Head>, StoreError> {
        self.backend.heads(chain, name, 0)
    }

    pub(crate) fn seals(&mut self, chain: ChainId, name: &ChainName) -> Result<Vec<Seal>, StoreError> {
        self.backend.seals(chain, name)
    }

    pub(crate) fn scan(
        &mut self,
        chain: ChainId,
        range: Range,
        mut visit: impl FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.backend.scan(chain, range, &mut visit)
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("chains", &self.chains).finish_non_exhaustive()
    }
}
