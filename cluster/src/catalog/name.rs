//! The small words of a catalogue: names, globs, money, durations, digests. Each is checked as it is read.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes.
const NAME_LIMIT: usize = 128;
/// Money's unit: a thousand millionth of a dollar.
const NANOS: f64 = 1e9;
/// More dollars than this are a slip of the hand.
const USD_LIMIT: f64 = 1e9;

/// What is wrong with a word of the catalogue.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidWord {
    /// Not a name.
    #[error("{0:?} is no name: 1 to 128 of A-Z a-z 0-9 . _ - / are, and the first is a letter or a digit")]
    Name(String),
    /// Not a pattern of names.
    #[error("{0:?} is no pattern of names: a name, in which * stands for any number of characters")]
    Glob(String),
    /// Not an amount.
    #[error("{0} is no amount of dollars: from 0 to a thousand million is")]
    Usd(f64),
    /// Not a share.
    #[error("{0} is no share: from 0 to 1 is")]
    Ratio(f64),
    /// Not a time.
    #[error("{0:?} is no time: a whole number and ms, s, m, h or d is, such as 10m")]
    Time(String),
    /// Not a point in time.
    #[error("{0:?} is no point in time: one such as 2026-12-31T18:00:00Z is")]
    Moment(String),
    /// Not a digest.
    #[error("this is no SHA-256: 64 hexadecimal digits are; a key itself never stands in a catalogue")]
    Digest,
}

/// The name of a thing in the catalogue.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

