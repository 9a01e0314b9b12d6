//! Where a catalogue's own patterns and the entries of its dictionaries stand.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use penstock_cluster::catalog::Check;
use regex::{Regex, RegexSet, RegexSetBuilder};
use regex_automata::hybrid::dfa::{self, DFA};
use regex_automata::{Anchored, Input};

use super::super::custom::{SIZE_LIMIT, passes};
use super::super::digits::{DIGITS_LIMIT, PART_DIGITS, PART_LIMIT, after_gap, before, is_boundary, separator};
use super::{CONTEXT, HOLD, Match, View};

/// Separators that tell two numbers apart.
const APART: usize = 4;

/// What a search through patterns keeps from one piece of a text to the next.
#[derive(Debug, Clone, Default)]
pub(super) struct Cache(Option<Box<dfa::Cache>>);

/// Patterns, and what tells whether a match of any of them may have begun.
#[derive(Debug)]
pub(super) struct Patterns {
    set: RegexSet,
    patterns: Vec<(Regex, Check)>,
    live: DFA,
    /// The label of the first.
    first: usize,
}

impl Patterns {
    pub(super) fn compile(patterns: Vec<(Regex, Check)>, first: usize) -> Result<Self, String> {
        let sources: Vec<&str> = patterns.iter().map(|(regex, _)| regex.as_str()).collect();
        let set = RegexSetBuilder::new(&sources).size_limit(SIZE_LIMIT).build().map_err(|error| error.to_string())?;
        // All matches, not the preferred one: a pattern must not end the search for another.
        let config = DFA::config().match_kind(regex_automata::MatchKind::All).skip_cache_capacity_check(true);
        let live = DFA::builder().configure(config).build_many(&sources).map_err(|error| error.to_string())?;
        Ok(Self { set, patterns, live, first })
    }

    /// Looks through a text, through the same with the separators between digits removed, and through parts of numbers
    /// by themselves.
    pub(super) fn scan(&self, view: &View<'_>, cache: &mut Cache, out: &mut Vec<Match>) -> usize {
        let cache = cache.0.get_or_insert_with(|| Box::new(self.live.create_cache()));
        let found = |range: Range<usize>, known, label| Match {
            start: range.start,
            end: range.end,
            known: view.ceil(known),
            label,
            tail: None,
        };
        let tell = |range, known, label| out.push(found(range, known, label));
        let mut hold = self.look((view.text, view.from, view.more), cache, tell);
        let Some(joined) = Joined::of(view) else { return hold };
        let from = joined.places.partition_point(|place| place.at < view.from);
        let tell = |range: Range<usize>, known: usize, label| {
            let known = known.checked_sub(1).map_or(0, |last| joined.places[last].known);
            out.push(found(joined.places[range.start].at..joined.places[range.end - 1].at + 1, known, label));
        };
        let held = self.look((&joined.text, from, view.more), cache, tell);
        hold = hold.min(joined.places.get(held).map_or(view.text.len(), |place| place.at));
        hold.min(self.parts(view, cache, out))
    }

    /// Looks through a text from a place on. Returns where the first match may begin that is not certain.
    fn look(
        &self,
        (text, from, more): (&str, usize, bool),
        cache: &mut dfa::Cache,
        mut tell: impl FnMut(Range<usize>, usize, usize),
    ) -> usize {
        for at in self.set.matches(text) {
            let (regex, check) = &self.patterns[at];
            let mut from = from;
            while let Some(found) = regex.find_at(text, from) {
                if passes(*check, found.as_str()) {
                    let known = self.certain(text, found.start(), cache).unwrap_or(text.len());
                    tell(found.range(), known, self.first + at);
                }
                from = next(text, found.start());
            }
        }
        let mut at = ceil(text, from.max(text.len().saturating_sub(HOLD)));
        while more && at < text.len() {
            if self.certain(text, at, cache).is_none() {
                return at;
            }
            at = next(text, at);
        }
        text.len()
    }

