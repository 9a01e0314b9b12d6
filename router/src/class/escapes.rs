//! JSON's escapes in a text that need not be JSON.

use std::char::REPLACEMENT_CHARACTER;

/// The text with one layer of escapes undone; None where there is none. What only looks like an escape stays.
pub(super) fn undo(text: &str) -> Option<String> {
    let mut undone = String::with_capacity(text.len());
    let mut rest = text;
    let mut found = false;
    while let Some(at) = rest.find('\\') {
        undone.push_str(&rest[..at]);
        rest = &rest[at..];
        let (character, length) = match rest.as_bytes().get(1) {
            Some(b'u') => unicode(rest).unwrap_or(('\\', 1)),
            Some(b't') => ('\t', 2),
            Some(b'n' | b'r') => ('\n', 2),
            Some(b'"' | b'\\' | b'/') => (char::from(rest.as_bytes()[1]), 2),
            Some(_) | None => ('\\', 1),
        };
        undone.push(character);
        rest = &rest[length..];
        found |= length > 1;
    }
    undone.push_str(rest);
    found.then_some(undone)
}

/// The character of `\u…`, or of two such that are a pair, and the bytes that spell it.
fn unicode(text: &str) -> Option<(char, usize)> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
    };
    let first = unit(0)?;
    match (first, unit(6)) {
        (0xd800..=0xdbff, Some(second @ 0xdc00..=0xdfff)) => {
            let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
            Some((char::from_u32(code).unwrap_or(REPLACEMENT_CHARACTER), 12))
        }
        (_, _) => Some((char::from_u32(first).unwrap_or(REPLACEMENT_CHARACTER), 6)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_escape_stays() {
        for text in ["", "plain", r"\d+ C:\Users \u12 \u+123 \", r"é\é"] {
            assert_eq!(undo(text), None, "{text}");
        }
        assert_eq!(undo(r"a\u0034\t\/\\u0034 \d").as_deref(), Some("a4\t/\\u0034 \\d"));
        assert_eq!(undo(r"\ud835\udfd8 \ud835").as_deref(), Some("\u{1d7d8} \u{fffd}"));
    }

    proptest! {
        #[test]
        fn what_json_escapes_is_undone(text in r"\PC*") {
            let escaped: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
            prop_assert_eq!(undo(&escaped).unwrap_or_default(), text);
        }

        #[test]
        fn any_text_is_read(text in r"(\\|u|0|d8|é|\PC){0,40}") {
            undo(&text);
        }
    }
}
