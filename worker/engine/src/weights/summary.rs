//! What a model file is, in a few figures.

use std::collections::BTreeMap;

use penstock_kernels::Format;

use super::{Error, Weights};
use crate::model::Config;

/// A model in figures, without loading it.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Its family, as the file names it.
    pub architecture: String,
    /// The model's own name, if the file has one.
    pub name: Option<String>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// The format of most parameters outside embeddings.
    pub quantisation: Format,
    /// Positions of a sequence.
    pub context_length: usize,
    /// Tokens.
    pub vocab_size: usize,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Bytes of keys and values of one token.
    pub kv_bytes_per_token: u64,
}

impl Summary {
    /// The figures of an open file; fails as loading it would for its architecture and metadata.
    pub fn new(weights: &Weights) -> Result<Self, Error> {
        let config = Config::new(weights)?;
        let mut by_format: BTreeMap<Format, u64> = BTreeMap::new();
        let mut parameters = 0;
        for (name, tensor) in &weights.tensors {
            let elements = tensor.shape[0] as u64 * tensor.shape[1] as u64;
            parameters += elements;
            if name.starts_with("blk.") {
                *by_format.entry(tensor.format).or_default() += elements;
            }
        }
        let dominant = by_format.into_iter().max_by_key(|&(_, elements)| elements);
        let quantisation = dominant.ok_or_else(|| Error::MissingTensor("blk.0.attn_q.weight".to_owned()))?.0;
        Ok(Self {
            architecture: config.architecture.to_owned(),
            name: weights.metadata.str("general.name")?.map(str::to_owned),
            parameters,
            quantisation,
            context_length: config.context_length,
            vocab_size: config.vocab_size,
            weight_bytes: weights.bytes(),
            kv_bytes_per_token: (config.block_bytes() / crate::batch::BLOCK_TOKENS) as u64,
        })
    }
}