    /// Up to where a text tells whether a match begins at a place; None where more of it may.
    fn certain(&self, text: &str, start: usize, cache: &mut dfa::Cache) -> Option<usize> {
        let input = Input::new(text).range(start..).anchored(Anchored::Yes);
        let mut state = self.live.start_state_forward(cache, &input).ok()?;
        for (at, byte) in text.as_bytes().iter().enumerate().skip(start) {
            state = self.live.next_state(cache, state, *byte).ok()?;
            if state.is_dead() {
                return Some(at + 1);
            }
        }
        None
    }

    /// Looks at the parts of numbers that are written in groups: one may stand beside others.
    fn parts(&self, view: &View<'_>, cache: &mut dfa::Cache, out: &mut Vec<Match>) -> usize {
        let (text, bytes) = (view.text, view.text.as_bytes());
        let mut hold = text.len();
        let mut at = view.back(CONTEXT);
        while let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit).map(|offset| at + offset) {
            at = start + digits(&bytes[start..]);
            if before(text, start).is_some_and(u8::is_ascii_digit) {
                continue;
            }
            let (mut part, mut places, mut group) = (String::new(), Vec::new(), start);
            for nth in 0..PART_LIMIT {
                let end = group + digits(&bytes[group..]);
                part.push_str(&text[group..end]);
                places.extend(group..end);
                if part.len() > DIGITS_LIMIT {
                    break;
                }
                let gap = after_gap(text, end).unwrap_or(end);
                let open = view.more && gap == text.len();
                let from = places.partition_point(|place| *place < view.from);
                if open || (nth > 0 && part.len() >= PART_DIGITS) {
                    let tell = |range: Range<usize>, _, label| {
                        if nth > 0 && part.len() >= PART_DIGITS && end < text.len() + usize::from(!view.more) {
                            let (start, last) = (places[range.start], places[range.end - 1]);
                            out.push(Match { start, end: last + 1, known: view.ceil(end + 1), label, tail: None });
                        }
                    };
                    let held = self.look((&part, from, open), cache, tell);
                    hold = hold.min(places.get(held).copied().unwrap_or(text.len()));
                }
                if open || !bytes.get(gap).is_some_and(u8::is_ascii_digit) {
                    break;
                }
                group = gap;
            }
        }
        hold
    }
}

fn digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

