//! Newtypes of the names and ids that cross a process border.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What is wrong with a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} {problem}")]
pub struct InvalidName {
    kind: &'static str,
    value: String,
    problem: &'static str,
}

/// The longest name, in bytes.
const NAME_LIMIT: usize = 256;

fn check(kind: &'static str, value: &str) -> Result<(), InvalidName> {
    let problem = if value.is_empty() {
        "is empty"
    } else if value.len() > NAME_LIMIT {
        "is longer than 256 bytes"
    } else if value.chars().any(|c| c.is_control() || c.is_whitespace()) {
        "has white space or control characters in it"
    } else {
        return Ok(());
    };
    let value = value.chars().take(64).collect();
    Err(InvalidName { kind, value, problem })
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes a name: 1 to 256 bytes without white space or control characters.
            pub fn new(value: impl AsRef<str>) -> Result<Self, InvalidName> {
                check($kind, value.as_ref())?;
                Ok(Self(value.as_ref().into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.as_str().to_owned()
            }
        }
    };
}

name!(
    /// What a client asks for as `model`: a route, a model, a version or an adapter.
    ModelName,
    "model name"
);
name!(
    /// Whose request it is.
    TenantName,
    "tenant name"
);
name!(
    /// One worker of the cluster.
    WorkerName,
    "worker name"
);

/// The router's own id of a request: a ULID, so that ids sort by time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(ulid::Ulid);

impl RequestId {
    /// A new id.
    pub fn generate() -> Self {
        Self(ulid::Ulid::new())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for RequestId {
    type Err = ulid::DecodeError;
    fn from_str(value: &str) -> Result<Self, Self::Err> {
        value.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(ModelName::new("risk-1").unwrap().as_str(), "risk-1");
        assert_eq!(ModelName::new("").unwrap_err().to_string(), "model name \"\" is empty");
        assert!(TenantName::new("a b").unwrap_err().to_string().contains("white space"));
        assert!(WorkerName::new("x".repeat(257)).unwrap_err().to_string().contains("longer than 256"));
    }

    #[test]
    fn request_ids_round_trip_and_sort_by_time() {
        let id = RequestId::generate();
        assert_eq!(id.to_string().parse::<RequestId>().unwrap(), id);
        assert_eq!(id.to_string().len(), 26);
    }
}
