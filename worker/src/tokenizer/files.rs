//! The three files, from a checked vocabulary.

use serde_json::{Map, Value, json};

use super::pretokenizer::Pretokenizer;
use super::vocabulary::{TokenKind, Vocabulary};
use super::{Error, TextFile, TextSide};
use crate::artifact::Digest;

pub(super) fn build(vocabulary: &Vocabulary) -> Result<TextSide, Error> {
    if vocabulary.model != "gpt2" {
        return Err(Error::Model { found: vocabulary.model.clone() });
    }
    let pretokenizer = Pretokenizer::by_name(&vocabulary.pretokenizer)?;
    let around = Around::new(vocabulary, pretokenizer)?;
    let eos_token_ids = eos_token_ids(vocabulary);
    let files = vec![
        file("tokenizer.json", &tokenizer(vocabulary, pretokenizer, &around)),
        file("tokenizer_config.json", &tokenizer_config(vocabulary, &around)),
        file("generation_config.json", &generation_config(vocabulary, &eos_token_ids)),
    ];
    let kind = format!("{}/{}", vocabulary.model, vocabulary.pretokenizer);
    Ok(TextSide { files, eos_token_ids, kind, has_template: vocabulary.template.is_some() })
}

fn file(name: &'static str, value: &Value) -> TextFile {
    let bytes = serde_json::to_vec(value).expect("JSON values have text keys");
    TextFile { name, digest: Digest::of_bytes(&bytes), bytes: bytes.into() }
}

/// Every id that ends an answer, each once.
fn eos_token_ids(vocabulary: &Vocabulary) -> Vec<u32> {
    let special = vocabulary.special;
    let mut ids: Vec<u32> = Vec::new();
    for id in [special.eos, special.eot, special.eom].into_iter().flatten() {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

/// The tokens that a text by itself gets around it.
struct Around<'a> {
    bos: Option<(u32, &'a str)>,
    eos: Option<(u32, &'a str)>,
}

impl<'a> Around<'a> {
    fn new(vocabulary: &'a Vocabulary, pretokenizer: Pretokenizer) -> Result<Self, Error> {
        let token = |wanted: bool, id: Option<u32>, role: &str| match (wanted, id.zip(vocabulary.text(id))) {
            (true, None) => Err(Error::Broken(format!("it adds a {role} token to texts and has none"))),
            (true, token) => Ok(token),
            (false, _) => Ok(None),
        };
        let add_bos = vocabulary.add_bos.unwrap_or(pretokenizer.adds_bos());
        let bos = token(add_bos, vocabulary.special.bos, "bos")?;
        let eos = token(vocabulary.add_eos.unwrap_or(false), vocabulary.special.eos, "eos")?;
        Ok(Self { bos, eos })
    }

    fn post_processor(&self) -> Value {
        if self.bos.is_none() && self.eos.is_none() {
            return Value::Null;
        }
        let special = |token: Option<(u32, &str)>, type_id: u32| {
            token.map(|(_, text)| json!({ "SpecialToken": { "id": text, "type_id": type_id } }))
        };
        let around = |name: &str, type_id: u32| {
            let sequence = json!({ "Sequence": { "id": name, "type_id": type_id } });
            let pieces = [special(self.bos, type_id), Some(sequence), special(self.eos, type_id)];
            pieces.into_iter().flatten().collect::<Vec<Value>>()
        };
        let pair: Vec<Value> = around("A", 0).into_iter().chain(around("B", 1)).collect();
        let tokens = [self.bos, self.eos].into_iter().flatten();
        let tokens: Map<String, Value> =
            tokens.map(|(id, text)| (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }))).collect();
        json!({ "type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": tokens })
    }
}

fn tokenizer(vocabulary: &Vocabulary, pretokenizer: Pretokenizer, around: &Around<'_>) -> Value {
    let added = vocabulary.tokens.iter().zip(&vocabulary.kinds).enumerate().filter_map(|(id, (content, kind))| {
        let special = match kind {
            TokenKind::Normal => return None,
            TokenKind::Control => true,
            TokenKind::UserDefined => false,
        };
        Some(json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special,
        }))
    });
    let ids: Map<String, Value> = vocabulary.tokens.iter().cloned().zip((0u32..).map(Value::from)).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<Value>>(),
        "normalizer": pretokenizer.normalizer(),
        "pre_tokenizer": pretokenizer.json(),
        "post_processor": around.post_processor(),
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pretokenizer.ignores_merges(),
            "vocab": ids,
            "merges": vocabulary.merges,
        },
    })
}

fn tokenizer_config(vocabulary: &Vocabulary, around: &Around<'_>) -> Value {
    let special = vocabulary.special;
    let entries = [
        ("tokenizer_class", Some(Value::from("PreTrainedTokenizerFast"))),
        ("clean_up_tokenization_spaces", Some(Value::from(false))),
        ("add_bos_token", Some(Value::from(around.bos.is_some()))),
        ("add_eos_token", Some(Value::from(around.eos.is_some()))),
        ("bos_token", vocabulary.text(special.bos).map(Value::from)),
        ("eos_token", vocabulary.text(special.eos).map(Value::from)),
        ("unk_token", vocabulary.text(special.unknown).map(Value::from)),
        ("pad_token", vocabulary.text(special.padding).map(Value::from)),
        ("model_max_length", vocabulary.context_length.map(Value::from)),
        ("chat_template", vocabulary.template.as_deref().map(Value::from)),
    ];
    present(entries)
}

fn generation_config(vocabulary: &Vocabulary, eos_token_ids: &[u32]) -> Value {
    let (special, sampling) = (vocabulary.special, vocabulary.sampling);
    let entries = [
        ("bos_token_id", special.bos.map(Value::from)),
        ("eos_token_id", Some(Value::from(eos_token_ids))),
        ("pad_token_id", special.padding.map(Value::from)),
        ("temperature", sampling.temperature.map(Value::from)),
        ("top_k", sampling.top_k.map(Value::from)),
        ("top_p", sampling.top_p.map(Value::from)),
        ("min_p", sampling.min_p.map(Value::from)),
        ("repetition_penalty", sampling.repetition_penalty.map(Value::from)),
    ];
    present(entries)
}

/// An object of the entries that have a value.
fn present<const N: usize>(entries: [(&str, Option<Value>); N]) -> Value {
    entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect::<Map<_, _>>().into()
}
