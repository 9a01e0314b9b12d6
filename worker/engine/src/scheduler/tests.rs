//! The scheduler against a plain model of a pool: every token is written where the plan says, and read back.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::clock;
use crate::sequence::Priority;

const MAX_BATCH_TOKENS: usize = 48;
const MAX_SEQUENCES: usize = 6;
const BLOCKS: usize = 9;

#[derive(Debug, Clone)]
enum Action {
    Submit { priority: Priority, prompt: usize, outputs: usize, patience: u64 },
    Abort(prop::sample::Index),
    Pause(prop::sample::Index),
    Wake(prop::sample::Index),
    Advance(u64),
    Steps(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let priority = prop_oneof![Just(Priority::Interactive), Just(Priority::Batch)];
    prop_oneof![
        4 => (priority, 1usize..150, 1usize..60, 20u64..2000).prop_map(|(priority, prompt, outputs, patience)| {
            Action::Submit { priority, prompt, outputs, patience }
        }),
        1 => any::<prop::sample::Index>().prop_map(Action::Abort),
        1 => any::<prop::sample::Index>().prop_map(Action::Pause),
        1 => any::<prop::sample::Index>().prop_map(Action::Wake),
        1 => (1u64..50).prop_map(Action::Advance),
        4 => (1usize..20).prop_map(Action::Steps),
    ]
}

/// What a slot holds: whose token, which one, at which position.
type Entry = (SequenceId, TokenId, usize);

/// The plain model: what each sequence's tokens must be, and what is in the pool.
struct Reference {
    scheduler: Scheduler,
    tokens: BTreeMap<SequenceId, Vec<TokenId>>,
    pool: Vec<Option<Entry>>,
    now: Instant,
    arrivals: u64,
    /// Steps in which the first in order could have ended, whatever else goes on.
    steps_owed: usize,
}

impl Reference {
    fn new() -> Self {
        Self {
            scheduler: Scheduler::new(MAX_BATCH_TOKENS, MAX_SEQUENCES, BLOCKS),
            tokens: BTreeMap::new(),
            pool: vec![None; BLOCKS * BLOCK_TOKENS],
            now: clock::now(),
            arrivals: 0,
            steps_owed: 0,
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Submit { priority, prompt, outputs, patience } => {
                let id = SequenceId { priority, arrival: self.arrivals };
                self.arrivals += 1;
                let tokens: Vec<_> = (0..prompt).map(|at| token(id, at)).collect();
                let deadline = self.now + Duration::from_secs(patience);
                self.scheduler.admit(Sequence::new(id, deadline, tokens.clone(), prompt + outputs));
                self.tokens.insert(id, tokens);
                self.steps_owed += 2 * (prompt + outputs);
            }
            Action::Abort(at) => self.with(at, |reference, id| {
                reference.scheduler.remove(id);
                reference.tokens.remove(&id);
            }),
            // As in the engine, a reader can only be behind on tokens that there are.
            Action::Pause(at) => self.with(at, |reference, id| {
                if reference.scheduler.get(id).unwrap().state == State::Running {
                    reference.scheduler.pause(id);
                }
            }),
            Action::Wake(at) => self.with(at, |reference, id| {
                reference.scheduler.wake(id);
                // It may have lost its blocks, and reads them all again.
                reference.steps_owed += reference.tokens[&id].len();
            }),
            Action::Advance(seconds) => {
                self.now += Duration::from_secs(seconds);
                for id in self.scheduler.expired(self.now) {
                    assert!(self.scheduler.get(id).unwrap().deadline <= self.now);
                    self.scheduler.remove(id);
                    self.tokens.remove(&id);
                }
                assert!(self.scheduler.next_deadline().is_none_or(|deadline| deadline > self.now));
            }
            Action::Steps(steps) => (0..steps).for_each(|_| self.step()),
        }
        self.check_blocks();
    }

    fn with(&mut self, at: prop::sample::Index, act: impl FnOnce(&mut Self, SequenceId)) {
        if !self.tokens.is_empty() {
            let id = *self.tokens.keys().nth(at.index(self.tokens.len())).unwrap();
            act(self, id);
        }
    }

    fn states(&self, state: State) -> BTreeSet<SequenceId> {
        self.scheduler.ids(|sequence| sequence.state == state).into_iter().collect()
    }

