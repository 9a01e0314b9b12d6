//! What a step runs.

use crate::sequence::SequenceId;

/// Consecutive tokens of one sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) id: SequenceId,
    pub(crate) rows: usize,
    /// Whether it has all tokens that are left, so that the next one can be drawn.
    pub(crate) draws: bool,
    /// Whether it reads what was there before the step, rather than the token drawn last.
    pub(crate) prefill: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) chunks: Vec<Chunk>,
    rows: usize,
}

impl Plan {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn push(&mut self, chunk: Chunk) {
        self.rows += chunk.rows;
        self.chunks.push(chunk);
    }

    pub(super) fn strike(&mut self, id: SequenceId) {
        self.chunks.retain(|chunk| chunk.id != id);
        self.rows = self.chunks.iter().map(|chunk| chunk.rows).sum();
    }
}
