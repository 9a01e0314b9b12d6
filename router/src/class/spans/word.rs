//! Where mail addresses and secrets stand.

use aho_corasick::Input;

use super::super::digits::{before, is_boundary};
use super::super::numbers::Found;
use super::super::secret::{FORMATS, Format, LENGTH_LIMIT, REACH, Secrets, is_mixed, is_secret_byte, is_token, run};
use super::{Match, View};

/// Bytes of a mail address before the @, RFC 5321.
const LOCAL: usize = 64;
/// Bytes of its domain that are looked at.
const DOMAIN: usize = 190;
/// Bytes of an announced secret that its look is judged by.
const WORD: usize = 200;
/// Bytes of the line that a PEM block begins with.
const HEADER: usize = 64;
/// Bytes of the longest word that announces a secret or begins one.
const LONGEST: usize = 11;

/// Finds mail addresses.
pub(super) fn emails(view: &View<'_>, out: &mut Vec<Match>) -> usize {
    let bytes = view.text.as_bytes();
    let mut hold = bytes.len();
    let mut at = view.from;
    while let Some(sign) = bytes[at..].iter().position(|byte| *byte == b'@').map(|offset| at + offset) {
        at = sign + 1;
        let start = local(bytes, sign);
        if start == sign || bytes[sign - 1] == b'.' || start < view.from {
            continue;
        }
        let domain = &bytes[at..bytes.len().min(at + DOMAIN)];
        let length = run(domain, |byte| byte.is_ascii_alphanumeric() || b"-.".contains(byte));
        if at + length == bytes.len() && length < DOMAIN && view.more {
            hold = hold.min(start);
        } else if let Some(length) = host(&domain[..length]) {
            let known = view
                .ceil(at + (run(domain, |byte| byte.is_ascii_alphanumeric() || b"-.".contains(byte)) + 1).min(DOMAIN));
            out.push(Match { start, end: at + length, known, label: Found::Email as usize, tail: None });
        }
    }
    if view.more {
        hold = hold.min(local(bytes, bytes.len()).max(view.from));
    }
    hold
}

/// Where the local part of an address begins that ends at a place.
fn local(bytes: &[u8], end: usize) -> usize {
    let least = end.saturating_sub(LOCAL);
    let mut start = end;
    while start > least && (bytes[start - 1].is_ascii_alphanumeric() || b"._%+-".contains(&bytes[start - 1])) {
        start -= 1;
    }
    while start < end && bytes[start] == b'.' {
        start += 1;
    }
    start
}

/// How much of this is a domain: labels with dots between, one of letters behind the first.
fn host(bytes: &[u8]) -> Option<usize> {
    let labels = || bytes.split(|byte| *byte == b'.').take_while(|label| !label.is_empty());
    let first = labels().next()?;
    let top = |label: &[u8]| label.len() >= 2 && label.iter().all(u8::is_ascii_alphabetic);
    if first[0] == b'-' || !labels().skip(1).any(top) {
        return None;
    }
    Some(labels().map(|label| label.len() + 1).sum::<usize>() - 1)
}

/// What goes on behind a match, however long it is: it is a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    /// Letters and digits.
    Plain,
    /// Letters, digits, `_` and `-`.
    Token,
    /// The same and dots.
    Jwt,
    /// What an announced secret is made of.
    Word,
    /// The body of a PEM block, up to its end: rows of dashes that have gone by, and dashes of the last.
    Pem { rows: u8, dashes: u8 },
    /// It has ended.
    Ended,
}

impl Tail {
    pub(super) fn is_open(&self) -> bool {
        *self != Self::Ended
    }

    /// How much of what follows belongs to it.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> usize {
        let length = match self {
            Self::Plain => run(bytes, u8::is_ascii_alphanumeric),
            Self::Token => run(bytes, is_token),
            Self::Jwt => run(bytes, |byte| is_token(byte) || *byte == b'.'),
            Self::Word => run(bytes, is_secret_byte),
            Self::Pem { rows, dashes } => pem(bytes, rows, dashes),
            Self::Ended => 0,
        };
        if length < bytes.len() {
            *self = Self::Ended;
        }
        length
    }
}

/// Goes through the rest of the first line, the body and the last line, which are between three rows of five dashes.
fn pem(bytes: &[u8], rows: &mut u8, dashes: &mut u8) -> usize {
    for (at, byte) in bytes.iter().enumerate() {
        if *byte == b'-' {
            *dashes += 1;
            if *dashes == 5 {
                (*rows, *dashes) = (*rows + 1, 0);
            }
            if *rows == 3 {
                return at + 1;
            }
            continue;
        }
        *dashes = 0;
        if *rows >= 3 || !(byte.is_ascii_alphanumeric() || byte.is_ascii_whitespace() || b"+/=:,\\".contains(byte)) {
            return at;
        }
    }
    bytes.len()
}

/// What has been seen of a known format, in bytes behind its beginning.
enum Seen {
    No,
    /// The text ends before it is certain.
    Open,
    Yes {
        end: usize,
        known: usize,
        tail: Option<Tail>,
    },
}

