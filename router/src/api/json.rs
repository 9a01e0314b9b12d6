//! Reads a JSON body field by field, strictly, each complaint under the path of the field it is about.
//!
//! Fields are cut out of the body without building a tree, so that a body costs little more memory than its bytes.

use std::fmt;

use penstock_proto::ErrorCode;
use serde::de::{DeserializeSeed, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::bounds::Range;
use crate::request::Failure;

/// Fields of one object: each is compared with those before it.
const FIELDS_LIMIT: usize = 1024;

/// A JSON object whose fields are taken one after the other.
#[derive(Debug)]
pub(super) struct Object<'a> {
    path: String,
    fields: Vec<(String, &'a RawValue)>,
}

/// A value that is there, and where.
#[derive(Debug, Clone)]
pub(super) struct Field<'a> {
    path: String,
    raw: &'a RawValue,
}

impl<'a> Object<'a> {
    /// A whole body, which must be one object.
    pub(super) fn body(bytes: &'a [u8]) -> Result<Self, Failure> {
        let invalid = |message| Failure::new(ErrorCode::InvalidRequest, message);
        let text = std::str::from_utf8(bytes).map_err(|error| invalid(format!("the body is not UTF-8: {error}")))?;
        match kind(text.trim_start()) {
            "an object" => {}
            "nothing" => return Err(invalid("the body is empty; it must be a JSON object".to_owned())),
            found => return Err(invalid(format!("the body must be a JSON object, not {found}"))),
        }
        Self::parse(text, String::new())
    }

    fn parse(text: &'a str, path: String) -> Result<Self, Failure> {
        let mut reader = Reader { fields: Vec::new(), at: None };
        let mut json = serde_json::Deserializer::from_str(text);
        let read = reader.deserialize(&mut json).and_then(|()| json.end());
        if let Err(error) = read {
            let param = reader.at.map(|name| join(&path, &name));
            let place = param.as_deref().map(|param| format!(" at {param}")).unwrap_or_default();
            let message = format!("the body is not valid JSON{place}: {error}");
            return Err(Failure { param, ..Failure::new(ErrorCode::InvalidRequest, message) });
        }
        Ok(Self { path, fields: reader.fields })
    }

