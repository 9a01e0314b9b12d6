//! The ledger key: 256 random bits in a file that only its owner reads. From it come the key that signs heads and the key
//! under which texts are recorded; neither tells the other, nor the file.

use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::hmac;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use tempfile::{NamedTempFile, PersistError};

use crate::hex::{self, hex_bytes};

/// Bytes of a key.
const SIZE: usize = 32;

hex_bytes!(
    /// The HMAC-SHA256 of a text under the ledger's key: shows that a text is the one that was recorded, to whoever has
    /// the key and the text, and nothing to anybody else.
    Mac,
    32
);

hex_bytes!(
    /// What a ledger's signatures are checked with: an Ed25519 public key. It is no secret.
    PublicKey,
    32
);

hex_bytes!(
    /// An Ed25519 signature.
    Signature,
    64
);

/// What signs a ledger's heads, and hides the texts of its records.
#[derive(Clone)]
pub struct LedgerKey(Arc<Keys>);

struct Keys {
    signing: Ed25519KeyPair,
    content: hmac::Key,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or made.
    #[error("the ledger key {}: {source}", path.display())]
    File {
        /// Where it is to be.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file holds something else.
    #[error(
        "the ledger key {}: it does not hold 64 hexadecimal digits; put the key that this ledger was begun with there, \
         or name another file with --ledger-key",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

impl LedgerKey {
    /// The key made of 32 random bytes.
    pub fn from_seed(seed: &[u8; SIZE]) -> Self {
        let signing = Ed25519KeyPair::from_seed_unchecked(&derive(seed, b"penstock ledger: heads"));
        let content = hmac::Key::new(hmac::HMAC_SHA256, &derive(seed, b"penstock ledger: texts"));
        Self(Arc::new(Keys { signing: signing.expect("32 bytes are a seed"), content }))
    }

    /// The key in a file.
    ///
    /// # Errors
    ///
    /// [`KeyError`].
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(KeyError::Malformed { path: path.to_owned() });
            }
            read => read.map_err(|source| KeyError::File { path: path.to_owned(), source })?,
        };
        let seed = hex::decode(text.trim()).ok_or_else(|| KeyError::Malformed { path: path.to_owned() })?;
        Ok(Self::from_seed(&seed))
    }

    /// The key in a file, made with mode 0600 where there is none. Of two processes that start at once, both get the
    /// same.
    ///
    /// # Errors
    ///
    /// [`KeyError`].
    pub fn read_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::read(path) {
            Err(KeyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                create(path).map_err(|source| KeyError::File { path: path.to_owned(), source })?;
                Self::read(path)
            }
            read => read,
        }
    }

    /// What others check this key's signatures with.
    pub fn public(&self) -> PublicKey {
        let bytes = self.0.signing.public_key().as_ref();
        PublicKey::from_bytes(bytes.try_into().expect("an Ed25519 public key has 32 bytes"))
    }

    /// What stands for a text in a record.
    pub fn mac(&self, text: impl AsRef<[u8]>) -> Mac {
        let mut context = self.mac_of_parts();
        context.update(text);
        context.finish()
    }

    /// The same for a text that comes in parts.
    pub fn mac_of_parts(&self) -> MacOfParts {
        MacOfParts(hmac::Context::with_key(&self.0.content))
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Signature {
        let signature = self.0.signing.sign(message);
        Signature::from_bytes(signature.as_ref().try_into().expect("an Ed25519 signature has 64 bytes"))
    }
}

impl fmt::Debug for LedgerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LedgerKey(public {})", self.public())
    }
}

impl PublicKey {
    pub(crate) fn signed(&self, message: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, self.as_bytes()).verify(message, signature.as_bytes()).is_ok()
    }
}

/// A [`Mac`] in the making.
#[derive(Clone)]
pub struct MacOfParts(hmac::Context);

impl MacOfParts {
    /// Adds a part.
    pub fn update(&mut self, part: impl AsRef<[u8]>) {
        self.0.update(part.as_ref());
    }

    /// What stands for all parts together.
    pub fn finish(self) -> Mac {
        Mac::from_bytes(self.0.sign().as_ref().try_into().expect("an HMAC-SHA256 has 32 bytes"))
    }
}

impl fmt::Debug for MacOfParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacOfParts(…)")
    }
}

/// A key for one purpose: HKDF-SHA256, RFC 5869.
fn derive(seed: &[u8; SIZE], purpose: &[u8]) -> [u8; SIZE] {
    struct Length;
    impl KeyType for Length {
        fn len(&self) -> usize {
            SIZE
        }
    }
    let mut key = [0; SIZE];
    let extracted = Salt::new(HKDF_SHA256, &[]).extract(seed);
    let expanded = extracted.expand(&[purpose], Length).and_then(|output| output.fill(&mut key));
    expanded.expect("32 bytes are within what HKDF gives");
    key
}

/// Makes the file whole or not at all, and leaves one alone that has come to be meanwhile.
fn create(path: &Path) -> io::Result<()> {
    let mut seed = [0; SIZE];
    getrandom::fill(&mut seed).map_err(io::Error::from)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    // Temporary files have mode 0600.
    let mut file = NamedTempFile::new_in(directory)?;
    writeln!(file, "{}", hex::encode(&seed))?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => {
            tracing::info!(path = %path.display(), "wrote a new ledger key");
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

    #[test]
    fn a_key_is_made_once_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/ledger.key");
        let first = LedgerKey::read_or_create(&path).unwrap();
        assert_eq!(LedgerKey::read_or_create(&path).unwrap().public(), first.public());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let other = LedgerKey::read_or_create(&dir.path().join("other.key")).unwrap();
        assert_ne!(other.public(), first.public());
    }

    #[test]
    fn a_malformed_key_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.key");
        for wrong in [&b""[..], b"abc", &[b'g'; 64], &[0xff; 64], &[b'a'; 66]] {
            std::fs::write(&path, wrong).unwrap();
            let error = LedgerKey::read_or_create(&path).unwrap_err().to_string();
            assert!(error.contains("ledger.key") && error.contains("64 hexadecimal digits"), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), wrong);
        }
        assert!(matches!(LedgerKey::read(dir.path()), Err(KeyError::File { .. })));
    }

    #[test]
    fn signatures_hold_for_their_message_and_key_only() {
        let (key, other) = (LedgerKey::from_seed(&[1; 32]), LedgerKey::from_seed(&[2; 32]));
        let signature = key.sign(b"a head");
        assert!(key.public().signed(b"a head", &signature));
        assert!(!key.public().signed(b"a heat", &signature) && !other.public().signed(b"a head", &signature));
    }

    #[test]
    fn texts_in_parts_are_the_text_and_differ_by_key() {
        let (key, other) = (LedgerKey::from_seed(&[1; 32]), LedgerKey::from_seed(&[2; 32]));
        let mut parts = key.mac_of_parts();
        parts.update("what is ");
        parts.update("the capital");
        assert_eq!(parts.finish(), key.mac("what is the capital"));
        assert_ne!(other.mac("what is the capital"), key.mac("what is the capital"));
        assert_ne!(key.mac(""), key.mac(" "));
    }
}
