//! Writing a chain: one thread owns it, others hold a [`Ledger`]. Records that wait together are one transaction with one
//! signed head.
//!
//! A group that cannot be written stays as it is and is tried again until it is: a database that broke off may have written
//! it, and then its records are in the chain already, which [`Thread::commit`] finds out by reading. Meanwhile
//! [`Ledger::append`] refuses, so that nothing new begins, and [`Ledger::note`] still takes what has happened.

mod thread;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::chain::{ChainName, Head};
use crate::key::{KeyError, LedgerKey};
use crate::record::Record;
use crate::store::{Backend, Mode, Place, StoreError, open};
use thread::Thread;

/// What is told of every head as it is written; it must not block. A router puts the newest where the cluster keeps it.
pub type Mirror = Box<dyn Fn(&Head) + Send>;

/// How a chain is written.
pub struct Config {
    /// Where the ledger is.
    pub place: Place,
    /// The chain: the router's name.
    pub chain: ChainName,
    /// What signs its heads.
    pub key: LedgerKey,
    /// The newest head that was mirrored: a chain that does not reach it was cut, and is not gone on with.
    pub head: Option<Head>,
    /// What is told of new heads.
    pub mirror: Option<Mirror>,
    /// How long a database may take.
    pub patience: Duration,
    /// Records that may wait.
    pub queue: usize,
    /// Records of one transaction.
    pub group: usize,
    /// The wall clock.
    pub clock: fn() -> Duration,
}

impl Config {
    /// The usual settings.
    pub fn new(place: Place, chain: ChainName, key: LedgerKey) -> Self {
        let clock = penstock_proto::time::unix_now;
        let patience = Duration::from_secs(5);
        Self { place, chain, key, head: None, mirror: None, patience, queue: 16_384, group: 1_024, clock }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("place", &self.place).field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// Why a chain cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The ledger cannot be reached, or is none.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The chain was begun with another key.
    #[error(
        "the chain {chain} at {place} was signed with another key than this ledger key, whose public half is {public}: \
         name the one that it was begun with by --ledger-key, or begin another chain with another --name"
    )]
    WrongKey {
        /// The chain.
        chain: ChainName,
        /// Where it is.
        place: String,
        /// Of the key that was given.
        public: String,
    },
    /// Its end is not what was signed.
    #[error(
        "the chain {chain} at {place} does not end as it was signed (record {seq}): it was changed; \
         `penstock ledger verify` tells where"
    )]
    Changed {
        /// The chain.
        chain: ChainName,
        /// Where it is.
        place: String,
        /// The last record.
        seq: u64,
    },
    /// Records are missing that a mirrored head covers.
    #[error(
        "the chain {chain} at {place} ends at record {seq}, and record {mirrored} was signed already: its end was cut off, \
         or an older copy was put in its place"
    )]
    Cut {
        /// The chain.
        chain: ChainName,
        /// Where it is.
        place: String,
        /// The last record.
        seq: u64,
        /// The record of the mirrored head.
        mirrored: u64,
    },
    /// No thread can be started.
    #[error("the ledger's thread: {0}")]
    Thread(std::io::Error),
}

/// Why a record is not written. A router refuses the request with `internal_ledger`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The database does not take it; it is tried until it does.
    #[error("the ledger cannot be written: {0}")]
    Unavailable(StoreError),
    /// Another process writes the same chain.
    #[error(
        "another router writes the chain {chain}: every router needs a --name of its own; this one writes nothing more"
    )]
    Taken {
        /// The chain.
        chain: ChainName,
    },
    /// Too many records wait.
    #[error("the ledger is behind: {waiting} records wait to be written")]
    Behind {
        /// How many.
        waiting: usize,
    },
    /// It took too long; it may still be written.
    #[error("the ledger took longer than {patience:?}")]
    Slow {
        /// How long it had.
        patience: Duration,
    },
    /// The ledger was closed.
    #[error("the ledger is closed")]
    Closed,
}

/// A record that waits.
struct Waiting {
    kind: &'static str,
    request: String,
    body: Vec<u8>,
    /// When it came, in microseconds since 1970.
    since: u64,
    /// Who wants to know when it is written.
    done: Option<oneshot::Sender<Result<(), Error>>>,
}

/// What handles and thread share.
struct Shared {
    /// Why nothing is written just now.
    trouble: watch::Sender<Option<Error>>,
    /// Whether the owner waits for the end.
    closed: watch::Sender<bool>,
    /// Since when the oldest record waits that is not written, in microseconds since 1970; 0 where none does.
    oldest: AtomicU64,
    patience: Duration,
    queue: usize,
    clock: fn() -> Duration,
}

/// Where records are written; cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    records: mpsc::Sender<Waiting>,
    shared: Arc<Shared>,
}

