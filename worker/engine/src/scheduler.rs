//! Which tokens of which sequences the next step runs. Pure: the time is an argument, and nothing is decided by
//! anything but the calls made so far.
//!
//! Every choice follows the order of ids: class first, then arrival. Whoever runs may take the blocks of those behind
//! it, so the first in order always makes progress, and everyone becomes the first at some time. Inside a class, who
//! waits takes nothing from those who run.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Instant;

use crate::batch::{BLOCK_TOKENS, TokenId};
use crate::kv::{BlockAllocator, BlockCounts};
use crate::sequence::{Sequence, SequenceId, State};

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

/// What a step runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) chunks: Vec<Chunk>,
}

impl Plan {
    pub(crate) fn rows(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.rows).sum()
    }

    fn has(&self, id: SequenceId) -> bool {
        self.chunks.iter().any(|chunk| chunk.id == id)
    }

    fn strike(&mut self, id: SequenceId) {
        self.chunks.retain(|chunk| chunk.id != id);
    }
}

/// The scheduler's figures at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) waiting: usize,
    pub(crate) running: usize,
    pub(crate) paused: usize,
    /// Tokens that must be read before every sequence decodes.
    pub(crate) queued_tokens: usize,
    pub(crate) kv_blocks: BlockCounts,
    pub(crate) preemptions: u64,
    pub(crate) seats: usize,
    /// Steps that each running sequence may still take.
    pub(crate) remaining: Vec<usize>,
}

impl Census {
    /// Steps until a seat is free for a newcomer that has `ahead` others before it.
    pub(crate) fn steps_to_seat(&self, ahead: usize) -> usize {
        let Some(turn) = ahead.checked_sub(self.seats.saturating_sub(self.running)) else { return 0 };
        let mut remaining = self.remaining.clone();
        remaining.sort_unstable();
        // Those who take a seat are supposed to keep it for as long as the slowest of today.
        match remaining.last() {
            Some(slowest) => turn / remaining.len() * slowest + remaining[turn % remaining.len()],
            None => 0,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Scheduler {
    max_batch_tokens: usize,
    max_sequences: usize,
    blocks: BlockAllocator,
    /// In the order of service.
    sequences: BTreeMap<SequenceId, Sequence>,
    preemptions: u64,
}

impl Scheduler {
    /// For steps of at most `max_batch_tokens` rows, which must be enough for a row of each of `max_sequences`.
    pub(crate) fn new(max_batch_tokens: usize, max_sequences: usize, blocks: usize) -> Self {
        let blocks = BlockAllocator::new(blocks);
        Self { max_batch_tokens, max_sequences, blocks, sequences: BTreeMap::new(), preemptions: 0 }
    }

    /// Takes a sequence that fits into the pool as a whole.
    pub(crate) fn admit(&mut self, sequence: Sequence) {
        let replaced = self.sequences.insert(sequence.id, sequence);
        assert!(replaced.is_none(), "ids are given once");
    }

    pub(crate) fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// Ends a sequence, wherever it stands, and takes its blocks back.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        if let Some(mut sequence) = self.sequences.remove(&id) {
            self.blocks.release(&mut sequence.blocks);
        }
    }

    /// Those whose deadline has come.
    pub(crate) fn expired(&self, now: Instant) -> Vec<SequenceId> {
        self.sequences.values().filter(|sequence| sequence.deadline <= now).map(|sequence| sequence.id).collect()
    }

    /// When the next deadline comes.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.sequences.values().map(|sequence| sequence.deadline).min()
    }

    /// Whether there is anything to schedule. If so, the next plan is not empty.
    pub(crate) fn has_work(&self) -> bool {
        self.sequences.values().any(|sequence| sequence.state != State::Paused)
    }

    /// Takes its seat from a running sequence; its blocks stay with it until another one needs them.
    pub(crate) fn pause(&mut self, id: SequenceId) {
        self.seat(id, State::Paused);
    }

    /// Puts a paused sequence back at its place in the order.
    pub(crate) fn wake(&mut self, id: SequenceId) {
        if self.get(id).is_some_and(|sequence| sequence.state == State::Paused) {
            self.seat(id, State::Waiting);
        }
    }

    /// Writes down that `rows` more tokens of a sequence are in the pool, and the token that was drawn after them.
    pub(crate) fn advance(&mut self, id: SequenceId, rows: usize, drawn: Option<TokenId>) {
        let sequence = self.sequences.get_mut(&id).expect("a planned sequence stays until its step is written down");
        sequence.computed += rows;
        sequence.tokens.extend(drawn);
    }

