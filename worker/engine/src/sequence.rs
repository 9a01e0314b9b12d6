//! A sequence as the scheduler sees it: its tokens, how far the pool has them, and its place in the order of service.

use std::time::Instant;

use crate::batch::{BLOCK_TOKENS, TokenId};
use crate::handle::Tenant;
use crate::kv::BlockTable;
use crate::prefix::{Chain, PrefixKey};

/// Who is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Someone waits for it.
    Interactive,
    /// Takes what interactive work leaves, and a small share of its own.
    Batch,
}

/// A sequence's name: what it was submitted as, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SequenceId {
    pub(crate) priority: Priority,
    pub(crate) arrival: u64,
}

/// A place in the order of service. Given at a sequence's first start and kept to its end, whatever it loses in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    pub(crate) class: Priority,
    pub(crate) start: u64,
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

/// What a sequence comes with.
#[derive(Debug)]
pub(crate) struct Demand {
    pub(crate) tenant: Tenant,
    pub(crate) deadline: Instant,
    /// Prompt, and the outputs that it goes on from.
    pub(crate) tokens: Vec<TokenId>,
    /// The length at which it ends at the latest.
    pub(crate) limit: usize,
    /// The keys of its full blocks.
    pub(crate) chain: Chain,
}

#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) tenant: Tenant,
    pub(crate) deadline: Instant,
    /// Prompt and outputs; what a preemption takes away is recomputed from here.
    pub(crate) tokens: Vec<TokenId>,
    /// The length at which it ends at the latest.
    pub(crate) limit: usize,
    /// How many of its tokens have their keys and values in the pool.
    pub(crate) computed: usize,
    pub(crate) blocks: BlockTable,
    pub(crate) state: State,
    /// None before its first start.
    pub(crate) turn: Option<Turn>,
    /// Tokens that the cache held at its first start; None before it.
    pub(crate) cached: Option<usize>,
    chain: Chain,
}

impl Sequence {
    pub(crate) fn new(id: SequenceId, demand: Demand) -> Self {
        let Demand { tenant, deadline, tokens, limit, mut chain } = demand;
        chain.extend(&tokens);
        Self {
            id,
            tenant,
            deadline,
            tokens,
            limit,
            computed: 0,
            blocks: BlockTable::default(),
            state: State::Waiting,
            turn: None,
            cached: None,
            chain,
        }
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

    /// Blocks that it lacks to draw as many tokens as a block holds, or all that it may.
    pub(crate) fn blocks_lacking_soon(&self) -> usize {
        // The last token is drawn and never read, so it needs no place.
        let rows = (self.pending() + BLOCK_TOKENS).min(self.limit - 1 - self.computed);
        self.blocks_lacking(rows.max(self.pending()))
    }

    /// The keys of its full blocks that a cache may hold for it: its last token must be computed, else none is drawn.
    pub(crate) fn shareable(&self) -> &[PrefixKey] {
        &self.chain.keys()[..(self.tokens.len() - 1) / BLOCK_TOKENS]
    }

    /// The keys of the full blocks that it will compute from here on, as far as its tokens are known.
    pub(crate) fn promised(&self) -> &[PrefixKey] {
        self.chain.keys().get(self.computed / BLOCK_TOKENS..).unwrap_or_default()
    }

    /// Counts `rows` more tokens as computed. What became full: the places of its blocks, and their keys with them.
    pub(crate) fn compute(&mut self, rows: usize) -> impl Iterator<Item = (usize, PrefixKey)> + use<> {
        let before = self.computed / BLOCK_TOKENS;
        self.computed += rows;
        let full = self.computed / BLOCK_TOKENS;
        self.chain.extend(&self.tokens[..full * BLOCK_TOKENS]);
        let keys = self.chain.keys()[before..full].to_vec();
        (before..full).zip(keys)
    }
}
