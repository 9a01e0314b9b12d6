//! Canaries: values that detectors must find, made at random, and the ways to write them. And the other way round: what
//! text says once escapes, Unicode's forms and separators are undone.

use std::fmt::Write as _;

use fastrand::Rng;
use serde_json::Value;
use unicode_normalization::UnicodeNormalization as _;

/// What a canary is; its names are those of detectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Card,
    Iban,
    CnResidentId,
    CnMobile,
    UsSsn,
    Email,
    Phone,
    Secret,
    /// The catalogue's own pattern.
    Contract,
    /// A word of the catalogue's dictionary.
    Vip,
}

impl Kind {
    pub(crate) const ALL: [Self; 10] = [
        Self::Card,
        Self::Iban,
        Self::CnResidentId,
        Self::CnMobile,
        Self::UsSsn,
        Self::Email,
        Self::Phone,
        Self::Secret,
        Self::Contract,
        Self::Vip,
    ];

    /// Whether separators may stand between its characters.
    fn is_number(self) -> bool {
        !matches!(self, Self::Email | Self::Secret | Self::Vip)
    }
}

/// A value of a kind.
#[derive(Debug, Clone)]
pub(crate) struct Canary {
    pub(crate) kind: Kind,
    /// Without separators.
    pub(crate) plain: String,
}

fn digits(rng: &mut Rng, count: usize) -> String {
    (0..count).map(|_| char::from(b'0' + rng.u8(..10))).collect()
}

fn letters(rng: &mut Rng, count: usize) -> String {
    (0..count).map(|_| char::from(b'a' + rng.u8(..26))).collect()
}

fn with_luhn(body: &str) -> String {
    let doubled = |digit: u32| if digit > 4 { 2 * digit - 9 } else { 2 * digit };
    let digits = body.bytes().rev().map(|byte| u32::from(byte - b'0')).enumerate();
    let sum: u32 = digits.map(|(at, digit)| if at % 2 == 0 { doubled(digit) } else { digit }).sum();
    format!("{body}{}", (10 - sum % 10) % 10)
}

fn iban(rng: &mut Rng) -> String {
    let (country, account) = match rng.bool() {
        true => ("DE", digits(rng, 18)),
        false => ("GB", format!("{}{}", letters(rng, 4).to_uppercase(), digits(rng, 14))),
    };
    let value = format!("{account}{country}00").chars().fold(0, |value: u32, character| {
        let value = value * if character.is_ascii_digit() { 10 } else { 100 };
        (value + character.to_digit(36).unwrap()) % 97
    });
    format!("{country}{:02}{account}", 98 - value)
}

fn resident(rng: &mut Rng) -> String {
    let (area, year) = (digits(rng, 4), rng.u32(1930..2010));
    let body = format!("11{area}{year}{:02}{:02}{}", rng.u32(1..=12), rng.u32(1..=28), digits(rng, 3));
    let weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
    let sum: usize = body.bytes().zip(weights).map(|(byte, weight)| usize::from(byte - b'0') * weight).sum();
    format!("{body}{}", char::from(b"10X98765432"[sum % 11]))
}

fn mixed(rng: &mut Rng, count: usize) -> String {
    (0..count).map(|_| rng.alphanumeric()).collect()
}

impl Canary {
    /// One that nobody has seen before, but for the words of the dictionary.
    pub(crate) fn make(rng: &mut Rng, vips: &[String]) -> Self {
        let kind = *rng.choice(&Kind::ALL).unwrap();
        let plain = match kind {
            Kind::Card => match rng.u8(..4) {
                0 => with_luhn(&format!("4{}", digits(rng, 14))),
                1 => with_luhn(&format!("5{}{}", rng.u8(1..6), digits(rng, 13))),
                2 => with_luhn(&format!("37{}", digits(rng, 12))),
                _ => with_luhn(&format!("62{}", digits(rng, 16))),
            },
            Kind::Iban => iban(rng),
            Kind::CnResidentId => resident(rng),
            Kind::CnMobile => format!("1{}{}", rng.u8(3..10), digits(rng, 9)),
            Kind::UsSsn => format!("{}{}{}", rng.u32(100..600), rng.u32(10..100), rng.u32(1000..10_000)),
            Kind::Email => format!("{}.{}@{}.example", letters(rng, 8), letters(rng, 8), letters(rng, 6)),
            Kind::Phone => format!("+44{}{}", rng.u8(1..10), digits(rng, 9)),
            Kind::Secret => match rng.u8(..3) {
                0 => format!("sk-{}", mixed(rng, 32)),
                1 => format!("ghp_{}", mixed(rng, 36)),
                _ => format!("AKIA{}", mixed(rng, 16).to_uppercase()),
            },
            Kind::Contract => with_luhn(&format!("99{}", digits(rng, 11))),
            Kind::Vip => rng.choice(vips).unwrap().clone(),
        };
        Self { kind, plain }
    }

