//! From a configuration to a runner that works.

use penstock_engine::batch::{Batch, BlockId};
use penstock_engine::runner::{CandleRunner, KvSize, LoadError, ModelRunner, Options};
use penstock_engine::weights::Weights;
use tokio::task;

use super::{Error, Observers, Parts, Stage};
use crate::artifact::{Artifact, Cache};
use crate::config::{Config, Device, KvMemory, Runner};
use crate::model::{Card, Model, Served};
use crate::scripted;

/// Room for keys and values where nobody says how much.
const KV_BYTES: u64 = 1 << 30;

pub(super) async fn load(config: &Config, observers: &Observers) -> Result<Parts, Error> {
    observers.stage.send_replace(Stage::Loading);
    if let Runner::Scripted(timing) = config.runner {
        return Ok(scripted::parts(config, timing));
    }
    let cache = Cache::open(config.models_dir(), config.origins.clone())?;
    let mut artifact = Box::pin(cache.obtain(&config.model, &observers.report)).await?;
    if let Some(name) = &config.served_name {
        artifact.name = name.to_string();
    }
    tracing::info!(model = artifact.name, digest = %artifact.digest, bytes = artifact.size, "loading");
    let (config, observers) = (config.clone(), observers.clone());
    let loading = task::spawn_blocking(move || {
        let mut parts = read(artifact, &config)?;
        observers.stage.send_replace(Stage::Warming);
        warm(&mut *parts.runner)?;
        Ok(parts)
    });
    match loading.await {
        Ok(parts) => parts,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn read(artifact: Artifact, config: &Config) -> Result<Parts, Error> {
    let (model, weights) = Model::open(artifact)?;
    let runner = match config.device {
        Device::Auto | Device::Cpu => on_cpu(&model, &weights, config)?,
    };
    let shape = runner.shape();
    tracing::info!(kv_blocks = shape.kv_blocks, block_bytes = shape.block_bytes, "loaded");
    let Model { artifact, summary, text } = model;
    // A model's sizes are read from u32s of its file, so they fit one again.
    let size = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
    let card = Card {
        name: artifact.name,
        digest: artifact.digest,
        architecture: summary.architecture,
        quantisation: summary.quantisation.to_string(),
        parameters: summary.parameters,
        context_length: size(shape.context_length),
        vocab_size: size(shape.vocab_size),
        eos_token_ids: text.eos_token_ids.clone(),
        numerics: shape.numerics.clone(),
    };
    let engine = config.engine(card.digest, text.eos_token_ids);
    let served = Served { card, files: text.files };
    let (name, drain_timeout) = (config.name.clone(), config.drain_timeout);
    Ok(Parts { name, served, runner: Box::new(runner), engine, drain_timeout })
}

fn on_cpu(model: &Model, weights: &Weights, config: &Config) -> Result<CandleRunner, Error> {
    let sequence = model.summary.kv_bytes_per_token * model.summary.context_length as u64;
    let load = |bytes| {
        let options =
            Options { kv: KvSize::Bytes(bytes), threads: config.threads, digest: model.artifact.digest.to_string() };
        CandleRunner::with_weights(weights, &options)
    };
    let runner = match config.kv {
        KvMemory::Bytes(bytes) => load(bytes),
        KvMemory::Auto => {
            match load(KV_BYTES.max(sequence).min(sequence.saturating_mul(config.max_sequences as u64))) {
                Err(LoadError::Memory { weights, available, .. }) if available > weights => {
                    let bytes = (available - weights) / 2;
                    tracing::warn!(bytes, "memory is short: the KV pool takes half of what the weights leave");
                    load(bytes)
                }
                other => other,
            }
        }
    };
    runner.map_err(|source| Error::Load { model: model.artifact.name.clone(), source })
}

/// One token through the model: memory is touched and every path has run once before anybody waits for it.
fn warm(runner: &mut dyn ModelRunner) -> Result<(), Error> {
    let mut batch = Batch::new();
    batch.push(&[0], 0, &[BlockId(0)], 1);
    runner.execute(&batch)?;
    Ok(())
}
