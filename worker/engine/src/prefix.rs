//! What a full block of tokens, with all before it, is called: the keys of the prefix cache. Pure; which blocks there
//! are is the pool's business.
//!
//! It stands here and not in `proto`, because the engine sees no network crate. It needs `blake3` alone, so that it can
//! be taken out whole when routers compute the same keys.

use std::fmt;

use crate::batch::{BLOCK_TOKENS, TokenId};

/// Begins what roots are made from; no parent's key is equal to it, so that no child is taken for a root.
const LABEL: &[u8; KEY_BYTES] = b"penstock prefix\0";

const KEY_BYTES: usize = 16;

/// What a cluster's keys are keyed with: without it nobody can tell which tokens a key stands for.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// The name of a block's tokens and all before them, under one root.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrefixKey([u8; KEY_BYTES]);

/// Who may share what a sequence leaves in the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PrefixScope {
    /// Its own tenant.
    #[default]
    Tenant,
    /// Everyone, as far as the operator has marked the prompt public; its own tenant from there on.
    Public {
        /// Tokens at the prompt's beginning that are public. Only whole blocks of them are shared.
        tokens: usize,
    },
}

/// What keeps one tree of prefixes apart from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root<'a> {
    /// The digest of the model's weights.
    pub model: &'a str,
    /// The digest of the adapter; empty for the base model.
    pub adapter: &'a str,
    /// Whose it is; None where it is everyone's.
    pub tenant: Option<&'a str>,
    /// What the caller wants it kept apart by.
    pub salt: &'a [u8],
}