    /// Its groups, as people write it.
    fn groups(&self) -> Vec<&str> {
        let layout: &[usize] = match (self.kind, self.plain.len()) {
            (Kind::Card, 15) => &[4, 6, 5],
            (Kind::CnMobile, _) => &[3, 4, 4],
            (Kind::UsSsn, _) => &[3, 2, 4],
            (Kind::CnResidentId, _) => &[6, 8, 4],
            (Kind::Phone, _) => &[3, 2, 4, 4],
            (_, _) => &[4; 9],
        };
        let mut rest = self.plain.as_str();
        let cut = |length: &usize| {
            let (group, tail) = rest.split_at((*length).min(rest.len()));
            rest = tail;
            group
        };
        layout.iter().map(cut).filter(|group| !group.is_empty()).collect()
    }

    /// What it is called, where it is found only by its name.
    fn announced(&self, text: &str) -> String {
        if self.kind == Kind::UsSsn { format!("ssn-{text}") } else { text.to_owned() }
    }
}

/// How a canary is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Spelling {
    Plain,
    /// With a separator between its groups.
    Separated(&'static str),
    /// With a space after each character.
    OneByOne,
    FullWidth,
    FullWidthSpaced,
    Mathematical,
    Superscript,
    AfterChinese,
    /// Every character as `\u…` of the body's JSON.
    Escaped,
    /// Within JSON text.
    Json,
    /// The same, its characters as `\u…` of that JSON.
    JsonEscaped,
    /// Once more within JSON text.
    JsonTwice,
    /// In JSON within prose, its characters escaped.
    Fenced,
    /// Over two parts of one message.
    Parts,
}

/// Separators, of those that detectors know.
const SEPARATORS: [&str; 12] =
    [" ", "-", ".", "\u{a0}", "\u{3000}", "\u{2011}", "–", "—", "·", "\u{200b}", " - ", "－"];

impl Spelling {
    pub(crate) fn all() -> Vec<Self> {
        let own = [
            Self::Plain,
            Self::OneByOne,
            Self::FullWidth,
            Self::FullWidthSpaced,
            Self::Mathematical,
            Self::Superscript,
            Self::AfterChinese,
            Self::Escaped,
            Self::Json,
            Self::JsonEscaped,
            Self::JsonTwice,
            Self::Fenced,
            Self::Parts,
        ];
        own.into_iter().chain(SEPARATORS.map(Self::Separated)).collect()
    }

    /// Whether the kind is written so.
    pub(crate) fn fits(self, kind: Kind) -> bool {
        match self {
            Self::Separated(_) | Self::FullWidthSpaced | Self::Parts => kind.is_number(),
            // The letters of an IBAN's country stand together.
            Self::OneByOne => kind.is_number() && kind != Kind::Iban,
            Self::Superscript => {
                !matches!(kind, Kind::Iban | Kind::CnResidentId | Kind::Email | Kind::Secret | Kind::Vip)
            }
            _ => true,
        }
    }

    /// The canary, so written.
    pub(crate) fn write(self, canary: &Canary) -> String {
        let plain = canary.plain.as_str();
        let text = match self {
            Self::Plain | Self::Escaped | Self::Parts => plain.to_owned(),
            Self::Separated(separator) => canary.groups().join(separator),
            Self::OneByOne => plain.chars().map(String::from).collect::<Vec<_>>().join(" ").replace("+ ", "+"),
            Self::FullWidth => plain.chars().map(full_width).collect(),
            Self::FullWidthSpaced => canary.groups().join("\u{3000}").chars().map(full_width).collect(),
            Self::Mathematical => plain.chars().map(mathematical).collect(),
            Self::Superscript => plain.chars().map(superscript).collect(),
            Self::AfterChinese => return format!("客户的账号{}，谢谢", canary.announced(plain)),
            Self::Json => return json_text(&canary.announced(plain)),
            Self::JsonEscaped => return json_escaped(&canary.announced(plain)),
            Self::JsonTwice => return Value::from(vec![json_escaped(&canary.announced(plain))]).to_string(),
            Self::Fenced => return format!("Look:\n```json\n{}\n```", json_escaped(&canary.announced(plain))),
        };
        canary.announced(&text)
    }

