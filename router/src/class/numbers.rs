//! What a number may be: a card, an id, a phone.

use super::checksum::{luhn, resident_check};
use super::digits::{Number, after_gap, before, is_boundary};

/// The built-in kinds of things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Card,
    Iban,
    CnResidentId,
    UsSsn,
    Secret,
    CnMobile,
    Email,
    Phone,
}

impl Found {
    pub(super) const ALL: [Self; 8] = [
        Self::Card,
        Self::Iban,
        Self::CnResidentId,
        Self::UsSsn,
        Self::Secret,
        Self::CnMobile,
        Self::Email,
        Self::Phone,
    ];

    /// The detector's name.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Card => "card",
            Self::Iban => "iban",
            Self::CnResidentId => "cn_resident_id",
            Self::UsSsn => "us_ssn",
            Self::Secret => "secret",
            Self::CnMobile => "cn_mobile",
            Self::Email => "email",
            Self::Phone => "phone",
        }
    }
}

/// Some kinds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Kinds(u8);

impl Kinds {
    pub(super) fn add(&mut self, found: Found) {
        self.0 |= 1 << found as u8;
    }

    pub(super) fn has(self, found: Found) -> bool {
        self.0 & (1 << found as u8) != 0
    }

    /// Those that are in both.
    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Found> {
        Found::ALL.into_iter().filter(move |found| self.has(*found))
    }
}

/// What one number may be.
pub(super) fn look(number: &Number<'_>) -> Kinds {
    let mut kinds = Kinds::default();
    let mut add = |found: Found, is: bool| {
        if is {
            kinds.add(found);
        }
    };
    match number.digits.len() {
        7..=12 => {
            add(Found::UsSsn, is_ssn(number));
            add(Found::CnMobile, is_mobile(number));
            add(Found::Phone, is_phone(number));
        }
        13..=16 => {
            add(Found::CnMobile, is_mobile(number));
            add(Found::Phone, is_phone(number));
            add(Found::Card, is_card(number));
        }
        17..=19 => {
            add(Found::CnResidentId, is_resident(number));
            add(Found::Card, is_card(number));
        }
        _ => {}
    }
    kinds
}

/// Digits alone are a number by Luhn's checksum one time in ten: the issuer and the way it is written count too.
fn is_card(number: &Number<'_>) -> bool {
    is_issuer(number.digits) && ends_word(number) && (number.whole || is_card_layout(number)) && luhn(number.digits)
}

/// As cards are written beside other numbers.
fn is_card_layout(number: &Number<'_>) -> bool {
    const LAYOUTS: [&[usize]; 11] = [
        &[4, 4, 4, 4],
        &[4, 6, 5],
        &[4, 6, 4],
        &[4, 4, 4, 1],
        &[4, 4, 4, 2],
        &[4, 4, 4, 3],
        &[4, 4, 4, 4, 1],
        &[4, 4, 4, 4, 2],
        &[4, 4, 4, 4, 3],
        &[8, 8],
        &[6, 13],
    ];
    number.groups.len() == 1 || LAYOUTS.iter().any(|layout| number.is_written(layout))
}

/// The ranges that issuers have, and the lengths of their numbers.
fn is_issuer(digits: &[u8]) -> bool {
    let head = digits[..4].iter().fold(0_u32, |head, digit| head * 10 + u32::from(digit - b'0'));
    let length = digits.len();
    match head {
        4000..=4999 => matches!(length, 13 | 16 | 19),
        5100..=5599 | 2221..=2720 => length == 16,
        3400..=3499 | 3700..=3799 => length == 15,
        3000..=3099 | 3600..=3699 | 3800..=3999 => (14..=19).contains(&length),
        2200..=2204 | 3528..=3589 | 6000..=6099 | 6200..=6299 | 6400..=6599 | 8100..=8299 => {
            (16..=19).contains(&length)
        }
        5000..=5099 | 5600..=5899 | 6300..=6399 | 6600..=6999 => (13..=19).contains(&length),
        _ => false,
    }
}

