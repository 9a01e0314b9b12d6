//! What opens the admin port: the router's own key, 256 random bits in a file that only its owner reads, or an operator's,
//! which the operator keeps in such a file. Neither is ever logged.

use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use http::HeaderValue;
use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, PersistError};

use crate::tenant::PREFIX;

/// Hex digits of a key.
const DIGITS: usize = 64;
/// What stands before it in the header.
const BEARER: &str = "Bearer ";

/// What opens the admin port.
#[derive(Clone)]
pub struct AdminKey(String);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or made.
    #[error("the admin key {}: {source}", path.display())]
    File {
        /// Where it is to be.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file holds something else.
    #[error(
        "the admin key {}: it holds neither {DIGITS} hex digits nor an operator's {PREFIX}…; a router makes a new one where \
         there is no file",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

impl AdminKey {
    /// The key in a file.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let text = std::fs::read_to_string(path).map_err(|source| KeyError::File { path: path.to_owned(), source })?;
        let key = text.trim();
        let digits = key.strip_prefix(PREFIX).unwrap_or(key);
        if digits.len() != DIGITS || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(KeyError::Malformed { path: path.to_owned() });
        }
        Ok(Self(key.to_owned()))
    }

    /// The key in a file, made with mode 0600 where there is none. Of two processes that start at once, both get the
    /// same.
    pub fn read_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::read(path) {
            Err(KeyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                create(path).map_err(|source| KeyError::File { path: path.to_owned(), source })?;
                Self::read(path)
            }
            read => read,
        }
    }

    /// What a client sends as `authorization`.
    pub fn header(&self) -> HeaderValue {
        let mut value = HeaderValue::from_str(&format!("{BEARER}{}", self.0)).expect("letters and digits are visible");
        value.set_sensitive(true);
        value
    }

    /// Whether a client has sent it. How long that takes tells nothing of the key: digests are compared, and nobody can
    /// choose the digest of a guess.
    pub(super) fn opens(&self, authorization: &HeaderValue) -> bool {
        let given = authorization.as_bytes();
        let (scheme, given) = given.split_at(given.len().min(BEARER.len()));
        scheme.eq_ignore_ascii_case(BEARER.as_bytes()) && Sha256::digest(given) == Sha256::digest(&self.0)
    }
}

impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminKey(…)")
    }
}

/// Makes the file whole or not at all, and leaves one alone that has come to be meanwhile.
fn create(path: &Path) -> io::Result<()> {
    let mut bytes = [0; DIGITS / 2];
    getrandom::fill(&mut bytes).map_err(io::Error::from)?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    // Temporary files have mode 0600.
    let mut file = NamedTempFile::new_in(directory)?;
    writeln!(file, "{digits}")?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => {
            tracing::info!(path = %path.display(), "wrote a new admin key");
            Ok(())
        }
        Err(PersistError { error, .. }) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(PersistError { error, .. }) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn header(text: &str) -> HeaderValue {
        HeaderValue::from_str(text).unwrap()
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_and_is_another_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("deep/admin.key"), dir.path().join("admin.key"));
        let made = AdminKey::read_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(AdminKey::read_or_create(&path).unwrap().0, made.0);
        assert_ne!(AdminKey::read_or_create(&other).unwrap().0, made.0);
        // What another process has made meanwhile stays.
        create(&path).unwrap();
        assert_eq!(AdminKey::read(&path).unwrap().0, made.0);
        assert!(!format!("{made:?}").contains(&made.0));
    }

    #[test]
    fn only_the_whole_key_opens() {
        let key = AdminKey("ab".repeat(32));
        assert!(key.opens(&key.header()) && key.opens(&header(&format!("bearer {}", key.0))));
        let (half, longer) = (&key.0[..63], format!("Bearer {}0", key.0));
        for wrong in ["", "Bearer", "Bearer ", &key.0, &format!("Bearer {half}"), &longer, &format!("Basic  {}", key.0)]
        {
            assert!(!key.opens(&header(wrong)), "{wrong}");
        }
    }

    #[test]
    fn a_file_that_holds_no_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.key");
        assert!(matches!(AdminKey::read(&path), Err(KeyError::File { .. })));
        for text in ["", "secret", &"g".repeat(64), &"a".repeat(63)] {
            std::fs::write(&path, text).unwrap();
            let error = AdminKey::read_or_create(&path).unwrap_err().to_string();
            assert!(error.contains("admin.key") && error.contains("64 hex digits"), "{error}");
        }
    }
}
