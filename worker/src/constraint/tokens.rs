//! What each token id spells, out of `tokenizer.json`, in the way that llguidance wants it.

use std::collections::HashMap;
use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use penstock_engine::batch::TokenId;
use serde::Deserialize;

use super::UnfitTokenizer;

#[derive(Deserialize)]
struct Tokenizer {
    added_tokens: Vec<Added>,
    decoder: Decoder,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: TokenId,
    content: String,
    special: bool,
}

#[derive(Deserialize)]
struct Decoder {
    r#type: String,
}

#[derive(Deserialize)]
struct Model {
    vocab: HashMap<String, TokenId>,
}

/// The environment that masks are computed in. Tokens are only spelled, never made: the model is free to choose among
/// the spellings of what a grammar forces.
pub(super) fn environment(json: &[u8], vocab_size: usize, eos: &[TokenId]) -> Result<TokEnv, UnfitTokenizer> {
    let unfit = |problem: String| UnfitTokenizer(problem);
    let tokenizer: Tokenizer = serde_json::from_slice(json).map_err(|error| unfit(error.to_string()))?;
    if tokenizer.decoder.r#type != "ByteLevel" {
        return Err(unfit(format!("its decoder is {:?}, not ByteLevel", tokenizer.decoder.r#type)));
    }
    let Some(&end) = eos.first() else { return Err(unfit("no id ends an answer".to_owned())) };
    if let Some(id) = eos.iter().find(|id| **id as usize >= vocab_size) {
        return Err(unfit(format!("id {id} ends answers, but is outside the {vocab_size} tokens")));
    }
    let info = TokRxInfo::new(u32::try_from(vocab_size).unwrap_or(u32::MAX), end);
    let trie = TokTrie::from(&info, &spellings(tokenizer, vocab_size)).with_eos_tokens(eos);
    Ok(Arc::new(ApproximateTokEnv::new(trie)))
}

/// The bytes of each id; ids that nothing stands for have none. Special tokens get llguidance's mark, which no text has.
fn spellings(tokenizer: Tokenizer, vocab_size: usize) -> Vec<Vec<u8>> {
    let alphabet = byte_of_character();
    let mut spellings = vec![Vec::new(); vocab_size];
    for (token, id) in tokenizer.model.vocab {
        let Some(spelling) = spellings.get_mut(id as usize) else { continue };
        let bytes: Option<Vec<u8>> = token.chars().map(|c| alphabet.get(&c).copied()).collect();
        // A token with any other character stands for itself, as it does for the router.
        *spelling = bytes.unwrap_or_else(|| token.into_bytes());
    }
    for Added { id, content, special } in tokenizer.added_tokens {
        let Some(spelling) = spellings.get_mut(id as usize) else { continue };
        let mark = if special { &[TokTrie::SPECIAL_TOKEN_MARKER][..] } else { &[] };
        *spelling = [mark, content.as_bytes()].concat();
    }
    spellings
}

/// GPT-2's alphabet: printable characters of Latin-1 stand for themselves, the other bytes follow from U+0100 on.
fn byte_of_character() -> HashMap<char, u8> {
    let prints = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..=u8::MAX).filter(|byte| !prints(byte)).zip('\u{100}'..).map(|(byte, c)| (c, byte));
    (0..=u8::MAX).filter(prints).map(|byte| (char::from(byte), byte)).chain(others).collect()
}