impl Secret {
    /// The secret that a cluster's members share.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A secret of one process.
    ///
    /// # Errors
    ///
    /// The system has no random numbers.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The key that stands before a tree's first block.
    pub fn root(&self, root: &Root<'_>) -> PrefixKey {
        let Root { model, adapter, tenant, salt } = *root;
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(LABEL);
        hasher.update(&[u8::from(tenant.is_none())]);
        for field in [model.as_bytes(), adapter.as_bytes(), tenant.unwrap_or_default().as_bytes(), salt] {
            // With its length, so that no field runs into the next.
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
        PrefixKey::cut(hasher.finalize())
    }

    /// The key of a block of `BLOCK_TOKENS` tokens behind `parent`.
    pub fn child(&self, parent: PrefixKey, tokens: &[TokenId]) -> PrefixKey {
        let mut bytes = [0; KEY_BYTES + BLOCK_TOKENS * size_of::<TokenId>()];
        let (before, own) = bytes.split_at_mut(KEY_BYTES);
        before.copy_from_slice(&parent.0);
        assert_eq!(tokens.len(), BLOCK_TOKENS, "only full blocks have keys");
        for (place, token) in own.chunks_exact_mut(size_of::<TokenId>()).zip(tokens) {
            place.copy_from_slice(&token.to_le_bytes());
        }
        PrefixKey::cut(blake3::keyed_hash(&self.0, &bytes))
    }

    /// Where a tree that is everyone's goes on as the one that begins with `root`.
    fn graft(&self, root: PrefixKey, shared: PrefixKey) -> PrefixKey {
        PrefixKey::cut(blake3::keyed_hash(&self.0, &[root.0, shared.0].concat()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl PrefixKey {
    fn cut(hash: blake3::Hash) -> Self {
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(&hash.as_bytes()[..KEY_BYTES]);
        Self(key)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for PrefixKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The keys of one sequence's full blocks, in order, as far as they were asked for.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    secret: Secret,
    /// Stands before the next block.
    parent: PrefixKey,
    /// After how many blocks the sequence leaves the public tree, and the root of its own.
    leaves: Option<(usize, PrefixKey)>,
    keys: Vec<PrefixKey>,
}

impl Chain {
    /// A chain without keys, for a sequence that has `root` and `scope`.
    pub(crate) fn new(secret: &Secret, root: &Root<'_>, scope: PrefixScope) -> Self {
        let own = secret.root(root);
        let public = match scope {
            PrefixScope::Tenant => 0,
            PrefixScope::Public { tokens } => tokens / BLOCK_TOKENS,
        };
        let (parent, leaves) = match public {
            0 => (own, None),
            blocks => (secret.root(&Root { tenant: None, ..*root }), Some((blocks, own))),
        };
        Self { secret: secret.clone(), parent, leaves, keys: Vec::new() }
    }

    /// Adds the keys that it lacks of the full blocks of `tokens`, which begin as they did before.
    pub(crate) fn extend(&mut self, tokens: &[TokenId]) {
        for block in tokens.chunks_exact(BLOCK_TOKENS).skip(self.keys.len()) {
            if let Some((blocks, own)) = self.leaves
                && blocks == self.keys.len()
            {
                self.parent = self.secret.graft(own, self.parent);
            }
            self.parent = self.secret.child(self.parent, block);
            self.keys.push(self.parent);
        }
    }

    pub(crate) fn keys(&self) -> &[PrefixKey] {
        &self.keys
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const ROOT: Root<'static> = Root { model: "m", adapter: "", tenant: Some("t"), salt: b"" };

    fn secret() -> Secret {
        Secret::new([7; 32])
    }

    fn keys(root: &Root<'_>, scope: PrefixScope, tokens: &[TokenId]) -> Vec<PrefixKey> {
        let mut chain = Chain::new(&secret(), root, scope);
        chain.extend(tokens);
        chain.keys().to_vec()
    }

    #[test]
    fn a_child_is_what_the_record_says() {
        let parent = secret().root(&ROOT);
        let tokens: Vec<TokenId> = (0..32).map(|id| id * 1000).collect();
        let bytes: Vec<u8> =
            parent.as_bytes().iter().copied().chain(tokens.iter().flat_map(|id| id.to_le_bytes())).collect();
        let hash = blake3::keyed_hash(&[7; 32], &bytes);
        assert_eq!(secret().child(parent, &tokens).as_bytes()[..], hash.as_bytes()[..16]);
    }

    #[test]
    fn every_part_of_a_root_makes_another_one() {
        let roots = [
            ROOT,
            Root { model: "n", ..ROOT },
            Root { adapter: "a", ..ROOT },
            Root { tenant: Some("u"), ..ROOT },
            Root { tenant: Some(""), ..ROOT },
            Root { tenant: None, ..ROOT },
            Root { salt: b"s", ..ROOT },
            // The same bytes, cut elsewhere.
            Root { model: "mt", tenant: Some(""), ..ROOT },
            Root { tenant: Some("ts"), ..ROOT },
        ];
        let mut keys: BTreeSet<_> = roots.iter().map(|root| secret().root(root)).collect();
        keys.insert(Secret::new([8; 32]).root(&ROOT));
        assert_eq!(keys.len(), roots.len() + 1);
        assert_ne!(Secret::random().unwrap(), Secret::random().unwrap());
        assert_eq!(format!("{:?}", secret()), "Secret(…)");
    }

    #[test]
    fn keys_grow_with_the_tokens_and_depend_on_all_before() {
        let tokens: Vec<TokenId> = (0..100).collect();
        let mut chain = Chain::new(&secret(), &ROOT, PrefixScope::Tenant);
        for length in 0..=100 {
            chain.extend(&tokens[..length]);
            assert_eq!(chain.keys().len(), length / BLOCK_TOKENS);
        }
        assert_eq!(chain.keys(), keys(&ROOT, PrefixScope::Tenant, &tokens));
        let mut other = tokens;
        other[0] = 99;
        assert!(chain.keys().iter().zip(keys(&ROOT, PrefixScope::Tenant, &other)).all(|(a, b)| *a != b));
    }

    #[test]
    fn only_the_public_blocks_are_everyones() {
        let tokens: Vec<TokenId> = (0..128).collect();
        let public = PrefixScope::Public { tokens: 70 };
        let (one, other) = (keys(&ROOT, public, &tokens), keys(&Root { tenant: Some("u"), ..ROOT }, public, &tokens));
        assert_eq!(one[..2], other[..2]);
        assert!(one[2..].iter().all(|key| !other.contains(key)));
        assert!(keys(&ROOT, PrefixScope::Tenant, &tokens).iter().all(|key| !one.contains(key)));
        let less = PrefixScope::Public { tokens: 31 };
        assert_eq!(keys(&ROOT, less, &tokens), keys(&ROOT, PrefixScope::Tenant, &tokens));
    }
}
