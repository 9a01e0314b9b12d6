//! The catalogue's own detectors: patterns with their checks, and dictionaries.

use std::borrow::Cow;
use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, MatchKind};
use penstock_cluster::catalog::Check;
use regex::{Regex, RegexSet, RegexSetBuilder};
use unicode_normalization::UnicodeNormalization as _;

use super::Hits;
use super::checksum::{luhn, mod97};
use super::digits::is_boundary;

/// What the patterns may take together, compiled.
pub(super) const SIZE_LIMIT: usize = 64 << 20;

/// Patterns, searched for in one pass.
#[derive(Debug)]
pub(super) struct Patterns {
    set: RegexSet,
    patterns: Vec<(Regex, Check)>,
    /// The label of the first.
    first: usize,
}

impl Patterns {
    pub(super) fn compile(patterns: Vec<(Regex, Check)>, first: usize) -> Result<Self, String> {
        let set = RegexSetBuilder::new(patterns.iter().map(|(regex, _)| regex.as_str())).size_limit(SIZE_LIMIT).build();
        Ok(Self { set: set.map_err(|error| error.to_string())?, patterns, first })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Looks through a text and through the same with the separators between digits removed.
    pub(super) fn scan(&self, text: &str, joined: &str, hits: &mut Hits) {
        if self.is_empty() {
            return;
        }
        for text in [text, joined] {
            for at in self.set.matches(text) {
                let (regex, check) = &self.patterns[at];
                if *check == Check::None || regex.find_iter(text).any(|found| passes(*check, found.as_str())) {
                    hits.hit[self.first + at] = true;
                }
            }
        }
    }
}

pub(super) fn passes(check: Check, text: &str) -> bool {
    match check {
        Check::None => true,
        Check::Luhn => {
            let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_digit).collect();
            !digits.is_empty() && luhn(&digits)
        }
        Check::Mod97 => mod97(&text.bytes().filter(u8::is_ascii_alphanumeric).collect::<Vec<u8>>()),
    }
}

/// Dictionaries, searched for in one pass.
#[derive(Debug)]
pub(super) struct Dictionaries {
    words: Option<AhoCorasick>,
    /// The label of each word.
    labels: Vec<usize>,
}

impl Dictionaries {
    pub(super) fn compile(dictionaries: Vec<BTreeSet<String>>, first: usize) -> Result<Self, String> {
        let labels = dictionaries.iter().enumerate().flat_map(|(at, words)| words.iter().map(move |_| first + at));
        let labels: Vec<usize> = labels.collect();
        if labels.is_empty() {
            return Ok(Self { words: None, labels });
        }
        // Standard matching finds all that overlap: a longer word hides no shorter one.
        let mut builder = AhoCorasick::builder();
        let words = builder.ascii_case_insensitive(true).match_kind(MatchKind::Standard);
        let words = words.build(dictionaries.iter().flatten()).map_err(|error| error.to_string())?;
        Ok(Self { words: Some(words), labels })
    }

    pub(super) fn scan(&self, text: &str, hits: &mut Hits) {
        let Some(words) = &self.words else { return };
        let text = if text.is_ascii() { Cow::Borrowed(text) } else { Cow::Owned(text.to_lowercase()) };
        let bytes = text.as_bytes();
        for found in words.find_overlapping_iter(text.as_ref()) {
            let inside = |at: usize| !is_boundary(bytes.get(at));
            let cut = (found.start() > 0 && inside(found.start() - 1) && inside(found.start()))
                || (inside(found.end() - 1) && inside(found.end()));
            if !cut {
                hits.hit[self.labels[found.pattern().as_usize()]] = true;
            }
        }
    }
}

/// The entries of a dictionary: its lines, without those that are empty or begin with `#`, as they are compared.
pub(super) fn entries(text: &str) -> BTreeSet<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.nfkc().collect::<String>().to_lowercase()).collect()
}
