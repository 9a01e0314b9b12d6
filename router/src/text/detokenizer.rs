//! Ids → text, one at a time, without decoding what came before again.

use std::sync::Arc;

use super::vocabulary::Vocabulary;

/// The longest that an incomplete character waits, in tokens, where only the tokenizer's decoder knows what they
/// spell: a character has at most four bytes, each perhaps a token of its own.
const WAIT: usize = 4;

/// Turns one answer's ids into text as they come. Never gives out part of a character; bytes that are no character
/// come out as U+FFFD, as in the one-shot decoding. Special tokens have no text, but for those that are to be
/// shown.
#[derive(Debug)]
pub struct Detokenizer {
    vocabulary: Arc<Vocabulary>,
    /// The beginning of a character, where tokens are runs of bytes.
    pending: Vec<u8>,
    window: Window,
    /// Special tokens that are spelled out.
    shown: Vec<u32>,
}

/// The last tokens, where what a token spells depends on its neighbours.
#[derive(Debug, Default)]
struct Window {
    ids: Vec<u32>,
    /// How many of `ids` have been given out, and their text's length.
    given: usize,
    given_length: usize,
}

impl Detokenizer {
    /// A detokenizer at the beginning of an answer.
    pub fn new(vocabulary: Arc<Vocabulary>) -> Self {
        Self { vocabulary, pending: Vec::new(), window: Window::default(), shown: Vec::new() }
    }

    /// Spells out these special tokens from here on.
    pub(super) fn show(&mut self, ids: Vec<u32>) {
        self.shown = ids;
    }

    /// Takes the next id and gives the text that it completes, perhaps none.
    pub fn push(&mut self, id: u32) -> String {
        if self.shown.contains(&id) {
            return self.finish() + &self.vocabulary.decode_with_special(&[id]);
        }
        if self.vocabulary.is_special(id) || id >= self.vocabulary.size() {
            return String::new();
        }
        match self.vocabulary.bytes(id) {
            Some(bytes) => {
                self.pending.extend_from_slice(bytes);
                take_characters(&mut self.pending)
            }
            None => self.window.push(id, &self.vocabulary),
        }
    }

    /// No more of this text is to come: what is left of it.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned();
        rest + &self.window.take(&self.vocabulary)
    }
}

impl Window {
    fn push(&mut self, id: u32, vocabulary: &Vocabulary) -> String {
        self.ids.push(id);
        let text = vocabulary.decode(&self.ids);
        let waits = text.ends_with(char::REPLACEMENT_CHARACTER) && self.ids.len() - self.given < WAIT;
        if waits || text.len() <= self.given_length { String::new() } else { self.give(text, vocabulary) }
    }

    fn take(&mut self, vocabulary: &Vocabulary) -> String {
        let text = vocabulary.decode(&self.ids);
        if text.len() <= self.given_length { String::new() } else { self.give(text, vocabulary) }
    }

    /// Gives out what is new in `text` and keeps its tokens alone, as the neighbours of those to come.
    fn give(&mut self, text: String, vocabulary: &Vocabulary) -> String {
        let new = text.get(self.given_length..).unwrap_or_default().to_owned();
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        self.given_length = vocabulary.decode(&self.ids).len();
        new
    }
}

/// Takes the whole characters off the front of `pending` and leaves the beginning of one, if any.
fn take_characters(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut taken = 0;
    loop {
        let (valid, invalid) = match std::str::from_utf8(&pending[taken..]) {
            Ok(valid) => (valid, None),
            Err(error) => {
                let valid = &pending[taken..taken + error.valid_up_to()];
                (std::str::from_utf8(valid).expect("valid up to here"), Some(error.error_len()))
            }
        };
        text.push_str(valid);
        taken += valid.len();
        match invalid {
            Some(Some(length)) => {
                text.push(char::REPLACEMENT_CHARACTER);
                taken += length;
            }
            Some(None) | None => break,
        }
    }
    pending.drain(..taken);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::prompt::fixture;

    fn pieces(vocabulary: &Arc<Vocabulary>, ids: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(vocabulary.clone());
        let mut pieces: Vec<String> = ids.iter().map(|id| detokenizer.push(*id)).collect();
        pieces.push(detokenizer.finish());
        pieces
    }

    #[test]
    fn a_character_comes_out_when_its_last_byte_came_in() {
        let vocabulary = Arc::new(fixture::byte_level());
        let ids: Vec<u32> = "a😀b".bytes().map(|byte| fixture::byte_id(&vocabulary, byte)).collect();
        assert_eq!(pieces(&vocabulary, &ids), ["a", "", "", "", "😀", "b", ""]);
    }

    #[test]
    fn special_and_unknown_ids_have_no_text() {
        let vocabulary = Arc::new(fixture::byte_level());
        let a = fixture::byte_id(&vocabulary, b'a');
        assert_eq!(pieces(&vocabulary, &[1, a, 2, 9_999_999]).concat(), "a");
    }

    #[test]
    fn special_ids_that_are_shown_are_spelled_out() {
        let vocabulary = Arc::new(fixture::byte_level());
        let id = |byte| fixture::byte_id(&vocabulary, byte);
        let mut detokenizer = Detokenizer::new(vocabulary.clone());
        detokenizer.show(vec![1]);
        let pieces = [id(b'a'), id(0xF0), 1, 2, id(b'b')].map(|id| detokenizer.push(id));
        assert_eq!(pieces, ["a", "", "\u{FFFD}<|im_start|>", "", "b"]);
    }

    #[test]
    fn an_unfinished_character_ends_as_a_replacement() {
        let vocabulary = Arc::new(fixture::byte_level());
        let ids: Vec<u32> = "😀".bytes().take(3).map(|byte| fixture::byte_id(&vocabulary, byte)).collect();
        assert_eq!(pieces(&vocabulary, &ids), ["", "", "", "\u{FFFD}"]);
    }

    #[test]
    fn a_decoder_that_looks_at_neighbours_gives_whole_characters_too() {
        let vocabulary = Arc::new(fixture::metaspace());
        for text in ["hello hello", "héllo 你好 😀!", " lead", "a  b"] {
            let ids = vocabulary.tokenizer().encode(text, false).expect("encodes").get_ids().to_vec();
            let pieces = pieces(&vocabulary, &ids);
            assert_eq!(pieces.concat(), vocabulary.decode(&ids), "{text:?}");
            assert!(!pieces.concat().contains('\u{FFFD}'), "{pieces:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_out_as_in_the_one_shot_decoding(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let vocabulary = Arc::new(fixture::byte_level());
            let ids: Vec<u32> = bytes.iter().map(|byte| fixture::byte_id(&vocabulary, *byte)).collect();
            let all = pieces(&vocabulary, &ids).concat();
            prop_assert_eq!(&all, &vocabulary.decode(&ids));
            prop_assert_eq!(all, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn any_text_in_any_tokens_comes_back(text in "\\PC{0,40}", cuts in prop::collection::vec(any::<bool>(), 200)) {
            let vocabulary = Arc::new(fixture::byte_level());
            let merged = fixture::spell(&vocabulary, &text);
            // Tokens of several bytes taken apart at random: any split of the text into tokens.
            let ids: Vec<u32> = merged.iter().zip(cuts.iter().cycle()).flat_map(|(id, apart)| {
                let bytes = vocabulary.bytes(*id).expect("byte level").to_vec();
                if *apart { bytes.iter().map(|byte| fixture::byte_id(&vocabulary, *byte)).collect() } else { vec![*id] }
            }).collect();
            prop_assert_eq!(pieces(&vocabulary, &ids).concat(), text);
        }
    }
}
