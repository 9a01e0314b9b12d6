//! What the fields of a request may be, whatever the face: ranges, sizes, roles.

use std::fmt;

use crate::request::{Failure, Role};

pub(super) const TEMPERATURE: Range = Range::AtLeast(0.0);
pub(super) const TOP_P: Range = Range::Above(0.0, 1.0);
pub(super) const MIN_P: Range = Range::Within(0.0, 1.0);
pub(super) const REPETITION_PENALTY: Range = Range::MoreThan(0.0);
/// Of presence and frequency.
pub(super) const PENALTY: Range = Range::Within(-2.0, 2.0);
pub(super) const LOGIT_BIAS: Range = Range::Within(-100.0, 100.0);

/// Messages of one conversation.
pub(super) const MESSAGES: usize = 10_000;
/// Bytes of JSON for the template's variables.
pub(super) const KWARGS_BYTES: usize = 64 << 10;
/// Stop texts of one request.
pub(super) const STOPS: usize = 4;
/// Stop ids of one request.
pub(super) const STOP_IDS: usize = 128;
/// Choices of one request.
pub(super) const CHOICES: u32 = 16;
/// The most likely tokens that are told beside each token.
pub(super) const TOP_LOGPROBS: u32 = 20;
/// Bytes of a schema, a regular expression or a grammar.
pub(super) const CONSTRAINT_BYTES: usize = 64 << 10;
/// Bytes of one stop text: the stream holds that much back.
const STOP_BYTES: usize = 1024;

/// A stop text that stands at `path`.
pub(super) fn stop_text(path: &str, text: String) -> Result<String, Failure> {
    if text.is_empty() {
        return Err(Failure::field(path, format!("{path} must not be empty")));
    }
    if text.len() > STOP_BYTES {
        return Err(Failure::field(path, format!("{path} must have at most {STOP_BYTES} bytes")));
    }
    Ok(text)
}

/// A name of a schema or a tool that stands at `path`.
pub(super) fn name(path: &str, name: &str) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if (1..=64).contains(&name.len()) && name.chars().all(plain) {
        return Ok(());
    }
    Err(Failure::field(path, format!("{path} must be 1 to 64 of a-z, A-Z, 0-9, _ and -")))
}

/// The role that stands at `path`.
pub(super) fn role(path: &str, word: &str) -> Result<Role, Failure> {
    match word {
        "system" | "developer" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" => Ok(Role::Tool),
        "function" => Err(Failure::field(path, format!("{path} is function, which is not served: use tool"))),
        _ => Err(Failure::field(path, format!("{path} must be system, developer, user, assistant or tool"))),
    }
}

/// Numbers that a field takes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Range {
    /// At least the one and at most the other.
    Within(f64, f64),
    /// At least.
    AtLeast(f64),
    /// More than the one and at most the other.
    Above(f64, f64),
    /// More than.
    MoreThan(f64),
}

impl Range {
    /// Whether a number, which must be finite, is one of them.
    pub(super) fn contains(self, number: f64) -> bool {
        number.is_finite()
            && match self {
                Self::Within(least, most) => (least..=most).contains(&number),
                Self::AtLeast(least) => number >= least,
                Self::Above(least, most) => number > least && number <= most,
                Self::MoreThan(least) => number > least,
            }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Within(least, most) => write!(f, "from {least} to {most}"),
            Self::AtLeast(least) => write!(f, "a finite number of at least {least}"),
            Self::Above(least, most) => write!(f, "above {least} and at most {most}"),
            Self::MoreThan(least) => write!(f, "a finite number above {least}"),
        }
    }
}
