//! The versions of the catalogue in the store: the newest under one key that routers follow, and those before it.

use std::sync::Arc;
use std::time::Duration;

use penstock_proto::time::unix_now;
use serde::{Deserialize, Serialize};

use super::{Catalog, Draft, Invalid, Refused, Source};
use crate::store::{self, Entry, Expect, Key, Outcome, Prefix, Store, Txn};

/// The newest version.
pub(super) const CURRENT: &str = "/penstock/v1/catalog/current";
const HISTORY: &str = "/penstock/v1/catalog/history/";
/// Versions that are kept.
const HISTORY_LIMIT: u64 = 64;
/// The largest catalogue, in bytes: a transaction holds two of it.
const BYTES_LIMIT: usize = 480 << 10;

/// Which version of the catalogue: each is one above the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Number(u64);

impl Number {
    /// The number; the first is 1.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// A version by its number.
    ///
    /// # Errors
    ///
    /// None for 0, which no version has.
    pub const fn new(number: u64) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    /// The one before it; None for the first.
    pub(super) fn before(self) -> Option<Self> {
        Self::new(self.0 - 1)
    }

    fn key(self) -> Key {
        Prefix::new(HISTORY).key(format!("{:010}", self.0))
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How a version came to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Who applied it.
    pub by: String,
    /// When, since 1970.
    pub at: Duration,
    /// The version whose content it brought back.
    pub restored: Option<Number>,
}

/// A version of the catalogue.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// Which.
    pub number: Number,
    /// How it came to be.
    pub origin: Origin,
    /// What it says.
    pub catalog: Catalog,
}

/// Why the catalogue was not changed or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store does not answer, or refuses.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Somebody else changed it in the same moment.
    #[error("the catalogue has just been changed by somebody else; look at it and apply again")]
    Raced,
    /// It does not fit.
    #[error("the catalogue has {bytes} bytes; at most {BYTES_LIMIT} can be stored")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// There is nothing to go back to.
    #[error("there is no version before this one")]
    NoEarlier,
    /// It is not kept, or was never there.
    #[error("version {0} of the catalogue is not there")]
    NoVersion(Number),
    /// What was to be issued cannot be.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// What was given is not valid.
    #[error("the catalogue is not valid:\n{0}")]
    Given(Invalid),
    /// What is stored is not valid for this build.
    #[error("the stored catalogue is not valid here: {0}")]
    Invalid(#[from] Invalid),
    /// What is stored is no catalogue.
    #[error("what is stored under {key} is no catalogue: {reason}")]
    Corrupt {
        /// Where.
        key: Key,
        /// Why.
        reason: String,
    },
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.retryable(),
            Self::Raced => true,
            Self::TooLarge { .. }
            | Self::NoEarlier
            | Self::NoVersion(_)
            | Self::Refused(_)
            | Self::Given(_)
            | Self::Invalid(_)
            | Self::Corrupt { .. } => false,
        }
    }
}

/// A version as it is stored: the text, so that lines and comments stay the operator's.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) number: Number,
    origin: Origin,
    /// The version that first had these files, where it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    files: Option<Number>,
    pub(super) sources: Vec<Source>,
}

impl Stored {
    /// The version that first had these files.
    pub(super) fn files(&self) -> Number {
        self.files.unwrap_or(self.number)
    }
}

/// Makes `catalog` the newest version, as a whole or not at all, in the name of `by`.
///
/// # Errors
///
/// [`Error::Raced`] where another one came first. After a retryable [`Error::Store`] it is open whether it was applied.
pub async fn apply(store: &dyn Store, catalog: &Catalog, by: &str) -> Result<Number, Error> {
    let current = current(store).await?;
    let origin = Origin { by: by.to_owned(), at: unix_now(), restored: None };
    commit(store, current.as_ref(), (catalog.sources(), None), origin).await
}

