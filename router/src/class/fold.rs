//! Unicode's NFKC, quickly for what most texts are made of.

use std::borrow::Cow;

use unicode_normalization::UnicodeNormalization as _;

/// The text in NFKC.
pub(super) fn fold(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return Cow::Borrowed(text);
    }
    let mut folded = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|character| plain(character).is_none()).unwrap_or(rest.len());
        // A mark may follow, which changes the character before it.
        let (stretch, last) = match rest[..end].char_indices().next_back() {
            Some((last, _)) if end < rest.len() => rest.split_at(last),
            Some(_) | None => rest.split_at(end),
        };
        folded.extend(stretch.chars().filter_map(plain));
        let taken = stretch.len();
        let end = last.len() - rest[end..].trim_start_matches(|character| plain(character).is_none()).len();
        folded.extend(last[..end].nfkc());
        rest = &rest[taken + end..];
    }
    Cow::Owned(folded)
}

/// What NFKC makes of a character that it changes by itself alone, if at all, and that never joins one before it. None
/// for all others, to which the whole of NFKC is applied.
pub(super) fn plain(character: char) -> Option<char> {
    match character {
        // ASCII, dashes and quotation marks, CJK punctuation and ideographs.
        '\0'..='\x7f' | '\u{2013}' | '\u{2014}' | '\u{2018}'..='\u{201d}' => Some(character),
        '\u{3001}' | '\u{3002}' | '\u{3008}'..='\u{3011}' | '\u{4e00}'..='\u{9fff}' => Some(character),
        '\u{a0}' | '\u{3000}' => Some(' '),
        // The full-width forms of ASCII, in its order.
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(character) - 0xff01 + u32::from('!')),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_plain_character_is_what_nfkc_makes_of_it() {
        for character in '\0'..=char::MAX {
            if let Some(folded) = plain(character) {
                assert!(character.nfkc().eq([folded]), "{character:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_nfkc(text in r"(\PC|[a-zA-Z０-９，。　가-힣が゙́̈ﬁ①é中]){0,40}") {
            prop_assert_eq!(fold(&text).into_owned(), text.nfkc().collect::<String>());
        }
    }
}
