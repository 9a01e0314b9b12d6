//! What runs a batch through a model: a device, its weights and its KV pool.

mod candle;

pub use candle::{CandleRunner, KvSize, LoadError, Options};
pub mod scripted;

use std::time::Instant;

use crate::batch::Batch;
use crate::clock;

/// What the engine must know of a runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Length of a row of logits.
    pub vocab_size: usize,
    /// Positions that a sequence may have.
    pub context_length: usize,
    /// Blocks in the KV pool.
    pub kv_blocks: usize,
    /// Bytes of one block, keys and values of all layers.
    pub block_bytes: usize,
    /// Equal fingerprints promise equal bits.
    pub numerics: String,
}

/// Why a batch could not be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The device failed; nothing that it holds is to be trusted any more.
    #[error("the device failed: {0}")]
    Device(String),
}

/// What takes a row of logits, and may overwrite it. It must not panic.
pub type Take<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

/// A device with a model's weights and a KV pool.
///
/// What a row's logits are depends on its own sequence's tokens alone, to the bit: not on the other segments, on how
/// the prompt was cut into chunks, or on which blocks hold it.
pub trait ModelRunner: Send {
    /// Its sizes, constant over its life.
    fn shape(&self) -> &Shape;

    /// Runs one step: writes the batch's keys and values into the pool and returns the wanted logits, row-major
    /// `[batch.logit_rows(), vocab_size]`, in the order of the segments. The caller may overwrite them.
    fn execute(&mut self, batch: &Batch) -> Result<&mut [f32], Error>;

    /// Runs one step and calls `take` once with the number and the logits of each wanted row, from as many threads as the
    /// device has. Returns when the logits were there.
    fn execute_into(&mut self, batch: &Batch, take: Take<'_>) -> Result<Instant, Error> {
        let width = self.shape().vocab_size;
        let logits = self.execute(batch)?;
        let executed = clock::now();
        logits.chunks_exact_mut(width).enumerate().for_each(|(row, logits)| take(row, logits));
        Ok(executed)
    }
}
