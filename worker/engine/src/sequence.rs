//! A sequence as the scheduler sees it: its tokens, how far the pool has them, and its place in the order of service.

use std::time::Instant;

use crate::batch::{BLOCK_TOKENS, TokenId};
use crate::kv::BlockTable;

/// Who is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Someone waits for it.
    Interactive,
    /// Takes what interactive work leaves.
    Batch,
}

/// A sequence's name and its rank at once: the order of ids is the order of service, class first, then arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SequenceId {
    pub(crate) priority: Priority,
    pub(crate) arrival: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Has no seat: new, preempted, or back from a pause. May still hold blocks.
    Waiting,
    /// Has a seat: takes part in every step that has room for it.
    Running,
    /// Its reader does not keep up. Keeps its blocks until another one needs them.
    Paused,
}

#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) deadline: Instant,
    /// Prompt and outputs; what a preemption takes away is recomputed from here.
    pub(crate) tokens: Vec<TokenId>,
    /// The length at which it ends at the latest.
    pub(crate) limit: usize,
    /// How many of its tokens have their keys and values in the pool.
    pub(crate) computed: usize,
    pub(crate) blocks: BlockTable,
    pub(crate) state: State,
}

impl Sequence {
    pub(crate) fn new(id: SequenceId, deadline: Instant, tokens: Vec<TokenId>, limit: usize) -> Self {
        Self { id, deadline, tokens, limit, computed: 0, blocks: BlockTable::default(), state: State::Waiting }
    }

    /// Tokens that must go through the model before the next one can be drawn. At least 1.
    pub(crate) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether it reads what it was given or had before, rather than the token it drew last.
    pub(crate) fn prefills(&self) -> bool {
        self.pending() > 1 || self.computed == 0
    }

    /// Blocks that it lacks to have `rows` more tokens in the pool.
    pub(crate) fn blocks_lacking(&self, rows: usize) -> usize {
        (self.computed + rows).div_ceil(BLOCK_TOKENS).saturating_sub(self.blocks.len())
    }
}
