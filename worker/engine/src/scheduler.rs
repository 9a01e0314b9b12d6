//! Which tokens of which sequences the next step runs. Pure: the time is an argument, and nothing is decided by
//! anything but the calls made so far.
//!
//! A sequence gets its turn when it first starts and keeps it to its end: class first, then the order of starts.
//! Whoever runs may take the blocks of those behind it, so the first in order always makes progress, and everyone
//! becomes the first at some time. Who starts next of those that never did is the [`line`]'s choice.
//!
//! A sequence whose next block is being computed by another one right now waits for it, and starts on what it leaves.
//! It holds nothing meanwhile, and what it waits for runs, so nobody waits for each other.

mod census;
mod line;
mod plan;

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Instant;

use crate::batch::{BLOCK_TOKENS, TokenId};
use crate::kv::BlockAllocator;
use crate::prefix::PrefixKey;
use crate::sequence::{Priority, Sequence, SequenceId, State, Turn};

pub(crate) use census::Census;
use line::Line;
pub(crate) use plan::{Chunk, Plan};

/// Steps without anything for batch work, after which the first of it goes ahead as if it were interactive.
const BATCH_PATIENCE: usize = 64;

#[derive(Debug)]
pub(crate) struct Scheduler {
    max_batch_tokens: usize,
    max_sequences: usize,
    blocks: BlockAllocator,
    sequences: BTreeMap<SequenceId, Sequence>,
    /// Those that have started, in the order of service.
    turns: BTreeMap<Turn, SequenceId>,
    /// Those that have not.
    lines: Lines,
    /// Who computes a block right now. Only ever asked for one key: it has no order to depend on.
    producers: HashMap<PrefixKey, SequenceId>,
    running: usize,
    starts: u64,
    /// Steps in a row that had nothing for batch work that waited.
    batch_passed: usize,
    preemptions: u64,
}

#[derive(Debug, Default)]
struct Lines {
    interactive: Line,
    batch: Line,
}

impl Lines {
    fn of(&mut self, class: Priority) -> &mut Line {
        match class {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
        }
    }
}

/// What became of the wish for a seat.
enum Start {
    Seated,
    /// Another one computes what it needs next.
    Passed,
    /// There is no room for it, and none for those behind it.
    Refused,
}

impl Scheduler {
    /// For steps of at most `max_batch_tokens` rows, which must be enough for a row of each of `max_sequences`.
    pub(crate) fn new(max_batch_tokens: usize, max_sequences: usize, blocks: usize) -> Self {
        Self {
            max_batch_tokens,
            max_sequences,
            blocks: BlockAllocator::new(blocks),
            sequences: BTreeMap::new(),
            turns: BTreeMap::new(),
            lines: Lines::default(),
            producers: HashMap::new(),
            running: 0,
            starts: 0,
            batch_passed: 0,
            preemptions: 0,
        }
    }

    /// Takes a sequence that fits into the pool as a whole.
    pub(crate) fn admit(&mut self, sequence: Sequence) {
        let id = sequence.id;
        self.lines.of(id.priority).enter(&sequence.tenant, id);
        let replaced = self.sequences.insert(id, sequence);
        assert!(replaced.is_none(), "ids are given once");
    }