    /// Takes a field; one that is null counts as left out.
    pub(super) fn take(&mut self, name: &str) -> Option<Field<'a>> {
        let at = self.fields.iter().position(|(field, _)| field == name)?;
        let (_, raw) = self.fields.swap_remove(at);
        (raw.get() != "null").then(|| Field { path: join(&self.path, name), raw })
    }

    /// Takes a field that must be there.
    pub(super) fn need(&mut self, name: &str) -> Result<Field<'a>, Failure> {
        let path = self.path(name);
        self.take(name).ok_or_else(|| Failure::field(path.clone(), format!("{path} is missing")))
    }

    /// Takes a field and reads it, where it is there.
    pub(super) fn read<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&Field<'a>) -> Result<T, Failure>,
    ) -> Result<Option<T>, Failure> {
        self.take(name).map(|field| read(&field)).transpose()
    }

    /// Where a field of that name stands, or would.
    pub(super) fn path(&self, name: &str) -> String {
        join(&self.path, name)
    }

    /// The names that nobody took.
    pub(super) fn left(self) -> impl Iterator<Item = String> {
        self.fields.into_iter().map(move |(name, _)| join(&self.path, &name))
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

impl<'a> Field<'a> {
    /// Where it stands: `messages[2].content`.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// A complaint about it.
    pub(super) fn refuse(&self, complaint: impl fmt::Display) -> Failure {
        Failure::field(self.path.clone(), format!("{} {complaint}", self.path))
    }

    /// What it is, in words: "a string".
    pub(super) fn kind(&self) -> &'static str {
        kind(self.raw.get())
    }

    /// Whether it is an array whose first item is a number.
    pub(super) fn starts_with_number(&self) -> bool {
        self.raw.get().strip_prefix('[').is_some_and(|items| kind(items.trim_start()) == "a number")
    }

    /// Its JSON text.
    pub(super) fn json(&self) -> &'a str {
        self.raw.get()
    }

    fn expect(&self, expected: &str) -> Result<(), Failure> {
        if self.kind() == expected {
            Ok(())
        } else {
            Err(self.refuse(format!("must be {expected}, not {}", self.kind())))
        }
    }

    pub(super) fn string(&self) -> Result<String, Failure> {
        self.expect("a string")?;
        serde_json::from_str(self.raw.get()).map_err(|error| self.refuse(format!("is not a valid string: {error}")))
    }

    pub(super) fn bool(&self) -> Result<bool, Failure> {
        self.expect("a boolean")?;
        Ok(self.raw.get() == "true")
    }

    /// A finite number that `range` contains.
    pub(super) fn number(&self, range: Range) -> Result<f32, Failure> {
        self.expect("a number")?;
        let number = self.raw.get().parse::<f64>().unwrap_or(f64::INFINITY);
        let narrow = number as f32;
        // Both widths: a number may round onto the edge of what the range leaves out.
        if range.contains(number) && range.contains(f64::from(narrow)) {
            return Ok(narrow);
        }
        Err(self.refuse(format!("must be {range}, not {}", shorten(self.raw.get()))))
    }

    /// A whole number from `least` to `most`.
    pub(super) fn integer(&self, least: i128, most: i128) -> Result<i128, Failure> {
        self.expect("a number")?;
        match self.raw.get().parse::<i128>().ok().filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(number),
            None => {
                let found = shorten(self.raw.get());
                Err(self.refuse(format!("must be a whole number from {least} to {most}, not {found}")))
            }
        }
    }

    /// A whole number of at least `least`.
    pub(super) fn count(&self, least: u32) -> Result<u32, Failure> {
        let number = self.integer(i128::from(least), i128::from(u32::MAX))?;
        Ok(u32::try_from(number).expect("the range was checked"))
    }

    pub(super) fn object(&self) -> Result<Object<'a>, Failure> {
        self.expect("an object")?;
        Object::parse(self.raw.get(), self.path.clone())
    }

    /// The members of an array of at most `most`.
    pub(super) fn items(&self, most: usize) -> Result<Vec<Self>, Failure> {
        let raw = self.raw_items(most)?;
        Ok(raw.into_iter().enumerate().map(|(at, raw)| self.item(at, raw)).collect())
    }

    /// An array of at most `most` token ids.
    pub(super) fn token_ids(&self, most: usize) -> Result<Vec<u32>, Failure> {
        self.expect("an array")?;
        let ids: Vec<u32> = match serde_json::from_str(self.raw.get()) {
            Ok(ids) => ids,
            // Slower, and says which.
            Err(_) => self
                .raw_items(usize::MAX)?
                .into_iter()
                .enumerate()
                .map(|(at, raw)| raw.get().parse().or_else(|_| self.item(at, raw).count(0)))
                .collect::<Result<_, _>>()?,
        };
        if ids.len() > most {
            return Err(self.refuse(format!("must have at most {most} items, not {}", ids.len())));
        }
        Ok(ids)
    }

    fn raw_items(&self, most: usize) -> Result<Vec<&'a RawValue>, Failure> {
        self.expect("an array")?;
        let raw: Vec<&RawValue> = serde_json::from_str(self.raw.get()).map_err(|error| self.refuse(error))?;
        if raw.len() > most {
            return Err(self.refuse(format!("must have at most {most} items, not {}", raw.len())));
        }
        Ok(raw)
    }

    fn item(&self, at: usize, raw: &'a RawValue) -> Self {
        Self { path: format!("{}[{at}]", self.path), raw }
    }

    /// A field by any name of an object: its name and its value.
    pub(super) fn entries(&self) -> Result<Vec<(String, Field<'a>)>, Failure> {
        let object = self.object()?;
        let path = object.path;
        let entry = |(name, raw): (String, _)| {
            let path = join(&path, &name);
            (name, Field { path, raw })
        };
        Ok(object.fields.into_iter().map(entry).collect())
    }
}

/// What a JSON text begins to be.
fn kind(json: &str) -> &'static str {
    match json.bytes().next() {
        None => "nothing",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        Some(b'-' | b'0'..=b'9') => "a number",
        Some(_) => "something that is not JSON",
    }
}

fn shorten(json: &str) -> &str {
    json.get(..32).unwrap_or(json)
}

/// Cuts an object into its fields; remembers which one it was at, for the complaint.
struct Reader<'a> {
    fields: Vec<(String, &'a RawValue)>,
    at: Option<String>,
}

