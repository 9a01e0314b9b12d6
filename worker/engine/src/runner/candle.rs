//! The CPU runner: weights from a GGUF file, a KV pool in memory, all on this machine's cores.

mod memory;

use std::num::NonZeroUsize;
use std::path::Path;
use std::thread;
use std::time::Instant;

use penstock_kernels::attention::KvPool;
use penstock_kernels::{Cpu, Isa};

use super::{Error, ModelRunner, Shape, Take};
use crate::batch::Batch;
use crate::clock;
use crate::model::{self, CausalLm};
use crate::weights::{self, Weights};

/// How large the KV pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvSize {
    /// So many blocks.
    Blocks(usize),
    /// As many blocks as fit so many bytes.
    Bytes(u64),
}

/// How to load a model.
#[derive(Debug, Clone)]
pub struct Options {
    /// The KV pool. Its memory is taken from the system as it is first used.
    pub kv: KvSize,
    /// Threads that compute; one a core if left out.
    pub threads: Option<NonZeroUsize>,
    /// The digest of the model file, for the numerics fingerprint.
    pub digest: String,
}

/// Why a model was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be served.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// It does not fit.
    #[error(
        "{} MiB of memory are needed ({} for weights, {} for keys and values), {} MiB are available",
        needed >> 20, weights >> 20, kv >> 20, available >> 20
    )]
    Memory {
        /// Bytes needed in all.
        needed: u64,
        /// Bytes of the weights.
        weights: u64,
        /// Bytes of the KV pool.
        kv: u64,
        /// Bytes that the system and the control group leave.
        available: u64,
    },
    /// The pool would have no block.
    #[error("a KV pool of no blocks: one block takes {block_bytes} bytes")]
    NoBlocks {
        /// Bytes of a block.
        block_bytes: usize,
    },
}

/// A model on this machine's cores.
pub struct CandleRunner {
    cpu: Cpu,
    pool: KvPool,
    model: Box<dyn CausalLm>,
    shape: Shape,
}

impl CandleRunner {
    /// Loads the GGUF file at `path`. At its peak it takes the file's size, the used part of the pool, and a little.
    pub fn load(path: &Path, options: &Options) -> Result<Self, LoadError> {
        let weights = Weights::open(path)?;
        Self::with_weights(&weights, options)
    }

    /// Loads an open file.
    pub fn with_weights(weights: &Weights, options: &Options) -> Result<Self, LoadError> {
        let config = model::Config::new(weights)?;
        let block_bytes = config.block_bytes();
        let kv_blocks = match options.kv {
            KvSize::Blocks(blocks) => blocks,
            KvSize::Bytes(bytes) => (bytes / block_bytes as u64) as usize,
        };
        if kv_blocks == 0 {
            return Err(LoadError::NoBlocks { block_bytes });
        }
        let kv = (kv_blocks as u64).saturating_mul(block_bytes as u64);
        check_room(weights.bytes(), kv, memory::available())?;
        let model = model::load(weights)?;
        let threads = options.threads.or_else(|| thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
        let cpu = Cpu::new(threads, Isa::detect());
        let shape = Shape {
            vocab_size: config.vocab_size,
            context_length: config.context_length,
            kv_blocks,
            block_bytes,
            numerics: format!("{}/cpu-{}/kv-f16", options.digest, cpu.isa()),
        };
        Ok(Self { cpu, pool: KvPool::new(config.layers, kv_blocks, config.heads), model, shape })
    }

    /// Bytes of weights in memory.
    pub fn weight_bytes(&self) -> usize {
        self.model.bytes()
    }
}

impl ModelRunner for CandleRunner {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn execute(&mut self, batch: &Batch) -> Result<&mut [f32], Error> {
        Ok(self.model.forward(&mut self.cpu, &mut self.pool, batch))
    }

    fn execute_into(&mut self, batch: &Batch, take: Take<'_>) -> Result<Instant, Error> {
        let logits = self.model.forward(&mut self.cpu, &mut self.pool, batch);
        let executed = clock::now();
        self.cpu.each_row(logits, self.shape.vocab_size, take);
        Ok(executed)
    }
}

fn check_room(weights: u64, kv: u64, available: Option<u64>) -> Result<(), LoadError> {
    let needed = weights.saturating_add(kv);
    match available {
        Some(available) if available < needed => Err(LoadError::Memory { needed, weights, kv, available }),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::tests::TinyLlama;

    #[test]
    fn a_model_without_room_is_refused_with_the_sizes() {
        let error = check_room(100, 50, Some(149)).unwrap_err();
        assert!(matches!(error, LoadError::Memory { needed: 150, weights: 100, kv: 50, available: 149 }));
        check_room(100, 50, Some(150)).unwrap();
        let file = TinyLlama::default().write();
        let options = |kv| Options { kv, threads: Some(NonZeroUsize::MIN), digest: "d".to_owned() };
        let huge = CandleRunner::load(file.path(), &options(KvSize::Bytes(1 << 60)));
        assert!(matches!(huge.err(), Some(LoadError::Memory { available, .. }) if available > 0));
        let none = CandleRunner::load(file.path(), &options(KvSize::Bytes(10)));
        assert!(matches!(none.err(), Some(LoadError::NoBlocks { block_bytes: 2.. })));
    }

    #[test]
    fn a_runner_tells_its_shape() {
        let file = TinyLlama::default().write();
        let options = Options { kv: KvSize::Bytes(100_000), threads: None, digest: "sha256:1".to_owned() };
        let runner = CandleRunner::load(file.path(), &options).unwrap();
        let shape = runner.shape();
        assert_eq!((shape.vocab_size, shape.context_length), (96, 256));
        assert_eq!(shape.kv_blocks, 100_000 / shape.block_bytes);
        assert!(shape.numerics.starts_with("sha256:1/cpu-") && shape.numerics.ends_with("/kv-f16"));
    }
}
