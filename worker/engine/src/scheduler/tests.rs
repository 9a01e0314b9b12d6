//! The scheduler against a plain model of a pool: every token is written where the plan says, and read back.

mod fairness;
mod sharing;

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::batch::BlockId;
use crate::clock;
use crate::handle::Tenant;
use crate::prefix::{Chain, PrefixScope, Root, Secret};
use crate::sequence::Demand;

const MAX_BATCH_TOKENS: usize = 48;
const MAX_SEQUENCES: usize = 6;
const BLOCKS: usize = 9;

/// What a sequence is made from.
#[derive(Debug, Clone, Copy)]
struct Spec {
    priority: Priority,
    tenant: usize,
    /// Sequences of one family have the same tokens; those of different ones differ from their second block on.
    family: usize,
    prompt: usize,
    outputs: usize,
    patience: u64,
}

#[derive(Debug, Clone)]
enum Action {
    Submit(Spec),
    Abort(prop::sample::Index),
    Pause(prop::sample::Index),
    Wake(prop::sample::Index),
    Advance(u64),
    Steps(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let priority = prop_oneof![Just(Priority::Interactive), Just(Priority::Batch)];
    let spec = (priority, 0usize..2, 0usize..3, 1usize..150, 1usize..60, 20u64..2000);
    let submit = spec.prop_map(|(priority, tenant, family, prompt, outputs, patience)| {
        Action::Submit(Spec { priority, tenant, family, prompt, outputs, patience })
    });
    prop_oneof![
        4 => submit,
        1 => any::<prop::sample::Index>().prop_map(Action::Abort),
        1 => any::<prop::sample::Index>().prop_map(Action::Pause),
        1 => any::<prop::sample::Index>().prop_map(Action::Wake),
        1 => (1u64..50).prop_map(Action::Advance),
        4 => (1usize..20).prop_map(Action::Steps),
    ]
}

fn tenant(index: usize) -> Tenant {
    Tenant(format!("tenant-{index}").into())
}

fn token(family: usize, position: usize) -> TokenId {
    let forks = usize::from(position >= BLOCK_TOKENS);
    (family * 1000 * forks + position) as TokenId
}

/// What a slot holds, which is a function of its token and all before it; here of the tenant as well.
type Entry = u64;

fn entry(before: Entry, token: TokenId) -> Entry {
    (before ^ Entry::from(token)).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

/// The plain model: what each sequence's tokens must be, and what is in the pool.
struct Reference {
    scheduler: Scheduler,
    specs: BTreeMap<SequenceId, Spec>,
    tokens: BTreeMap<SequenceId, Vec<TokenId>>,
    /// What each position of a sequence must be in the pool.
    entries: BTreeMap<SequenceId, Vec<Entry>>,
    pool: Vec<Option<Entry>>,
    now: Instant,
    arrivals: u64,
    /// Tokens that each tenant had computed and drawn, as the line counts them.
    served: BTreeMap<usize, u64>,
    /// Rows that were computed.
    rows: usize,
    /// Steps in which the first in order could have ended, whatever else goes on.
    steps_owed: usize,
}

impl Reference {
    fn new() -> Self {
        Self::with(MAX_BATCH_TOKENS, MAX_SEQUENCES, BLOCKS)
    }

    fn with(max_batch_tokens: usize, max_sequences: usize, blocks: usize) -> Self {
        Self {
            scheduler: Scheduler::new(max_batch_tokens, max_sequences, blocks),
            specs: BTreeMap::new(),
            tokens: BTreeMap::new(),
            entries: BTreeMap::new(),
            pool: vec![None; blocks * BLOCK_TOKENS],
            now: clock::now(),
            arrivals: 0,
            served: BTreeMap::new(),
            rows: 0,
            steps_owed: 0,
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Submit(spec) => {
                self.submit(spec);
            }
            Action::Abort(at) => self.pick(at, Self::remove),
            // As in the engine, a reader can only be behind on tokens that there are.
            Action::Pause(at) => self.pick(at, |reference, id| {
                if reference.scheduler.get(id).unwrap().state == State::Running {
                    reference.scheduler.pause(id);
                }
            }),
            Action::Wake(at) => self.pick(at, |reference, id| {
                reference.scheduler.wake(id);
                // It may have lost its blocks, and reads them all again.
                reference.steps_owed += reference.tokens[&id].len();
            }),
            Action::Advance(seconds) => {
                self.now += Duration::from_secs(seconds);
                for id in self.scheduler.expired(self.now) {
                    assert!(self.scheduler.get(id).unwrap().deadline <= self.now);
                    self.remove(id);
                }
                assert!(self.scheduler.next_deadline().is_none_or(|deadline| deadline > self.now));
            }
            Action::Steps(steps) => (0..steps).for_each(|_| drop(self.step())),
        }
        self.check_blocks();
    }

    fn submit(&mut self, spec: Spec) -> SequenceId {
        let Spec { priority, family, prompt, outputs, patience, .. } = spec;
        let id = SequenceId { priority, arrival: self.arrivals };
        self.arrivals += 1;
        let tokens: Vec<_> = (0..prompt).map(|at| token(family, at)).collect();
        let tenant = tenant(spec.tenant);
        let root = Root { model: "m", adapter: "", tenant: Some(&tenant.0), salt: b"" };
        let chain = Chain::new(&Secret::new([0; 32]), &root, PrefixScope::Tenant);
        let deadline = self.now + Duration::from_secs(patience);
        let demand =
            Demand { tenant: tenant.clone(), deadline, tokens: tokens.clone(), limit: prompt + outputs, chain };
        self.scheduler.admit(Sequence::new(id, demand));
        self.specs.insert(id, spec);
        self.tokens.insert(id, tokens);
        self.entries.insert(id, Vec::new());
        self.steps_owed += 2 * (prompt + outputs);
        id
    }

    fn remove(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        self.tokens.remove(&id);
        self.entries.remove(&id);
    }

    fn pick(&mut self, at: prop::sample::Index, act: impl FnOnce(&mut Self, SequenceId)) {
        if !self.tokens.is_empty() {
            let id = *self.tokens.keys().nth(at.index(self.tokens.len())).unwrap();
            act(self, id);
        }
    }

    fn states(&self, state: State) -> BTreeSet<SequenceId> {
        let all = self.scheduler.sequences.values();
        all.filter(|sequence| sequence.state == state).map(|sequence| sequence.id).collect()
    }

    /// One step; what it ran.
    fn step(&mut self) -> Plan {
        let fresh: BTreeSet<_> =
            self.tokens.keys().filter(|id| self.scheduler.get(**id).unwrap().turn.is_none()).copied().collect();
        let preemptions = self.scheduler.census().preemptions;
        let plan = self.scheduler.schedule();
        assert_eq!(self.scheduler.has_work(), !plan.chunks.is_empty());
        assert_eq!(plan.rows(), plan.chunks.iter().map(|chunk| chunk.rows).sum::<usize>());
        assert!(plan.rows() <= self.scheduler.max_batch_tokens);
        assert_eq!(plan.chunks.iter().map(|chunk| chunk.id).collect::<BTreeSet<_>>().len(), plan.chunks.len());
        self.check_order(&fresh, &plan, self.scheduler.census().preemptions > preemptions);
        self.check_blocks();
        for chunk in &plan.chunks {
            self.run(chunk);
        }
        plan
    }

    /// First come, first served: whoever starts leaves none of its class and tenant waiting that came before it, but for
    /// those who wait for what is being computed.
    fn check_order(&self, fresh: &BTreeSet<SequenceId>, plan: &Plan, preempted: bool) {
        assert_eq!(self.states(State::Running).len(), self.scheduler.running);
        assert!(self.scheduler.running <= self.scheduler.max_sequences);
        for chunk in &plan.chunks {
            assert_eq!(self.scheduler.get(chunk.id).unwrap().state, State::Running);
            if !fresh.contains(&chunk.id) {
                continue;
            }
            let tenant = self.specs[&chunk.id].tenant;
            for passed in fresh.range(..chunk.id) {
                let sequence = self.scheduler.get(*passed).unwrap();
                let same = passed.priority == chunk.id.priority && self.specs[passed].tenant == tenant;
                let waits = sequence.state == State::Waiting && sequence.turn.is_none();
                if same && waits && !preempted {
                    let for_another = self.scheduler.waits_for_another(sequence, passed.priority);
                    assert!(for_another, "{passed:?} was passed by {:?}", chunk.id);
                }
            }
        }
    }

    /// Does what a runner does: writes the chunk, and reads all of the sequence before it draws.
    fn run(&mut self, chunk: &Chunk) {
        let sequence = self.scheduler.get(chunk.id).unwrap();
        let spec = self.specs[&chunk.id];
        assert_eq!(sequence.tokens, self.tokens[&chunk.id]);
        assert_eq!(chunk.draws, chunk.rows == sequence.pending());
        let slot = |position: usize| {
            sequence.blocks.as_slice()[position / BLOCK_TOKENS].0 as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
        };
        let end = sequence.computed + chunk.rows;
        let entries = self.entries.get_mut(&chunk.id).unwrap();
        while let Some(token) = sequence.tokens.get(entries.len()) {
            entries.push(entry(entries.last().copied().unwrap_or(spec.tenant as Entry), *token));
        }
        for (position, entry) in entries.iter().enumerate().take(end).skip(sequence.computed) {
            let block = BlockId((slot(position) / BLOCK_TOKENS) as u32);
            let holders = self.scheduler.sequences.values().filter(|other| other.blocks.as_slice().contains(&block));
            assert_eq!(holders.count(), 1, "{block:?} is written while others hold it");
            self.pool[slot(position)] = Some(*entry);
        }
        for (position, entry) in entries.iter().enumerate().take(end) {
            assert_eq!(self.pool[slot(position)], Some(*entry), "position {position} of {:?}", chunk.id);
        }
        self.rows += chunk.rows;
        *self.served.entry(spec.tenant).or_default() += chunk.rows as u64;
        self.scheduler.advance(chunk.id, chunk.rows);
        if chunk.draws {
            self.draw(chunk.id, token(spec.family, end));
        }
    }

    fn draw(&mut self, id: SequenceId, token: TokenId) {
        let Spec { tenant, prompt, outputs, .. } = self.specs[&id];
        *self.served.entry(tenant).or_default() += line::DRAWN - 1;
        let tokens = self.tokens.get_mut(&id).unwrap();
        tokens.push(token);
        match tokens.len() == prompt + outputs {
            true => self.remove(id),
            false => self.scheduler.push(id, token),
        }
    }

    /// No block is lost, and only what is held is used.
    fn check_blocks(&self) {
        let held: BTreeSet<_> =
            self.scheduler.sequences.values().flat_map(|sequence| sequence.blocks.as_slice()).copied().collect();
        let counts = self.scheduler.census().kv_blocks;
        assert_eq!(counts.used, held.len());
        assert_eq!(counts.used + counts.cached + counts.free, self.pool.len() / BLOCK_TOKENS);
        assert_eq!(self.scheduler.sequences.len(), self.tokens.len());
        for (key, id) in &self.scheduler.producers {
            let producer = self.scheduler.get(*id).unwrap();
            assert!(producer.state == State::Running && producer.promised().contains(key));
        }
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
        assert_eq!(self.scheduler.census().kv_blocks.used, 0);
        assert_eq!((self.scheduler.turns.len(), self.scheduler.producers.len(), self.scheduler.running), (0, 0, 0));
    }

    /// Releases what is held, so that a failed assertion is what is reported.
    fn close(mut self) {
        self.tokens.keys().copied().collect::<Vec<_>>().into_iter().for_each(|id| self.scheduler.remove(id));
    }
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

/// A sequence that shares nothing with any other.
fn submit(reference: &mut Reference, priority: Priority, prompt: usize, outputs: usize) -> SequenceId {
    let at = reference.arrivals as usize;
    reference.submit(Spec { priority, tenant: 10 + at, family: at, prompt, outputs, patience: 1000 })
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
    (0..8).for_each(|_| drop(reference.step()));
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
    (0..4).for_each(|_| drop(reference.step()));
    reference.scheduler.pause(slow);
    let held = reference.scheduler.get(slow).unwrap().blocks.len();
    assert!(!reference.scheduler.has_work());
    submit(&mut reference, Priority::Batch, 100, 10);
    (0..2).for_each(|_| drop(reference.step()));
    assert_eq!(reference.scheduler.get(slow).unwrap().blocks.len(), held);
    submit(&mut reference, Priority::Batch, 100, 10);
    reference.step();
    let slow = reference.scheduler.get(slow).unwrap();
    assert_eq!((slow.blocks.len(), slow.state), (0, State::Paused));
    reference.finish();
    reference.close();
}
