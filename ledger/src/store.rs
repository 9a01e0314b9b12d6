//! Where a ledger lives: SQLite in a data directory, or PostgreSQL. [`Backend`] is what both can do; what a record is, and
//! whether a chain holds, is not theirs to know.

mod postgres;
mod sqlite;
mod tls;

use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use crate::chain::{ChainName, Entry, Hash, Head, Seal};

/// The format that this program writes. A ledger of a later one is not touched.
pub(crate) const FORMAT: i32 = 1;

/// Where a ledger is.
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// A file of SQLite's.
    Sqlite(PathBuf),
    /// A database of PostgreSQL's: `postgres://USER@HOST/DATABASE?sslmode=require`.
    Postgres(String),
}

impl fmt::Display for Place {
    /// Never a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(url) => f.write_str(&postgres::without_secrets(url)),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({self})")
    }
}

/// Why a ledger cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is none.
    #[error("there is no ledger at {place}")]
    Missing {
        /// Where it was looked for.
        place: String,
    },
    /// It is something else.
    #[error("{place} is no ledger of Penstock's: {reason}")]
    Foreign {
        /// Where it is.
        place: String,
        /// What tells so.
        reason: String,
    },
    /// It is of a later program.
    #[error(
        "the ledger at {place} has format {format}, of a newer Penstock; this one knows format {FORMAT}: use the newer \
         program, or another ledger"
    )]
    Newer {
        /// Where it is.
        place: String,
        /// Its format.
        format: i32,
    },
    /// The URL is none.
    #[error("--ledger-url: {reason}")]
    Url {
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answers.
    #[error("the ledger at {place} is not reachable: {reason}")]
    Unreachable {
        /// Where it is.
        place: String,
        /// What happened.
        reason: String,
    },
    /// It took too long.
    #[error("the ledger at {place} did not answer within {patience:?}")]
    Slow {
        /// Where it is.
        place: String,
        /// How long it had.
        patience: Duration,
    },
    /// It takes nothing more.
    #[error("the disk of the ledger at {place} is full: free some of it, or prune the ledger")]
    Full {
        /// Where it is.
        place: String,
    },
    /// It may not be written.
    #[error("the ledger at {place} is read-only: {reason}")]
    ReadOnly {
        /// Where it is.
        place: String,
        /// What the database says.
        reason: String,
    },
    /// Its database says that it is broken.
    #[error("the ledger at {place} is damaged: {reason}")]
    Damaged {
        /// Where it is.
        place: String,
        /// What the database says.
        reason: String,
    },
    /// Anything else.
    #[error("the ledger at {place}: {reason}")]
    Failed {
        /// Where it is.
        place: String,
        /// What the database says.
        reason: String,
    },
}

/// Records that are written together or not at all.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) records: Vec<Sealed>,
    /// Of the last record.
    pub(crate) head: Head,
}

/// A record with its place in the chain.
#[derive(Debug, Clone)]
pub(crate) struct Sealed {
    pub(crate) seq: u64,
    pub(crate) time: u64,
    pub(crate) behind: u64,
    pub(crate) kind: &'static str,
    pub(crate) request: String,
    pub(crate) hash: Hash,
    pub(crate) body: Vec<u8>,
}

/// The newest record of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) seq: u64,
    pub(crate) hash: Hash,
    /// The latest time of any record.
    pub(crate) time: u64,
}

/// A chain's number within its ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChainId(pub(crate) i64);

/// Which records are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    /// Those after this one.
    pub(crate) after: u64,
    /// And up to this one.
    pub(crate) until: u64,
    /// Those written since, in microseconds since 1970.
    pub(crate) since: u64,
}

impl Range {
    /// All of them.
    pub(crate) const ALL: Self = Self { after: 0, until: u64::MAX, since: 0 };
}

/// What is done with each record that is read, until it breaks off.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(Entry<'_>) -> ControlFlow<()>;

/// A database that a ledger can be kept in.
pub(crate) trait Backend: Send {
    /// The chain of this name, made where there is none.
    fn chain(&mut self, name: &ChainName) -> Result<ChainId, StoreError>;
    /// All chains.
    fn chains(&mut self) -> Result<Vec<(ChainId, ChainName)>, StoreError>;
    /// A chain's newest record; None where it has none.
    fn tail(&mut self, chain: ChainId) -> Result<Option<Tail>, StoreError>;
    /// Writes a group, durably, and drops the heads of its block that its own covers.
    fn commit(&mut self, chain: ChainId, group: &Group) -> Result<(), StoreError>;
    /// Reads records in their order.
    fn scan(&mut self, chain: ChainId, range: Range, visit: Visit<'_>) -> Result<(), StoreError>;
    /// Reads the records of a request, in the order of their writing within each chain.
    fn find(&mut self, request: &str, visit: &mut dyn FnMut(ChainId, Entry<'_>)) -> Result<(), StoreError>;
    /// A chain's stored heads of records after one, oldest first.
    fn heads(&mut self, chain: ChainId, name: &ChainName, after: u64) -> Result<Vec<Head>, StoreError>;
    /// A chain's seals, oldest first.
    fn seals(&mut self, chain: ChainId, name: &ChainName) -> Result<Vec<Seal>, StoreError>;
    /// Keeps a seal.
    fn seal(&mut self, chain: ChainId, seal: &Seal) -> Result<(), StoreError>;
    /// Deletes some of the records and heads up to one; gives how many records that were.
    fn delete(&mut self, chain: ChainId, through: u64) -> Result<u64, StoreError>;
    /// From here on reads see one state of the ledger.
    fn freeze(&mut self) -> Result<(), StoreError>;
}

/// How a ledger is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// To be read; it must be there.
    Read,
    /// To be written; made where there is none.
    Write,
}

/// Opens a ledger.
pub(crate) fn open(place: &Place, mode: Mode, patience: Duration) -> Result<Box<dyn Backend>, StoreError> {
    Ok(match place {
        Place::Sqlite(path) => Box::new(sqlite::Sqlite::open(path, mode, patience)?),
        Place::Postgres(url) => Box::new(postgres::Postgres::open(url, mode, patience)?),
    })
}

/// A number as databases keep it: all have 63 bits and a sign.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A stored number; what is below 0 was not written by us, and no hash fits it.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
