//! Strings in a conversation that look like special tokens: each becomes one private character before the template
//! runs, so that the template's own special tokens are the only ones in what it renders. A template that cuts, counts
//! or rewrites the characters of a message takes a look-alike for one character.

use std::collections::BTreeSet;

use serde_json::Value;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::{AddedToken, AddedVocabulary, NormalizedString, Normalizer, OffsetReferential, OffsetType, Tokenizer};

use crate::request::Failure;

/// Characters for private use that carry no meaning of their own (planes 15 and 16).
fn private_characters() -> impl Iterator<Item = char> {
    ('\u{F0000}'..='\u{FFFFD}').chain('\u{100000}'..='\u{10FFFD}')
}

fn is_private(character: char) -> bool {
    character >= '\u{F0000}'
}

/// Finds special tokens in text.
#[derive(Debug)]
pub(super) struct Finder {
    /// The special tokens alone, matched wherever they stand.
    special: AddedVocabulary,
}

impl Finder {
    pub(super) fn new(tokenizer: &Tokenizer) -> Self {
        let known = tokenizer.get_added_tokens_decoder();
        let tokens =
            known.into_values().filter(|token| token.special).map(|token| AddedToken::from(token.content, true));
        let mut special = AddedVocabulary::new();
        special
            .add_tokens(tokens, tokenizer.get_model(), None::<&NormalizerWrapper>)
            .expect("nothing is normalised, and the tokenizer has built the same automaton");
        Self { special }
    }

    /// Replaces every special token in a value's strings, keys included, by a character that the value does not hold.
    pub(super) fn hide(&self, value: &mut Value) -> Result<Marks, Failure> {
        let mut taken = BTreeSet::new();
        let mut found = BTreeSet::new();
        each_string(value, &mut |text| {
            taken.extend(text.chars().filter(|c| is_private(*c)));
            found.extend(self.split(text).into_iter().filter(|(_, special)| *special).map(|(piece, _)| piece));
        });
        let free = private_characters().filter(|c| !taken.contains(c));
        let wanted = found.len();
        let marks: Vec<(char, String)> = free.zip(found).collect();
        if marks.len() < wanted {
            return Err(Failure::field("messages", "messages use up all private-use characters"));
        }
        let marks = Marks { marks };
        if !marks.is_empty() {
            self.replace(value, &marks);
        }
        Ok(marks)
    }

    fn replace(&self, value: &mut Value, marks: &Marks) {
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
            Value::String(text) => *text = self.replaced(text, marks),
            Value::Array(items) => items.iter_mut().for_each(|item| self.replace(item, marks)),
            Value::Object(entries) => {
                *entries = std::mem::take(entries)
                    .into_iter()
                    .map(|(key, mut value)| {
                        self.replace(&mut value, marks);
                        (self.replaced(&key, marks), value)
                    })
                    .collect();
            }
        }
    }

    fn replaced(&self, text: &str, marks: &Marks) -> String {
        let pieces = self.split(text).into_iter();
        pieces.map(|(piece, special)| if special { marks.mark_of(&piece) } else { piece }).collect()
    }

    /// The text in pieces, and which of them are special tokens.
    fn split(&self, text: &str) -> Vec<(String, bool)> {
        let pieces = self.special.extract_and_normalize(None::<&NormalizerWrapper>, text);
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::None);
        splits.into_iter().map(|(piece, _, tokens)| (piece.to_owned(), tokens.is_some())).collect()
    }
}

fn each_string(value: &Value, visit: &mut impl FnMut(&str)) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
        Value::String(text) => visit(text),
        Value::Array(items) => items.iter().for_each(|item| each_string(item, visit)),
        Value::Object(entries) => entries.iter().for_each(|(key, value)| {
            visit(key);
            each_string(value, visit);
        }),
    }
}

/// Which character stands for which look-alike in one rendered conversation.
#[derive(Debug)]
pub(super) struct Marks {
    marks: Vec<(char, String)>,
}

impl Marks {
    pub(super) fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// The look-alikes.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.marks.iter().map(|(_, text)| text.as_str())
    }

    /// The text as it was written.
    pub(super) fn reveal(&self, text: &str) -> String {
        if self.is_empty() {
            return text.to_owned();
        }
        let mut revealed = String::with_capacity(text.len());
        for character in text.chars() {
            match self.marks.iter().find(|(mark, _)| *mark == character) {
                Some((_, text)) => revealed.push_str(text),
                None => revealed.push(character),
            }
        }
        revealed
    }

    fn mark_of(&self, text: &str) -> String {
        let mark = self.marks.iter().find(|(_, marked)| marked == text);
        mark.map_or_else(|| text.to_owned(), |(mark, _)| mark.to_string())
    }
}

/// A tokenizer's normalizer that first puts the look-alikes back. It runs after special tokens have been matched and
/// before text is cut into words, so that look-alikes are encoded as any other text is.
pub(super) struct Reveal<'a> {
    pub(super) marks: &'a Marks,
    pub(super) then: Option<&'a NormalizerWrapper>,
}

impl Normalizer for Reveal<'_> {
    fn normalize(&self, normalized: &mut NormalizedString) -> tokenizers::Result<()> {
        for (mark, text) in &self.marks.marks {
            normalized.replace(*mark, text)?;
        }
        self.then.map_or(Ok(()), |normalizer| normalizer.normalize(normalized))
    }
}
