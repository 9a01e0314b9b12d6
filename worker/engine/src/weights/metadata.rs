//! A model file's metadata, by key.

use std::collections::BTreeMap;

use super::Error;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An unsigned integer of any width.
    Unsigned(u64),
    /// A signed integer of any width.
    Signed(i64),
    /// A float of any width.
    Float(f64),
    /// Yes or no.
    Bool(bool),
    /// Text.
    Text(String),
    /// Values of one type.
    Array(Vec<Value>),
}

/// All keys and values of a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(pub(super) BTreeMap<String, Value>);

impl Value {
    /// It as an unsigned integer, if it is an integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => value.try_into().ok(),
            Self::Float(_) | Self::Bool(_) | Self::Text(_) | Self::Array(_) => None,
        }
    }

    /// It as a signed integer, if it is an integer of that range.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::Unsigned(value) => value.try_into().ok(),
            Self::Signed(value) => Some(value),
            Self::Float(_) | Self::Bool(_) | Self::Text(_) | Self::Array(_) => None,
        }
    }

    /// It as a float, if it is a number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::Unsigned(value) => Some(value as f64),
            Self::Signed(value) => Some(value as f64),
            Self::Float(value) => Some(value),
            Self::Bool(_) | Self::Text(_) | Self::Array(_) => None,
        }
    }

    /// It as yes or no.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            Self::Unsigned(_) | Self::Signed(_) | Self::Float(_) | Self::Text(_) | Self::Array(_) => None,
        }
    }

    /// It as text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(value) => Some(value),
            Self::Unsigned(_) | Self::Signed(_) | Self::Float(_) | Self::Bool(_) | Self::Array(_) => None,
        }
    }

    /// Its elements, if it is an array.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(values) => Some(values),
            Self::Unsigned(_) | Self::Signed(_) | Self::Float(_) | Self::Bool(_) | Self::Text(_) => None,
        }
    }
}

impl Metadata {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// All keys and values, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The text under `key`, if the key is there.
    pub fn str(&self, key: &str) -> Result<Option<&str>, Error> {
        self.typed(key, "text", Value::as_str)
    }

    /// The size under `key`, if the key is there.
    pub fn size(&self, key: &str) -> Result<Option<usize>, Error> {
        self.typed(key, "a size", |value| value.as_u64()?.try_into().ok())
    }

    /// The number under `key`, if the key is there.
    pub fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// The yes or no under `key`, if the key is there.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "a boolean", Value::as_bool)
    }

    /// The texts under `key`, if the key is there.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>, Error> {
        self.typed(key, "an array of texts", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// The integers under `key`, if the key is there.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, Error> {
        self.typed(key, "an array of integers", |value| value.as_array()?.iter().map(Value::as_i64).collect())
    }

    /// The numbers under `key`, if the key is there.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, Error> {
        self.typed(key, "an array of numbers", |value| value.as_array()?.iter().map(Value::as_f64).collect())
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        take: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        match self.0.get(key) {
            None => Ok(None),
            Some(value) => take(value).map(Some).ok_or_else(|| Error::Key { key: key.to_owned(), expected }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_absent_of_its_type_or_an_error() {
        let array = Value::Array(vec![Value::Signed(-3), Value::Unsigned(4)]);
        let entries = [("a", Value::Unsigned(7)), ("b", Value::Text("x".into())), ("c", array)];
        let metadata = Metadata(entries.map(|(key, value)| (key.to_owned(), value)).into());
        assert_eq!(metadata.size("a").unwrap(), Some(7));
        assert_eq!(metadata.number("a").unwrap(), Some(7.0));
        assert_eq!(metadata.str("missing").unwrap(), None);
        assert_eq!(metadata.integers("c").unwrap(), Some(vec![-3, 4]));
        assert!(matches!(metadata.size("b"), Err(Error::Key { expected: "a size", .. })));
        assert!(matches!(metadata.strings("c"), Err(Error::Key { .. })));
    }
}
