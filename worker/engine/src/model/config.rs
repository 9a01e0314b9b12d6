//! A model's sizes and switches, from a file's metadata, checked once.

use std::num::NonZeroUsize;

use penstock_kernels::attention::{Heads, KvPool};

use crate::weights::{Error, Metadata, Weights};

/// Architectures that are served.
const SERVED: [&str; 1] = ["llama"];

/// A decoder's sizes and switches.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The family, as the file names it.
    pub architecture: &'static str,
    /// Decoder layers.
    pub layers: usize,
    /// Elements of a hidden row.
    pub width: usize,
    /// Elements of the feed-forward network's inner row.
    pub inner: usize,
    /// Attention's sizes.
    pub heads: Heads,
    /// Tokens.
    pub vocab_size: usize,
    /// Positions of a sequence.
    pub context_length: usize,
    /// Added to mean squares by norms.
    pub epsilon: f32,
    /// Positions that a row attends to, if not to all up to its own.
    pub window: Option<NonZeroUsize>,
    /// Rotation per position of each pair of a head's elements, in radians: `[rotated / 2]`.
    pub frequencies: Vec<f64>,
}

impl Config {
    /// The config of an open file.
    pub fn new(weights: &Weights) -> Result<Self, Error> {
        let metadata = weights.metadata();
        let name = metadata.str("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
        let architecture = SERVED.into_iter().find(|served| *served == name);
        let architecture =
            architecture.ok_or_else(|| Error::Architecture { name: name.to_owned(), served: &SERVED })?;
        let keys = Keys { metadata, architecture };
        let width = keys.size("embedding_length")?;
        let heads = keys.heads(width)?;
        if metadata.size(&keys.name("expert_count"))?.is_some_and(|count| count > 0) {
            return Err(Error::Unsupported("a mixture of experts".to_owned()));
        }
        let config = Self {
            architecture,
            layers: keys.size("block_count")?,
            width,
            inner: keys.size("feed_forward_length")?,
            heads,
            vocab_size: weights.shape("token_embd.weight")?[0],
            context_length: keys.size("context_length")?,
            epsilon: keys.number("attention.layer_norm_rms_epsilon")? as f32,
            window: keys.optional_size("attention.sliding_window")?.and_then(NonZeroUsize::new),
            frequencies: keys.frequencies(heads.rotated, weights)?,
        };
        Ok(config)
    }

    /// Bytes of a block of the KV pool, all layers.
    pub fn block_bytes(&self) -> usize {
        KvPool::block_bytes(self.layers, self.heads)
    }
}

/// The metadata keys of an architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'static str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// A size of 1 to 2^31 - 1: what no model exceeds and no product of two overflows.
    fn size(&self, key: &str) -> Result<usize, Error> {
        self.optional_size(key)?.ok_or_else(|| missing(&self.name(key)))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, Error> {
        let name = self.name(key);
        match self.metadata.size(&name)? {
            Some(size) if size == 0 || size >= 1 << 31 => Err(Error::Key { key: name, expected: "a size above 0" }),
            size => Ok(size),
        }
    }

    fn number(&self, key: &str) -> Result<f64, Error> {
        self.metadata.number(&self.name(key))?.ok_or_else(|| missing(&self.name(key)))
    }

    fn heads(&self, width: usize) -> Result<Heads, Error> {
        let query = self.size("attention.head_count")?;
        let kv = self.optional_size("attention.head_count_kv")?.unwrap_or(query);
        let size = self.optional_size("attention.key_length")?.unwrap_or(width / query);
        let value_size = self.optional_size("attention.value_length")?.unwrap_or(size);
        let rotated = self.optional_size("rope.dimension_count")?.unwrap_or(size);
        let fits = query.is_multiple_of(kv) && rotated <= size && rotated.is_multiple_of(2) && size > 0;
        if !fits {
            let sizes = format!("{query} query heads, {kv} KV heads, {size} elements each, {rotated} rotated");
            return Err(Error::Corrupted(format!("attention of {sizes}")));
        }
        if value_size != size || !size.is_multiple_of(16) {
            return Err(Error::Unsupported(format!("heads of {size} elements for keys and {value_size} for values")));
        }
        Ok(Heads { query, kv, size, rotated })
    }

    fn frequencies(&self, rotated: usize, weights: &Weights) -> Result<Vec<f64>, Error> {
        let base = self.metadata.number(&self.name("rope.freq_base"))?.unwrap_or(10_000.0);
        let kind = self.metadata.str(&self.name("rope.scaling.type"))?.unwrap_or("none");
        let factor = match kind {
            "none" => 1.0,
            "linear" => self.number("rope.scaling.factor")?,
            other => return Err(Error::Unsupported(format!("rotary scaling of type {other:?}"))),
        };
        if !(base > 0.0 && base.is_finite() && factor > 0.0 && factor.is_finite()) {
            return Err(Error::Corrupted(format!("rotary base {base} and scaling factor {factor}")));
        }
        let mut frequencies: Vec<f64> =
            (0..rotated / 2).map(|i| base.powf(-2.0 * i as f64 / rotated as f64) / factor).collect();
        if weights.has("rope_freqs.weight") {
            let divisors = weights.vector("rope_freqs.weight", rotated / 2)?;
            frequencies.iter_mut().zip(divisors).for_each(|(frequency, by)| *frequency /= f64::from(by));
        }
        Ok(frequencies)
    }
}

fn missing(key: &str) -> Error {
    Error::MissingKey(key.to_owned())
}
