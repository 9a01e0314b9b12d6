//! Who asks: keys and whose they are, and how much a tenant may ask for, across all routers.
//!
//! A key is known by its hash alone. What a tenant may then reach is decided elsewhere.

mod backing;
mod jwt;
mod permit;
mod rate;
mod slots;

use std::collections::HashMap;
use std::fmt;

use penstock_cluster::catalog::{Catalog, Digest, Name, OperatorRole};

pub use jwt::{Issuers, Verified, is_jwt};
pub use permit::{Limiter, Permit, TokenHold};

/// What every key begins with, so that people and detectors know one when they see it.
const PREFIX: &str = "psk_";

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
    holders: HashMap<Digest, Holder>,
}

impl Keys {
    /// The keys that a catalogue knows.
    pub fn new(catalog: &Catalog) -> Self {
        let tenants = catalog.tenants.iter().flat_map(|(name, tenant)| {
            let holder = |key: &Name| Holder::Tenant { name: name.clone(), key: key.clone() };
            tenant.keys.iter().map(move |key| (key.sha256, holder(&key.id)))
        });
        let operators = catalog.operators.iter().map(|(name, operator)| {
            let holder = Holder::Operator { name: name.clone(), role: operator.role };
            (operator.sha256, holder)
        });
        Self { holders: tenants.chain(operators).collect() }
    }

    /// Whose a presented key is. Only its SHA-256 is compared, so that the time that takes tells nothing of other keys:
    /// whoever could choose a digest byte by byte could invert it.
    pub fn find(&self, presented: &str) -> Option<&Holder> {
        self.holders.get(&Digest::of(presented.as_bytes()))
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
        let holder = |key: &str| keys.find(key).cloned();
        let name = |name: &str| Name::new(name).unwrap();
        assert_eq!(holder(old.reveal()), Some(Holder::Tenant { name: name("t"), key: name("k1") }));
        assert_eq!(holder(new.reveal()), Some(Holder::Tenant { name: name("t"), key: name("k2") }), "they overlap");
        assert_eq!(holder(admin.reveal()), Some(Holder::Operator { name: name("o"), role: OperatorRole::Viewer }));
        for stranger in ["", "psk_", &old.digest().to_string(), &old.reveal()[..67], &format!("{} ", old.reveal())] {
            assert_eq!(holder(stranger), None);
        }
    }

    #[test]
    fn a_new_key_has_256_bits_and_does_not_show_in_debug_output() {
        let key = NewKey::generate().unwrap();
        assert_eq!(key.reveal().len(), PREFIX.len() + 64);
        assert_ne!(key.reveal(), NewKey::generate().unwrap().reveal());
        assert!(!format!("{key:?}").contains(key.reveal()));
    }
}
