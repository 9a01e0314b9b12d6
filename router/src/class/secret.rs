//! Secrets: keys and tokens of known formats, and long mixed words after a word that announces one.

use aho_corasick::{AhoCorasick, AhoCorasickKind};

use super::Hits;
use super::digits::is_boundary;
use super::numbers::Found;

/// How a known format goes on after its beginning.
#[derive(Debug, Clone, Copy)]
pub(super) enum Format {
    /// At least so many letters and digits.
    Plain(usize),
    /// At least so many letters, digits, `_` and `-`.
    Token(usize),
    /// Exactly so many upper-case letters and digits.
    Upper(usize),
    /// Two dots in it: a JSON Web Token.
    Jwt,
    /// The rest of the header of a PEM block.
    Pem,
    /// A word that announces a secret.
    Announced,
}

pub(super) const FORMATS: [(&str, Format); 36] = [
    ("AKIA", Format::Upper(16)),
    ("ASIA", Format::Upper(16)),
    ("ghp_", Format::Plain(36)),
    ("gho_", Format::Plain(36)),
    ("ghu_", Format::Plain(36)),
    ("ghs_", Format::Plain(36)),
    ("ghr_", Format::Plain(36)),
    ("github_pat_", Format::Token(36)),
    ("glpat-", Format::Token(20)),
    ("xoxb-", Format::Token(20)),
    ("xoxa-", Format::Token(20)),
    ("xoxp-", Format::Token(20)),
    ("xoxr-", Format::Token(20)),
    ("xoxs-", Format::Token(20)),
    ("xapp-", Format::Token(20)),
    ("sk-", Format::Token(20)),
    ("sk_live_", Format::Plain(16)),
    ("rk_live_", Format::Plain(16)),
    ("sk_test_", Format::Plain(16)),
    ("AIza", Format::Token(35)),
    ("hf_", Format::Plain(30)),
    ("npm_", Format::Plain(36)),
    ("psk_", Format::Token(40)),
    ("eyJ", Format::Jwt),
    ("-----BEGIN ", Format::Pem),
    ("password", Format::Announced),
    ("passwd", Format::Announced),
    ("pwd", Format::Announced),
    ("passphrase", Format::Announced),
    ("api_key", Format::Announced),
    ("api-key", Format::Announced),
    ("api key", Format::Announced),
    ("apikey", Format::Announced),
    ("token", Format::Announced),
    ("secret", Format::Announced),
    ("密码", Format::Announced),
];

/// Bytes of a secret that are looked at: a text that is full of beginnings must not be read again for each of them.
pub(super) const LENGTH_LIMIT: usize = 1024;
/// Bytes between the announcing word and the secret.
pub(super) const REACH: usize = 16;
/// The shortest secret that is found by its look.
const SECRET_LENGTH: usize = 10;
/// The least entropy of its characters, in bits each.
const ENTROPY: f64 = 2.8;

/// What finds secrets.
#[derive(Debug)]
pub(super) struct Secrets {
    pub(super) beginnings: AhoCorasick,
}

impl Secrets {
    pub(super) fn compile() -> Result<Self, String> {
        let words = FORMATS.iter().map(|(word, _)| word);
        let mut builder = AhoCorasick::builder();
        let beginnings = builder.ascii_case_insensitive(true).kind(Some(AhoCorasickKind::DFA));
        Ok(Self { beginnings: beginnings.build(words).map_err(|error| error.to_string())? })
    }

    pub(super) fn scan(&self, text: &str, hits: &mut Hits) {
        let bytes = text.as_bytes();
        let found = self.beginnings.find_overlapping_iter(text).any(|found| {
            let (word, format) = FORMATS[found.pattern().as_usize()];
            let rest = &bytes[found.end()..bytes.len().min(found.end() + LENGTH_LIMIT)];
            let exact = || {
                let before = found.start().checked_sub(1).and_then(|at| bytes.get(at));
                bytes[found.range()] == *word.as_bytes() && is_boundary(before)
            };
            match format {
                Format::Plain(least) => exact() && run(rest, u8::is_ascii_alphanumeric) >= least,
                Format::Token(least) => exact() && run(rest, is_token) >= least,
                Format::Upper(length) => {
                    let upper = run(rest, |byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
                    exact() && upper == length && is_boundary(rest.get(length))
                }
                Format::Jwt => exact() && is_jwt(rest),
                Format::Pem => rest.split(|byte| *byte == b'\n').next().is_some_and(is_private_key),
                Format::Announced => is_announced(rest),
            }
        });
        if found {
            hits.add(Found::Secret);
        }
    }
}

pub(super) fn run(bytes: &[u8], of: impl Fn(&u8) -> bool) -> usize {
    bytes.iter().take_while(|byte| of(byte)).count()
}

pub(super) fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-".contains(byte)
}

/// Header, payload, signature; the beginning of the header is read already.
fn is_jwt(rest: &[u8]) -> bool {
    let header = run(rest, is_token);
    let Some([b'.', payload @ ..]) = rest.get(header..) else { return false };
    let length = run(payload, is_token);
    header >= 8 && payload.starts_with(b"eyJ") && length >= 8 && payload.get(length) == Some(&b'.')
}

fn is_private_key(line: &[u8]) -> bool {
    line.windows(b"PRIVATE KEY".len()).any(|words| words == b"PRIVATE KEY")
}

/// Whether what follows an announcing word is a secret by its look.
fn is_announced(rest: &[u8]) -> bool {
    if rest.first().is_some_and(u8::is_ascii_alphanumeric) && !rest.starts_with(b"s") {
        return false;
    }
    // What comes after the end of a phrase, or as the argument of a call, was not announced.
    let reach = run(&rest[..rest.len().min(REACH)], |byte| !b",;(\n".contains(byte));
    let begins = |at: &usize| is_secret_byte(&rest[*at]) && (*at == 0 || !is_secret_byte(&rest[at - 1]));
    let mut words = (0..reach).filter(begins).map(|at| &rest[at..at + run(&rest[at..], is_secret_byte)]);
    words.any(is_mixed)
}

pub(super) fn is_secret_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/_.~!@#$%^&*-".contains(byte)
}

/// Long, of several kinds of characters, and none of them too often. Names in programs are long too: they have few
/// digits, and no other marks than `_`, `.`, `-` and `/`.
pub(super) fn is_mixed(word: &[u8]) -> bool {
    let word = word.strip_prefix(b"$").unwrap_or(word);
    let word = word.strip_suffix(b".").unwrap_or(word);
    let count = |of: fn(&u8) -> bool| word.iter().filter(|byte| of(byte)).count();
    let (lower, upper) = (count(u8::is_ascii_lowercase), count(u8::is_ascii_uppercase));
    let digits = count(u8::is_ascii_digit);
    let marked = count(|byte| !byte.is_ascii_alphanumeric() && !b"_.-/".contains(byte)) > 0;
    let digital = digits * 10 >= word.len() && (word.len() >= 16 || lower.min(upper) > 0);
    let mixed = digits > 0 && lower + upper > 0 && (marked || digital);
    word.len() >= SECRET_LENGTH && mixed && entropy(word) >= ENTROPY
}

/// Shannon's, of the characters, in bits each.
fn entropy(word: &[u8]) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in word {
        counts[usize::from(*byte)] += 1;
    }
    let share = |count: u32| f64::from(count) / word.len() as f64;
    -counts.iter().filter(|count| **count > 0).map(|count| share(*count) * share(*count).log2()).sum::<f64>()
}