/// Brings back the files before the newest ones, as a new version. Doing it again goes further back.
///
/// # Errors
///
/// As [`Draft::of_earlier`] and [`Draft::commit`].
pub async fn rollback(store: &dyn Store, by: &str) -> Result<Number, Error> {
    Draft::of_earlier(store).await?.commit(store, by).await
}

/// How the newest versions came to be, at most `limit` of them, the newest first.
///
/// # Errors
///
/// [`Error::Store`], [`Error::Corrupt`].
pub async fn versions(store: &dyn Store, limit: usize) -> Result<Vec<(Number, Origin)>, Error> {
    let mut versions = Vec::new();
    let mut next = current(store).await?.map(|(_, stored)| stored);
    while let Some(Stored { number, origin, .. }) = next
        && versions.len() < limit
    {
        versions.push((number, origin));
        next = match number.before() {
            Some(number) => version(store, number).await?,
            None => None,
        };
    }
    Ok(versions)
}

/// A version of the catalogue, the newest where `number` is None; None where nothing was ever applied.
///
/// # Errors
///
/// [`Error::NoVersion`] for one that is not kept, [`Error::Invalid`] for one that this build does not take.
pub async fn get(store: &dyn Store, number: Option<Number>) -> Result<Option<Applied>, Error> {
    let stored = match number {
        None => current(store).await?.map(|(_, stored)| stored),
        Some(number) => Some(version(store, number).await?.ok_or(Error::NoVersion(number))?),
    };
    stored.map(read).transpose()
}

/// Reads a stored version.
pub(super) fn decode(entry: &Entry) -> Result<Arc<Applied>, Error> {
    read(parse(entry)?).map(Arc::new)
}

fn read(stored: Stored) -> Result<Applied, Error> {
    let Stored { number, origin, files: _, sources } = stored;
    Ok(Applied { number, origin, catalog: Catalog::read(sources)? })
}

pub(super) async fn current(store: &dyn Store) -> Result<Option<(Entry, Stored)>, Error> {
    match store.get(&Key::new(CURRENT)).await? {
        None => Ok(None),
        Some(entry) => {
            let stored = parse(&entry)?;
            Ok(Some((entry, stored)))
        }
    }
}

pub(super) async fn version(store: &dyn Store, number: Number) -> Result<Option<Stored>, Error> {
    store.get(&number.key()).await?.as_ref().map(parse).transpose()
}

fn parse(entry: &Entry) -> Result<Stored, Error> {
    let stored: Result<Stored, _> = serde_json::from_slice(&entry.value);
    let corrupt = |reason: String| Error::Corrupt { key: entry.key.clone(), reason };
    match stored {
        Ok(stored) if stored.number.0 > 0 => Ok(stored),
        Ok(_) => Err(corrupt("its number is 0".to_owned())),
        Err(error) => Err(corrupt(error.to_string())),
    }
}

/// Stores sources, and the version whose files they have where it is not this one.
pub(super) async fn commit(
    store: &dyn Store,
    before: Option<&(Entry, Stored)>,
    (sources, files): (&[Source], Option<Number>),
    origin: Origin,
) -> Result<Number, Error> {
    let number = Number(before.map_or(0, |(_, stored)| stored.number.0) + 1);
    let stored = Stored { number, origin, files, sources: sources.to_vec() };
    let value = serde_json::to_vec(&stored).expect("a stored catalogue has only strings as keys");
    if value.len() > BYTES_LIMIT {
        return Err(Error::TooLarge { bytes: value.len() });
    }
    let key = Key::new(CURRENT);
    let expect = match before {
        None => Expect::Absent(key.clone()),
        Some((entry, _)) => Expect::Modified(key.clone(), entry.modified),
    };
    let mut txn = Txn::new().expect(expect).put(key, value.clone()).put(number.key(), value);
    if let Some(old) = number.0.checked_sub(HISTORY_LIMIT).filter(|old| *old > 0) {
        txn = txn.delete(Number(old).key());
    }
    match store.commit(txn).await? {
        Outcome::Committed { .. } => Ok(number),
        Outcome::Conflict { .. } => Err(Error::Raced),
    }
}
