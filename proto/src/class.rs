//! Data class and priority: two ordered words that travel with a request.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::worker;

/// How sensitive a request's data is. The order is the point: a class only rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataClass {
    /// May go anywhere.
    Public,
    /// The organisation's own; the class of everything that nobody classed.
    Internal,
    /// Named eyes only.
    Confidential,
    /// Never leaves.
    Restricted,
}

impl DataClass {
    /// The word of headers, catalogue and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Confidential => "confidential",
            Self::Restricted => "restricted",
        }
    }
}

impl fmt::Display for DataClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is none of those allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is none of {allowed}")]
pub struct UnknownWord {
    value: String,
    allowed: &'static str,
}

impl FromStr for DataClass {
    type Err = UnknownWord;
    fn from_str(value: &str) -> Result<Self, UnknownWord> {
        Ok(match value {
            "public" => Self::Public,
            "internal" => Self::Internal,
            "confidential" => Self::Confidential,
            "restricted" => Self::Restricted,
            _ => {
                let allowed = "public, internal, confidential, restricted";
                return Err(UnknownWord { value: value.to_owned(), allowed });
            }
        })
    }
}

impl From<DataClass> for worker::DataClass {
    fn from(class: DataClass) -> Self {
        match class {
            DataClass::Public => Self::Public,
            DataClass::Internal => Self::Internal,
            DataClass::Confidential => Self::Confidential,
            DataClass::Restricted => Self::Restricted,
        }
    }
}

/// Whether somebody waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Somebody waits.
    #[default]
    Interactive,
    /// Nobody does.
    Batch,
}

impl FromStr for Priority {
    type Err = UnknownWord;
    fn from_str(value: &str) -> Result<Self, UnknownWord> {
        Ok(match value {
            "interactive" => Self::Interactive,
            "batch" => Self::Batch,
            _ => return Err(UnknownWord { value: value.to_owned(), allowed: "interactive, batch" }),
        })
    }
}

impl From<Priority> for worker::Priority {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Interactive => Self::Interactive,
            Priority::Batch => Self::Batch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_ordered_and_round_trip() {
        assert!(DataClass::Public < DataClass::Internal && DataClass::Confidential < DataClass::Restricted);
        for class in [DataClass::Public, DataClass::Internal, DataClass::Confidential, DataClass::Restricted] {
            assert_eq!(class.as_str().parse::<DataClass>().unwrap(), class);
        }
        let error = "secret".parse::<DataClass>().unwrap_err().to_string();
        assert_eq!(error, "\"secret\" is none of public, internal, confidential, restricted");
    }
}
