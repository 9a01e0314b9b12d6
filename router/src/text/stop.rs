//! Stop texts in a stream of text: which comes first, and how much must be held back until that is known.

use crate::request::Stop;

/// What came of a piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Text to give out, perhaps none; the answer goes on.
    Text(String),
    /// The answer's end: a stop text was found.
    Stopped {
        /// The last text to give out.
        text: String,
        /// Which stop text it was.
        stop: String,
    },
}

/// Looks for stop texts in a text that comes in pieces.
///
/// The match that ends first wins, and of those that end together the longest, as if the text came a byte at a time.
/// Only what could still begin a match is held back. The cost is linear in the text (Knuth, Morris, Pratt).
#[derive(Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    include: bool,
    /// What could be the beginning of a match.
    held: String,
}

impl StopMatcher {
    /// A matcher of the texts, none of which is empty.
    pub fn new(stop: &Stop) -> Self {
        let patterns = stop.texts.iter().filter(|text| !text.is_empty()).map(|text| Pattern::new(text)).collect();
        Self { patterns, include: stop.include, held: String::new() }
    }

    /// Takes more text. Nothing may be pushed after [`Step::Stopped`].
    pub fn push(&mut self, text: &str) -> Step {
        let before = self.held.len();
        self.held.push_str(text);
        for (offset, byte) in text.bytes().enumerate() {
            let longest = self.patterns.iter_mut().filter_map(|pattern| pattern.advance(byte)).max();
            if let Some(length) = longest {
                let end = before + offset + 1;
                let stop = self.held[end - length..end].to_owned();
                self.held.truncate(if self.include { end } else { end - length });
                return Step::Stopped { text: std::mem::take(&mut self.held), stop };
            }
        }
        let keep = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Step::Text(std::mem::replace(&mut self.held, rest))
    }

    /// The text has ended: what was held back, which no more text can make a match.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// A stop text and how much of it the text so far ends with.
#[derive(Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// For each prefix of `bytes`, the length of its longest proper suffix that is a prefix too.
    fallback: Vec<usize>,
    matched: usize,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes().to_vec();
        let mut fallback = vec![0; bytes.len()];
        let mut length = 0;
        for index in 1..bytes.len() {
            while length > 0 && bytes[index] != bytes[length] {
                length = fallback[length - 1];
            }
            length += usize::from(bytes[index] == bytes[length]);
            fallback[index] = length;
        }
        Self { bytes, fallback, matched: 0 }
    }

    /// Its length, where the byte completes it.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        (self.matched == self.bytes.len()).then_some(self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(texts: &[&str]) -> StopMatcher {
        StopMatcher::new(&Stop { texts: texts.iter().map(|text| (*text).to_owned()).collect(), include: false })
    }

    #[test]
    fn only_what_could_begin_a_match_is_held_back() {
        let mut matcher = matcher(&["\n\nUser:", "END"]);
        assert_eq!(matcher.push("one\n"), Step::Text("one".into()));
        assert_eq!(matcher.push("\n"), Step::Text(String::new()));
        assert_eq!(matcher.push("\nUse E"), Step::Text("\n\n\nUse ".into()));
        assert_eq!(matcher.push("N"), Step::Text(String::new()));
        assert_eq!(matcher.push("d"), Step::Text("ENd".into()));
        assert_eq!(matcher.push("\n\nUs"), Step::Text(String::new()));
        assert_eq!(matcher.finish(), "\n\nUs");
    }

    #[test]
    fn the_match_that_ends_first_wins_and_then_the_longest() {
        let stopped = |text: &str, stop: &str| Step::Stopped { text: text.into(), stop: stop.into() };
        assert_eq!(matcher(&["abcd", "bc"]).push("xabcd"), stopped("xa", "bc"));
        assert_eq!(matcher(&["c", "abc"]).push("xabcd"), stopped("x", "abc"));
    }

    #[test]
    fn without_stop_texts_nothing_is_held_back() {
        assert_eq!(matcher(&[]).push("text"), Step::Text("text".into()));
    }

    proptest! {
        #[test]
        fn pieces_give_what_a_search_of_the_whole_text_gives(
            text in "[ab€你]{0,30}",
            stops in prop::collection::vec("[ab€你]{1,5}", 0..5),
            include: bool,
            cuts in prop::collection::vec(0usize..5, 1..40),
        ) {
            let found = stops.iter().filter_map(|stop| text.find(stop.as_str()).map(|at| (at + stop.len(), at))).min();
            let expected = match found {
                Some((end, at)) => (&text[..if include { end } else { at }], true),
                None => (text.as_str(), false),
            };
            let mut matcher = StopMatcher::new(&Stop { texts: stops.clone(), include });
            let (mut given, mut stopped) = (String::new(), false);
            let mut characters = text.chars();
            for cut in cuts.iter().cycle().take(200) {
                let piece: String = characters.by_ref().take(*cut).collect();
                match matcher.push(&piece) {
                    Step::Text(text) => given += &text,
                    Step::Stopped { text, stop } => {
                        prop_assert!(stops.contains(&stop));
                        given += &text;
                        stopped = true;
                        break;
                    }
                }
                let seen = text.len() - characters.as_str().len();
                let seen = &text[..seen];
                let needed = stops.iter().flat_map(|stop| {
                    stop.char_indices().map(|(at, _)| at).filter(|at| seen.ends_with(&stop[..*at]))
                }).max().unwrap_or(0);
                prop_assert_eq!(given.len(), seen.len() - needed);
            }
            if !stopped && cuts.iter().any(|cut| *cut > 0) {
                given += &matcher.finish();
                if characters.as_str().is_empty() {
                    prop_assert_eq!((given.as_str(), stopped), expected);
                }
            } else if stopped {
                prop_assert_eq!((given.as_str(), stopped), expected);
            }
        }
    }
}
