//! What the command line issues: keys, and the tenants and operators that it makes. They stand in a source of their own
//! beside the files that people write, so that files keep their lines and comments, and applying files takes no key away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use penstock_proto::{DataClass, Priority};
use serde::Serialize;
use serde_json::Value;

use super::{
    At, Catalog, Digest, Glob, InvalidWord, IssuedKey, Key, Limits, Lined, Moment, Name, Operator, OperatorRole,
    Placed, Revoked, Source, Tenant,
};

/// The name of the source; no file may have it.
pub const ISSUED: &str = "issued";

const HEADER: &str = "# Written by `penstock tenant` and `penstock operator`. Applying files leaves it as it is.\n";
/// How long keys that have ended are told from keys that nobody knows.
const MEMORY: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A change of what is issued. Keys are known by their digests alone.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// Makes a tenant where there is none, and gives it its first key.
    CreateTenant {
        /// Which.
        name: Name,
        /// The least class of its requests; None: internal.
        class: Option<DataClass>,
        /// What it may ask for; empty: everything.
        models: Vec<String>,
        /// Its key's.
        sha256: Digest,
    },
    /// Gives a tenant another key; those that it has end then.
    RotateKey {
        /// Whose.
        tenant: Name,
        /// The new key's.
        sha256: Digest,
        /// When the old ones end.
        until: Moment,
    },
    /// Ends a key at once.
    RevokeKey {
        /// Whose.
        tenant: Name,
        /// Which of its keys.
        id: Name,
    },
    /// Lets an operator in.
    CreateOperator {
        /// Who.
        name: Name,
        /// What the operator may do.
        role: OperatorRole,
        /// Of its key.
        sha256: Digest,
    },
    /// Ends an operator's key at once.
    RevokeOperator {
        /// Whose.
        name: Name,
    },
}

/// Why nothing was issued.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The tenant is there, and what it may do is written there.
    #[error("tenant {name} is there already, at {at}: its class and models are changed there")]
    TenantThere {
        /// Which.
        name: Name,
        /// Where.
        at: At,
    },
    /// The tenant has keys.
    #[error("tenant {name} has a key already ({keys}): rotate-key gives it another one, and ends those")]
    HasKeys {
        /// Which.
        name: Name,
        /// Their ids.
        keys: String,
    },
    /// There is no such tenant.
    #[error("there is no tenant {name}; there are: {known}")]
    NoTenant {
        /// Which.
        name: Name,
        /// Those that there are.
        known: String,
    },
    /// The tenant has no such key.
    #[error("tenant {tenant} has no key {id} that lives; it has: {known}")]
    NoKey {
        /// Whose.
        tenant: Name,
        /// Which.
        id: Name,
        /// Those that live.
        known: String,
    },
    /// The operator is there.
    #[error("operator {name} is there already, at {at}")]
    OperatorThere {
        /// Who.
        name: Name,
        /// Where.
        at: At,
    },
    /// There is no such operator.
    #[error("there is no operator {name}; there are: {known}")]
    NoOperator {
        /// Who.
        name: Name,
        /// Those that there are.
        known: String,
    },
    /// A word that cannot stand in a catalogue.
    #[error(transparent)]
    Word(#[from] InvalidWord),
}

impl Catalog {
    /// The keys of every tenant, wherever they stand, with the time that each really ends at.
    pub fn tenant_keys(&self) -> BTreeMap<Name, Vec<Key>> {
        let mut all: BTreeMap<Name, Vec<Key>> = BTreeMap::new();
        for (name, tenant) in &self.tenants {
            let issued = self.keys.iter().filter(|key| key.tenant == *name).map(|key| {
                let IssuedKey { id, sha256, expires, .. } = &key.value;
                Key { id: id.clone(), sha256: *sha256, expires: *expires }
            });
            let keys = tenant.keys.iter().map(|key| key.value.clone()).chain(issued);
            let ended = keys.map(|key| Key { expires: earlier(key.expires, self.revoked_at(&key.sha256)), ..key });
            all.insert(name.clone(), ended.collect());
        }
        all
    }

    /// When a key ends that was revoked.
    pub fn revoked_at(&self, key: &Digest) -> Option<Moment> {
        self.revoked.iter().filter(|revoked| revoked.sha256 == *key).map(|revoked| revoked.value.at).min()
    }

