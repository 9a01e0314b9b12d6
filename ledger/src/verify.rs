//! Does a ledger say what was written? Asked of nobody but the ledger, the public key and, where one was kept elsewhere, a
//! head. A cut end shows by such a head alone.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::Serialize;

use crate::chain::{ChainName, Entry, Hash, Head};
use crate::key::PublicKey;
use crate::reader::Reader;
use crate::store::{ChainId, Range, StoreError};

/// What was found in a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// One for each chain.
    pub chains: Vec<Checked>,
}

/// What was found in a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The chain.
    pub chain: ChainName,
    /// Records that hold, from the first one that is there on.
    pub records: u64,
    /// Up to here records were pruned; 0 where none were.
    pub pruned: u64,
    /// Records whose clock had been set back.
    pub set_back: u64,
    /// The newest stored head, to be kept elsewhere; None for a chain without records.
    pub head: Option<Head>,
    /// What is wrong, at the first bad record.
    pub problem: Option<Problem>,
}

/// What is wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum Problem {
    /// Records are not there.
    #[error("records {from} to {to} are missing")]
    Missing {
        /// The first of them.
        from: u64,
        /// The last.
        to: u64,
    },
    /// A record is not the one that was written there.
    #[error("record {seq} is not what was written: its hash does not fit it, or not what stands before it")]
    Changed {
        /// The record.
        seq: u64,
    },
    /// Records fit one another, and not what was signed.
    #[error("records {from} to {to} were computed anew: they fit one another, and not the signed head of record {to}")]
    Recomputed {
        /// The first that no earlier head covers.
        from: u64,
        /// The record of the head.
        to: u64,
    },
    /// A head bears a signature that is none of this key's.
    #[error("the head of record {seq} is not signed by this key: it was changed, or the key is another ledger's")]
    Signature {
        /// The record.
        seq: u64,
    },
    /// Records at the end are covered by no head.
    #[error("records {from} to {to} have no signed head: they were added, or their heads were removed")]
    Unsigned {
        /// The first of them.
        from: u64,
        /// The last.
        to: u64,
    },
    /// Pruned by somebody else.
    #[error("the seal of the pruned records up to {through} is not signed by this key")]
    Seal {
        /// The last record that is gone.
        through: u64,
    },
    /// The end is gone that the given head covers.
    #[error("the chain ends at record {last}, and the given head is of record {head}: its end was cut off")]
    Cut {
        /// The last record that is there.
        last: u64,
        /// The record of the head.
        head: u64,
    },
    /// The given head is of another history.
    #[error("record {seq} is not the one that the given head was signed for: the chain was computed anew")]
    OtherHistory {
        /// The record.
        seq: u64,
    },
    /// The given head is nobody's.
    #[error("the given head, of record {seq}, is not signed by this key")]
    GivenHead {
        /// The record.
        seq: u64,
    },
}

impl Problem {
    /// The first record that is bad or missing.
    pub fn first_bad(&self) -> u64 {
        match *self {
            Self::Missing { from, .. } | Self::Recomputed { from, .. } | Self::Unsigned { from, .. } => from,
            Self::Changed { seq }
            | Self::Signature { seq }
            | Self::OtherHistory { seq }
            | Self::GivenHead { seq }
            | Self::Seal { through: seq } => seq,
            Self::Cut { last, .. } => last.saturating_add(1),
        }
    }
}

impl Report {
    /// The first chain that is bad, and what is wrong with it.
    pub fn problem(&self) -> Option<(&ChainName, &Problem)> {
        self.chains.iter().find_map(|checked| checked.problem.as_ref().map(|problem| (&checked.chain, problem)))
    }

    /// Records that hold, of all chains.
    pub fn records(&self) -> u64 {
        self.chains.iter().map(|checked| checked.records).sum()
    }
}

/// Checks all chains. Those of one ledger may have keys of their own: then they are checked by one name each.
///
/// # Errors
///
/// [`StoreError`]: the ledger cannot be read. What reads and is wrong stands in the report.
pub fn verify(
    reader: &mut Reader,
    key: &PublicKey,
    only: Option<&ChainName>,
    head: Option<&Head>,
) -> Result<Report, StoreError> {
    let mut chains = Vec::new();
    for (id, name) in reader.ids() {
        if only.is_none_or(|only| *only == name) {
            chains.push(check(reader, (id, name), key, head)?);
        }
    }
    let unknown = |head: &&Head| chains.iter().all(|checked| checked.chain != head.chain);
    if let Some(head) = head.filter(unknown) {
        let problem = Some(Problem::Cut { last: 0, head: head.seq });
        chains.push(Checked { problem, ..Checked::new(head.chain.clone()) });
    }
    Ok(Report { chains })
}

