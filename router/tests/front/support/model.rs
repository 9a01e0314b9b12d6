//! The text files of the model that stand-in workers serve.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The model's text files: a byte-level tokenizer in which id = byte + 3.
pub(crate) fn files() -> BTreeMap<String, Vec<u8>> {
    let mut vocab = serde_json::Map::new();
    let specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    for (id, token) in specials.iter().enumerate() {
        vocab.insert((*token).to_owned(), json!(id));
    }
    let mut unprintable = 256;
    for byte in 0..=255_u32 {
        let code = if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            byte
        } else {
            unprintable += 1;
            unprintable - 1
        };
        vocab.insert(char::from_u32(code).unwrap().to_string(), json!(byte + 3));
    }
    let added = |(id, content): (usize, &&str)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
               "special": true})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": specials.iter().enumerate().map(added).collect::<Vec<_>>(),
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let template =
        "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}>{% endif %}";
    let file = |name: &str, json: Value| (name.to_owned(), json.to_string().into_bytes());
    BTreeMap::from([
        file("tokenizer.json", tokenizer),
        file("tokenizer_config.json", json!({"chat_template": template, "eos_token": "<|im_end|>"})),
        file("generation_config.json", json!({"temperature": 0.6, "top_k": 20})),
    ])
}