    pub(crate) fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// Ends a sequence, wherever it stands, and takes its blocks back.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        self.seat(id, State::Waiting);
        if let Some(mut sequence) = self.sequences.remove(&id) {
            self.blocks.release(&mut sequence.blocks);
            self.lines.of(id.priority).leave(&sequence.tenant, id);
            if let Some(turn) = sequence.turn {
                self.turns.remove(&turn);
            }
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

    /// Writes down that `rows` more tokens of a sequence are in the pool. Blocks that became full can be shared.
    pub(crate) fn advance(&mut self, id: SequenceId, rows: usize) {
        let sequence = self.sequences.get_mut(&id).expect("a planned sequence stays until its step is written down");
        for (at, key) in sequence.compute(rows) {
            self.blocks.publish(&mut sequence.blocks, at, key);
            break_promise(&mut self.producers, id, &key);
        }
    }

    /// Adds the token that was drawn for a sequence.
    pub(crate) fn push(&mut self, id: SequenceId, token: TokenId) {
        let sequence = self.sequences.get_mut(&id).expect("a token is drawn for a sequence that there is");
        sequence.tokens.push(token);
        self.lines.of(id.priority).draw(&sequence.tenant);
    }

    /// Plans a step: a row for each sequence that decodes, then chunks of those that read, while there is room.
    pub(crate) fn schedule(&mut self) -> Plan {
        self.send_batch_ahead();
        let mut plan = Plan::default();
        let (decode, others) = self.active();
        for id in decode {
            self.plan_rows(&mut plan, id);
        }
        let mut others = others.into_iter().peekable();
        // Once one cannot start, none behind it may: else a long prompt would wait for ever.
        let mut line_moves = true;
        for class in [Priority::Interactive, Priority::Batch] {
            while let Some((_, id)) = others.next_if(|(turn, _)| turn.class == class) {
                match self.sequences[&id].state {
                    State::Running => self.plan_rows(&mut plan, id),
                    State::Waiting if line_moves => line_moves = !matches!(self.start(&mut plan, id), Start::Refused),
                    State::Waiting | State::Paused => {}
                }
            }
            if line_moves {
                line_moves = self.start_new(&mut plan, class);
            }
        }
        self.count_passed_batch(&plan);
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
                census.queued_tokens += self.uncached(sequence);
            }
        }
        census
    }

    /// Of those that have started, in the order of service: who decodes, and who reads or wants its seat back.
    fn active(&self) -> (Vec<SequenceId>, Vec<(Turn, SequenceId)>) {
        let (mut decode, mut others) = (Vec::with_capacity(self.running), Vec::new());
        for (turn, id) in &self.turns {
            let sequence = &self.sequences[id];
            match sequence.state {
                State::Running if sequence.pending() == 1 => decode.push(*id),
                State::Running | State::Waiting => others.push((*turn, *id)),
                State::Paused => {}
            }
        }
        (decode, others)
    }

    /// Changes a sequence's state and counts seats and promises with it.
    fn seat(&mut self, id: SequenceId, state: State) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        match (sequence.state, state) {
            (State::Running, State::Running) => {}
            (State::Running, State::Waiting | State::Paused) => {
                self.running -= 1;
                sequence.promised().iter().for_each(|key| break_promise(&mut self.producers, id, key));
            }
            (State::Waiting | State::Paused, State::Running) => {
                self.running += 1;
                for key in sequence.promised() {
                    self.producers.entry(*key).or_insert(id);
                }
            }
            (State::Waiting | State::Paused, State::Waiting | State::Paused) => {}
        }
        sequence.state = state;
    }

    /// Gives the next place in the order of service.
    fn take_turn(&mut self, id: SequenceId, class: Priority) {
        let turn = Turn { class, start: self.starts };
        self.starts += 1;
        let sequence = self.sequences.get_mut(&id).expect("who takes a turn is there");
        if let Some(before) = sequence.turn.replace(turn) {
            self.turns.remove(&before);
        }
        self.turns.insert(turn, id);
    }

    /// Starts those of a class that never ran, as the line has them; whether it still moves.
    fn start_new(&mut self, plan: &mut Plan, class: Priority) -> bool {
        self.lines.of(class).rewind();
        while let Some(id) = self.lines.of(class).next() {
            match self.start(plan, id) {
                Start::Seated => {}
                Start::Passed => self.lines.of(class).pass(&self.sequences[&id].tenant),
                Start::Refused => return false,
            }
        }
        true
    }

    /// Gives a waiting sequence a seat if there is one and blocks for what it will soon need, and plans its rows.
    fn start(&mut self, plan: &mut Plan, id: SequenceId) -> Start {
        if plan.rows() == self.max_batch_tokens {
            return Start::Refused;
        }
        let sequence = &self.sequences[&id];
        let class = sequence.turn.map_or(id.priority, |turn| turn.class);
        // Work of a lower class makes way.
        let makes_way = |other: &&SequenceId| self.sequences[*other].state == State::Running;
        let lower =
            self.turns.range(Turn { class, start: u64::MAX }..).map(|(_, id)| id).rev().find(makes_way).copied();
        let seat_free = self.running < self.max_sequences;
        if !seat_free && lower.is_none() {
            return Start::Refused;
        }
        if self.waits_for_another(sequence, class) {
            return Start::Passed;
        }
        if self.running > 0 && !self.fits(sequence, class) {
            return Start::Refused;
        }
        if let (false, Some(lower)) = (seat_free, lower) {
            plan.strike(lower);
            self.seat(lower, State::Waiting);
            self.preemptions += 1;
        }
        self.take_prefix(id);
        self.seat(id, State::Running);
        self.plan_rows(plan, id);
        Start::Seated
    }

    /// Gives a sequence that holds nothing the blocks that the cache has for it, and its turn if it has none yet.
    fn take_prefix(&mut self, id: SequenceId) {
        let sequence = self.sequences.get_mut(&id).expect("who starts is there");
        if sequence.blocks.is_empty() {
            let hits = self.blocks.hits(sequence.shareable());
            let mut table = std::mem::take(&mut sequence.blocks);
            self.blocks.attach(&mut table, &sequence.shareable()[..hits]);
            sequence.blocks = table;
            sequence.computed = hits * BLOCK_TOKENS;
        }
        sequence.cached.get_or_insert(sequence.computed);
        if sequence.turn.is_none() {
            self.lines.of(id.priority).start(&sequence.tenant, sequence.pending());
            self.take_turn(id, id.priority);
        }
    }

    /// Whether the first block that a sequence lacks is being computed, by one that does not yield to it.
    fn waits_for_another(&self, sequence: &Sequence, class: Priority) -> bool {
        if !sequence.blocks.is_empty() {
            return false;
        }
        let keys = sequence.shareable();
        let producer = keys.get(self.blocks.hits(keys)).and_then(|key| self.producers.get(key));
        producer.and_then(|id| self.sequences[id].turn).is_some_and(|turn| turn.class <= class)
    }

    /// Whether there are blocks for what a waiting sequence will soon need, beside what those who run and do not yield
    /// to it will: if not, somebody would soon lose to somebody what was computed. Those without a seat and those of a
    /// lower class yield.
    fn fits(&self, sequence: &Sequence, class: Priority) -> bool {
        let mut room = self.blocks.available();
        let mut needed = sequence.blocks_lacking_soon();
        if sequence.blocks.is_empty() {
            let keys = sequence.shareable();
            let hits = &keys[..self.blocks.hits(keys)];
            needed -= hits.len();
            room -= self.blocks.idle_among(hits);
        }
        for (turn, id) in &self.turns {
            let other = &self.sequences[id];
            if other.id == sequence.id {
                continue;
            }
            match other.state {
                State::Running if turn.class <= class => needed += other.blocks_lacking_soon(),
                State::Running | State::Waiting | State::Paused => room += self.blocks.held_alone(&other.blocks),
            }
        }
        needed <= room
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
        if lacking > 0 {
            self.give_blocks(plan, id, lacking);
        }
        let sequence = &self.sequences[&id];
        let rows = wanted.min(sequence.blocks.len() * BLOCK_TOKENS - sequence.computed);
        if rows > 0 {
            plan.push(Chunk { id, rows, draws: rows == sequence.pending(), prefill: sequence.prefills() });
        }
    }

    /// Adds as many of `lacking` blocks as there are or others behind it hold.
    fn give_blocks(&mut self, plan: &mut Plan, id: SequenceId, lacking: usize) {
        while self.blocks.available() < lacking {
            let Some(victim) = self.victim(id) else { break };
            self.preempt(plan, victim);
        }
        let sequence = self.sequences.get_mut(&id).expect("no sequence is its own victim");
        let more = lacking.min(self.blocks.available());
        self.blocks.grow(&mut sequence.blocks, more).expect("no more than there are");
    }

    /// Whose blocks `id` gets: first those without a seat, who need them least, then whoever is last behind it.
    fn victim(&self, id: SequenceId) -> Option<SequenceId> {
        let own = self.sequences[&id].turn.expect("who runs has its turn");
        let holds = |other: &SequenceId| *other != id && !self.sequences[other].blocks.is_empty();
        let unseated = |other: &SequenceId| holds(other) && self.sequences[other].state != State::Running;
        let behind = || self.turns.range((Excluded(own), Unbounded)).map(|(_, other)| *other).rev().find(holds);
        self.turns.values().copied().rev().find(unseated).or_else(behind)
    }

    /// Takes a sequence's blocks and its seat. It will read its tokens again, outputs and all, but for what the cache
    /// still holds of them.
    fn preempt(&mut self, plan: &mut Plan, id: SequenceId) {
        plan.strike(id);
        if self.sequences[&id].state == State::Running {
            self.seat(id, State::Waiting);
        }
        let sequence = self.sequences.get_mut(&id).expect("a victim is one of the sequences");
        self.blocks.release(&mut sequence.blocks);
        sequence.computed = 0;
        self.preemptions += 1;
    }

    /// Tokens that a sequence would have to read if it started now.
    fn uncached(&self, sequence: &Sequence) -> usize {
        match sequence.blocks.is_empty() {
            true => sequence.tokens.len() - self.blocks.hits(sequence.shareable()) * BLOCK_TOKENS,
            false => sequence.pending(),
        }
    }

    /// Puts the first of batch work among the interactive one, once it was passed over for too long.
    fn send_batch_ahead(&mut self) {
        if self.batch_passed < BATCH_PATIENCE {
            return;
        }
        let mut started = self.turns.range(Turn { class: Priority::Batch, start: 0 }..).map(|(_, id)| *id);
        let started = started.find(|id| self.sequences[id].state != State::Paused);
        self.lines.batch.rewind();
        let Some(id) = started.or_else(|| self.lines.batch.next()) else { return };
        let sequence = &self.sequences[&id];
        if sequence.turn.is_none() {
            let tokens = self.uncached(sequence);
            self.lines.batch.start(&sequence.tenant, tokens);
        }
        self.take_turn(id, Priority::Interactive);
        self.batch_passed = 0;
    }

    fn count_passed_batch(&mut self, plan: &Plan) {
        let first = SequenceId { priority: Priority::Batch, arrival: 0 };
        let waits = self.sequences.range(first..).any(|(_, sequence)| sequence.state != State::Paused);
        let served = plan.chunks.iter().any(|chunk| chunk.id.priority == Priority::Batch);
        self.batch_passed = if waits && !served { self.batch_passed + 1 } else { 0 };
    }
}

/// Forgets that `id` was going to compute a block, if it was.
fn break_promise(producers: &mut HashMap<PrefixKey, SequenceId>, id: SequenceId, key: &PrefixKey) {
    if producers.get(key) == Some(&id) {
        producers.remove(key);
    }
}

#[cfg(test)]
mod tests;
