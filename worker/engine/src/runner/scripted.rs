//! A stand-in for a model: its logits are a function of the tokens that it finds in its own paged pool, read through
//! the block tables like keys and values. A wrong slot, a block shared in error or a recompute left out changes them.

use std::ops::Range;
use std::time::Duration;

use super::{Error, ModelRunner, Shape};
use crate::batch::{BLOCK_TOKENS, Batch, BlockId, TokenId};

/// The sizes of a [`ScriptedRunner`] and what its steps take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Length of a row of logits.
    pub vocab_size: usize,
    /// Positions that a sequence may have.
    pub context_length: usize,
    /// Blocks in the pool.
    pub kv_blocks: usize,
    /// The ids that it draws; the others have next to no chance.
    pub speaks: Range<TokenId>,
    /// What a step takes, however little there is in it.
    pub step: Duration,
    /// What each row of a step takes beyond that.
    pub row: Duration,
}

/// A token and its position, as left in a slot.
#[derive(Debug, Clone, Copy)]
struct Entry {
    token: TokenId,
    position: u32,
}

/// Runs batches by [`Script`].
#[derive(Debug)]
pub struct ScriptedRunner {
    shape: Shape,
    script: Script,
    pool: Vec<Entry>,
    logits: Vec<f32>,
}

/// The logit of an id that is not drawn.
const SILENT: f32 = -100.0;

const NOTHING: Entry = Entry { token: u32::MAX, position: u32::MAX };

impl Default for Script {
    fn default() -> Self {
        let none = Duration::ZERO;
        Self { vocab_size: 512, context_length: 2048, kv_blocks: 256, speaks: 0..TokenId::MAX, step: none, row: none }
    }
}

impl ScriptedRunner {
    /// A runner with an empty pool.
    pub fn new(script: Script) -> Self {
        let shape = Shape {
            vocab_size: script.vocab_size,
            context_length: script.context_length,
            kv_blocks: script.kv_blocks,
            block_bytes: BLOCK_TOKENS * size_of::<Entry>(),
            numerics: "scripted".into(),
        };
        let pool = vec![NOTHING; script.kv_blocks * BLOCK_TOKENS];
        Self { shape, script, pool, logits: Vec::new() }
    }

    /// A digest of positions 0 to `last`, as the pool has them.
    fn read(&self, blocks: &[BlockId], last: u32) -> u64 {
        (0..=last as usize).fold(0, |digest, position| {
            let block = blocks[position / BLOCK_TOKENS].0 as usize;
            let entry = self.pool[block * BLOCK_TOKENS + position % BLOCK_TOKENS];
            mix(digest ^ (u64::from(entry.position) << 32 | u64::from(entry.token)))
        })
    }
}

impl ModelRunner for ScriptedRunner {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn execute(&mut self, batch: &Batch) -> Result<&mut [f32], Error> {
        std::thread::sleep(self.script.step + self.script.row * batch.tokens.len() as u32);
        for ((&slot, &token), &position) in batch.slots.iter().zip(&batch.tokens).zip(&batch.positions) {
            let outside = || Error::Device(format!("slot {slot} is outside the pool"));
            *self.pool.get_mut(slot as usize).ok_or_else(outside)? = Entry { token, position };
        }
        self.logits.clear();
        for segment in &batch.segments {
            let blocks = &batch.block_tables[segment.blocks.clone()];
            for row in segment.rows.end - segment.logits..segment.rows.end {
                let digest = self.read(blocks, batch.positions[row]);
                let speaks = &self.script.speaks;
                let logits = (0..self.shape.vocab_size as TokenId).map(|id| match speaks.contains(&id) {
                    true => logit(digest, u64::from(id)),
                    false => SILENT,
                });
                self.logits.extend(logits);
            }
        }
        Ok(&mut self.logits)
    }
}

/// From 0 to 8, evenly.
fn logit(digest: u64, id: u64) -> f32 {
    (mix(digest.wrapping_add(id)) >> 40) as f32 * (8.0 / (1 << 24) as f32)
}

/// SplitMix64's step: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: Script = Script {
        vocab_size: 16,
        context_length: 128,
        kv_blocks: 4,
        speaks: 0..16,
        step: Duration::ZERO,
        row: Duration::ZERO,
    };

    /// The logits after `tokens`, read in chunks of `chunk` on `blocks`.
    fn logits(runner: &mut ScriptedRunner, tokens: &[TokenId], chunk: usize, blocks: &[BlockId]) -> Vec<f32> {
        let mut logits = Vec::new();
        for (at, part) in tokens.chunks(chunk).enumerate() {
            let mut batch = Batch::new();
            batch.push(part, at * chunk, blocks, 1);
            logits = runner.execute(&batch).unwrap().to_vec();
        }
        logits
    }

    #[test]
    fn chunks_and_blocks_do_not_matter_but_every_token_does() {
        let mut runner = ScriptedRunner::new(SCRIPT);
        let tokens: Vec<TokenId> = (0..40).collect();
        let whole = logits(&mut runner, &tokens, 40, &[BlockId(0), BlockId(1)]);
        assert_eq!(logits(&mut runner, &tokens, 7, &[BlockId(3), BlockId(0)]), whole);
        let mut other = tokens;
        other[5] = 99;
        assert_ne!(logits(&mut runner, &other, 40, &[BlockId(0), BlockId(1)]), whole);
    }

    #[test]
    fn only_ids_that_it_speaks_have_a_chance() {
        let mut runner = ScriptedRunner::new(Script { speaks: 4..8, ..SCRIPT });
        let logits = logits(&mut runner, &[1, 2], 2, &[BlockId(0)]);
        let spoken: Vec<usize> = (0..16).filter(|id| logits[*id] >= 0.0).collect();
        assert_eq!(spoken, [4, 5, 6, 7]);
        assert!(logits.iter().filter(|logit| **logit < 0.0).all(|logit| *logit == SILENT));
    }

    #[test]
    fn a_slot_that_was_overwritten_shows() {
        let mut runner = ScriptedRunner::new(SCRIPT);
        let tokens: Vec<TokenId> = (0..33).collect();
        let whole = logits(&mut runner, &tokens, 33, &[BlockId(0), BlockId(1)]);
        logits(&mut runner, &[7], 1, &[BlockId(0)]);
        let mut batch = Batch::new();
        batch.push(&tokens[32..], 32, &[BlockId(0), BlockId(1)], 1);
        assert_ne!(runner.execute(&batch).unwrap(), whole);
    }
}
