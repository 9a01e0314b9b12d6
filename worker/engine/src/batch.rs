//! A step's input to a model: flat arrays over the tokens of all its sequences, and nothing about why.

use std::ops::Range;

/// Tokens in a block of the KV cache. Router, scheduler, runner and prefix keys all count in it.
pub const BLOCK_TOKENS: usize = 32;

/// A token id of the model's vocabulary.
pub type TokenId = u32;

/// A block of the KV pool, by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

/// The consecutive tokens of one sequence within a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its rows of [`Batch::tokens`].
    pub rows: Range<usize>,
    /// Its part of [`Batch::block_tables`]: the blocks of positions 0 up to the segment's last one.
    pub blocks: Range<usize>,
    /// How many of its last rows' logits are wanted; 0 while a prompt is still being read.
    pub logits: usize,
}

/// A step's input, flat: one row a token. The keys and values of earlier positions are in the pool already; those of
/// the rows are written by the model before it attends, so that a row attends to its own position and all before.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Token ids, one a row.
    pub tokens: Vec<TokenId>,
    /// Each row's position in its sequence.
    pub positions: Vec<u32>,
    /// Where each row's keys and values go: `block * BLOCK_TOKENS + position % BLOCK_TOKENS`.
    pub slots: Vec<u32>,
    /// The sequences' block tables, one after another.
    pub block_tables: Vec<BlockId>,
    /// One a sequence; their rows partition the batch in order.
    pub segments: Vec<Segment>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.block_tables.clear();
        self.segments.clear();
    }

    /// Adds `tokens` of a sequence from position `start` on; `blocks` is its block table and must cover them.
    pub fn push(&mut self, tokens: &[TokenId], start: usize, blocks: &[BlockId], logits: usize) {
        let needed = (start + tokens.len()).div_ceil(BLOCK_TOKENS);
        assert!(blocks.len() >= needed, "block table of {} does not cover {needed} blocks", blocks.len());
        assert!(logits <= tokens.len(), "logits of {logits} rows wanted from {}", tokens.len());
        let (row, table) = (self.tokens.len(), self.block_tables.len());
        self.tokens.extend_from_slice(tokens);
        for position in start..start + tokens.len() {
            let block = blocks[position / BLOCK_TOKENS].0 as usize;
            self.positions.push(position as u32);
            self.slots.push((block * BLOCK_TOKENS + position % BLOCK_TOKENS) as u32);
        }
        self.block_tables.extend_from_slice(&blocks[..needed]);
        self.segments.push(Segment { rows: row..self.tokens.len(), blocks: table..table + needed, logits });
    }

    /// Rows of logits that a runner returns for it.
    pub fn logit_rows(&self) -> usize {
        self.segments.iter().map(|segment| segment.logits).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_know_their_positions_and_slots() {
        let mut batch = Batch::new();
        batch.push(&[7, 8, 9], 31, &[BlockId(5), BlockId(2)], 1);
        batch.push(&[1], 0, &[BlockId(3)], 1);
        assert_eq!(batch.positions, [31, 32, 33, 0]);
        assert_eq!(batch.slots, [5 * 32 + 31, 64, 65, 96]);
        assert_eq!(batch.block_tables, [BlockId(5), BlockId(2), BlockId(3)]);
        assert_eq!(batch.segments[1], Segment { rows: 3..4, blocks: 2..3, logits: 1 });
        assert_eq!(batch.logit_rows(), 2);
    }
}
