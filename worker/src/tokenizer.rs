//! A model's text side as Hugging Face files: what a GGUF file keeps in its metadata, in the one format that routers
//! read. Nothing is encoded or decoded here.

mod files;
mod import;
mod pretokenizer;
mod vocabulary;

use bytes::Bytes;
use penstock_engine::weights::{self, Metadata};

use crate::artifact::Digest;
pub use import::metadata_of;
use vocabulary::Vocabulary;

/// Everything that a router must know of a model's text.
#[derive(Debug, Clone)]
pub struct TextSide {
    /// `tokenizer.json`, `tokenizer_config.json`, `generation_config.json`.
    pub files: Vec<TextFile>,
    /// Ids that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// The tokenizer's kind as the model file names it: model and pre-tokenizer.
    pub kind: String,
    /// Whether there is a template for conversations.
    pub has_template: bool,
}

/// One file of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// Its name in Hugging Face's layout.
    pub name: &'static str,
    /// Its content.
    pub bytes: Bytes,
    /// Of the content.
    pub digest: Digest,
}

/// Why a model's text side cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The metadata cannot be read.
    #[error(transparent)]
    Metadata(#[from] weights::Error),
    /// A key that a tokenizer needs is not there.
    #[error("the metadata has no {0:?}")]
    Missing(&'static str),
    /// A kind of tokenizer that is not served.
    #[error("tokenizer model {found:?} is not served; served is gpt2 (byte-level BPE)")]
    Model {
        /// The file's.
        found: String,
    },
    /// A pre-tokenizer that is not served. Guessing one would give wrong ids in silence.
    #[error("pre-tokenizer {found:?} is not served; served are: {}", served.join(", "))]
    Pretokenizer {
        /// The file's.
        found: String,
        /// Those that are.
        served: Vec<&'static str>,
    },
    /// The metadata contradicts itself.
    #[error("the tokenizer is broken: {0}")]
    Broken(String),
}

impl TextSide {
    /// From the metadata of a GGUF file.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, Error> {
        files::build(&Vocabulary::read(metadata)?)
    }
}

#[cfg(test)]
mod tests;
