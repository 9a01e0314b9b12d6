//! International bank account numbers, ISO 13616: a country, two check digits, and what the country puts after them.

use super::Hits;
use super::checksum::mod97;
use super::digits::{Group, after_gap, before, before_gap, is_boundary};
use super::numbers::Found;

/// The countries of the IBAN registry and the length of their IBANs.
const LENGTHS: [(&[u8; 2], usize); 85] = [
    (b"AD", 24),
    (b"AE", 23),
    (b"AL", 28),
    (b"AT", 20),
    (b"AZ", 28),
    (b"BA", 20),
    (b"BE", 16),
    (b"BG", 22),
    (b"BH", 22),
    (b"BI", 27),
    (b"BR", 29),
    (b"BY", 28),
    (b"CH", 21),
    (b"CR", 22),
    (b"CY", 28),
    (b"CZ", 24),
    (b"DE", 22),
    (b"DJ", 27),
    (b"DK", 18),
    (b"DO", 28),
    (b"EE", 20),
    (b"EG", 29),
    (b"ES", 24),
    (b"FI", 18),
    (b"FK", 18),
    (b"FO", 18),
    (b"FR", 27),
    (b"GB", 22),
    (b"GE", 22),
    (b"GI", 23),
    (b"GL", 18),
    (b"GR", 27),
    (b"GT", 28),
    (b"HR", 21),
    (b"HU", 28),
    (b"IE", 22),
    (b"IL", 23),
    (b"IQ", 23),
    (b"IS", 26),
    (b"IT", 27),
    (b"JO", 30),
    (b"KW", 30),
    (b"KZ", 20),
    (b"LB", 28),
    (b"LC", 32),
    (b"LI", 21),
    (b"LT", 20),
    (b"LU", 20),
    (b"LV", 21),
    (b"LY", 25),
    (b"MC", 27),
    (b"MD", 24),
    (b"ME", 22),
    (b"MK", 19),
    (b"MN", 20),
    (b"MR", 27),
    (b"MT", 31),
    (b"MU", 30),
    (b"NI", 28),
    (b"NL", 18),
    (b"NO", 15),
    (b"OM", 23),
    (b"PK", 24),
    (b"PL", 28),
    (b"PS", 29),
    (b"PT", 25),
    (b"QA", 29),
    (b"RO", 24),
    (b"RS", 22),
    (b"RU", 33),
    (b"SA", 24),
    (b"SC", 31),
    (b"SD", 18),
    (b"SE", 24),
    (b"SI", 19),
    (b"SK", 24),
    (b"SM", 27),
    (b"SO", 23),
    (b"ST", 25),
    (b"SV", 28),
    (b"TL", 23),
    (b"TN", 24),
    (b"TR", 26),
    (b"UA", 29),
    (b"VA", 22),
];
const LENGTH_LIMIT: usize = 33;

/// Looks whether an IBAN's check digits begin with this group.
pub(super) fn look(text: &str, group: Group, hits: &mut Hits) {
    if let Some(Read::Whole { valid: true, .. }) = read(text, group.start) {
        hits.add(Found::Iban);
    }
}

/// How far an IBAN can be read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Read {
    /// All its characters are there.
    Whole { start: usize, end: usize, valid: bool },
    /// The text ends before them.
    Short { start: usize },
}

/// Reads what may be an IBAN whose check digits begin at a place.
pub(super) fn read(text: &str, check: usize) -> Option<Read> {
    let end = before_gap(text, check)?;
    let (country, length) = country(text, end)?;
    let start = end - 2;
    let mut iban = [0; LENGTH_LIMIT];
    iban[..2].copy_from_slice(&country);
    let mut count = 2;
    let mut at = check;
    while count < length {
        match text.as_bytes().get(at) {
            Some(byte) if byte.is_ascii_alphanumeric() => {
                iban[count] = *byte;
                count += 1;
                at += 1;
            }
            Some(_) => at = after_gap(text, at)?,
            None => return Some(Read::Short { start }),
        }
    }
    let valid = is_boundary(text.as_bytes().get(at)) && mod97(&iban[..length]);
    Some(Read::Whole { start, end: at, valid })
}

/// Where an IBAN begins whose check digits are still to come, in a text that ends with no more of it than a part of its
/// country, and separators.
pub(super) fn begun(text: &str) -> Option<usize> {
    let end = before_gap(text, text.len())?;
    if country(text, end).is_some() {
        return Some(end - 2);
    }
    let letter = before(text, text.len()).is_some_and(u8::is_ascii_alphabetic);
    (letter && is_boundary(before(text, text.len() - 1))).then(|| text.len() - 1)
}

/// The two letters of a country before a place, and the length of its IBANs.
fn country(text: &str, end: usize) -> Option<([u8; 2], usize)> {
    let letters = text.as_bytes()[..end].last_chunk::<2>()?;
    if !letters.iter().all(u8::is_ascii_alphabetic) || !is_boundary(before(text, end - 2)) {
        return None;
    }
    let country = letters.to_ascii_uppercase();
    let found = LENGTHS.binary_search_by(|(known, _)| known.as_slice().cmp(&country)).ok()?;
    Some((*letters, LENGTHS[found].1))
}
