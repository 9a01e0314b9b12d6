//! Where numbers and IBANs stand. What they are is decided where whole texts are looked through too.

use super::super::digits::{DIGITS_LIMIT, Group, Number, PART_LIMIT, after_gap, before, before_gap, is_boundary};
use super::super::iban::{self, Read};
use super::super::numbers::{Found, Kinds, look};
use super::{Match, View};

/// Finds numbers, of the kinds that are wanted, and IBANs where these are.
pub(super) fn scan(view: &View<'_>, wanted: Kinds, out: &mut Vec<Match>) -> usize {
    let View { text, from, more } = *view;
    let bytes = text.as_bytes();
    let mut hold = text.len();
    let ibans = wanted.has(Found::Iban);
    let numbers = [Found::Card, Found::CnResidentId, Found::UsSsn, Found::CnMobile, Found::Phone];
    if !ibans && !numbers.into_iter().any(|found| wanted.has(found)) {
        return hold;
    }
    let mut at = from;
    while let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit).map(|offset| at + offset) {
        at = start + digits(&bytes[start..]);
        if before(text, start).is_some_and(u8::is_ascii_digit) {
            continue;
        }
        if ibans {
            hold = hold.min(look_for_iban(view, start, out));
        }
        if is_boundary(before(text, start)) && !is_fraction(bytes, start) && walk(view, wanted, start, out) {
            hold = hold.min(begin(view, wanted, start).max(from));
        }
    }
    if more {
        let plus = bytes.last() == Some(&b'+') && wanted.has(Found::Phone);
        if plus && text.len() > from {
            hold = hold.min(text.len() - 1);
        }
        if let Some(begun) = iban::begun(text).filter(|begun| ibans && *begun >= from) {
            hold = hold.min(begun);
        }
    }
    hold
}

fn digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

/// Where a phone begins whose first digit stands at a place: its plus is a part of it.
fn begin(view: &View<'_>, wanted: Kinds, start: usize) -> usize {
    let plus = wanted.has(Found::Phone) && before(view.text, start) == Some(&b'+');
    start - usize::from(plus)
}

/// What follows `0.`
fn is_fraction(bytes: &[u8], start: usize) -> bool {
    bytes[..start].ends_with(b"0.") && !bytes[..start - 2].last().is_some_and(u8::is_ascii_digit)
}

fn look_for_iban(view: &View<'_>, check: usize, out: &mut Vec<Match>) -> usize {
    let length = view.text.len();
    match iban::read(view.text, check) {
        Some(Read::Short { start }) if view.more && start >= view.from => start,
        Some(Read::Whole { start, end, .. }) if view.more && end == length && start >= view.from => start,
        Some(Read::Whole { start, end, valid: true }) if start >= view.from => {
            let label = Found::Iban as usize;
            out.push(Match { start, end, known: view.ceil(end + 1), label, tail: None });
            length
        }
        Some(Read::Short { .. } | Read::Whole { .. }) | None => length,
    }
}

/// Looks at every number that begins with a group of digits. Returns whether the text ended before the last of them.
fn walk(view: &View<'_>, wanted: Kinds, start: usize, out: &mut Vec<Match>) -> bool {
    let (text, bytes) = (view.text, view.text.as_bytes());
    let first = !follows(text, start);
    let reach = if first { DIGITS_LIMIT } else { PART_LIMIT };
    let mut groups = [Group { start, end: start }; DIGITS_LIMIT];
    let (mut number, mut count, mut at) = ([0; DIGITS_LIMIT], 0, start);
    for last in 0..reach {
        let end = at + digits(&bytes[at..]);
        if end == bytes.len() && view.more {
            return true;
        }
        let Some(room) = number.get_mut(count..count + end - at) else { return false };
        room.copy_from_slice(&bytes[at..end]);
        count += end - at;
        groups[last] = Group { start: at, end };
        let next = after_gap(text, end).unwrap_or(end);
        if next == bytes.len() && view.more {
            return true;
        }
        let goes_on = bytes.get(next).is_some_and(u8::is_ascii_digit);
        let check_letter = count == 17 && bytes.get(next).is_some_and(|byte| b"Xx".contains(byte));
        if check_letter && next + 1 == bytes.len() && view.more {
            return true;
        }
        if is_boundary(bytes.get(end)) || bytes.get(end).is_some_and(|byte| b"Xx".contains(byte)) {
            let whole = first && !goes_on;
            let number = Number { text, groups: &groups[..=last], digits: &number[..count], whole };
            for found in look(&number).and(wanted).iter() {
                let begin = if found == Found::Phone { begin(view, wanted, start) } else { start };
                let end = if check_letter { next + 1 } else { end };
                let known = view.ceil(next + 1 + usize::from(check_letter));
                if begin >= view.from {
                    out.push(Match { start: begin, end, known, label: found as usize, tail: None });
                }
            }
        }
        if !goes_on {
            return false;
        }
        at = next;
    }
    false
}

/// Whether a group of digits belongs to a number that began before it.
pub(super) fn follows(text: &str, start: usize) -> bool {
    before_gap(text, start).is_some_and(|gap| before(text, gap).is_some_and(u8::is_ascii_digit))
}
