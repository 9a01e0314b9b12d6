//! Rates of a model's steps, without scheduler or sampler: `step MODEL [--threads N]` prints prefill and decode rates,
//! best of several; `step MODEL --logits IDS` writes the logits of each token of the file `IDS` (u32, little-endian) to
//! standard output as f32, for comparing with another engine.

#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "a measuring tool prints and takes the time")]

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};

use penstock_engine::batch::{BLOCK_TOKENS, Batch, BlockId};
use penstock_engine::runner::{CandleRunner, KvSize, ModelRunner, Options};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or("usage: step MODEL [--threads N] [--logits IDS]")?;
    let (mut threads, mut ids) = (None, None);
    while let (Some(flag), Some(value)) = (args.next(), args.next()) {
        match flag.as_str() {
            "--threads" => threads = Some(value.parse::<NonZeroUsize>()?),
            "--logits" => ids = Some(value),
            other => return Err(format!("unknown flag {other}").into()),
        }
    }
    let options = Options { kv: KvSize::Blocks(1024), threads, digest: String::new() };
    let start = Instant::now();
    let mut runner = CandleRunner::load(Path::new(&model), &options)?;
    match ids {
        Some(ids) => logits(&mut runner, &std::fs::read(ids)?),
        None => {
            println!("load            {:8.1} ms", start.elapsed().as_secs_f64() * 1e3);
            rates(&mut runner)
        }
    }
}

fn logits(runner: &mut CandleRunner, ids: &[u8]) -> Result<(), Failure> {
    let tokens: Vec<u32> = ids.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
    let mut batch = Batch::new();
    batch.push(&tokens, 0, &table(0, tokens.len()), tokens.len());
    let logits = runner.execute(&batch)?;
    let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    Ok(std::io::stdout().write_all(&bytes)?)
}

fn rates(runner: &mut CandleRunner) -> Result<(), Failure> {
    println!("{}", runner.shape().numerics);
    for rows in [32, 128, 512] {
        let best = best(8, || {
            let mut batch = Batch::new();
            let tokens: Vec<u32> = (0..rows as u32).map(|i| 100 + i * 37 % 40_000).collect();
            batch.push(&tokens, 0, &table(0, rows), 1);
            timed(runner, &batch)
        })?;
        println!(
            "prefill {rows:4}    {:8.1} tok/s  {:8.2} ms",
            rows as f64 / best.as_secs_f64(),
            best.as_secs_f64() * 1e3
        );
    }
    for (streams, context) in [(1, 64), (1, 512), (2, 64), (4, 64), (8, 160), (16, 160), (16, 512)] {
        let best = best(40, || {
            let mut batch = Batch::new();
            for stream in 0..streams {
                batch.push(&[1000 + stream as u32], context - 1, &table(stream, context), 1);
            }
            timed(runner, &batch)
        })?;
        let rate = streams as f64 / best.as_secs_f64();
        println!("decode {streams:2} at {context:3} {rate:8.1} tok/s  {:8.2} ms", best.as_secs_f64() * 1e3);
    }
    Ok(())
}

/// A stream's blocks for `len` positions.
fn table(stream: usize, len: usize) -> Vec<BlockId> {
    (0..len.div_ceil(BLOCK_TOKENS)).map(|i| BlockId((stream * 32 + i) as u32 % 1024)).collect()
}

fn timed(runner: &mut CandleRunner, batch: &Batch) -> Result<Duration, Failure> {
    let start = Instant::now();
    runner.execute(batch)?;
    Ok(start.elapsed())
}

fn best(times: usize, mut run: impl FnMut() -> Result<Duration, Failure>) -> Result<Duration, Failure> {
    let mut best = Duration::MAX;
    for _ in 0..times {
        best = best.min(run()?);
    }
    Ok(best)
}
