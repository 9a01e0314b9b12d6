//! Keys and their prefixes.

use std::fmt;
use std::sync::Arc;

/// A key of the store: a path such as `/penstock/v1/members/w1`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Key {
    /// A key. The empty one is refused wherever it is used.
    pub fn new(key: impl AsRef<str>) -> Self {
        Self(key.as_ref().into())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows `prefix`, where it starts the key.
    pub fn strip(&self, prefix: &Prefix) -> Option<&str> {
        self.0.strip_prefix(&*prefix.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the keys of one kind start with; the empty prefix stands for every key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Prefix(Arc<str>);

impl Prefix {
    /// A prefix, with its trailing slash.
    pub fn new(prefix: impl AsRef<str>) -> Self {
        Self(prefix.as_ref().into())
    }

    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key `name` under the prefix.
    pub fn key(&self, name: impl AsRef<str>) -> Key {
        Key::new(format!("{}{}", self.0, name.as_ref()))
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}