impl Name {
    /// Checks and takes a name.
    ///
    /// # Errors
    ///
    /// [`InvalidWord::Name`].
    pub fn new(name: impl AsRef<str>) -> Result<Self, InvalidWord> {
        let name = name.as_ref();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if first && name.len() <= NAME_LIMIT && name.bytes().all(plain) {
            Ok(Self(name.into()))
        } else {
            Err(InvalidWord::Name(name.chars().take(NAME_LIMIT).collect()))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidWord;
    fn try_from(name: String) -> Result<Self, InvalidWord> {
        Self::new(name)
    }
}

impl FromStr for Name {
    type Err = InvalidWord;
    fn from_str(name: &str) -> Result<Self, InvalidWord> {
        Self::new(name)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.as_str().to_owned()
    }
}

/// A pattern of names: `*` stands for any number of characters, everything else for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Glob(String);

impl Glob {
    /// Whether `name` is one that it means.
    pub fn matches(&self, name: &str) -> bool {
        let mut pieces = self.0.split('*');
        let first = pieces.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let Some(last) = pieces.next_back() else { return rest.is_empty() };
        for piece in pieces {
            match rest.find(piece) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }

    /// Whether it means one name only, and which.
    pub fn exact(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(self.0.as_str())
    }
}

impl TryFrom<String> for Glob {
    type Error = InvalidWord;
    fn try_from(glob: String) -> Result<Self, InvalidWord> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/*@:".contains(&byte);
        let sane = !glob.is_empty() && glob.len() <= NAME_LIMIT && glob.bytes().all(plain);
        if sane { Ok(Self(glob)) } else { Err(InvalidWord::Glob(glob.chars().take(NAME_LIMIT).collect())) }
    }
}

impl From<Glob> for String {
    fn from(glob: Glob) -> Self {
        glob.0
    }
}

/// An amount of US dollars, in thousand millionths, so that sums are exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Usd(u64);

impl Usd {
    /// An amount in thousand millionths of a dollar.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// In thousand millionths of a dollar.
    pub const fn nanos(self) -> u64 {
        self.0
    }
}

impl TryFrom<f64> for Usd {
    type Error = InvalidWord;
    fn try_from(dollars: f64) -> Result<Self, InvalidWord> {
        if (0.0..=USD_LIMIT).contains(&dollars) {
            // In range: at most 10^18.
            Ok(Self((dollars * NANOS).round() as u64))
        } else {
            Err(InvalidWord::Usd(dollars))
        }
    }
}

impl From<Usd> for f64 {
    fn from(amount: Usd) -> Self {
        amount.0 as f64 / NANOS
    }
}

/// A share of the whole, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Ratio(f64);

impl Ratio {
    /// From 0 to 1.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Ratio {
    type Error = InvalidWord;
    fn try_from(share: f64) -> Result<Self, InvalidWord> {
        if (0.0..=1.0).contains(&share) { Ok(Self(share)) } else { Err(InvalidWord::Ratio(share)) }
    }
}

impl From<Ratio> for f64 {
    fn from(share: Ratio) -> Self {
        share.0
    }
}

/// A length of time, written as `10m`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span {
    written: String,
    length: Duration,
}

impl Span {
    /// How long it is.
    pub fn get(&self) -> Duration {
        self.length
    }
}

impl TryFrom<String> for Span {
    type Error = InvalidWord;
    fn try_from(written: String) -> Result<Self, InvalidWord> {
        let digits = written.bytes().take_while(u8::is_ascii_digit).count();
        let (count, unit) = written.split_at(digits);
        let unit: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60 * 1000,
            "h" => 60 * 60 * 1000,
            "d" => 24 * 60 * 60 * 1000,
            _ => 0,
        };
        let millis = count.parse::<u32>().ok().and_then(|count| unit.checked_mul(u64::from(count)));
        match millis {
            Some(millis) if millis > 0 => Ok(Self { written, length: Duration::from_millis(millis) }),
            Some(_) | None => Err(InvalidWord::Time(written)),
        }
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.written
    }
}

/// A SHA-256, of a key or of a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes themselves.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidWord;
    fn try_from(hex: String) -> Result<Self, InvalidWord> {
        let mut bytes = [0; 32];
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(InvalidWord::Digest);
        }
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).expect("hexadecimal digits are ASCII");
            *byte = u8::from_str_radix(pair, 16).expect("two hexadecimal digits are a byte");
        }
        Ok(Self(bytes))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_means_what_fits_between_its_stars() {
        let matches = |glob: &str, name: &str| Glob::try_from(glob.to_owned()).unwrap().matches(name);
        assert!(matches("risk-*", "risk-1") && matches("risk-*", "risk-"));
        assert!(!matches("risk-*", "arisk-1") && !matches("risk", "risk-1") && !matches("risk-1", "risk"));
        assert!(matches("*", "anything") && matches("a*b*c", "aXbXc") && matches("a**c", "ac"));
        assert!(!matches("a*bc*c", "abc"), "no character counts twice");
        assert!(matches("m@*", "m@v1") && matches("*:tone", "m:tone"));
        assert!(Glob::try_from("a b".to_owned()).is_err() && Glob::try_from(String::new()).is_err());
    }

    #[test]
    fn words_are_checked_as_they_are_read() {
        assert!(Name::new("SmolLM2-135m").is_ok() && Name::new("org/model").is_ok());
        for name in ["", "-a", "a@b", "a:b", "a*", "a b", "名", &"x".repeat(129)] {
            assert!(Name::new(name).is_err(), "{name}");
        }
        assert_eq!(Usd::try_from(0.15).unwrap().nanos(), 150_000_000);
        assert!(Usd::try_from(-0.01).is_err() && Usd::try_from(f64::NAN).is_err() && Usd::try_from(1e10).is_err());
        assert!(Ratio::try_from(1.01).is_err() && Ratio::try_from(f64::NAN).is_err());
        let span = |text: &str| Span::try_from(text.to_owned()).ok().map(|span| span.get());
        assert_eq!(span("10m"), Some(Duration::from_secs(600)));
        assert_eq!(span("250ms"), Some(Duration::from_millis(250)));
        for text in ["", "m", "10", "-1s", "1 s", "0s", "1.5h", "10M", "99999999999s"] {
            assert_eq!(span(text), None, "{text}");
        }
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(Digest::try_from(empty.to_uppercase()), Ok(Digest::of(b"")));
        assert!(Digest::try_from("psk_secret".to_owned()).is_err());
    }
}
