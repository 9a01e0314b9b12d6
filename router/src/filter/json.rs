//! JSON on its way through the filter: strings are searched as they are meant, and stay as they were written where
//! nothing is found. A match in a key or a number ends the answer: no placeholder can take its place.

use std::collections::VecDeque;
use std::sync::Arc;

use penstock_cluster::catalog::FilterAction;

use super::Stopped;
use super::channel::placeholder;
use crate::class::{Cut, Finder, Search};

/// Bytes of a key that are known where its value is searched: `ssn`, `password`.
const KEY: usize = 64;
/// What stands for half of a pair that has no other half.
const LONE: char = '\u{fffd}';

pub(super) struct Json {
    finder: Arc<Finder>,
    action: FilterAction,
    /// Whether each open container is an object.
    open: Vec<bool>,
    /// Whether the next string is a key.
    key_next: bool,
    at: At,
    within: Within,
    search: Search,
    /// The last key, or what has come of it.
    key: String,
    /// What has not been searched yet.
    meant: String,
    /// What has no verdict yet, as it was written, and the bytes of each character, as it is meant and as it was written.
    written: String,
    characters: VecDeque<(usize, usize)>,
    /// The first half of a pair, and how it was written.
    half: Option<(u16, String)>,
    cuts: Vec<Cut>,
}

/// What the next character is.
enum At {
    /// Itself.
    Plain,
    /// What is escaped.
    Escape,
    /// One of the digits of a code; those before it.
    Code(String),
}

/// What a character belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    /// No string: numbers, words, what stands between values.
    Between,
    Key,
    Value,
}

