//! Model families: config-driven decoders over the kernels.

mod config;
mod llama;

pub use config::Config;

use penstock_kernels::Cpu;
use penstock_kernels::attention::KvPool;

use crate::batch::Batch;
use crate::weights::{Error, Weights};

/// A decoder that continues sequences of tokens.
pub trait CausalLm: Send {
    /// Its sizes.
    fn config(&self) -> &Config;

    /// Bytes of its weights in memory.
    fn bytes(&self) -> usize;

    /// Runs a batch of at least one row: writes its keys and values into `pool` and returns the wanted logits, row-major
    /// `[batch.logit_rows(), vocab_size]`, in the order of the segments.
    fn forward(&mut self, cpu: &mut Cpu, pool: &mut KvPool, batch: &Batch) -> &mut [f32];
}

/// Loads the model of an open file.
pub fn load(weights: &Weights) -> Result<Box<dyn CausalLm>, Error> {
    Ok(Box::new(llama::Llama::load(weights)?))
}
