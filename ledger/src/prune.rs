//! Pruning: old records go, and a signed seal says up to where, so that the rest still verifies. A router may write the
//! chain meanwhile; the seal is a statement beside the chain, not a record of it.

use std::ops::ControlFlow;
use std::time::Duration;

use serde::Serialize;

use crate::chain::{ChainName, Seal};
use crate::key::LedgerKey;
use crate::reader::Reader;
use crate::store::{Mode, Place, Range, StoreError, open};
use crate::verify::{Problem, verify};

/// How long a database may take for a part of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was pruned of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// The chain.
    pub chain: ChainName,
    /// How many records went.
    pub records: u64,
    /// The last record that is gone, now or from before; 0 where none ever went.
    pub through: u64,
}

/// Why nothing was pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The ledger cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It does not verify, and pruning would hide that.
    #[error("nothing was pruned, since the chain {chain} does not verify: {problem}")]
    Problem {
        /// The chain.
        chain: ChainName,
        /// What is wrong.
        problem: Problem,
    },
    /// There is no such chain.
    #[error("the ledger has no chain {0}")]
    Unknown(ChainName),
}

/// Deletes the records that were written before a time (since 1970), of one chain or all, and seals what is gone. The
/// newest record of a chain stays. It blocks.
///
/// # Errors
///
/// [`PruneError`]; records that were deleted before an error are sealed.
pub fn prune(
    place: &Place,
    key: &LedgerKey,
    only: Option<&ChainName>,
    before: Duration,
    now: Duration,
) -> Result<Vec<Pruned>, PruneError> {
    let mut reader = Reader::open(place)?;
    if let Some(only) = only.filter(|only| reader.chains().all(|name| name != *only)) {
        return Err(PruneError::Unknown(only.clone()));
    }
    let report = verify(&mut reader, &key.public(), only, None)?;
    if let Some((chain, problem)) = report.problem() {
        return Err(PruneError::Problem { chain: chain.clone(), problem: problem.clone() });
    }
    let before = u64::try_from(before.as_micros()).unwrap_or(u64::MAX);
    let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
    let mut plan = Vec::new();
    for (id, name) in reader.ids().into_iter().filter(|(_, name)| only.is_none_or(|only| only == name)) {
        let sealed = report.chains.iter().find(|checked| checked.chain == name).map_or(0, |checked| checked.pruned);
        // Of two records at hand the earlier one may go: there is one after it.
        let (mut last, mut this) = (None, None);
        reader.scan(id, Range { after: sealed, ..Range::ALL }, |entry| {
            last = this.or(last);
            this = (entry.time < before).then_some((entry.seq, entry.hash));
            if this.is_some() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        plan.push((id, name, sealed, last));
    }
    // A reader of the old state would keep it from going.
    drop(reader);
    let mut backend = open(place, Mode::Write, PATIENCE)?;
    let mut pruned = Vec::new();
    for (id, name, sealed, last) in plan {
        if let Some((through, hash)) = last {
            backend.seal(id, &Seal::sign(key, &name, through, hash, now))?;
        }
        let through = last.map_or(sealed, |(through, _)| through);
        let mut records = 0;
        // Also what an earlier prune that was interrupted left behind.
        loop {
            match backend.delete(id, through)? {
                0 => break,
                deleted => records += deleted,
            }
        }
        pruned.push(Pruned { chain: name, records, through });
    }
    Ok(pruned)
}
