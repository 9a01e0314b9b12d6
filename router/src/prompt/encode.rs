//! Text → ids, with and without look-alikes of special tokens in it.

use std::sync::Arc;

use tokenizers::{Model, OffsetType, PreTokenizer};

use super::broken;
use super::files::{SpecialToken, TokenizerConfig};
use super::lookalike::{Marks, Reveal};
use crate::request::Failure;
use crate::text::Vocabulary;

/// A model's tokenizer and what it puts around a text.
#[derive(Debug)]
pub(super) struct Encoder {
    vocabulary: Arc<Vocabulary>,
    around: Around,
    unk: Option<u32>,
}

/// What a text gets around it when special tokens are asked for.
#[derive(Debug, Clone, Copy)]
enum Around {
    /// Nothing: the model's configuration says so.
    Nothing,
    /// What the tokenizer's post-processor adds.
    PostProcessor,
    /// A token that the configuration asks for and the post-processor does not add, then what that adds.
    Bos(u32),
}

impl Encoder {
    pub(super) fn new(vocabulary: Arc<Vocabulary>, config: &TokenizerConfig) -> Self {
        let tokenizer = vocabulary.tokenizer();
        let id = |token: &Option<SpecialToken>| tokenizer.token_to_id(token.as_ref()?.content());
        let added = tokenizer.encode_fast("", true).map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default();
        let around = match (config.add_bos_token, id(&config.bos_token)) {
            (Some(false), _) => Around::Nothing,
            (Some(true), Some(bos)) if !added.contains(&bos) => Around::Bos(bos),
            (Some(true) | None, _) => Around::PostProcessor,
        };
        let unk = id(&config.unk_token);
        Self { around, unk, vocabulary }
    }

    /// The ids of a text, special tokens in it recognised.
    pub(super) fn encode_text(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, Failure> {
        let around = if add_special_tokens { self.around } else { Around::Nothing };
        let (first, post_process) = match around {
            Around::Nothing => (None, false),
            Around::PostProcessor => (None, true),
            Around::Bos(id) => (Some(id), true),
        };
        let encoding = self.vocabulary.tokenizer().encode_fast(text, post_process).map_err(broken)?;
        Ok(first.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// The ids of a rendered conversation: special tokens recognised, marked look-alikes encoded as plain text, and
    /// nothing put around it, since templates write what belongs there.
    pub(super) fn encode_marked(&self, text: &str, marks: &Marks) -> Result<Vec<u32>, Failure> {
        let tokenizer = self.vocabulary.tokenizer();
        let reveal = Reveal { marks, then: tokenizer.get_normalizer() };
        let mut pieces = tokenizer.get_added_vocabulary().extract_and_normalize(Some(&reveal), text);
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(broken)?;
        }
        let marked: Vec<u32> =
            marks.texts().filter_map(|text| tokenizer.token_to_id(text)).filter(|id| Some(*id) != self.unk).collect();
        let spelled = std::cell::Cell::new(None);
        pieces
            .tokenize(|piece| {
                let tokens = tokenizer.get_model().tokenize(piece.get())?;
                if let Some(token) = tokens.iter().find(|token| marked.contains(&token.id)) {
                    spelled.set(Some(token.id));
                }
                Ok(tokens)
            })
            .map_err(broken)?;
        if let Some(id) = spelled.get() {
            let reason = format!("this model cannot read {} as plain text", self.vocabulary.decode_with_special(&[id]));
            return Err(Failure::field("messages", reason));
        }
        let encoding = pieces.into_encoding(None, 0, OffsetType::None).map_err(broken)?;
        Ok(encoding.get_ids().to_vec())
    }
}