    /// Plans a step: a row for each sequence that decodes, then chunks of those that read, while there is room.
    pub(crate) fn schedule(&mut self) -> Plan {
        let mut plan = Plan::default();
        for id in self.ids(|sequence| sequence.state == State::Running && sequence.pending() == 1) {
            self.plan_rows(&mut plan, id);
        }
        // Once one in line cannot start, none behind it may: else a long prompt would wait for ever.
        let mut line_moves = true;
        for id in self.ids(|sequence| sequence.state != State::Paused) {
            if plan.has(id) {
                continue;
            }
            if self.sequences[&id].state == State::Waiting {
                line_moves = line_moves && self.start(&mut plan, id);
                if !line_moves {
                    continue;
                }
            }
            self.plan_rows(&mut plan, id);
        }
        plan
    }

    pub(crate) fn census(&self) -> Census {
        let mut census = Census {
            kv_blocks: self.blocks.counts(),
            preemptions: self.preemptions,
            seats: self.max_sequences,
            ..Census::default()
        };
        for sequence in self.sequences.values() {
            match sequence.state {
                State::Waiting => census.waiting += 1,
                State::Paused => census.paused += 1,
                State::Running => {
                    census.running += 1;
                    census.remaining.push(sequence.limit - sequence.tokens.len());
                }
            }
            if sequence.state != State::Paused && sequence.prefills() {
                census.queued_tokens += sequence.pending();
            }
        }
        census
    }

    fn ids(&self, wanted: impl Fn(&Sequence) -> bool) -> Vec<SequenceId> {
        self.sequences.values().filter(|sequence| wanted(sequence)).map(|sequence| sequence.id).collect()
    }

    fn seat(&mut self, id: SequenceId, state: State) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.state = state;
        }
    }

    /// Adds as many of a running sequence's pending rows as there are rows and blocks for; blocks that others behind
    /// it hold count.
    fn plan_rows(&mut self, plan: &mut Plan, id: SequenceId) {
        let sequence = &self.sequences[&id];
        let wanted = sequence.pending().min(self.max_batch_tokens - plan.rows());
        if sequence.state != State::Running || wanted == 0 {
            return;
        }
        let lacking = sequence.blocks_lacking(wanted);
        while self.blocks.available() < lacking {
            let Some(victim) = self.victim(id) else { break };
            self.preempt(plan, victim);
        }
        let sequence = self.sequences.get_mut(&id).expect("no sequence is its own victim");
        let more = lacking.min(self.blocks.available());
        self.blocks.grow(&mut sequence.blocks, more).expect("no more than there are");
        let rows = wanted.min(sequence.blocks.len() * BLOCK_TOKENS - sequence.computed);
        if rows > 0 {
            plan.chunks.push(Chunk { id, rows, draws: rows == sequence.pending(), prefill: sequence.prefills() });
        }
    }

    /// Whose blocks `id` gets: first those without a seat, who need them least, then whoever is last behind it.
    fn victim(&self, id: SequenceId) -> Option<SequenceId> {
        let holds = |sequence: &&Sequence| !sequence.blocks.is_empty() && sequence.id != id;
        let unseated = self.sequences.values().rev().filter(holds).find(|sequence| sequence.state != State::Running);
        let behind = || self.sequences.range((Excluded(id), Unbounded)).map(|(_, sequence)| sequence).rev().find(holds);
        unseated.or_else(behind).map(|sequence| sequence.id)
    }

    /// Takes a sequence's blocks and its seat. It will read its tokens again, outputs and all.
    fn preempt(&mut self, plan: &mut Plan, id: SequenceId) {
        plan.strike(id);
        let sequence = self.sequences.get_mut(&id).expect("a victim is one of the sequences");
        self.blocks.release(&mut sequence.blocks);
        sequence.computed = 0;
        if sequence.state == State::Running {
            sequence.state = State::Waiting;
        }
        self.preemptions += 1;
    }

    /// Gives a waiting sequence a seat if there is one, and blocks for all it has to read.
    fn start(&mut self, plan: &mut Plan, id: SequenceId) -> bool {
        if plan.rows() == self.max_batch_tokens {
            return false;
        }
        let running = self.ids(|sequence| sequence.state == State::Running);
        // Work of a lower class makes way.
        let lower = running.last().copied().filter(|last| last.priority > id.priority);
        let seat_free = running.len() < self.max_sequences;
        if !(seat_free || lower.is_some()) || !(running.is_empty() || self.fits(id)) {
            return false;
        }
        if let (false, Some(lower)) = (seat_free, lower) {
            plan.strike(lower);
            self.seat(lower, State::Waiting);
            self.preemptions += 1;
        }
        self.seat(id, State::Running);
        true
    }

    /// Whether a waiting sequence could read all its tokens on blocks that are free or held by those without a seat
    /// or of a lower class.
    fn fits(&self, id: SequenceId) -> bool {
        let sequence = &self.sequences[&id];
        let yields =
            |other: &&Sequence| other.id != id && (other.state != State::Running || other.id.priority > id.priority);
        let held: usize = self.sequences.values().filter(yields).map(|other| other.blocks.len()).sum();
        sequence.blocks_lacking(sequence.pending()) <= self.blocks.available() + held
    }
}

#[cfg(test)]
mod tests;