impl<'a> DeserializeSeed<'a> for &mut Reader<'a> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for &mut Reader<'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        use serde::de::Error as _;
        while let Some(name) = map.next_key::<String>()? {
            if self.fields.iter().any(|(field, _)| *field == name) {
                self.at = Some(name);
                return Err(A::Error::custom("the field stands there twice"));
            }
            if self.fields.len() == FIELDS_LIMIT {
                return Err(A::Error::custom(format!("an object of more than {FIELDS_LIMIT} fields")));
            }
            self.at = Some(name.clone());
            let raw = map.next_value()?;
            self.fields.push((name, raw));
            self.at = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: fmt::Debug>(result: Result<T, Failure>) -> (String, String) {
        let failure = result.unwrap_err();
        (failure.param.unwrap_or_default(), failure.message)
    }

    fn field<'a>(json: &'a str) -> Field<'a> {
        Object::body(json.as_bytes()).unwrap().take("x").unwrap()
    }

    #[test]
    fn broken_bodies_are_named_where_they_break() {
        let at = |json: &[u8]| refused(Object::body(json));
        assert!(at(b"").1.contains("empty"));
        assert!(at(b"  [1]").1.contains("must be a JSON object, not an array"));
        assert!(at(b"\xff{}").1.contains("not UTF-8"));
        assert_eq!(at(br#"{"a":1,"temperature":NaN}"#).0, "temperature");
        assert_eq!(at(br#"{"messages":[{"role":"us"#).0, "messages");
        assert_eq!(
            at(br#"{"a":1,"a":2}"#),
            ("a".into(), "the body is not valid JSON at a: the field stands there twice at line 1 column 10".into())
        );
        assert!(at(b"{} x").1.contains("trailing"));
        let nested = "[".repeat(100_000);
        assert!(at(format!("{{\"a\":{nested}").as_bytes()).1.contains("EOF"));
    }

    #[test]
    fn values_of_the_wrong_kind_say_what_was_expected_and_found() {
        assert_eq!(refused(field(r#"{"x":"1"}"#).number(Range::AtLeast(0.0))).1, "x must be a number, not a string");
        assert_eq!(refused(field(r#"{"x":1}"#).string()).1, "x must be a string, not a number");
        assert_eq!(refused(field(r#"{"x":{}}"#).items(9)).1, "x must be an array, not an object");
        assert_eq!(refused(field(r#"{"x":"\ud800"}"#).string()).0, "x");
        let items = field(r#"{"x":[{"y":true}]}"#).items(9).unwrap();
        let y = items[0].object().unwrap().take("y").unwrap();
        assert_eq!(refused(y.string()), ("x[0].y".into(), "x[0].y must be a string, not a boolean".into()));
        assert!(Object::body(br#"{"x":null}"#).unwrap().take("x").is_none());
    }

    #[test]
    fn numbers_are_finite_and_in_range() {
        assert_eq!(field(r#"{"x":0.5}"#).number(Range::Above(0.0, 1.0)), Ok(0.5));
        for json in [r#"{"x":1e999}"#, r#"{"x":-1e999}"#, r#"{"x":1e39}"#, r#"{"x":-0.1}"#] {
            assert_eq!(refused(field(json).number(Range::AtLeast(0.0))).0, "x", "{json}");
        }
        // Too small for an f32, which would make it the 0 that is left out.
        assert!(field(r#"{"x":1e-60}"#).number(Range::Above(0.0, 1.0)).is_err());
        assert_eq!(field(r#"{"x":18446744073709551615}"#).integer(0, i128::from(u64::MAX)), Ok(i128::from(u64::MAX)));
        for json in [r#"{"x":1.5}"#, r#"{"x":0}"#, r#"{"x":99999999999999999999999999999999999999999}"#] {
            assert!(refused(field(json).count(1)).1.starts_with("x must be a whole number from 1"), "{json}");
        }
    }

    #[test]
    fn token_ids_name_the_one_that_is_none() {
        assert_eq!(field(r#"{"x":[1,2]}"#).token_ids(2), Ok(vec![1, 2]));
        assert_eq!(refused(field(r#"{"x":[1,-2]}"#).token_ids(2)).0, "x[1]");
        assert_eq!(refused(field(r#"{"x":[1,2,3]}"#).token_ids(2)).0, "x");
    }

    #[test]
    fn names_that_nobody_took_are_left() {
        let mut object = Object::body(br#"{"a":1,"b":2,"c":3}"#).unwrap();
        object.take("a");
        let mut left: Vec<String> = object.left().collect();
        left.sort();
        assert_eq!(left, ["b", "c"]);
    }
}
