//! The tokenizer's part of a GGUF file's metadata, read and checked once.

use std::collections::HashMap;

use penstock_engine::weights::Metadata;

use super::Error;

/// What a token is for, by ggml's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// Text.
    Normal,
    /// Never text: found in rendered templates, left out of answers.
    Control,
    /// Text that is always one token.
    UserDefined,
}

/// A tokenizer as the model's file describes it. Ids are indices of `tokens` and exist.
#[derive(Debug, Clone, Default)]
pub(super) struct Vocabulary {
    pub(super) model: String,
    pub(super) pretokenizer: String,
    pub(super) tokens: Vec<String>,
    pub(super) kinds: Vec<TokenKind>,
    /// In the order of their rank.
    pub(super) merges: Vec<(String, String)>,
    pub(super) special: SpecialIds,
    pub(super) add_bos: Option<bool>,
    pub(super) add_eos: Option<bool>,
    pub(super) template: Option<String>,
    pub(super) context_length: Option<usize>,
    pub(super) sampling: Sampling,
}

/// Ids with a role.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SpecialIds {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    /// The end of a turn.
    pub(super) eot: Option<u32>,
    /// The end of a message.
    pub(super) eom: Option<u32>,
    pub(super) unknown: Option<u32>,
    pub(super) padding: Option<u32>,
}

/// What the model's makers would have it sampled with.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sampling {
    pub(super) temperature: Option<f64>,
    pub(super) top_k: Option<usize>,
    pub(super) top_p: Option<f64>,
    pub(super) min_p: Option<f64>,
    pub(super) repetition_penalty: Option<f64>,
}

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

impl Vocabulary {
    pub(super) fn read(metadata: &Metadata) -> Result<Self, Error> {
        let text = |key| metadata.str(key).map(|text| text.map(str::to_owned));
        let needed = |key| text(key)?.ok_or(Error::Missing(key));
        let architecture = needed("general.architecture")?;
        let merges = metadata.strings(MERGES)?.ok_or(Error::Missing(MERGES))?;
        let kinds = metadata.integers(TOKEN_TYPE)?.ok_or(Error::Missing(TOKEN_TYPE))?;
        let tokens = metadata.strings(TOKENS)?.ok_or(Error::Missing(TOKENS))?;
        let vocabulary = Self {
            model: needed("tokenizer.ggml.model")?,
            pretokenizer: needed("tokenizer.ggml.pre")?,
            tokens: tokens.into_iter().map(str::to_owned).collect(),
            kinds: kinds.into_iter().map(kind).collect::<Result<_, _>>()?,
            merges: merges.into_iter().map(merge).collect::<Result<_, _>>()?,
            special: SpecialIds::read(metadata)?,
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
            template: text("tokenizer.chat_template")?,
            context_length: metadata.size(&format!("{architecture}.context_length"))?,
            sampling: Sampling {
                temperature: metadata.number("general.sampling.temp")?,
                top_k: metadata.size("general.sampling.top_k")?,
                top_p: metadata.number("general.sampling.top_p")?,
                min_p: metadata.number("general.sampling.min_p")?,
                repetition_penalty: metadata.number("general.sampling.penalty_repeat")?,
            },
        };
        vocabulary.check()?;
        Ok(vocabulary)
    }

    /// The text of a token with a role.
    pub(super) fn text(&self, id: Option<u32>) -> Option<&str> {
        self.tokens.get(id? as usize).map(String::as_str)
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let broken = |problem: String| Err(Error::Broken(problem));
        if self.kinds.len() != self.tokens.len() {
            return broken(format!("{} tokens have {} types", self.tokens.len(), self.kinds.len()));
        }
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(other) = ids.insert(token.as_str(), id) {
                return broken(format!("tokens {other} and {id} are both {token:?}"));
            }
        }
        for (left, right) in &self.merges {
            let both = format!("{left}{right}");
            if let Some(part) = [left, right, &both].into_iter().find(|part| !ids.contains_key(part.as_str())) {
                return broken(format!("{left:?} and {right:?} are merged, but {part:?} is no token"));
            }
        }
        let SpecialIds { bos, eos, eot, eom, unknown, padding } = self.special;
        let roles =
            [("bos", bos), ("eos", eos), ("eot", eot), ("eom", eom), ("unknown", unknown), ("padding", padding)];
        match roles.into_iter().find(|(_, id)| id.is_some_and(|id| id as usize >= self.tokens.len())) {
            Some((role, _)) => broken(format!("its {role} token is outside the {} tokens", self.tokens.len())),
            None => Ok(()),
        }
    }
}

impl SpecialIds {
    fn read(metadata: &Metadata) -> Result<Self, Error> {
        // An id that fits no u32 is as wrong as one outside the vocabulary, and is found as such.
        let id = |role| {
            let id = metadata.size(&format!("tokenizer.ggml.{role}_token_id"))?;
            Ok::<_, Error>(id.map(|id| u32::try_from(id).unwrap_or(u32::MAX)))
        };
        Ok(Self {
            bos: id("bos")?,
            eos: id("eos")?,
            eot: id("eot")?,
            eom: id("eom")?,
            unknown: id("unknown")?,
            padding: id("padding")?,
        })
    }
}

fn kind(number: i64) -> Result<TokenKind, Error> {
    match number {
        // Unknown, unused and single-byte tokens have no part in byte-level BPE beyond their place in the vocabulary.
        1 | 2 | 5 | 6 => Ok(TokenKind::Normal),
        3 => Ok(TokenKind::Control),
        4 => Ok(TokenKind::UserDefined),
        other => Err(Error::Broken(format!("a token has the type {other}"))),
    }
}

/// `a b`; neither side is empty, and spaces inside tokens are written as another character.
pub(super) fn merge(text: &str) -> Result<(String, String), Error> {
    match text.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok((left.to_owned(), right.to_owned()))
        }
        _ => Err(Error::Broken(format!("{text:?} is no merge of two tokens"))),
    }
}
