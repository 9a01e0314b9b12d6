//! Who asks: keys and whose they are, and how much a tenant may ask for, across all routers.
//!
//! A key is known by its hash alone. What a tenant may then reach is decided elsewhere.

mod backing;
mod jwt;
#[cfg(test)]
pub(crate) mod link;
mod permit;
mod rate;
mod slots;

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use penstock_cluster::catalog::{Catalog, Digest, Moment, Name, OperatorRole};

pub(crate) use backing::Backing;
pub use jwt::{Issuers, Verified, is_jwt};
pub use permit::{Limiter, Permit, TokenHold};

/// What every key begins with, so that people and detectors know one when they see it.
pub(crate) const PREFIX: &str = "psk_";

/// A key that was just made. It is shown once; only its digest is stored.
pub struct NewKey {
    key: String,
}

impl NewKey {
    /// Makes a key of 256 random bits.
    ///
    /// # Errors
    ///
    /// Where the operating system gives no random bits.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bits = [0; 32];
        getrandom::fill(&mut bits)?;
        let hex: String = bits.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { key: format!("{PREFIX}{hex}") })
    }

    /// The key itself, to be shown to its owner.
    pub fn reveal(&self) -> &str {
        &self.key
    }

    /// What the catalogue keeps of it.
    pub fn digest(&self) -> Digest {
        Digest::of(self.key.as_bytes())
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").field("digest", &self.digest()).finish_non_exhaustive()
    }
}

/// Whose a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A tenant's.
    Tenant {
        /// The tenant.
        name: Name,
        /// Which of its keys.
        key: Name,
    },
    /// An operator's.
    Operator {
        /// The operator.
        name: Name,
        /// What the operator may do.
        role: OperatorRole,
    },
}

/// The keys of one catalogue.
#[derive(Debug, Default)]
pub struct Keys {
    holders: HashMap<Digest, (Holder, Option<Moment>)>,
}

/// Why a key lets nobody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// It is nobody's.
    #[error("nobody has this key; it may have been revoked")]
    Unknown,
    /// It was somebody's.
    #[error("this key has expired, or was revoked")]
    Expired,
}

impl Keys {
    /// The keys that a catalogue knows.
    pub fn new(catalog: &Catalog) -> Self {
        let tenants = catalog.tenant_keys().into_iter().flat_map(|(name, keys)| {
            let holder = move |key: Name| Holder::Tenant { name: name.clone(), key };
            keys.into_iter().map(move |key| (key.sha256, (holder(key.id), key.expires)))
        });
        let operators = catalog.operators.iter().map(|(name, operator)| {
            let holder = Holder::Operator { name: name.clone(), role: operator.role };
            (operator.sha256, (holder, catalog.revoked_at(&operator.sha256)))
        });
        Self { holders: tenants.chain(operators).collect() }
    }

    /// Whose a presented key is at a time since 1970. Only its SHA-256 is compared, so that the time that takes tells nothing of other keys:
    /// whoever could choose a digest byte by byte could invert it.
    ///
    /// # Errors
    ///
    /// [`NotAccepted`].
    pub fn find(&self, presented: &str, now: Duration) -> Result<&Holder, NotAccepted> {
        match self.holders.get(&Digest::of(presented.as_bytes())) {
            None => Err(NotAccepted::Unknown),
            Some((_, Some(end))) if end.get() <= now => Err(NotAccepted::Expired),
            Some((holder, _)) => Ok(holder),
        }
    }
}

#[cfg(test)]
mod tests {
    use penstock_cluster::catalog::Source;

    use super::*;

    fn keys(text: &str) -> Keys {
        Keys::new(&Catalog::read(vec![Source { file: "c.yaml".to_owned(), text: text.to_owned() }]).unwrap())
    }

    #[test]
    fn a_new_key_is_found_by_its_digest_and_by_nothing_else() {
        let (old, new, admin) = (NewKey::generate().unwrap(), NewKey::generate().unwrap(), NewKey::generate().unwrap());
        let text = format!(
            "tenants: [{{name: t, models: [], keys: [{{id: k1, sha256: {}}}, {{id: k2, sha256: {}}}]}}]\n\
             operators: [{{name: o, role: viewer, sha256: {}}}]\n",
            old.digest(),
            new.digest(),
            admin.digest()
        );
        let keys = keys(&text);
        let holder = |key: &str| keys.find(key, Duration::ZERO).ok().cloned();
        let name = |name: &str| Name::new(name).unwrap();
        assert_eq!(holder(old.reveal()), Some(Holder::Tenant { name: name("t"), key: name("k1") }));
        assert_eq!(holder(new.reveal()), Some(Holder::Tenant { name: name("t"), key: name("k2") }), "they overlap");
        assert_eq!(holder(admin.reveal()), Some(Holder::Operator { name: name("o"), role: OperatorRole::Viewer }));
        for stranger in ["", "psk_", &old.digest().to_string(), &old.reveal()[..67], &format!("{} ", old.reveal())] {
            assert_eq!(holder(stranger), None);
        }
    }

    #[test]
    fn a_key_ends_when_the_catalogue_says_so() {
        let keys = keys(&format!(
            "tenants: [{{name: t, models: [], keys: [{{id: k1, sha256: {}, expires: 1970-01-01T00:01:00Z}}]}}]\n\
             keys: [{{tenant: t, id: k2, sha256: {}}}]\nrevoked: [{{key: t/k2, sha256: {1}, at: 1970-01-01T00:02:00Z}}]\n",
            Digest::of(b"a"),
            Digest::of(b"b"),
        ));
        let find = |key: &str, seconds| keys.find(key, Duration::from_secs(seconds)).map(|_| ());
        assert_eq!((find("a", 59), find("a", 60)), (Ok(()), Err(NotAccepted::Expired)));
        assert_eq!((find("b", 119), find("b", 120)), (Ok(()), Err(NotAccepted::Expired)));
        assert_eq!(find("c", 0), Err(NotAccepted::Unknown));
    }

    #[test]
    fn a_new_key_has_256_bits_and_does_not_show_in_debug_output() {
        let key = NewKey::generate().unwrap();
        assert_eq!(key.reveal().len(), PREFIX.len() + 64);
        assert_ne!(key.reveal(), NewKey::generate().unwrap().reveal());
        assert!(!format!("{key:?}").contains(key.reveal()));
    }
}