fn ceil(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

fn next(text: &str, at: usize) -> usize {
    if at >= text.len() { at } else { ceil(text, at + 1) }
}

/// A text with the separators between digits removed.
struct Joined {
    text: String,
    places: Vec<Place>,
}

/// Where a byte of a joined text stands.
struct Place {
    at: usize,
    /// How much of the text tells that it is not removed.
    known: usize,
}

impl Joined {
    /// None where nothing is removed, and nothing may be.
    fn of(view: &View<'_>) -> Option<Self> {
        let (text, bytes) = (view.text, view.text.as_bytes());
        let start = view.back(CONTEXT);
        let mut joined = Self { text: String::new(), places: Vec::new() };
        let (mut copied, mut at, mut removed) = (start, start, false);
        while let Some(group) = bytes[at..].iter().position(u8::is_ascii_digit).map(|offset| at + offset) {
            let end = group + digits(&bytes[group..]);
            at = end;
            let Some(next) = after_gap(text, end) else {
                let gap = apart(text, end);
                if gap > end {
                    joined.copy(text, copied..end, 0);
                    joined.copy(text, end..gap, gap);
                    copied = gap;
                }
                continue;
            };
            if view.more && next == text.len() {
                joined.copy(text, copied..end, 0);
                return Some(joined);
            }
            joined.copy(text, copied..end, 0);
            if bytes.get(next).is_some_and(u8::is_ascii_digit) {
                removed = true;
            } else {
                joined.copy(text, end..next, next + 1);
            }
            (copied, at) = (next, next);
        }
        joined.copy(text, copied..text.len(), 0);
        removed.then_some(joined)
    }

    fn copy(&mut self, text: &str, range: Range<usize>, known: usize) {
        self.text.push_str(&text[range.clone()]);
        self.places.extend(range.map(|at| Place { at, known: known.max(at + 1) }));
    }
}

/// Where the separators at a place are so many that they tell numbers apart.
fn apart(text: &str, at: usize) -> usize {
    (0..APART).fold(at, |end, _| end + separator(text, end))
}

/// The entries of dictionaries.
#[derive(Debug)]
pub(super) struct Words {
    words: Option<AhoCorasick>,
    /// The label of each.
    labels: Vec<usize>,
    /// All of them, in order.
    sorted: Vec<String>,
    longest: usize,
}

impl Words {
    pub(super) fn compile(dictionaries: Vec<BTreeSet<String>>, first: usize) -> Result<Self, String> {
        let entries =
            dictionaries.iter().enumerate().flat_map(|(at, words)| words.iter().map(move |it| (first + at, it)));
        let (labels, entries): (Vec<usize>, Vec<String>) =
            entries.map(|(label, word)| (label, lower(word).into_owned())).unzip();
        let longest = entries.iter().map(String::len).max().unwrap_or(0);
        let words = if entries.is_empty() {
            None
        } else {
            let mut builder = AhoCorasick::builder();
            let words = builder.ascii_case_insensitive(true).match_kind(MatchKind::Standard).build(&entries);
            Some(words.map_err(|error| error.to_string())?)
        };
        let sorted: BTreeSet<String> = entries.into_iter().collect();
        Ok(Self { words, labels, sorted: sorted.into_iter().collect(), longest })
    }

    pub(super) fn scan(&self, view: &View<'_>, out: &mut Vec<Match>) -> usize {
        let Some(words) = &self.words else { return view.text.len() };
        let bytes = view.text.as_bytes();
        let inside = |at: usize| !is_boundary(bytes.get(at));
        let begins = |at: usize| at == 0 || !inside(at - 1) || !inside(at);
        let text = lower(&view.text[view.from..]);
        let mut hold = bytes.len();
        for found in words.find_overlapping_iter(text.as_ref()) {
            let (start, end) = (view.from + found.start(), view.from + found.end());
            let open = view.more && end == bytes.len() && inside(end - 1);
            if !begins(start) || (inside(end - 1) && inside(end)) {
                continue;
            }
            if open {
                hold = hold.min(start);
                continue;
            }
            let known = view.ceil(if inside(end - 1) { end + 1 } else { end });
            let label = self.labels[found.pattern().as_usize()];
            out.push(Match { start, end, known, label, tail: None });
        }
        if view.more {
            hold = hold.min(self.begun(&text, begins, view.from));
        }
        hold
    }

    /// Where the text ends with the beginning of an entry.
    fn begun(&self, text: &str, begins: impl Fn(usize) -> bool, from: usize) -> usize {
        let text = if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(text.to_ascii_lowercase())
        } else {
            Cow::Borrowed(text)
        };
        let mut at = ceil(&text, text.len().saturating_sub(self.longest.min(HOLD)));
        while at < text.len() {
            let end = &text[at..];
            let first = self.sorted.partition_point(|word| word.as_str() <= end);
            if begins(from + at) && self.sorted.get(first).is_some_and(|word| word.starts_with(end)) {
                return from + at;
            }
            at = next(&text, at);
        }
        from + text.len()
    }
}

/// A text in lower case, each letter at its place: one whose lower case has another length stays as it is, and a sigma
/// is the same at the end of a word.
fn lower(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return Cow::Borrowed(text);
    }
    let letter = |character: char| {
        let mut lower = character.to_lowercase();
        match (lower.next(), lower.next()) {
            (Some('ς'), None) => 'σ',
            (Some(only), None) if only.len_utf8() == character.len_utf8() => only,
            _ => character,
        }
    };
    Cow::Owned(text.chars().map(letter).collect())
}
