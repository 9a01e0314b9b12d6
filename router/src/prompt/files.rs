//! The files of a model's text side, in Hugging Face's formats.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::Error;

const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
pub(super) const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// How tokens are chosen where a request does not say; None where the model does not say either.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
pub struct Defaults {
    /// ≥ 0.
    pub temperature: Option<f32>,
    /// In (0, 1].
    pub top_p: Option<f32>,
    /// 0: off.
    pub top_k: Option<u32>,
    /// In [0, 1].
    pub min_p: Option<f32>,
    /// > 0; 1: off.
    pub repetition_penalty: Option<f32>,
}

/// `generation_config.json`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct GenerationConfig {
    #[serde(flatten)]
    pub(super) defaults: Defaults,
    eos_token_id: Option<OneOrMany>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl GenerationConfig {
    /// The ids that end an answer, else the tokenizer's one.
    pub(super) fn eos_ids(&self, tokenizers: Option<u32>) -> Vec<u32> {
        match &self.eos_token_id {
            Some(OneOrMany::One(id)) => vec![*id],
            Some(OneOrMany::Many(ids)) => ids.clone(),
            None => tokenizers.into_iter().collect(),
        }
    }
}

/// `tokenizer_config.json`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TokenizerConfig {
    pub(super) bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
    pub(super) unk_token: Option<SpecialToken>,
    sep_token: Option<SpecialToken>,
    pad_token: Option<SpecialToken>,
    cls_token: Option<SpecialToken>,
    mask_token: Option<SpecialToken>,
    pub(super) add_bos_token: Option<bool>,
    pub(super) chat_template: Option<ChatTemplates>,
}

/// A special token, bare or with its properties.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum SpecialToken {
    Bare(String),
    Full { content: String },
}

impl SpecialToken {
    pub(super) fn content(&self) -> &str {
        match self {
            Self::Bare(content) | Self::Full { content } => content,
        }
    }
}

/// One chat template, or several by name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum ChatTemplates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
pub(super) struct NamedTemplate {
    name: String,
    template: String,
}

impl ChatTemplates {
    /// The template for conversations without tools.
    pub(super) fn source(&self) -> Option<&str> {
        match self {
            Self::One(source) => Some(source),
            Self::Named(_) => self.named("default"),
        }
    }

    /// The template that conversations with tools have to themselves, where there is one.
    pub(super) fn for_tools(&self) -> Option<&str> {
        self.named("tool_use")
    }

    fn named(&self, name: &str) -> Option<&str> {
        match self {
            Self::One(_) => None,
            Self::Named(templates) => {
                templates.iter().find(|named| named.name == name).map(|named| named.template.as_str())
            }
        }
    }
}

impl TokenizerConfig {
    /// The special tokens as templates know them, those that the model has.
    pub(super) fn special_tokens(&self) -> Map<String, Value> {
        let all = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("unk_token", &self.unk_token),
            ("sep_token", &self.sep_token),
            ("pad_token", &self.pad_token),
            ("cls_token", &self.cls_token),
            ("mask_token", &self.mask_token),
        ];
        let known = all.into_iter().filter_map(|(name, token)| Some((name, token.as_ref()?)));
        known.map(|(name, token)| (name.to_owned(), Value::String(token.content().to_owned()))).collect()
    }

    pub(super) fn eos_id(&self, tokenizer: &Tokenizer) -> Option<u32> {
        tokenizer.token_to_id(self.eos_token.as_ref()?.content())
    }
}

/// A JSON file, or the default where there is none.
pub(super) fn json<T: DeserializeOwned + Default>(
    files: &BTreeMap<String, Bytes>,
    file: &'static str,
) -> Result<T, Error> {
    match files.get(file) {
        Some(bytes) => serde_json::from_slice(bytes).map_err(|e| Error::Malformed { file, reason: e.to_string() }),
        None => Ok(T::default()),
    }
}

/// The tokenizer, without padding or truncation.
pub(super) fn tokenizer(files: &BTreeMap<String, Bytes>) -> Result<Tokenizer, Error> {
    let malformed = |reason: String| Error::Malformed { file: TOKENIZER, reason };
    let bytes = files.get(TOKENIZER).ok_or(Error::Missing { file: TOKENIZER })?;
    let mut tokenizer = match with_special_tokens_as_they_stand(bytes).map_err(|e| malformed(e.to_string()))? {
        Some(bytes) => Tokenizer::from_bytes(bytes),
        None => Tokenizer::from_bytes(bytes),
    }
    .map_err(|e| malformed(e.to_string()))?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|e| malformed(e.to_string()))?;
    Ok(tokenizer)
}

/// The file with every special token matched before normalisation, where one is not yet. Without a normalizer this
/// makes no difference, and with one it keeps text that only normalises to a special token plain text.
fn with_special_tokens_as_they_stand(bytes: &[u8]) -> serde_json::Result<Option<Vec<u8>>> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<AddedToken>,
    }
    #[derive(Deserialize)]
    struct AddedToken {
        special: bool,
        normalized: bool,
    }
    let file: File = serde_json::from_slice(bytes)?;
    if !file.added_tokens.iter().any(|token| token.special && token.normalized) {
        return Ok(None);
    }
    let mut value: Value = serde_json::from_slice(bytes)?;
    for token in value["added_tokens"].as_array_mut().into_iter().flatten() {
        if token["special"] == Value::Bool(true) {
            token["normalized"] = Value::Bool(false);
        }
    }
    serde_json::to_vec(&value).map(Some)
}
