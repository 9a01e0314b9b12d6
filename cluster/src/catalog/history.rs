//! The versions of the catalogue in the store: the newest under one key that routers follow, and those before it.

use std::sync::Arc;
use std::time::Duration;

use penstock_proto::time::unix_now;
use serde::{Deserialize, Serialize};

use super::{Catalog, Invalid, Source};
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
            Self::TooLarge { .. } | Self::NoEarlier | Self::NoVersion(_) | Self::Invalid(_) | Self::Corrupt { .. } => {
                false
            }
        }
    }
}

/// A version as it is stored: the text, so that lines and comments stay the operator's.
#[derive(Serialize, Deserialize)]
struct Stored {
    number: Number,
    origin: Origin,
    sources: Vec<Source>,
}

/// Makes `catalog` the newest version, as a whole or not at all, in the name of `by`.
///
/// # Errors
///
/// [`Error::Raced`] where another one came first. After a retryable [`Error::Store`] it is open whether it was applied.
pub async fn apply(store: &dyn Store, catalog: &Catalog, by: &str) -> Result<Number, Error> {
    let current = current(store).await?;
    commit(store, current.as_ref(), catalog.sources(), Origin { by: by.to_owned(), at: unix_now(), restored: None })
        .await
}

/// Brings back the content before the newest, as a new version. Doing it again goes further back.
///
/// # Errors
///
/// [`Error::NoEarlier`] at the first version, [`Error::NoVersion`] where history does not reach that far, [`Error::Invalid`]
/// where what was valid then is no longer; otherwise as [`apply`].
pub async fn rollback(store: &dyn Store, by: &str) -> Result<Number, Error> {
    let (entry, newest) = current(store).await?.ok_or(Error::NoEarlier)?;
    let content = newest.origin.restored.unwrap_or(newest.number);
    let earlier = Number(content.0 - 1);
    if earlier.0 == 0 {
        return Err(Error::NoEarlier);
    }
    let before = version(store, earlier).await?.ok_or(Error::NoVersion(earlier))?;
    Catalog::read(before.sources.clone())?;
    let origin = Origin { by: by.to_owned(), at: unix_now(), restored: Some(earlier) };
    commit(store, Some(&(entry, newest)), &before.sources, origin).await
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
    let Stored { number, origin, sources } = stored;
    Ok(Applied { number, origin, catalog: Catalog::read(sources)? })
}

async fn current(store: &dyn Store) -> Result<Option<(Entry, Stored)>, Error> {
    match store.get(&Key::new(CURRENT)).await? {
        None => Ok(None),
        Some(entry) => {
            let stored = parse(&entry)?;
            Ok(Some((entry, stored)))
        }
    }
}

async fn version(store: &dyn Store, number: Number) -> Result<Option<Stored>, Error> {
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

async fn commit(
    store: &dyn Store,
    before: Option<&(Entry, Stored)>,
    sources: &[Source],
    origin: Origin,
) -> Result<Number, Error> {
    let number = Number(before.map_or(0, |(_, stored)| stored.number.0) + 1);
    let stored = Stored { number, origin, sources: sources.to_vec() };
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
