//! The memory store's state on disk: one JSON file that is replaced as a whole.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::state::State;
use crate::store::{Entry, Error, Key, Revision};

const FORMAT: u32 = 1;

/// A data directory that this process alone uses.
#[derive(Debug)]
pub(super) struct Disk {
    directory: PathBuf,
    /// Held for the lock on it.
    _lock: File,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshot {
    format: u32,
    revision: Revision,
    entries: Vec<Saved>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    key: String,
    value: Value,
    created: Revision,
    modified: Revision,
}

/// Values are nearly always JSON text; it stays readable in the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Value {
    Text(String),
    Bytes(Vec<u8>),
}

impl Disk {
    /// Takes a data directory, made if it is not there, and reads what was saved in it.
    pub(super) fn open(directory: &Path, history_limit: usize) -> Result<(Self, State), Error> {
        let failed = |path: &Path, source| Error::Disk { path: path.to_owned(), source };
        fs::create_dir_all(directory).map_err(|source| failed(directory, source))?;
        let path = directory.join("store.lock");
        let lock = File::create(&path).map_err(|source| failed(&path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { path: directory.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(&path, source)),
        }
        let disk = Self { directory: directory.to_owned(), _lock: lock };
        let path = disk.file();
        let state = match fs::read(&path) {
            Ok(bytes) => load(&bytes, history_limit).map_err(|reason| Error::Corrupt { path, reason })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                State::new(Revision::FIRST, Vec::new(), history_limit)
            }
            Err(source) => return Err(failed(&path, source)),
        };
        Ok((disk, state))
    }

    /// Replaces what is saved. After an error the old state is still there, or the new one is, whole.
    pub(super) fn save(&self, state: &State) -> Result<(), Error> {
        let entries = state.durable().map(save).collect();
        let snapshot = Snapshot { format: FORMAT, revision: state.revision(), entries };
        let bytes = serde_json::to_vec(&snapshot).expect("a snapshot has only strings as keys");
        let temporary = self.directory.join("store.json.new");
        self.replace(&temporary, &bytes).map_err(|source| Error::Disk { path: self.file(), source })
    }

    fn replace(&self, temporary: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let mut file = File::create(temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(temporary, self.file())?;
        // The rename itself is durable only with the directory.
        File::open(&self.directory)?.sync_all()
    }

    fn file(&self) -> PathBuf {
        self.directory.join("store.json")
    }
}

fn save(entry: &Entry) -> Saved {
    let value = match std::str::from_utf8(&entry.value) {
        Ok(text) => Value::Text(text.to_owned()),
        Err(_) => Value::Bytes(entry.value.to_vec()),
    };
    Saved { key: entry.key.as_str().to_owned(), value, created: entry.created, modified: entry.modified }
}

fn load(bytes: &[u8], history_limit: usize) -> Result<State, String> {
    let snapshot: Snapshot = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if snapshot.format != FORMAT {
        return Err(format!("it has format {}, this version reads {FORMAT}", snapshot.format));
    }
    let entries = snapshot.entries.into_iter().map(|saved| Entry {
        key: Key::new(saved.key),
        value: match saved.value {
            Value::Text(text) => Bytes::from(text),
            Value::Bytes(bytes) => Bytes::from(bytes),
        },
        created: saved.created,
        modified: saved.modified,
        lease: None,
    });
    Ok(State::new(snapshot.revision, entries.collect(), history_limit))
}