    /// The canary in two parts.
    pub(crate) fn halves(canary: &Canary) -> (String, String) {
        let groups = canary.groups();
        let middle = groups.len() / 2;
        (canary.announced(&groups[..middle].join(" ")), groups[middle..].join(" "))
    }
}

fn json_text(text: &str) -> String {
    format!("{{\"note\":{}}}", Value::from(text))
}

fn json_escaped(text: &str) -> String {
    format!("{{\"note\":\"{}\"}}", escaped(text))
}

/// Every character as JSON's escape.
pub(crate) fn escaped(text: &str) -> String {
    text.encode_utf16().fold(String::new(), |mut out, unit| {
        write!(out, "\\u{unit:04x}").unwrap();
        out
    })
}

fn full_width(character: char) -> char {
    match character {
        '!'..='~' => char::from_u32(u32::from(character) + 0xfee0).unwrap(),
        other => other,
    }
}

fn mathematical(character: char) -> char {
    let at = |base: u32, first: char| char::from_u32(base + u32::from(character) - u32::from(first)).unwrap();
    match character {
        '0'..='9' => at(0x1d7d8, '0'),
        'A'..='Z' => at(0x1d400, 'A'),
        'a'..='z' => at(0x1d41a, 'a'),
        other => other,
    }
}

fn superscript(character: char) -> char {
    match character {
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        '0' | '4'..='9' => char::from_u32(0x2070 + u32::from(character) - u32::from('0')).unwrap(),
        other => other,
    }
}

/// Letters and digits alone, in lower case, of what a text says once every escape and form is undone. Strings of JSON
/// are apart from each other.
pub(crate) fn undone(text: &str) -> String {
    let mut rounds = vec![text.to_owned()];
    while let Some(next) = unescaped(rounds.last().unwrap()) {
        rounds.push(next);
    }
    let mut out = String::new();
    for round in rounds {
        out.extend(round.nfkc().flat_map(char::to_lowercase).filter(|character| character.is_alphanumeric()));
        out.push('|');
    }
    out
}

/// The text with one layer of JSON's escapes undone; None where there is none.
fn unescaped(text: &str) -> Option<String> {
    text.contains('\\').then(|| {
        let mut units: Vec<u16> = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('\\') {
            units.extend(rest[..at].encode_utf16());
            let code = rest.get(at + 2..at + 6).filter(|_| rest[at + 1..].starts_with('u'));
            rest = match code.and_then(|code| u16::from_str_radix(code, 16).ok()) {
                Some(unit) => {
                    units.push(unit);
                    &rest[at + 6..]
                }
                None => {
                    let skipped = rest[at + 1..].chars().next();
                    units.extend(skipped.filter(|next| *next == '\\').map(|_| u16::from(b'\\')));
                    let taken = skipped.map_or(0, |next| if next == '\\' || "ntrbf".contains(next) { 1 } else { 0 });
                    &rest[at + 1 + taken..]
                }
            };
        }
        units.extend(rest.encode_utf16());
        String::from_utf16_lossy(&units)
    })
}

#[test]
fn every_spelling_of_every_kind_is_undone() {
    let mut rng = Rng::with_seed(7);
    let vips = ["zanvoril kemthar".to_owned(), "王小明".to_owned()];
    for _ in 0..2000 {
        let canary = Canary::make(&mut rng, &vips);
        let wanted = undone(&canary.plain);
        for spelling in Spelling::all().into_iter().filter(|spelling| spelling.fits(canary.kind)) {
            let written = spelling.write(&canary);
            let sent = Value::from(written.as_str()).to_string();
            assert!(undone(&sent).contains(wanted.trim_end_matches('|')), "{spelling:?}: {written}");
        }
    }
}