    /// The sources that people wrote.
    pub fn files(&self) -> impl Iterator<Item = &Source> {
        self.sources.iter().filter(|source| source.file != ISSUED)
    }
}

/// These files with what is issued beside them. What files say wins: of what is issued too, theirs stays. Keys of
/// tenants that are gone go with them.
pub(super) fn beside(files: Vec<Source>, said: &Catalog, before: &Catalog) -> Vec<Source> {
    let mut issued = Issued::of(before);
    issued.tenants.retain(|tenant| !said.tenants.contains_key(&tenant.name));
    issued.operators.retain(|operator| !said.operators.contains_key(&operator.name));
    let known: BTreeSet<&Name> = said.tenants.keys().chain(issued.tenants.iter().map(|tenant| &tenant.name)).collect();
    let said_keys = said.tenant_keys();
    let is_said = |key: &IssuedKey| {
        let keys = said_keys.get(&key.tenant);
        keys.is_some_and(|keys| keys.iter().any(|other| other.sha256 == key.sha256 || other.id == key.id))
    };
    issued.keys.retain(|key| known.contains(&key.tenant) && !is_said(key));
    issued.revoked.retain(|revoked| !said.revoked.iter().any(|other| other.value == *revoked));
    issued.with(files)
}

/// The sources after an edit.
pub(super) fn edit(before: &Catalog, edit: &Edit, now: Duration) -> Result<Vec<Source>, Refused> {
    let mut issued = Issued::of(before);
    let remembered = |key: &IssuedKey| key.expires.is_none_or(|end| end.get() + MEMORY > now);
    issued.keys.retain(remembered);
    match edit {
        Edit::CreateTenant { name, class, models, sha256 } => {
            issued.create_tenant(before, name, (*class, models), now)?;
            issued.give(before, name, *sha256);
        }
        Edit::RotateKey { tenant, sha256, until } => {
            let keys = living(before, tenant, now)?;
            keys.iter().for_each(|key| issued.end(tenant, key, *until));
            issued.give(before, tenant, *sha256);
        }
        Edit::RevokeKey { tenant, id } => {
            let keys = living(before, tenant, now)?;
            let Some(key) = keys.iter().find(|key| key.id == *id) else {
                let (tenant, id, known) = (tenant.clone(), id.clone(), list(keys.iter().map(|key| &key.id)));
                return Err(Refused::NoKey { tenant, id, known });
            };
            issued.end(tenant, key, Moment::at(now));
        }
        Edit::CreateOperator { name, role, sha256 } => {
            if let Some(there) = before.operators.get(name) {
                return Err(Refused::OperatorThere { name: name.clone(), at: there.at.clone() });
            }
            issued.operators.push(Operator { name: name.clone(), sha256: *sha256, role: *role });
        }
        Edit::RevokeOperator { name } => {
            let Some(operator) = before.operators.get(name) else {
                return Err(Refused::NoOperator { name: name.clone(), known: list(before.operators.keys()) });
            };
            if is_issued(operator) {
                issued.operators.retain(|other| other.name != *name);
            } else {
                let key = format!("operator {name}");
                issued.revoked.push(Revoked { key, sha256: operator.sha256, at: Moment::at(now) });
            }
        }
    }
    Ok(issued.with(before.files().cloned().collect()))
}

#[derive(Default)]
struct Issued {
    tenants: Vec<Tenant>,
    keys: Vec<IssuedKey>,
    operators: Vec<Operator>,
    revoked: Vec<Revoked>,
}

impl Issued {
    fn of(catalog: &Catalog) -> Self {
        fn all<'a, T: Clone + 'a>(placed: impl Iterator<Item = &'a Placed<T>>) -> Vec<T> {
            placed.filter(|placed| is_issued(placed)).map(|placed| placed.value.clone()).collect()
        }
        Self {
            tenants: all(catalog.tenants.values()),
            keys: all(catalog.keys.iter()),
            operators: all(catalog.operators.values()),
            revoked: all(catalog.revoked.iter()),
        }
    }

