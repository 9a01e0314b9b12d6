//! Numbers in a text: groups of digits, and runs of groups with nothing but separators between them, in one pass.

use super::{Hits, iban, numbers};

/// Characters that may stand between two groups of one number: ` - `.
const GAP_LIMIT: usize = 3;
/// Digits of the longest number that anything looks for.
pub(super) const DIGITS_LIMIT: usize = 24;
/// Groups of a part of a run that is looked at by itself: beside other numbers, one is not written digit by digit.
pub(super) const PART_LIMIT: usize = 6;
/// Digits of the shortest such part.
pub(super) const PART_DIGITS: usize = 6;

/// Digits without anything between them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Group {
    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }
}

/// Some groups that follow each other, as one number.
#[derive(Debug)]
pub(super) struct Number<'a> {
    pub(super) text: &'a str,
    pub(super) groups: &'a [Group],
    pub(super) digits: &'a [u8],
    /// Whether no further group stands next to it.
    pub(super) whole: bool,
}

impl Number<'_> {
    pub(super) fn start(&self) -> usize {
        self.groups.first().map_or(0, |group| group.start)
    }

    pub(super) fn end(&self) -> usize {
        self.groups.last().map_or(0, |group| group.end)
    }

    /// Whether the groups are of these lengths.
    pub(super) fn is_written(&self, layout: &[usize]) -> bool {
        self.groups.iter().map(Group::len).eq(layout.iter().copied())
    }
}

/// Looks for numbers. Where `join` is set, it gives the text with the separators between digits removed, followed by the
/// parts of longer runs, a line each; empty where nothing was removed.
pub(super) fn scan(text: &str, hits: &mut Hits, join: bool) -> String {
    let bytes = text.as_bytes();
    let mut joined = Joined { text, copied: 0, out: String::new(), parts: String::new() };
    let mut groups: Vec<Group> = Vec::new();
    let mut at = 0;
    while let Some(start) = next_digit(bytes, at) {
        groups.clear();
        at = start;
        loop {
            let end = at + bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            groups.push(Group { start: at, end });
            at = end;
            match after_gap(text, end).filter(|next| bytes.get(*next).is_some_and(u8::is_ascii_digit)) {
                Some(next) => at = next,
                None => break,
            }
        }
        run(text, &groups, hits);
        if join && groups.len() > 1 {
            joined.add(&groups);
        }
    }
    joined.finish()
}

fn next_digit(bytes: &[u8], from: usize) -> Option<usize> {
    bytes[from..].iter().position(u8::is_ascii_digit).map(|offset| from + offset)
}

/// Whether a word of ASCII begins or ends at a place, so that it is a `\b` for a digit on its other side.
pub(super) fn is_boundary(byte: Option<&u8>) -> bool {
    byte.is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
}

/// The byte before a place.
pub(super) fn before(text: &str, at: usize) -> Option<&u8> {
    text.as_bytes().get(at.wrapping_sub(1))
}

/// Where the separators that begin at a place end; None where there are none, or too many.
pub(super) fn after_gap(text: &str, at: usize) -> Option<usize> {
    let mut end = at;
    for _ in 0..=GAP_LIMIT {
        match separator(text, end) {
            0 if end == at => return None,
            0 => return Some(end),
            length => end += length,
        }
    }
    None
}

/// Where the separators that end at a place begin: there, where there are none; None where there are too many.
pub(super) fn before_gap(text: &str, at: usize) -> Option<usize> {
    let mut starts = text[..at].char_indices().rev().map(|(start, _)| start);
    let mut begin = at;
    for _ in 0..=GAP_LIMIT {
        match starts.next().filter(|start| separator(text, *start) > 0) {
            Some(start) => begin = start,
            None => return Some(begin),
        }
    }
    None
}

/// The bytes of the separator at a place; 0 where there is none. NFKC has made the others into these.
pub(super) fn separator(text: &str, at: usize) -> usize {
    match text.as_bytes().get(at) {
        Some(b' ' | b'-' | b'.' | b'\t') => 1,
        // Only these bytes begin a character below.
        Some(0xc2 | 0xe2 | 0xef) => match text[at..].chars().next() {
            // Soft hyphen, middle dot; hyphens and dashes, minus; what has no width.
            Some(
                character @ ('\u{ad}'
                | '\u{b7}'
                | '\u{2010}'..='\u{2015}'
                | '\u{2212}'
                | '\u{200b}'..='\u{200d}'
                | '\u{2060}'
                | '\u{feff}'),
            ) => character.len_utf8(),
            Some(_) | None => 0,
        },
        Some(_) | None => 0,
    }
}

/// Looks at every part of a run that begins and ends with a word, for it may stand beside other numbers.
fn run(text: &str, groups: &[Group], hits: &mut Hits) {
    let bytes = text.as_bytes();
    for (first, group) in groups.iter().enumerate() {
        iban::look(text, *group, hits);
        if !is_boundary(before(text, group.start)) || is_fraction(text, groups, first) {
            continue;
        }
        let mut digits = [0; DIGITS_LIMIT];
        let mut count = 0;
        let reach = if first == 0 { DIGITS_LIMIT } else { PART_LIMIT };
        for (last, group) in groups.iter().enumerate().skip(first).take(reach) {
            let Some(room) = digits.get_mut(count..count + group.len()) else { break };
            room.copy_from_slice(&bytes[group.start..group.end]);
            count += group.len();
            if is_boundary(bytes.get(group.end)) || bytes.get(group.end).is_some_and(|byte| b"Xx".contains(byte)) {
                let whole = first == 0 && last + 1 == groups.len();
                let groups = &groups[first..=last];
                let kinds = numbers::look(&Number { text, groups, digits: &digits[..count], whole });
                kinds.iter().for_each(|found| hits.add(found));
            }
        }
    }
}

/// Whether a group is what follows `0.`
fn is_fraction(text: &str, groups: &[Group], at: usize) -> bool {
    let Some(integer) = at.checked_sub(1).map(|before| groups[before]) else { return false };
    &text[integer.start..groups[at].start] == "0."
}

struct Joined<'a> {
    text: &'a str,
    copied: usize,
    out: String,
    parts: String,
}

impl Joined<'_> {
    fn add(&mut self, groups: &[Group]) {
        for group in groups {
            // Before the first group stands other text, between the others only separators.
            if group.start == groups[0].start {
                self.out.push_str(&self.text[self.copied..group.start]);
            }
            self.out.push_str(&self.text[group.start..group.end]);
            self.copied = group.end;
        }
        for (first, _) in groups.iter().enumerate() {
            let mut digits = 0;
            for last in first + 1..groups.len().min(first + PART_LIMIT) {
                digits = if digits == 0 { groups[first].len() } else { digits } + groups[last].len();
                if (PART_DIGITS..=DIGITS_LIMIT).contains(&digits) && last - first + 1 < groups.len() {
                    groups[first..=last]
                        .iter()
                        .for_each(|group| self.parts.push_str(&self.text[group.start..group.end]));
                    self.parts.push('\n');
                }
            }
        }
    }

    fn finish(mut self) -> String {
        if self.copied > 0 {
            self.out.push_str(&self.text[self.copied..]);
            self.out.push('\n');
            self.out.push_str(&self.parts);
        }
        self.out
    }
}