    fn step(&mut self) {
        let waited = self.states(State::Waiting);
        let plan = self.scheduler.schedule();
        assert_eq!(self.scheduler.has_work(), !plan.chunks.is_empty());
        assert!(plan.rows() <= MAX_BATCH_TOKENS);
        assert_eq!(plan.chunks.iter().map(|chunk| chunk.id).collect::<BTreeSet<_>>().len(), plan.chunks.len());
        self.check_order(&waited, &plan);
        self.check_blocks();
        for chunk in &plan.chunks {
            self.run(chunk);
        }
    }

    /// First come, first served: whoever starts leaves nobody of its class waiting that came before it.
    fn check_order(&self, waited: &BTreeSet<SequenceId>, plan: &Plan) {
        let wait = self.states(State::Waiting);
        assert!(self.states(State::Running).len() <= MAX_SEQUENCES);
        for chunk in &plan.chunks {
            assert_eq!(self.scheduler.get(chunk.id).unwrap().state, State::Running);
            if waited.contains(&chunk.id) {
                let passed = wait.iter().find(|id| id.priority == chunk.id.priority && **id < chunk.id);
                assert_eq!(passed, None, "{:?} was passed by {:?}", passed, chunk.id);
            }
        }
    }

    /// Does what a runner does: writes the chunk, and reads all of the sequence before it draws.
    fn run(&mut self, chunk: &Chunk) {
        let sequence = self.scheduler.get(chunk.id).unwrap();
        assert_eq!(sequence.tokens, self.tokens[&chunk.id]);
        assert_eq!(chunk.draws, chunk.rows == sequence.pending());
        let slot = |position: usize| {
            sequence.blocks.as_slice()[position / BLOCK_TOKENS].0 as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
        };
        let end = sequence.computed + chunk.rows;
        for position in sequence.computed..end {
            self.pool[slot(position)] = Some((chunk.id, sequence.tokens[position], position));
        }
        for position in 0..end {
            let entry = (chunk.id, sequence.tokens[position], position);
            assert_eq!(self.pool[slot(position)], Some(entry), "position {position} of {:?}", chunk.id);
        }
        let drawn = chunk.draws.then(|| token(chunk.id, end));
        self.scheduler.advance(chunk.id, chunk.rows, drawn);
        let tokens = self.tokens.get_mut(&chunk.id).unwrap();
        tokens.extend(drawn);
        let sequence = self.scheduler.get(chunk.id).unwrap();
        if tokens.len() == sequence.limit {
            self.scheduler.remove(chunk.id);
            self.tokens.remove(&chunk.id);
        }
    }

    /// No block has two owners, and every one that is not free has one.
    fn check_blocks(&self) {
        let owned: Vec<_> =
            self.scheduler.sequences.values().flat_map(|sequence| sequence.blocks.as_slice()).copied().collect();
        assert_eq!(owned.iter().collect::<BTreeSet<_>>().len(), owned.len());
        let counts = self.scheduler.census().kv_blocks;
        assert_eq!(counts, BlockCounts { used: owned.len(), cached: 0, free: BLOCKS - owned.len() });
        assert_eq!(self.scheduler.sequences.len(), self.tokens.len());
    }

    /// Whatever is left ends, in no more steps than it takes one after the other.
    fn finish(&mut self) {
        for id in self.states(State::Paused) {
            self.scheduler.wake(id);
            self.steps_owed += self.tokens[&id].len();
        }
        for _ in 0..self.steps_owed {
            if self.tokens.is_empty() {
                break;
            }
            self.step();
        }
        assert!(self.tokens.is_empty(), "{} sequences never end", self.tokens.len());
        assert_eq!(self.scheduler.census().kv_blocks, BlockCounts { used: 0, cached: 0, free: BLOCKS });
    }

