//! The contract of the shared store: keys with revisions, transactions that compare and swap, leases, and watches.
//!
//! The words and the rules are etcd's: one revision counter for the whole store, which every transaction that changes
//! something raises by one; keys bound to a lease vanish with it; a watch hands out what happened after a revision,
//! unless that part of the history was compacted away. What is stored under the keys belongs to others.

mod error;
mod etcd;
mod key;
mod memory;
mod txn;

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

pub use error::Error;
pub use etcd::{EtcdConfig, EtcdStore, EtcdTls, Identity, Login};
pub use key::{Key, Prefix};
pub use memory::MemoryStore;
pub use txn::{Expect, Operation, Outcome, Txn};

/// What every call of a [`Store`] returns.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// The changes under a prefix, oldest first; see [`Store::watch`].
pub type Watch = BoxStream<'static, Result<Update, Error>>;

/// A point in the store's history. It only rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Revision(i64);

impl Revision {
    /// Before anything ever happened: a watch after it starts at the beginning of history.
    pub const ZERO: Self = Self(0);

    /// An empty store's revision.
    pub const FIRST: Self = Self(1);

    /// A revision by its number.
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// The revision that follows.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Names a lease in its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(i64);

impl LeaseId {
    /// A lease by its number; the store gives them out.
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> i64 {
        self.0
    }
}

/// A lease that was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Its name.
    pub lease: LeaseId,
    /// How long it lives without a sign of life: at least what was asked for, in whole seconds.
    pub ttl: Duration,
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// The value.
    pub value: Bytes,
    /// When the key came to be; a key that was deleted and put again has a new one. Serves as a fencing token.
    pub created: Revision,
    /// When the value was last put.
    pub modified: Revision,
    /// The lease that it vanishes with.
    pub lease: Option<LeaseId>,
}

/// Every key under a prefix at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The store's revision that the entries are of: watch after it to miss nothing.
    pub revision: Revision,
    /// In the order of their keys.
    pub entries: Vec<Entry>,
}

/// One thing that happened to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A value was put.
    Put(Entry),
    /// The key was deleted, or its lease ended.
    Delete(Key),
}

impl Event {
    /// The key that it happened to.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete(key) => key,
        }
    }
}

/// Everything that happened under the watched prefix at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// The revision.
    pub revision: Revision,
    /// At most one event a key, in the order of the keys.
    pub events: Vec<Event>,
}

/// A small, consistent store that a cluster shares.
///
/// Reads are linearizable. A call gives up after a bounded time with a retryable [`Error`] where the store is away; it
/// never waits for an outage to pass. Dropping a call's future leaves it open whether a change was made.
pub trait Store: std::fmt::Debug + Send + Sync + 'static {
    /// One key.
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>>;

    /// Every key under a prefix.
    fn list<'a>(&'a self, prefix: &'a Prefix) -> Answer<'a, Listing>;

    /// Applies a transaction as a whole, or not at all where one of its expectations fails. After
    /// [`Error::Unavailable`] it is open whether it was applied: read before repeating it.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseNotFound`] where a put names a lease that is gone, [`Error::Invalid`] for a transaction that no
    /// store takes (see [`Txn`]).
    fn commit(&self, txn: Txn) -> Answer<'_, Outcome>;

    /// Grants a lease that ends, with its keys, once nobody has kept it alive for `ttl` (rounded up to whole seconds).
    fn grant(&self, ttl: Duration) -> Answer<'_, Grant>;

    /// Starts the lease's time to live anew and returns it.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseNotFound`] once it has ended: this is final.
    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, Duration>;

    /// Ends a lease and deletes its keys.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseNotFound`] where it has ended already.
    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()>;

    /// Every change under `prefix` with a revision above `after`, each exactly once and in order, one item a revision.
    /// The stream rides out outages by itself; during one it is silent.
    ///
    /// [`Error::Compacted`], from this call or as the stream's last item, says that history after `after` is gone:
    /// list anew and watch from there. Any other error ends the stream too.
    fn watch<'a>(&'a self, prefix: &'a Prefix, after: Revision) -> Answer<'a, Watch>;

    /// The store's current revision.
    fn revision(&self) -> Answer<'_, Revision>;

    /// Puts a value that no lease bounds, whatever was there.
    fn put(&self, key: Key, value: Bytes) -> Answer<'_, Revision> {
        Box::pin(async move { Ok(self.commit(Txn::new().put(key, value)).await?.revision()) })
    }

    /// Deletes a key; says whether it was there.
    fn delete(&self, key: Key) -> Answer<'_, bool> {
        Box::pin(async move {
            match self.commit(Txn::new().delete(key)).await? {
                Outcome::Committed { deleted, .. } => Ok(deleted > 0),
                Outcome::Conflict { .. } => Ok(false),
            }
        })
    }
}
