//! The key that an upstream knows the organisation by: where it is kept, read again when its file changes, never shown.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::config;

/// Where an upstream's key is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// An environment variable, read at start.
    Env(String),
    /// A file, read again when it changes.
    File(PathBuf),
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The variable is not set.
    #[error("the variable {variable} is not set")]
    Unset {
        /// Its name.
        variable: String,
    },
    /// The file cannot be read.
    #[error("the key file {} cannot be read: {error}", path.display())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// What is there is no key.
    #[error("the key in {place} must be one line of visible ASCII characters")]
    Malformed {
        /// The variable or the file.
        place: String,
    },
}

/// A key. It is not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Key(String);

/// A key and where it comes from.
#[derive(Debug)]
pub(super) struct Keeper {
    source: KeySource,
    read: Mutex<(Option<Stamp>, Key)>,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Keeper {
    /// Reads the key for the first time.
    pub(super) fn new(source: KeySource) -> Result<Self, KeyError> {
        let read = match &source {
            KeySource::Env(variable) => {
                let unset = || KeyError::Unset { variable: variable.clone() };
                let text = config::variable(variable).ok_or_else(unset)?;
                (None, Key::parse(&text, variable)?)
            }
            KeySource::File(path) => {
                let stamp = std::fs::metadata(path).map_err(|error| unreadable(path, error))?.into();
                let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, error))?;
                (Some(stamp), Key::parse(&text, path.display())?)
            }
        };
        Ok(Self { source, read: Mutex::new(read) })
    }

    /// The key as it is now. One whose file is gone is not used any longer.
    pub(super) async fn key(&self) -> Result<Key, KeyError> {
        let KeySource::File(path) = &self.source else { return Ok(self.last().1) };
        // The stamp is older than the text, so that a change between the two is seen by the next call.
        let stamp = Some(tokio::fs::metadata(path).await.map_err(|error| unreadable(path, error))?.into());
        let (last, key) = self.last();
        if last == stamp {
            return Ok(key);
        }
        let text = tokio::fs::read_to_string(path).await.map_err(|error| unreadable(path, error))?;
        let key = Key::parse(&text, path.display())?;
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = (stamp, key.clone());
        Ok(key)
    }

    fn last(&self) -> (Option<Stamp>, Key) {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> KeyError {
    KeyError::Unreadable { path: path.to_owned(), error }
}

impl Key {
    fn parse(text: &str, place: impl fmt::Display) -> Result<Self, KeyError> {
        let key = text.trim_end_matches(['\r', '\n']);
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(KeyError::Malformed { place: place.to_string() });
        }
        Ok(Self(key.to_owned()))
    }

    /// For the head of a request, and to find it in what must not show it.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl From<Metadata> for Stamp {
    fn from(metadata: Metadata) -> Self {
        Self { modified: metadata.modified().ok(), length: metadata.len(), inode: metadata.ino() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_again_when_it_changes_and_not_used_when_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "first\n").unwrap();
        let keeper = Keeper::new(KeySource::File(path.clone())).unwrap();
        assert_eq!(keeper.key().await.unwrap().expose(), "first");
        let other = dir.path().join("other");
        std::fs::write(&other, "third").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(keeper.key().await.unwrap().expose(), "third");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(keeper.key().await, Err(KeyError::Unreadable { .. })));
    }

    #[tokio::test]
    async fn a_key_stays_out_of_debug_and_of_complaints() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "sk-secret").unwrap();
        let keeper = Keeper::new(KeySource::File(path.clone())).unwrap();
        assert!(!format!("{keeper:?}").contains("sk-secret"));
        for text in ["", "\n", "sk-secret and more", "sk-secret\nsk-other", "sk-secrét"] {
            std::fs::write(&path, text).unwrap();
            let complaint = Keeper::new(KeySource::File(path.clone())).unwrap_err();
            assert!(matches!(complaint, KeyError::Malformed { .. }), "{text:?}");
            assert!(!format!("{complaint} {complaint:?}").contains("sk-"), "{complaint}");
        }
        let unset = Keeper::new(KeySource::Env("PENSTOCK_NOBODY_SETS_THIS".into())).unwrap_err();
        assert_eq!(unset.to_string(), "the variable PENSTOCK_NOBODY_SETS_THIS is not set");
    }
}
