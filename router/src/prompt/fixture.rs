//! Small tokenizers for tests.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::ModelText;
use crate::text::Vocabulary;

/// A template in ChatML's manner.
pub(crate) const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}\
                                 {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Merges of a few common words and of parts of characters of several bytes.
const MERGES: [&str; 9] = ["h e", "l l", "he ll", "hell o", "Ġ hello", "i m", "ð Ł", "ðŁ ĺ", "ä ½"];

fn byte_level_json(special: bool) -> Value {
    let mut vocab = Map::new();
    let mut add = |token: String| {
        let id = vocab.len();
        vocab.entry(token).or_insert(id.into());
    };
    SPECIAL.iter().for_each(|token| add((*token).to_owned()));
    let mut next = 256;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable { u32::from(byte) } else { next };
        next += u32::from(!printable);
        add(char::from_u32(code).expect("below the surrogates").to_string());
    }
    MERGES.iter().for_each(|merge| add(merge.replace(' ', "")));
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": id == 2, "special": true })
        })
        .collect();
    json!({
        "version": "1.0",
        "added_tokens": if special { added } else { Vec::new() },
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocab, "merges": MERGES },
    })
}

fn tokenizer(json: &Value) -> Tokenizer {
    json.to_string().parse().expect("a well-formed tokenizer")
}

/// Byte-level tokens: three special ones (0 to 2), one a byte, a few merges.
pub(crate) fn byte_level() -> Vocabulary {
    Vocabulary::new(tokenizer(&byte_level_json(true)))
}

/// The same without special tokens.
pub(crate) fn without_special() -> Tokenizer {
    tokenizer(&byte_level_json(false))
}

/// Tokens in Llama 2's manner: `▁` for spaces, bytes for what no token spells.
pub(crate) fn metaspace() -> Vocabulary {
    let mut vocab = Map::new();
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let letters = ["<unk>", "▁", "h", "e", "l", "o", "a", "b", "d", "!", "he", "ll", "hell", "hello", "▁hello"];
    for token in bytes.chain(letters.map(str::to_owned)) {
        let id = vocab.len();
        vocab.insert(token, id.into());
    }
    Vocabulary::new(tokenizer(&json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": { "type": "BPE", "vocab": vocab, "merges": ["h e", "l l", "he ll", "hell o", "▁ hello"],
                   "byte_fallback": true, "unk_token": "<unk>", "fuse_unk": true },
    })))
}

/// The files of a model with the byte-level tokens and a template.
pub(crate) fn files(template: &str) -> BTreeMap<String, Bytes> {
    let config = json!({ "chat_template": template, "eos_token": "<|im_end|>" });
    BTreeMap::from([
        ("tokenizer.json".to_owned(), byte_level_json(true).to_string().into()),
        ("tokenizer_config.json".to_owned(), config.to_string().into()),
    ])
}

/// A model with the byte-level tokens and a template.
pub(crate) fn model(template: &str) -> ModelText {
    ModelText::new(&files(template)).expect("well-formed files")
}

/// A model without a template.
pub(crate) fn bare() -> ModelText {
    let mut files = files("");
    files.remove("tokenizer_config.json");
    ModelText::new(&files).expect("well-formed files")
}

/// The id of the token of a single byte.
pub(crate) fn byte_id(vocabulary: &Vocabulary, byte: u8) -> u32 {
    (0..vocabulary.size()).find(|id| vocabulary.bytes(*id) == Some(&[byte])).expect("every byte has a token")
}

/// A text's ids.
pub(crate) fn spell(vocabulary: &Vocabulary, text: &str) -> Vec<u32> {
    vocabulary.tokenizer().encode(text, false).expect("encodes").get_ids().to_vec()
}
