//! A transaction: what it expects and what it then does.

use bytes::Bytes;

use super::{Error, Key, LeaseId, Revision};

/// The most expectations, and the most operations, of one transaction: etcd's default.
const OPERATIONS_LIMIT: usize = 128;
/// The most bytes of keys and values in one transaction: a little below etcd's request limit of 1.5 MiB.
const BYTES_LIMIT: usize = 1 << 20;

/// What must be true of a key for a transaction to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// The key is not there.
    Absent(Key),
    /// The key's value was last put at this revision.
    Modified(Key, Revision),
    /// The key came to be at this revision and has been there since: whoever created it still holds it.
    Created(Key, Revision),
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Sets a value; it is bound to the lease given here, and to no other.
    Put {
        /// The key.
        key: Key,
        /// The value.
        value: Bytes,
        /// The lease that it vanishes with.
        lease: Option<LeaseId>,
    },
    /// Deletes a key, if it is there.
    Delete {
        /// The key.
        key: Key,
    },
}

impl Operation {
    pub(super) fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Changes that are made together, if every expectation holds: at most 128 of each, 1 MiB in all, no key twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a transaction does nothing until it is committed"]
pub struct Txn {
    pub(super) expects: Vec<Expect>,
    pub(super) operations: Vec<Operation>,
}

impl Txn {
    /// A transaction that expects nothing and does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an expectation.
    pub fn expect(mut self, expect: Expect) -> Self {
        self.expects.push(expect);
        self
    }

    /// Adds a put that no lease bounds.
    pub fn put(mut self, key: Key, value: impl Into<Bytes>) -> Self {
        self.operations.push(Operation::Put { key, value: value.into(), lease: None });
        self
    }

    /// Adds a put whose key vanishes with `lease`.
    pub fn put_leased(mut self, key: Key, value: impl Into<Bytes>, lease: LeaseId) -> Self {
        self.operations.push(Operation::Put { key, value: value.into(), lease: Some(lease) });
        self
    }

    /// Adds a delete.
    pub fn delete(mut self, key: Key) -> Self {
        self.operations.push(Operation::Delete { key });
        self
    }

    /// Checks what every store refuses alike.
    pub(super) fn check(&self) -> Result<(), Error> {
        let invalid = |reason: String| Err(Error::Invalid { reason });
        if self.expects.len().max(self.operations.len()) > OPERATIONS_LIMIT {
            return invalid(format!("a transaction of more than {OPERATIONS_LIMIT} operations"));
        }
        let mut bytes = 0;
        let mut keys: Vec<&Key> = self.operations.iter().map(Operation::key).collect();
        for operation in &self.operations {
            bytes += operation.key().as_str().len();
            if let Operation::Put { value, .. } = operation {
                bytes += value.len();
            }
        }
        if bytes > BYTES_LIMIT {
            return invalid(format!("a transaction of {bytes} bytes; the limit is {BYTES_LIMIT}"));
        }
        keys.sort();
        if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            return invalid(format!("a transaction that changes {} twice", pair[0]));
        }
        let expected = self.expects.iter().map(|expect| match expect {
            Expect::Absent(key) | Expect::Modified(key, _) | Expect::Created(key, _) => key,
        });
        if keys.into_iter().chain(expected).any(|key| key.as_str().is_empty()) {
            return invalid("an empty key".to_owned());
        }
        Ok(())
    }
}

/// What came of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied.
    Committed {
        /// The store's revision after it: its own, where it changed anything.
        revision: Revision,
        /// How many keys its deletes removed.
        deleted: usize,
    },
    /// An expectation failed, and nothing was changed.
    Conflict {
        /// The store's revision.
        revision: Revision,
    },
}

impl Outcome {
    /// The store's revision after the transaction.
    pub fn revision(&self) -> Revision {
        match *self {
            Self::Committed { revision, .. } | Self::Conflict { revision } => revision,
        }
    }

    /// Whether the transaction was applied.
    pub fn is_committed(&self) -> bool {
        match self {
            Self::Committed { .. } => true,
            Self::Conflict { .. } => false,
        }
    }
}
