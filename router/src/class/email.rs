//! Mail addresses, of ASCII: a local part, an @, labels with dots between, the last one of letters.

use super::Hits;
use super::numbers::Found;

pub(super) fn scan(text: &str, hits: &mut Hits) {
    let bytes = text.as_bytes();
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == b'@').map(|offset| from + offset) {
        from = at + 1;
        let before = bytes[..at].last().is_some_and(|byte| byte.is_ascii_alphanumeric() || b"_%+-".contains(byte));
        if before && is_domain(&bytes[from..]) {
            hits.add(Found::Email);
            return;
        }
    }
}

fn is_domain(bytes: &[u8]) -> bool {
    let label = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'.';
    let end = bytes.iter().position(|byte| !label(byte)).unwrap_or(bytes.len());
    let mut labels = bytes[..end].split(|byte| *byte == b'.').take_while(|label| !label.is_empty());
    let Some(first) = labels.next() else { return false };
    let top = |label: &[u8]| label.len() >= 2 && label.iter().all(u8::is_ascii_alphabetic);
    first[0] != b'-' && labels.any(top)
}