impl Json {
    pub(super) fn new(finder: &Arc<Finder>, action: FilterAction) -> Self {
        Self {
            finder: Arc::clone(finder),
            action,
            open: Vec::new(),
            key_next: false,
            at: At::Plain,
            within: Within::Between,
            search: Search::new(finder),
            key: String::new(),
            meant: String::new(),
            written: String::new(),
            characters: VecDeque::new(),
            half: None,
            cuts: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, piece: &str, out: &mut String, hits: &mut Vec<usize>) -> Result<(), Stopped> {
        for character in piece.chars() {
            self.step(character, out, hits)?;
        }
        self.search(out, hits)
    }

    pub(super) fn cut(&mut self, out: &mut String, hits: &mut Vec<usize>) -> Result<(), Stopped> {
        self.search(out, hits)?;
        self.search.cut(&mut self.cuts);
        self.carry_out(out, hits)
    }

    pub(super) fn end(&mut self, out: &mut String, hits: &mut Vec<usize>) -> Result<(), Stopped> {
        match std::mem::replace(&mut self.at, At::Plain) {
            At::Plain => {}
            At::Escape => self.take(LONE, "\\"),
            At::Code(digits) => self.take(LONE, &format!("\\u{digits}")),
        }
        self.take_half();
        self.search(out, hits)?;
        self.search.end(&mut self.cuts);
        self.carry_out(out, hits)
    }

    fn step(&mut self, character: char, out: &mut String, hits: &mut Vec<usize>) -> Result<(), Stopped> {
        match std::mem::replace(&mut self.at, At::Plain) {
            At::Plain => match (self.within, character) {
                (Within::Between, '"') => {
                    let within = if self.key_next { Within::Key } else { Within::Value };
                    self.enter(within, out, hits)?;
                    out.push('"');
                }
                (Within::Key | Within::Value, '"') => {
                    self.key_next = false;
                    self.enter(Within::Between, out, hits)?;
                    out.push('"');
                }
                (Within::Key | Within::Value, '\\') => self.at = At::Escape,
                (Within::Between, _) => {
                    self.structure(character);
                    self.take(character, character.encode_utf8(&mut [0; 4]));
                }
                (Within::Key | Within::Value, _) => self.take(character, character.encode_utf8(&mut [0; 4])),
            },
            At::Escape => {
                let meant = match character {
                    'u' => {
                        self.at = At::Code(String::new());
                        return Ok(());
                    }
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    other => other,
                };
                self.take(meant, &format!("\\{character}"));
            }
            At::Code(mut digits) if character.is_ascii_hexdigit() => {
                digits.push(character);
                match u16::from_str_radix(&digits, 16) {
                    Ok(unit) if digits.len() == 4 => self.code(unit, &digits),
                    Ok(_) | Err(_) => self.at = At::Code(digits),
                }
            }
            At::Code(digits) => {
                self.take(LONE, &format!("\\u{digits}"));
                self.step(character, out, hits)?;
            }
        }
        Ok(())
    }

    fn structure(&mut self, character: char) {
        match character {
            '{' | '[' => self.open.push(character == '{'),
            '}' | ']' => drop(self.open.pop()),
            _ => {}
        }
        match character {
            '{' | '[' | ',' => self.key_next = self.open.last() == Some(&true),
            '}' | ']' | ':' => self.key_next = false,
            _ => {}
        }
    }

    /// One unit of UTF-16.
    fn code(&mut self, unit: u16, digits: &str) {
        let written = format!("\\u{digits}");
        match (unit, self.half.take()) {
            (0xdc00..=0xdfff, Some((first, before))) => {
                let meant = char::decode_utf16([first, unit]).next().and_then(Result::ok).unwrap_or(LONE);
                self.take(meant, &(before + &written));
            }
            (_, before) => {
                self.half = before;
                self.take_half();
                match char::from_u32(u32::from(unit)) {
                    Some(meant) => self.take(meant, &written),
                    None if unit < 0xdc00 => self.half = Some((unit, written)),
                    None => self.take(LONE, &written),
                }
            }
        }
    }

    fn take_half(&mut self) {
        if let Some((_, written)) = self.half.take() {
            self.take(LONE, &written);
        }
    }

    /// Takes a character as it is meant and as it was written.
    fn take(&mut self, meant: char, written: &str) {
        self.take_half();
        if self.within == Within::Key && self.key.len() < KEY {
            self.key.push(meant);
        }
        self.meant.push(meant);
        self.written.push_str(written);
        self.characters.push_back((meant.len_utf8(), written.len()));
    }

    /// Ends what is within and goes on in something else.
    fn enter(&mut self, within: Within, out: &mut String, hits: &mut Vec<usize>) -> Result<(), Stopped> {
        self.take_half();
        self.search(out, hits)?;
        self.search.end(&mut self.cuts);
        self.carry_out(out, hits)?;
        self.within = within;
        self.search = match within {
            Within::Value if !self.key.is_empty() => Search::behind(&self.finder, &format!("{}: ", self.key)),
            Within::Between | Within::Key | Within::Value => Search::new(&self.finder),
        };
        if within == Within::Key {
            self.key.clear();
        }
        Ok(())
    }

    fn search(&mut self, out: &mut String, hits: &mut Vec<usize>) -> Result<(), Stopped> {
        if self.meant.is_empty() {
            return Ok(());
        }
        self.search.push(&self.meant, &mut self.cuts);
        self.meant.clear();
        self.carry_out(out, hits)
    }

    fn carry_out(&mut self, out: &mut String, hits: &mut Vec<usize>) -> Result<(), Stopped> {
        let mut at = 0;
        for cut in std::mem::take(&mut self.cuts) {
            match (cut, self.action, self.within) {
                (Cut::Pass(length), ..) => {
                    let until = at + self.length(length);
                    out.push_str(&self.written[at..until]);
                    at = until;
                }
                (Cut::Drop(length), ..) => at += self.length(length),
                (Cut::Mark(label), FilterAction::Redact, Within::Value) => {
                    hits.push(label);
                    placeholder(&self.finder, label, out);
                }
                (Cut::Mark(label), FilterAction::Redact | FilterAction::Block, _) => {
                    return Err(Stopped::Blocked(label));
                }
            }
        }
        self.written.drain(..at);
        Ok(())
    }

    /// How many bytes were written for the next ones that are meant.
    fn length(&mut self, meant: usize) -> usize {
        let (mut left, mut length) = (meant, 0);
        while left > 0 {
            let Some((character, written)) = self.characters.pop_front() else { break };
            left = left.saturating_sub(character);
            length += written;
        }
        length
    }
}
