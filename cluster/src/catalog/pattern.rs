//! A detector's pattern: a regular expression that is matched in linear time, with ASCII digits and word boundaries.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};
use regex_syntax::ast::{self, Ast, ClassPerl, ClassPerlKind, ClassSetItem};
use serde::{Deserialize, Serialize};

/// The longest pattern as text, in bytes.
const PATTERN_LIMIT: usize = 4096;
/// What a compiled pattern may take.
const SIZE_LIMIT: usize = 1 << 20;

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// Over the limit.
    #[error("the pattern is longer than 4096 bytes")]
    TooLong,
    /// No regular expression that is matched in linear time: look-around and backreferences are none.
    #[error("the pattern cannot be matched in linear time, or is malformed: {0}")]
    Syntax(String),
    /// Its repetitions multiply.
    #[error("the pattern is too large once it is compiled: its repetitions multiply")]
    TooLarge,
    /// It matches nothing at all, everywhere.
    #[error("the pattern matches the empty text, and so every text")]
    Empty,
}

/// A regular expression of the crate `regex`, in which `\d` and `\b` mean ASCII: a Chinese character before a digit is
/// a boundary.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    source: Arc<str>,
    regex: Regex,
    longest: Option<usize>,
}

impl Pattern {
    /// Reads and compiles a pattern.
    ///
    /// # Errors
    ///
    /// [`InvalidPattern`].
    pub fn new(source: &str) -> Result<Self, InvalidPattern> {
        if source.len() > PATTERN_LIMIT {
            return Err(InvalidPattern::TooLong);
        }
        let syntax = |error: &dyn fmt::Display| InvalidPattern::Syntax(reason(&error.to_string()));
        let ast = ast::parse::Parser::new().parse(source).map_err(|error| syntax(&error))?;
        let ascii = ascii(source, &ast);
        let hir = regex_syntax::Parser::new().parse(&ascii).map_err(|error| syntax(&error))?;
        if hir.properties().minimum_len() == Some(0) {
            return Err(InvalidPattern::Empty);
        }
        let regex = RegexBuilder::new(&ascii).size_limit(SIZE_LIMIT).build().map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => InvalidPattern::TooLarge,
            other => syntax(&other),
        })?;
        Ok(Self { source: source.into(), regex, longest: hir.properties().maximum_len() })
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What matches it.
    pub fn regex(&self) -> &Regex {
        &self.regex
    }

    /// The bytes of its longest match; None where there is no bound.
    pub fn longest(&self) -> Option<usize> {
        self.longest
    }
}

/// The pattern with `\d`, `\D`, `\b` and `\B` in their ASCII meaning. Turning Unicode off for the whole would forbid
/// Chinese characters in it.
fn ascii(source: &str, ast: &Ast) -> String {
    let Ok(mut changes) = ast::visit(ast, Ascii { source, changes: Vec::new() });
    changes.sort_by_key(|(range, _)| range.start);
    let mut written = String::with_capacity(source.len() + 8 * changes.len());
    let mut from = 0;
    for (range, replacement) in changes {
        written.push_str(&source[from..range.start]);
        written.push_str(&replacement);
        from = range.end;
    }
    written.push_str(&source[from..]);
    written
}

struct Ascii<'a> {
    source: &'a str,
    changes: Vec<(Range<usize>, String)>,
}

impl Ascii<'_> {
    fn perl(&mut self, class: &ClassPerl) {
        let digits = match (&class.kind, class.negated) {
            (ClassPerlKind::Digit, false) => "[0-9]",
            (ClassPerlKind::Digit, true) => "[^0-9]",
            (ClassPerlKind::Space | ClassPerlKind::Word, _) => return,
        };
        self.changes.push((class.span.start.offset..class.span.end.offset, digits.to_owned()));
    }
}

impl ast::Visitor for Ascii<'_> {
    type Output = Vec<(Range<usize>, String)>;
    type Err = std::convert::Infallible;

    fn finish(self) -> Result<Self::Output, Self::Err> {
        Ok(self.changes)
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), Self::Err> {
        match ast {
            Ast::ClassPerl(class) => self.perl(class),
            Ast::Assertion(assertion) => {
                let range = assertion.span.start.offset..assertion.span.end.offset;
                let written = &self.source[range.clone()];
                if written.starts_with("\\b") || written.starts_with("\\B") {
                    self.changes.push((range, format!("(?-u:{written})")));
                }
            }
            Ast::Empty(_)
            | Ast::Flags(_)
            | Ast::Literal(_)
            | Ast::Dot(_)
            | Ast::ClassUnicode(_)
            | Ast::ClassBracketed(_)
            | Ast::Repetition(_)
            | Ast::Group(_)
            | Ast::Alternation(_)
            | Ast::Concat(_) => {}
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Self::Err> {
        if let ClassSetItem::Perl(class) = item {
            self.perl(class);
        }
        Ok(())
    }
}

/// The last line of a message that draws the pattern above it.
fn reason(message: &str) -> String {
    let last = message.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.source)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl TryFrom<String> for Pattern {
    type Error = InvalidPattern;
    fn try_from(source: String) -> Result<Self, InvalidPattern> {
        Self::new(&source)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.source.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern).unwrap().regex().is_match(text)
    }

    #[test]
    fn digits_and_boundaries_are_ascii_and_the_rest_is_unicode() {
        let account = r"\b62\d{14,17}\b";
        assert!(matches(account, "账号6222020200012345678。"), "a Chinese character is a boundary");
        assert!(!matches(account, "x6222020200012345678") && !matches(account, "62220202000123456789999"));
        assert!(!matches(r"^\d$", "٣") && matches(r"^[\d]$", "3") && !matches(r"^[^\D]$", "٣"));
        assert!(matches(r"合同[一二三]+\d", "合同三7") && matches(r"^\D\B\D$", "ab"));
        assert!(matches(r"^\w+$", "账号"), "only \\d and \\b are ASCII");
    }

    #[test]
    fn the_longest_match_is_known() {
        let longest = |pattern: &str| Pattern::new(pattern).unwrap().longest();
        assert_eq!(longest(r"\b62\d{14,17}\b"), Some(19));
        assert_eq!(longest(r"a+"), None);
    }

    #[test]
    fn what_is_not_linear_time_is_no_pattern() {
        for (pattern, complaint) in [
            (r"(?=a)b", "look-around, including look-ahead and look-behind, is not supported"),
            (r"(a)\1", "backreferences are not supported"),
            (r"(", "unclosed group"),
            (r"a*", "matches the empty text"),
            (r"\b", "matches the empty text"),
            (r"(\w{200}){200}", "too large"),
        ] {
            let error = Pattern::new(pattern).unwrap_err().to_string();
            assert!(error.contains(complaint), "{pattern}: {error}");
        }
        assert_eq!(Pattern::new(&"a".repeat(5000)), Err(InvalidPattern::TooLong));
    }
}
