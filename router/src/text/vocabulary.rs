//! What each token id of a model spells.

use std::collections::HashSet;

use tokenizers::{DecoderWrapper, Tokenizer};

/// A model's tokens and how ids become text again.
#[derive(Debug)]
pub struct Vocabulary {
    tokenizer: Tokenizer,
    size: u32,
    special: HashSet<u32>,
    spelling: Spelling,
}

/// How text is put together from tokens.
#[derive(Debug)]
enum Spelling {
    /// Each token is a run of bytes: those of token `id` end at `ends[id]`.
    Bytes { bytes: Vec<u8>, ends: Vec<usize> },
    /// What a token spells depends on its neighbours; only the tokenizer's own decoder knows.
    Decoder,
}

impl Vocabulary {
    /// Takes over a tokenizer and tabulates its tokens.
    pub fn new(tokenizer: Tokenizer) -> Self {
        let size = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id + 1);
        let added = tokenizer.get_added_vocabulary();
        let tokens = (0..size).map(|id| tokenizer.id_to_token(id));
        let is_special = |token: &Option<String>| token.as_ref().is_some_and(|token| added.is_special_token(token));
        let special = (0..).zip(tokens.clone()).filter(|(_, token)| is_special(token)).map(|(id, _)| id).collect();
        let spelling = match tokenizer.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => tabulate(tokens),
            Some(_) | None => Spelling::Decoder,
        };
        Self { size, special, spelling, tokenizer }
    }

    /// One more than the highest id.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Whether the id is one of the tokens that steer the model and are no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The id of the special token that is spelled so.
    pub(crate) fn special(&self, text: &str) -> Option<u32> {
        self.tokenizer.token_to_id(text).filter(|id| self.is_special(*id))
    }

    /// The text of all ids at once, special tokens left out; ids that nothing stands for have no text.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, true).unwrap_or_default()
    }

    /// The text of all ids at once, special tokens spelled out.
    pub fn decode_with_special(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, false).unwrap_or_default()
    }

    /// The bytes of a token, where tokens are runs of bytes.
    pub(crate) fn bytes(&self, id: u32) -> Option<&[u8]> {
        match &self.spelling {
            Spelling::Bytes { bytes, ends } => {
                let id = id as usize;
                let start = if id == 0 { 0 } else { ends.get(id - 1).copied().unwrap_or(bytes.len()) };
                let end = ends.get(id).copied().unwrap_or(bytes.len());
                Some(&bytes[start..end])
            }
            Spelling::Decoder => None,
        }
    }

    /// What a token spells by itself, in bytes; special tokens spell their names.
    pub(crate) fn spelling(&self, id: u32) -> Vec<u8> {
        let text = || self.tokenizer.decode(&[id], false).unwrap_or_default().into_bytes();
        self.bytes(id).map_or_else(text, <[u8]>::to_vec)
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}

/// The bytes behind the characters of a byte-level vocabulary. A token with any other character stands for itself.
fn tabulate(tokens: impl Iterator<Item = Option<String>>) -> Spelling {
    let alphabet = byte_of_character();
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for token in tokens {
        let token = token.unwrap_or_default();
        let spelled: Option<Vec<u8>> = token.chars().map(|c| alphabet.get(c as usize).copied().flatten()).collect();
        bytes.extend(spelled.unwrap_or_else(|| token.into_bytes()));
        ends.push(bytes.len());
    }
    Spelling::Bytes { bytes, ends }
}

/// The byte that each character of the byte-level alphabet stands for: printable characters of Latin-1 stand for
/// themselves, the other bytes follow from U+0100 on (GPT-2's `bytes_to_unicode`).
fn byte_of_character() -> Vec<Option<u8>> {
    let mut table = vec![None; 512];
    let mut next = 256;
    for byte in 0..=255u8 {
        match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => table[usize::from(byte)] = Some(byte),
            _ => {
                table[next] = Some(byte);
                next += 1;
            }
        }
    }
    table
}