    /// Releases what is held, so that a failed assertion is what is reported.
    fn close(mut self) {
        self.tokens.keys().copied().collect::<Vec<_>>().into_iter().for_each(|id| self.scheduler.remove(id));
    }
}

fn token(id: SequenceId, position: usize) -> TokenId {
    (id.arrival * 1000 + position as u64) as TokenId
}

proptest! {
    #[test]
    fn every_sequence_ends_with_its_own_tokens(actions in prop::collection::vec(action(), 1..80)) {
        let mut reference = Reference::new();
        actions.into_iter().for_each(|action| reference.act(action));
        reference.finish();
        reference.close();
    }
}

fn submit(reference: &mut Reference, priority: Priority, prompt: usize, outputs: usize) -> SequenceId {
    let id = SequenceId { priority, arrival: reference.arrivals };
    reference.act(Action::Submit { priority, prompt, outputs, patience: 1000 });
    id
}

#[test]
fn decodes_come_before_chunks_and_chunks_in_order() {
    let mut reference = Reference::new();
    let first = submit(&mut reference, Priority::Interactive, 40, 5);
    let second = submit(&mut reference, Priority::Interactive, 60, 5);
    let plan = reference.scheduler.schedule();
    let chunk = |id, rows, draws, prefill| Chunk { id, rows, draws, prefill };
    assert_eq!(plan.chunks, [chunk(first, 40, true, true), chunk(second, 8, false, true)]);
    plan.chunks.iter().for_each(|chunk| reference.run(chunk));
    let plan = reference.scheduler.schedule();
    assert_eq!(plan.chunks, [chunk(first, 1, true, false), chunk(second, 47, false, true)]);
    reference.close();
}

#[test]
fn the_youngest_makes_way_and_loses_nothing() {
    let mut reference = Reference::new();
    // The second one has five blocks when the first wants its fifth, and the pool has nine.
    let first = submit(&mut reference, Priority::Batch, 64, 96);
    let second = submit(&mut reference, Priority::Batch, 100, 75);
    let mut steps = 0;
    while reference.scheduler.census().preemptions == 0 {
        reference.step();
        steps += 1;
        assert!(steps < 80, "nobody makes way");
    }
    assert_eq!(reference.scheduler.get(first).unwrap().state, State::Running);
    let victim = reference.scheduler.get(second).unwrap();
    assert_eq!((victim.state, victim.computed), (State::Waiting, 0));
    assert!(victim.tokens.len() > 100);
    reference.finish();
    reference.close();
}

#[test]
fn interactive_work_takes_seats_and_blocks_of_batch_work() {
    let mut reference = Reference::new();
    for _ in 0..MAX_SEQUENCES {
        submit(&mut reference, Priority::Batch, 20, 10);
    }
    (0..8).for_each(|_| reference.step());
    assert_eq!(reference.scheduler.census().running, MAX_SEQUENCES);
    let urgent = submit(&mut reference, Priority::Interactive, 140, 10);
    reference.step();
    assert_eq!(reference.scheduler.get(urgent).unwrap().state, State::Running);
    assert_eq!(reference.scheduler.census().running, MAX_SEQUENCES);
    reference.finish();
    reference.close();
}

#[test]
fn a_paused_sequence_keeps_its_blocks_only_while_nobody_needs_them() {
    let mut reference = Reference::new();
    let slow = submit(&mut reference, Priority::Interactive, 128, 20);
    (0..4).for_each(|_| reference.step());
    reference.scheduler.pause(slow);
    let held = reference.scheduler.get(slow).unwrap().blocks.len();
    assert!(!reference.scheduler.has_work());
    submit(&mut reference, Priority::Batch, 100, 10);
    (0..2).for_each(|_| reference.step());
    assert_eq!(reference.scheduler.get(slow).unwrap().blocks.len(), held);
    submit(&mut reference, Priority::Batch, 100, 10);
    reference.step();
    let slow = reference.scheduler.get(slow).unwrap();
    assert_eq!((slow.blocks.len(), slow.state), (0, State::Paused));
    reference.finish();
    reference.close();
}

#[test]
fn the_wait_for_a_seat_is_that_of_the_line_before() {
    let census = Census { seats: 2, running: 2, remaining: vec![30, 10], ..Census::default() };
    assert_eq!([0, 1, 2, 3].map(|ahead| census.steps_to_seat(ahead)), [10, 30, 40, 60]);
    let census = Census { seats: 2, running: 1, remaining: vec![30], ..Census::default() };
    assert_eq!([0, 1].map(|ahead| census.steps_to_seat(ahead)), [0, 30]);
}
