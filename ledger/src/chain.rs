//! The chain: each record's hash covers the record and the hash before it, and signed heads cover what came before them.
//!
//! A record's hash is SHA-256 over, in this order: the previous hash; sequence number, time and clock lag, each as 8 bytes
//! little-endian; kind and request id, each as one byte of length and the text; the body. The first previous hash is
//! SHA-256 over `penstock ledger chain 1`, a zero byte and the chain's name, so that records cannot move between chains.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::hex::hex_bytes;
use crate::key::{LedgerKey, PublicKey, Signature};

/// Records that at most one stored head lies between: of the heads within a block only the newest is kept, since it covers
/// the others. So a quiet router's ledger has not a signature to check for every record.
pub(crate) const BLOCK: u64 = 256;

hex_bytes!(
    /// A record's hash, which covers all before it: SHA-256.
    Hash,
    32
);

/// The name of a chain: the router's. 1 to 256 bytes, without white space, control characters or colons.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChainName(Arc<str>);

/// A text that cannot name a chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot name a chain: 1 to 256 bytes without white space, control characters and colons can")]
pub struct InvalidChainName(String);

impl ChainName {
    /// Checks and takes a name.
    ///
    /// # Errors
    ///
    /// [`InvalidChainName`].
    pub fn new(name: impl AsRef<str>) -> Result<Self, InvalidChainName> {
        let name = name.as_ref();
        let bad = |c: char| c.is_whitespace() || c.is_control() || c == ':';
        if name.is_empty() || name.len() > 256 || name.chars().any(bad) {
            return Err(InvalidChainName(name.chars().take(64).collect()));
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands for the hash before the first record.
    pub(crate) fn genesis(&self) -> Hash {
        let mut context = Context::new(&SHA256);
        context.update(b"penstock ledger chain 1\0");
        context.update(self.0.as_bytes());
        finish(context)
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl FromStr for ChainName {
    type Err = InvalidChainName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl TryFrom<String> for ChainName {
    type Error = InvalidChainName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(text)
    }
}

impl From<ChainName> for String {
    fn from(name: ChainName) -> Self {
        name.as_str().to_owned()
    }
}

/// A record as it is stored: what is hashed is these bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// From 1, without gaps.
    pub seq: u64,
    /// When its group was written, in microseconds since 1970.
    pub time: u64,
    /// By how many microseconds the clock was behind an earlier record's time: above 0 where it was set back.
    pub behind: u64,
    /// `decided`, `settled`, …
    pub kind: &'a str,
    /// The request's id; empty where the record is of none.
    pub request: &'a str,
    /// Its hash, as stored.
    pub hash: Hash,
    /// The record, JSON.
    pub body: &'a [u8],
}

impl Entry<'_> {
    /// What its hash must be after a record with the hash `before`.
    pub(crate) fn hash_after(&self, before: &Hash) -> Hash {
        let mut context = Context::new(&SHA256);
        context.update(before.as_bytes());
        for number in [self.seq, self.time, self.behind] {
            context.update(&number.to_le_bytes());
        }
        for word in [self.kind, self.request] {
            // Nothing longer is ever written; where somebody wrote such a thing, the hash does not fit.
            context.update(&[u8::try_from(word.len()).unwrap_or(u8::MAX)]);
            context.update(word.as_bytes());
        }
        context.update(self.body);
        finish(context)
    }
}

fn finish(context: Context) -> Hash {
    Hash::from_bytes(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

/// The newest record of a chain at some time, signed: nothing up to it can be changed unnoticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The chain.
    pub chain: ChainName,
    /// The record.
    pub seq: u64,
    /// When it was signed, in microseconds since 1970.
    pub time: u64,
    /// The record's hash.
    pub hash: Hash,
    /// By the router's ledger key.
    pub signature: Signature,
}

impl Head {
    pub(crate) fn sign(key: &LedgerKey, chain: &ChainName, seq: u64, time: u64, hash: Hash) -> Self {
        let signature = key.sign(&Self::message(chain, seq, time, &hash));
        Self { chain: chain.clone(), seq, time, hash, signature }
    }

    /// Whether the key's owner signed it.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        key.signed(&Self::message(&self.chain, self.seq, self.time, &self.hash), &self.signature)
    }

    fn message(chain: &ChainName, seq: u64, time: u64, hash: &Hash) -> Vec<u8> {
        statement(b"penstock ledger head 1\0", chain, &[seq, time], hash)
    }

    /// The first record of the block that the head's record is in.
    pub(crate) fn block(&self) -> u64 {
        self.seq.saturating_sub(1) / BLOCK * BLOCK + 1
    }
}

/// Where records were pruned: they are gone up to `through`, and that was the ledger's owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The chain.
    pub chain: ChainName,
    /// The last record that is gone.
    pub through: u64,
    /// Its hash, from which the chain goes on.
    pub hash: Hash,
    /// When that was, in microseconds since 1970.
    pub time: u64,
    /// By the router's ledger key.
    pub signature: Signature,
}

impl Seal {
    pub(crate) fn sign(key: &LedgerKey, chain: &ChainName, through: u64, hash: Hash, time: u64) -> Self {
        let signature = key.sign(&Self::message(chain, through, time, &hash));
        Self { chain: chain.clone(), through, hash, time, signature }
    }

