//! A model on this machine: its file, its figures, its text side; what `model inspect` tells and what routers get.

use std::path::PathBuf;

use penstock_engine::weights::{self, Summary, Weights};
use serde::Serialize;

use crate::artifact::{Artifact, Digest, Source};
use crate::constraint::{Compiler, UnfitTokenizer};
use crate::tokenizer::{self, TextFile, TextSide};

/// A model file, opened and understood, not loaded.
pub struct Model {
    /// Where it lies and what it is.
    pub artifact: Artifact,
    /// Its figures.
    pub summary: Summary,
    /// Its text side.
    pub text: TextSide,
}

/// Why a model file cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error("{}: {source}", path.display())]
    Weights {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: weights::Error,
    },
    /// Its tokenizer.
    #[error("{}: {source}", path.display())]
    Text {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: tokenizer::Error,
    },
}

/// What a router must know of a served model, without the files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Card {
    /// What clients call it.
    pub name: String,
    /// Of the weights file.
    pub digest: Digest,
    /// The family.
    pub architecture: String,
    /// The format of most of its weights.
    pub quantisation: String,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Tokens that a prompt and its answer may take together.
    pub context_length: u32,
    /// Tokens.
    pub vocab_size: u32,
    /// Ids that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// Equal fingerprints promise equal bits.
    pub numerics: String,
}

/// A model in figures for people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The name in the cache, or the file's.
    pub name: String,
    /// Where the file lies.
    pub path: PathBuf,
    /// Where it came from.
    pub source: Option<Source>,
    /// Of the file.
    pub digest: Digest,
    /// Bytes of the file.
    pub size: u64,
    /// The architecture's name.
    pub family: String,
    /// What its makers call it.
    pub title: Option<String>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// The format of most of its weights.
    pub quantisation: String,
    /// Tokens that a prompt and its answer may take together.
    pub context_length: usize,
    /// Tokens.
    pub vocab_size: usize,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Room for keys and values.
    pub kv: Vec<KvNeed>,
    /// The tokenizer's model and pre-tokenizer.
    pub tokenizer: String,
    /// Whether there is a template for conversations.
    pub chat_template: bool,
}

/// What so many sequences of full context need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct KvNeed {
    /// Sequences at once.
    pub sequences: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

impl Model {
    /// Opens the file and understands it; the weights can be loaded from what comes with it. Blocks.
    pub fn open(artifact: Artifact) -> Result<(Self, Weights), Error> {
        let failed = |source| Error::Weights { path: artifact.path.clone(), source };
        let weights = Weights::open(&artifact.path).map_err(failed)?;
        let summary = Summary::new(&weights).map_err(failed)?;
        let text = TextSide::from_gguf(weights.metadata());
        let text = text.map_err(|source| Error::Text { path: artifact.path.clone(), source })?;
        Ok((Self { artifact, summary, text }, weights))
    }

    /// Its figures for people.
    pub fn inspect(&self) -> Inspection {
        let Self { artifact, summary, text } = self;
        let sequence = summary.kv_bytes_per_token * summary.context_length as u64;
        Inspection {
            name: artifact.name.clone(),
            path: artifact.path.clone(),
            source: artifact.source.clone(),
            digest: artifact.digest,
            size: artifact.size,
            family: summary.architecture.clone(),
            title: summary.name.clone(),
            parameters: summary.parameters,
            quantisation: summary.quantisation.to_string(),
            context_length: summary.context_length,
            vocab_size: summary.vocab_size,
            weight_bytes: summary.weight_bytes,
            kv: [1, 16, 64].map(|sequences| KvNeed { sequences, bytes: sequences * sequence }).to_vec(),
            tokenizer: text.kind.clone(),
            chat_template: text.has_template,
        }
    }
}

/// What a worker serves: a card and the files that go with it.
#[derive(Debug, Clone)]
pub struct Served {
    /// The model.
    pub card: Card,
    /// Its text side.
    pub files: Vec<TextFile>,
}

impl Served {
    /// What compiles constraints for it.
    pub(crate) fn constraints(&self) -> Result<Compiler, UnfitTokenizer> {
        let tokenizer = self.files.iter().find(|file| file.name == "tokenizer.json");
        let tokenizer = tokenizer.map_or(&[][..], |file| &file.bytes);
        Compiler::new(tokenizer, self.card.vocab_size as usize, &self.card.eos_token_ids)
    }
}