/// Seventeen digits and a check character: a region, a date, a sequence.
fn is_resident(number: &Number<'_>) -> bool {
    let Some((body, last)) = number.digits.split_at_checked(17) else { return false };
    let check = match last {
        [] => check_letter(number),
        [digit] if ends_word(number) => Some(*digit),
        [..] => None,
    };
    let value = |range: std::ops::Range<usize>| {
        body[range].iter().fold(0_u32, |value, digit| value * 10 + u32::from(digit - b'0'))
    };
    let region = matches!(value(0..2), 11..=15 | 21..=23 | 31..=37 | 41..=46 | 50..=54 | 61..=65 | 71 | 81..=83);
    let (year, month, day) = (value(6..10), value(10..12), value(12..14));
    let date = (1850..=2099).contains(&year) && (1..=12).contains(&month) && (1..=days(year, month)).contains(&day);
    region && date && check == Some(resident_check(body))
}

/// The X that may stand for the check digit.
fn check_letter(number: &Number<'_>) -> Option<u8> {
    let at = after_gap(number.text, number.end()).unwrap_or(number.end());
    match number.text.as_bytes().get(at..) {
        Some([b'X' | b'x', rest @ ..]) if is_boundary(rest.first()) => Some(b'X'),
        Some(_) | None => None,
    }
}

fn days(year: u32, month: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn is_mobile(number: &Number<'_>) -> bool {
    let (country, local) = match number.digits {
        [b'0', b'0', b'8', b'6', local @ ..] => (true, local),
        [b'8', b'6', local @ ..] if local.len() == 11 => (true, local),
        local => (false, local),
    };
    local.len() == 11
        && local[0] == b'1'
        && (b'3'..=b'9').contains(&local[1])
        && ends_word(number)
        && (country || number.groups.len() == 1 || number.whole || is_mobile_layout(number))
}

/// As mobile numbers are written beside other numbers.
fn is_mobile_layout(number: &Number<'_>) -> bool {
    const LAYOUTS: [&[usize]; 5] = [&[3, 4, 4], &[4, 4, 3], &[3, 3, 5], &[3, 8], &[7, 4]];
    LAYOUTS.iter().any(|layout| number.is_written(layout))
}

/// Nine digits are an SSN where they are written as one, or the words before them say so.
fn is_ssn(number: &Number<'_>) -> bool {
    if number.digits.len() != 9 || !ends_word(number) {
        return false;
    }
    let (area, rest) = number.digits.split_at(3);
    let issued = area != b"000" && area != b"666" && area[0] != b'9' && &rest[..2] != b"00" && &rest[2..] != b"0000";
    let alone = number.whole || number.groups.len() == 1;
    issued && (number.is_written(&[3, 2, 4]) || (alone && is_announced(number)))
}

fn is_announced(number: &Number<'_>) -> bool {
    const REACH: usize = 40;
    let before = &number.text.as_bytes()[number.start().saturating_sub(REACH)..number.start()].to_ascii_lowercase();
    ["ssn", "social security"].iter().any(|word| before.windows(word.len()).any(|at| at == word.as_bytes()))
}

/// With a plus before it, as E.164 has it, or written as in North America.
fn is_phone(number: &Number<'_>) -> bool {
    if !ends_word(number) {
        return false;
    }
    let start = number.start();
    let plus = before(number.text, start) == Some(&b'+') && is_boundary(before(number.text, start - 1));
    let international = plus && number.whole && (9..=15).contains(&number.digits.len()) && number.digits[0] != b'0';
    let american = number.digits.len() == 10
        && number.is_written(&[3, 3, 4])
        && (b'2'..=b'9').contains(&number.digits[0])
        && (b'2'..=b'9').contains(&number.digits[3]);
    international || american
}

fn ends_word(number: &Number<'_>) -> bool {
    is_boundary(number.text.as_bytes().get(number.end()))
}