    /// Whether the key's owner signed it.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        key.signed(&Self::message(&self.chain, self.through, self.time, &self.hash), &self.signature)
    }

    fn message(chain: &ChainName, through: u64, time: u64, hash: &Hash) -> Vec<u8> {
        statement(b"penstock ledger seal 1\0", chain, &[through, time], hash)
    }
}

fn statement(what: &[u8], chain: &ChainName, numbers: &[u64], hash: &Hash) -> Vec<u8> {
    let mut message = what.to_vec();
    for number in numbers {
        message.extend_from_slice(&number.to_le_bytes());
    }
    message.extend_from_slice(hash.as_bytes());
    // Last, since it alone has no fixed length.
    message.extend_from_slice(chain.as_str().as_bytes());
    message
}

impl fmt::Display for Head {
    /// `CHAIN:SEQ:TIME:HASH:SIGNATURE`, one word, to be kept elsewhere.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}:{}", self.chain, self.seq, self.time, self.hash, self.signature)
    }
}

/// A text that is no head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no head: CHAIN:SEQ:TIME:HASH:SIGNATURE is, in one word, as `penstock ledger verify` prints it")]
pub struct InvalidHead;

impl FromStr for Head {
    type Err = InvalidHead;
    fn from_str(text: &str) -> Result<Self, InvalidHead> {
        let parts: Vec<&str> = text.trim().split(':').collect();
        let [chain, seq, time, hash, signature] = parts.as_slice() else { return Err(InvalidHead) };
        Ok(Self {
            chain: chain.parse().map_err(|_| InvalidHead)?,
            seq: seq.parse().map_err(|_| InvalidHead)?,
            time: time.parse().map_err(|_| InvalidHead)?,
            hash: hash.parse().map_err(|_| InvalidHead)?,
            signature: signature.parse().map_err(|_| InvalidHead)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(body: &[u8]) -> Entry<'_> {
        let hash = Hash::from_bytes([0; 32]);
        Entry { seq: 7, time: 1_000, behind: 0, kind: "settled", request: "01J", hash, body }
    }

    #[test]
    fn every_part_of_a_record_is_in_its_hash() {
        let before = ChainName::new("r1").unwrap().genesis();
        let plain = entry(b"{}");
        let others = [
            Entry { seq: 8, ..plain },
            Entry { time: 1_001, ..plain },
            Entry { behind: 1, ..plain },
            Entry { kind: "decided", ..plain },
            Entry { kind: "settled0", request: "1J", ..plain },
            Entry { request: "01K", ..plain },
            Entry { body: b"{} ", ..plain },
        ];
        let hash = plain.hash_after(&before);
        assert!(others.iter().all(|other| other.hash_after(&before) != hash));
        assert_ne!(plain.hash_after(&ChainName::new("r2").unwrap().genesis()), hash);
    }

    #[test]
    fn a_head_is_one_word_and_holds_for_its_chain_only() {
        let key = LedgerKey::from_seed(&[7; 32]);
        let head = Head::sign(&key, &ChainName::new("r1").unwrap(), 9, 5, Hash::from_bytes([3; 32]));
        assert_eq!(head.to_string().parse::<Head>(), Ok(head.clone()));
        assert!(head.is_signed_by(&key.public()));
        let later = Head { seq: 10, ..head.clone() };
        let moved = Head { chain: ChainName::new("r2").unwrap(), ..head };
        assert!(!moved.is_signed_by(&key.public()) && !later.is_signed_by(&key.public()));
        for wrong in ["", "r1", "r1:1:2:3:4", "r1:x:1:2:3"] {
            assert_eq!(wrong.parse::<Head>(), Err(InvalidHead));
        }
    }

    #[test]
    fn blocks_begin_after_a_multiple_of_their_size() {
        let key = LedgerKey::from_seed(&[7; 32]);
        let block = |seq| Head::sign(&key, &ChainName::new("r").unwrap(), seq, 0, Hash::from_bytes([0; 32])).block();
        assert_eq!([block(1), block(256), block(257), block(512)], [1, 1, 257, 257]);
    }

    proptest! {
        #[test]
        fn names_are_checked_never_a_panic(name in ".{0,20}") {
            if let Ok(chain) = ChainName::new(&name) {
                prop_assert_eq!(chain.as_str(), name.as_str());
                prop_assert!(!name.contains(':') && !name.contains(' '));
            }
        }
    }
}