impl Checked {
    fn new(chain: ChainName) -> Self {
        Self { chain, records: 0, pruned: 0, set_back: 0, head: None, problem: None }
    }
}

fn check(
    reader: &mut Reader,
    (id, name): (ChainId, ChainName),
    key: &PublicKey,
    given: Option<&Head>,
) -> Result<Checked, StoreError> {
    let mut checked = Checked::new(name.clone());
    let heads = reader.heads(id, &name)?;
    checked.head = heads.last().cloned();
    let (mut before, mut seq) = (name.genesis(), 0);
    if let Some(seal) = reader.seals(id, &name)?.pop() {
        checked.pruned = seal.through;
        if !seal.is_signed_by(key) {
            checked.problem = Some(Problem::Seal { through: seal.through });
            return Ok(checked);
        }
        (before, seq) = (seal.hash, seal.through);
    }
    // What a prune that was interrupted left behind is gone for the ledger.
    let heads: BTreeMap<u64, Head> =
        heads.into_iter().filter(|head| head.seq > seq).map(|head| (head.seq, head)).collect();
    let given = given.filter(|head| head.chain == name);
    let mut walk = Walk { key, heads: &heads, given, before, seq, covered: seq, set_back: 0 };
    checked.problem = given.and_then(|head| walk.given(head));
    if checked.problem.is_none() {
        reader.scan(id, Range { after: seq, ..Range::ALL }, |entry| match walk.step(&entry) {
            Ok(()) => ControlFlow::Continue(()),
            Err(problem) => {
                checked.problem = Some(problem);
                ControlFlow::Break(())
            }
        })?;
        checked.problem = checked.problem.or_else(|| walk.end());
    }
    (checked.records, checked.set_back) = (walk.seq - seq, walk.set_back);
    Ok(checked)
}

/// A walk along a chain.
struct Walk<'a> {
    key: &'a PublicKey,
    heads: &'a BTreeMap<u64, Head>,
    given: Option<&'a Head>,
    before: Hash,
    /// The last record that holds.
    seq: u64,
    /// The last that a head covers.
    covered: u64,
    set_back: u64,
}

impl Walk<'_> {
    fn given(&self, head: &Head) -> Option<Problem> {
        if !head.is_signed_by(self.key) {
            return Some(Problem::GivenHead { seq: head.seq });
        }
        // The last record that was pruned is known by its hash still.
        (head.seq == self.seq && head.hash != self.before).then_some(Problem::OtherHistory { seq: head.seq })
    }

    fn step(&mut self, entry: &Entry<'_>) -> Result<(), Problem> {
        let seq = self.seq + 1;
        if entry.seq != seq {
            return Err(Problem::Missing { from: seq, to: entry.seq.saturating_sub(1) });
        }
        let hash = entry.hash_after(&self.before);
        if hash != entry.hash {
            return Err(Problem::Changed { seq });
        }
        if let Some(head) = self.heads.get(&seq) {
            if !head.is_signed_by(self.key) {
                return Err(Problem::Signature { seq });
            }
            if head.hash != hash {
                return Err(Problem::Recomputed { from: self.covered + 1, to: seq });
            }
            self.covered = seq;
        }
        if self.given.is_some_and(|head| head.seq == seq && head.hash != hash) {
            return Err(Problem::OtherHistory { seq });
        }
        (self.before, self.seq) = (hash, seq);
        self.set_back += u64::from(entry.behind > 0);
        Ok(())
    }

    fn end(&self) -> Option<Problem> {
        if let Some((seq, _)) = self.heads.range(self.seq + 1..).next_back() {
            return Some(Problem::Missing { from: self.seq + 1, to: *seq });
        }
        if self.covered < self.seq {
            return Some(Problem::Unsigned { from: self.covered + 1, to: self.seq });
        }
        let cut = self.given.filter(|head| head.seq > self.seq);
        cut.map(|head| Problem::Cut { last: self.seq, head: head.seq })
    }
}