    fn create_tenant(
        &mut self,
        before: &Catalog,
        name: &Name,
        (class, models): (Option<DataClass>, &[String]),
        now: Duration,
    ) -> Result<(), Refused> {
        if let Some(there) = before.tenants.get(name) {
            if class.is_some() || !models.is_empty() {
                return Err(Refused::TenantThere { name: name.clone(), at: there.at.clone() });
            }
            return match living(before, name, now)?.as_slice() {
                [] => Ok(()),
                keys => Err(Refused::HasKeys { name: name.clone(), keys: list(keys.iter().map(|key| &key.id)) }),
            };
        }
        let everything = ["*".to_owned()];
        let models = if models.is_empty() { &everything } else { models };
        let globs = models.iter().map(|glob| Ok(Lined { line: 0, value: Glob::try_from(glob.clone())? }));
        self.tenants.push(Tenant {
            name: name.clone(),
            keys: Vec::new(),
            class: class.unwrap_or(DataClass::Internal),
            tasks: BTreeMap::new(),
            models: globs.collect::<Result<_, InvalidWord>>()?,
            limits: Limits::default(),
            budget: None,
            priority: Priority::default(),
            deadline: None,
        });
        Ok(())
    }

    /// Adds a key under the first id that the tenant never had, as far as that is known.
    fn give(&mut self, before: &Catalog, tenant: &Name, sha256: Digest) {
        let had = before.tenant_keys().remove(tenant).unwrap_or_default();
        let is_free = |id: &Name| !had.iter().any(|key| key.id == *id);
        let mut ids = (1_u64..).map(|number| Name::new(format!("k{number}")).expect("a letter and digits are a name"));
        let id = ids.find(is_free).expect("a tenant has fewer keys than there are numbers");
        self.keys.push(IssuedKey { tenant: tenant.clone(), id, sha256, expires: None });
    }

    /// Ends a key at a time, or leaves it its own earlier end.
    fn end(&mut self, tenant: &Name, key: &Key, at: Moment) {
        let at = earlier(key.expires, Some(at)).unwrap_or(at);
        match self.keys.iter_mut().find(|issued| issued.sha256 == key.sha256) {
            Some(issued) => issued.expires = Some(at),
            // It stands in a file, which is not ours to write.
            None => {
                let label = format!("{tenant}/{}", key.id);
                self.revoked.retain(|revoked| revoked.sha256 != key.sha256);
                self.revoked.push(Revoked { key: label, sha256: key.sha256, at });
            }
        }
    }

    fn with(&self, mut files: Vec<Source>) -> Vec<Source> {
        let Self { tenants, keys, operators, revoked } = self;
        let parts = [
            section("tenants", tenants),
            section("keys", keys),
            section("operators", operators),
            section("revoked", revoked),
        ];
        let text = parts.concat();
        if !text.is_empty() {
            files.push(Source { file: ISSUED.to_owned(), text: format!("{HEADER}{text}") });
        }
        files
    }
}

/// One line for each thing: JSON is YAML too.
fn section<T: Serialize>(kind: &str, things: &[T]) -> String {
    if things.is_empty() {
        return String::new();
    }
    let line = |thing: &T| {
        let value = serde_json::to_value(thing).expect("things of a catalogue have only strings as keys");
        format!("  - {}\n", without_nothing(value))
    };
    format!("{kind}:\n{}", things.iter().map(line).collect::<String>())
}

/// Without members that say nothing.
fn without_nothing(value: Value) -> Value {
    let says_nothing = |value: &Value| value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
    match value {
        Value::Object(members) => {
            let members = members.into_iter().map(|(name, value)| (name, without_nothing(value)));
            Value::Object(members.filter(|(_, value)| !says_nothing(value)).collect())
        }
        other => other,
    }
}

fn is_issued<T>(placed: &Placed<T>) -> bool {
    &*placed.at.file == ISSUED
}

/// The tenant's keys that have not ended.
fn living(catalog: &Catalog, tenant: &Name, now: Duration) -> Result<Vec<Key>, Refused> {
    let Some(keys) = catalog.tenant_keys().remove(tenant) else {
        return Err(Refused::NoTenant { name: tenant.clone(), known: list(catalog.tenants.keys()) });
    };
    Ok(keys.into_iter().filter(|key| key.expires.is_none_or(|end| end.get() > now)).collect())
}

fn earlier(a: Option<Moment>, b: Option<Moment>) -> Option<Moment> {
    [a, b].into_iter().flatten().min()
}

fn list<'a>(names: impl Iterator<Item = &'a Name>) -> String {
    let names: Vec<&str> = names.map(Name::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests;