/// Finds secrets.
pub(super) fn secrets(secrets: &Secrets, view: &View<'_>, out: &mut Vec<Match>) -> usize {
    let (text, bytes) = (view.text, view.text.as_bytes());
    let mut hold = if view.more { unfinished(view) } else { bytes.len() };
    let input = Input::new(text).range(view.back(LONGEST + REACH)..);
    for found in secrets.beginnings.find_overlapping_iter(input) {
        let (word, format) = FORMATS[found.pattern().as_usize()];
        let rest = &bytes[found.end()..bytes.len().min(found.end() + LENGTH_LIMIT)];
        if let Format::Announced = format {
            hold = hold.min(announced(view, found.end(), out));
            continue;
        }
        let begins = bytes[found.range()] == *word.as_bytes() && is_boundary(before(text, found.start()));
        let is_pem = matches!(format, Format::Pem);
        if found.start() < view.from || !(begins || is_pem) {
            continue;
        }
        match seen(format, rest) {
            Seen::No => {}
            Seen::Open => {
                if view.more {
                    hold = hold.min(found.start());
                } else if let (Format::Upper(length), true) = (format, begins) {
                    // A text's end is the boundary that it needs.
                    if rest.len() == length {
                        let end = found.end() + length;
                        out.push(Match {
                            start: found.start(),
                            end,
                            known: end,
                            label: Found::Secret as usize,
                            tail: None,
                        });
                    }
                }
            }
            Seen::Yes { end, known, tail } => out.push(Match {
                start: found.start(),
                end: found.end() + end,
                known: view.ceil(found.end() + known),
                label: Found::Secret as usize,
                tail,
            }),
        }
    }
    hold
}

fn seen(format: Format, rest: &[u8]) -> Seen {
    let at_least = |least: usize, length: usize, tail: Tail| match length {
        length if length >= least => Seen::Yes { end: least, known: least, tail: Some(tail) },
        length if length == rest.len() => Seen::Open,
        _ => Seen::No,
    };
    match format {
        Format::Plain(least) => at_least(least, run(rest, u8::is_ascii_alphanumeric), Tail::Plain),
        Format::Token(least) => at_least(least, run(rest, is_token), Tail::Token),
        Format::Upper(length) => {
            let upper = run(rest, |byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
            match upper {
                upper if upper == rest.len() && upper <= length => Seen::Open,
                upper if upper == length && is_boundary(rest.get(length)) => {
                    Seen::Yes { end: length, known: length + 1, tail: None }
                }
                _ => Seen::No,
            }
        }
        Format::Jwt => jwt(rest),
        Format::Pem => {
            let line = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let line = &line[..line.len().min(HEADER)];
            let words = b"PRIVATE KEY";
            match line.windows(words.len()).position(|at| at == words) {
                Some(at) => {
                    let end = at + words.len();
                    Seen::Yes { end, known: end, tail: Some(Tail::Pem { rows: 0, dashes: 0 }) }
                }
                None if line.len() == rest.len() && line.len() < HEADER => Seen::Open,
                None => Seen::No,
            }
        }
        Format::Announced => Seen::No,
    }
}

/// A header and the beginning of a payload: the rest of a token is not waited for.
fn jwt(rest: &[u8]) -> Seen {
    const LEAST: usize = 8;
    let header = run(rest, is_token);
    let Some([b'.', payload @ ..]) = rest.get(header..) else {
        return if header == rest.len() { Seen::Open } else { Seen::No };
    };
    let length = run(payload, is_token);
    if header < LEAST || !payload.iter().zip(b"eyJ").all(|(byte, expected)| byte == expected) {
        Seen::No
    } else if length >= LEAST {
        let end = header + 1 + LEAST;
        Seen::Yes { end, known: end, tail: Some(Tail::Jwt) }
    } else if length == payload.len() {
        Seen::Open
    } else {
        Seen::No
    }
}

/// Looks at the words behind one that announces a secret.
fn announced(view: &View<'_>, end: usize, out: &mut Vec<Match>) -> usize {
    let rest = &view.text.as_bytes()[end..];
    if rest.first().is_some_and(u8::is_ascii_alphanumeric) && !rest.starts_with(b"s") {
        return view.text.len();
    }
    let reach = run(&rest[..rest.len().min(REACH)], |byte| !b",;(\n".contains(byte));
    let begins = |at: &usize| is_secret_byte(&rest[*at]) && (*at == 0 || !is_secret_byte(&rest[at - 1]));
    for at in (0..reach).filter(begins).filter(|at| end + at >= view.from) {
        let word = &rest[at..rest.len().min(at + WORD)];
        let length = run(word, is_secret_byte);
        if length < WORD && at + length == rest.len() && view.more {
            return end + at;
        }
        let word = &word[..length];
        if is_mixed(word) {
            let tail = (length == WORD).then_some(Tail::Word);
            let last = if tail.is_none() && word.ends_with(b".") { length - 1 } else { length };
            let known = view.ceil(end + at + (length + 1).min(WORD));
            out.push(Match { start: end + at, end: end + at + last, known, label: Found::Secret as usize, tail });
        }
    }
    view.text.len()
}

/// Where the text ends with the beginning of a word that begins a secret.
fn unfinished(view: &View<'_>) -> usize {
    let bytes = view.text.as_bytes();
    let from = view.from.max(bytes.len().saturating_sub(LONGEST));
    let is_begun = |at: &usize| {
        let end = &bytes[*at..];
        FORMATS.iter().any(|(word, format)| match format {
            Format::Announced => false,
            Format::Pem => word.len() > end.len() && word.as_bytes()[..end.len()].eq_ignore_ascii_case(end),
            Format::Plain(_) | Format::Token(_) | Format::Upper(_) | Format::Jwt => {
                word.as_bytes().starts_with(end) && is_boundary(before(view.text, *at))
            }
        })
    };
    (from..bytes.len()).find(is_begun).unwrap_or(bytes.len())
}