impl Ledger {
    /// Opens a chain, or begins it, and starts the thread that writes it. It blocks: async code calls it through
    /// `spawn_blocking`.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: no database, a newer format, another key, an end that was changed or cut off.
    pub fn open(config: Config) -> Result<(Self, Writer), OpenError> {
        let backend = open(&config.place, Mode::Write, config.patience)?;
        Self::start(config, backend)
    }

    fn start(config: Config, backend: Box<dyn Backend>) -> Result<(Self, Writer), OpenError> {
        let (records, queued) = mpsc::channel(config.queue);
        let shared = Arc::new(Shared {
            trouble: watch::Sender::new(None),
            closed: watch::Sender::new(false),
            oldest: AtomicU64::new(0),
            patience: config.patience,
            queue: config.queue,
            clock: config.clock,
        });
        let mut thread = Thread::new(config, backend, queued, Arc::clone(&shared))?;
        let name = "ledger".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(move || thread.run());
        let thread = thread.map_err(OpenError::Thread)?;
        let writer = Writer { thread: Some(thread), shared: Arc::clone(&shared) };
        Ok((Self { records, shared }, writer))
    }

    /// Queues a record that must be durable before what it tells of happens. The caller goes on, and waits for
    /// [`Written::written`] where it has to.
    ///
    /// # Errors
    ///
    /// Any [`Error`] that is known already: then the record is not written.
    pub fn append(&self, record: &Record) -> Result<Written, Error> {
        if let Some(trouble) = self.trouble() {
            return Err(trouble);
        }
        let (done, written) = oneshot::channel();
        self.queue(record, Some(done))?;
        Ok(Written { written, patience: self.shared.patience })
    }

    /// Queues a record of what has happened. It is kept while the database is away, and written when that is back.
    ///
    /// # Errors
    ///
    /// [`Error::Behind`] where the queue is full, [`Error::Closed`]: then the record is lost, unless the caller keeps it.
    pub fn note(&self, record: &Record) -> Result<(), Error> {
        self.queue(record, None)
    }

    /// Why records are not written just now; None where they are.
    pub fn trouble(&self) -> Option<Error> {
        self.shared.trouble.borrow().clone()
    }

    /// Changes of [`Self::trouble`], for readiness.
    pub fn watch_trouble(&self) -> watch::Receiver<Option<Error>> {
        self.shared.trouble.subscribe()
    }

    /// How long the oldest record waits that is not durable yet.
    pub fn lag(&self) -> Duration {
        match self.shared.oldest.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => (self.shared.clock)().saturating_sub(Duration::from_micros(since)),
        }
    }

    fn queue(&self, record: &Record, done: Option<oneshot::Sender<Result<(), Error>>>) -> Result<(), Error> {
        let request = record.request().map(|id| id.to_string()).unwrap_or_default();
        let since = micros((self.shared.clock)());
        let waiting = Waiting { kind: record.kind().as_str(), request, body: record.body(), since, done };
        // Where nothing waits; the thread sets it anew after each group. It comes first: a record that is written
        // already must not be taken for one that waits.
        let _ = self.shared.oldest.compare_exchange(0, since, Ordering::Relaxed, Ordering::Relaxed);
        self.records.try_send(waiting).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Behind { waiting: self.shared.queue },
            mpsc::error::TrySendError::Closed(_) => Error::Closed,
        })
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("trouble", &self.trouble()).finish_non_exhaustive()
    }
}

/// A record on its way to the disk.
#[derive(Debug)]
#[must_use = "a record is durable only when `written` says so"]
pub struct Written {
    written: oneshot::Receiver<Result<(), Error>>,
    patience: Duration,
}

impl Written {
    /// Waits until the record is durable.
    ///
    /// # Errors
    ///
    /// [`Error`]: it is not. It may be later: of a request that was refused, the ledger then tells what was decided.
    pub async fn written(self) -> Result<(), Error> {
        match tokio::time::timeout(self.patience, self.written).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(Error::Slow { patience: self.patience }),
        }
    }
}

/// The thread that writes; closed once, at the end.
pub struct Writer {
    thread: Option<std::thread::JoinHandle<Result<(), Unwritten>>>,
    shared: Arc<Shared>,
}

/// Records that a ledger was closed with, and that no database took.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{records} records of the ledger were not written and are lost: {reason}")]
pub struct Unwritten {
    /// How many.
    pub records: usize,
    /// Why.
    pub reason: Error,
}

impl Writer {
    /// Writes what waits, and ends. It blocks, for no longer than the ledger's patience where the database is away.
    ///
    /// # Errors
    ///
    /// [`Unwritten`].
    pub fn close(mut self) -> Result<(), Unwritten> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Unwritten> {
        self.shared.closed.send_replace(true);
        match self.thread.take().map(std::thread::JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "ledger closed with records unwritten");
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
