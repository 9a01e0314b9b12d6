//! The scheduler without a model: replays a trace of arrivals and tells what each step would run. The same trace always
//! gives the same text, so a change of the scheduler's mind shows as a diff.
//!
//! A trace is lines of words; `#` begins a comment. The first line sets the sizes, each other one is an arrival at a
//! step, in order:
//!
//! ```text
//! engine batch=64 seats=4 blocks=24
//! 0 retail interactive prompt=system:64+question:20 draws=12 limit=40
//! ```
//!
//! A prompt's parts are names with lengths: the same name gives the same tokens. `draws` is how many tokens are drawn
//! before the answer ends by itself, `limit` how many may be.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;

use crate::batch::{BLOCK_TOKENS, TokenId};
use crate::clock;
use crate::handle::Tenant;
use crate::prefix::{Chain, PrefixScope, Root, Secret};
use crate::scheduler::{Plan, Scheduler};
use crate::sequence::{Demand, Priority, Sequence, SequenceId};

/// What is wrong with a trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct Error {
    /// The line, from 1.
    pub line: usize,
    /// What a line must be that it is not.
    pub problem: &'static str,
}

/// What happened, a line a step that ran anything: who started (`+`, with the tokens that the cache held), what was
/// run (rows, with `*` where a token was drawn), who ended (`-`), and the pool's blocks after it.
///
/// # Errors
///
/// The first line that is not as it must be.
pub fn replay(trace: &str) -> Result<String, Error> {
    let mut lines = trace.lines().enumerate().map(|(at, line)| (at + 1, line.split('#').next().unwrap_or_default()));
    let mut lines = lines.by_ref().filter(|(_, line)| !line.trim().is_empty());
    let (line, sizes) = lines.next().ok_or(Error { line: 1, problem: "a trace begins with the engine's sizes" })?;
    let mut simulation = Simulation::new(&sizes.parse().map_err(|problem| Error { line, problem })?);
    for (line, arrival) in lines {
        let arrival: Arrival = arrival.parse().map_err(|problem| Error { line, problem })?;
        if arrival.at < simulation.step {
            return Err(Error { line, problem: "arrivals come in the order of their steps" });
        }
        if !simulation.holds(&arrival) {
            return Err(Error {
                line,
                problem: "a sequence has a token to read and one to draw, and fits into the pool",
            });
        }
        simulation.run_until(arrival.at);
        simulation.arrive(arrival);
    }
    simulation.run_until(usize::MAX);
    Ok(simulation.log)
}

#[derive(Debug)]
struct Sizes {
    batch: usize,
    seats: usize,
    blocks: usize,
}

#[derive(Debug)]
struct Arrival {
    at: usize,
    tenant: Tenant,
    priority: Priority,
    prompt: Vec<TokenId>,
    draws: usize,
    limit: usize,
}

impl FromStr for Sizes {
    type Err = &'static str;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "expected: engine batch=N seats=N blocks=N, no more seats than batch rows, nothing 0";
        let words: Vec<_> = line.split_whitespace().collect();
        let &["engine", batch, seats, blocks] = words.as_slice() else { return Err(FORM) };
        let size = |word, name| number(word, name).filter(|size| *size > 0).ok_or(FORM);
        let sizes =
            Self { batch: size(batch, "batch")?, seats: size(seats, "seats")?, blocks: size(blocks, "blocks")? };
        if sizes.seats <= sizes.batch { Ok(sizes) } else { Err(FORM) }
    }
}

impl FromStr for Arrival {
    type Err = &'static str;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "expected: STEP TENANT interactive|batch prompt=NAME:N[+NAME:N] draws=N limit=N";
        let words: Vec<_> = line.split_whitespace().collect();
        let &[at, tenant, priority, prompt, draws, limit] = words.as_slice() else { return Err(FORM) };
        let priority = match priority {
            "interactive" => Priority::Interactive,
            "batch" => Priority::Batch,
            _ => return Err(FORM),
        };
        let mut tokens = Vec::new();
        for part in prompt.strip_prefix("prompt=").ok_or(FORM)?.split('+') {
            let (name, length) = part.split_once(':').ok_or(FORM)?;
            let length: u32 = length.parse().map_err(|_| FORM)?;
            // FNV-1a: names that differ give tokens that do.
            let first =
                name.bytes().fold(0x811C_9DC5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
            tokens.extend((0..length).map(|at| first.wrapping_add(at)));
        }
        Ok(Self {
            at: at.parse().map_err(|_| FORM)?,
            tenant: Tenant(tenant.into()),
            priority,
            prompt: tokens,
            draws: number(draws, "draws").ok_or(FORM)?,
            limit: number(limit, "limit").ok_or(FORM)?,
        })
    }
}

fn number(word: &str, name: &str) -> Option<usize> {
    word.strip_prefix(name)?.strip_prefix('=')?.parse().ok()
}

struct Simulation {
    scheduler: Scheduler,
    blocks: usize,
    /// Tokens that each sequence is still going to draw.
    left: BTreeMap<SequenceId, usize>,
    arrivals: u64,
    step: usize,
    preemptions: u64,
    log: String,
}

impl Simulation {
    fn new(sizes: &Sizes) -> Self {
        Self {
            scheduler: Scheduler::new(sizes.batch, sizes.seats, sizes.blocks),
            blocks: sizes.blocks,
            left: BTreeMap::new(),
            arrivals: 0,
            step: 0,
            preemptions: 0,
            log: String::new(),
        }
    }

    fn holds(&self, arrival: &Arrival) -> bool {
        let longest = arrival.prompt.len() + arrival.limit;
        !arrival.prompt.is_empty()
            && (1..=arrival.limit).contains(&arrival.draws)
            && (longest - 1).div_ceil(BLOCK_TOKENS) <= self.blocks
    }

    fn arrive(&mut self, arrival: Arrival) {
        let Arrival { at: _, tenant, priority, prompt, draws, limit } = arrival;
        let id = SequenceId { priority, arrival: self.arrivals };
        self.arrivals += 1;
        let root = Root { model: "", adapter: "", tenant: Some(&tenant.0), salt: b"" };
        let chain = Chain::new(&Secret::new([0; 32]), &root, PrefixScope::Tenant);
        // Deadlines are not what is simulated: none is ever asked for.
        let deadline = clock::now();
        let limit = prompt.len() + limit;
        self.left.insert(id, draws);
        self.scheduler.admit(Sequence::new(id, Demand { tenant, deadline, tokens: prompt, limit, chain }));
    }

    fn run_until(&mut self, step: usize) {
        while self.step < step && self.scheduler.has_work() {
            let new: Vec<_> = self.left.keys().copied().filter(|id| self.cached(*id).is_none()).collect();
            let plan = self.scheduler.schedule();
            self.tell_plan(&new, &plan);
            self.carry_out(&plan);
            self.step += 1;
        }
        if step < usize::MAX {
            self.step = step;
        }
    }

    fn cached(&self, id: SequenceId) -> Option<usize> {
        self.scheduler.get(id).and_then(|sequence| sequence.cached)
    }

    fn tell_plan(&mut self, new: &[SequenceId], plan: &Plan) {
        let mut line = format!("{:>4}", self.step);
        for id in new {
            if let Some(cached) = self.cached(*id) {
                write!(line, " +{}({cached})", id.arrival).expect("a string takes everything");
            }
        }
        line.push_str(" |");
        for chunk in &plan.chunks {
            let draws = if chunk.draws { "*" } else { "" };
            write!(line, " {}:{}{draws}", chunk.id.arrival, chunk.rows).expect("a string takes everything");
        }
        self.log.push_str(&line);
    }

    fn carry_out(&mut self, plan: &Plan) {
        let mut ended = String::new();
        for chunk in &plan.chunks {
            self.scheduler.advance(chunk.id, chunk.rows);
            if !chunk.draws {
                continue;
            }
            let left = self.left.get_mut(&chunk.id).expect("who draws has not ended");
            *left -= 1;
            if *left > 0 {
                let length = self.scheduler.get(chunk.id).map_or(0, |sequence| sequence.tokens.len());
                // Two answers to one prompt are different ones.
                let token = (chunk.id.arrival as TokenId + 1) << 20 | length as TokenId;
                self.scheduler.push(chunk.id, token);
            } else {
                self.left.remove(&chunk.id);
                self.scheduler.remove(chunk.id);
                write!(ended, " -{}", chunk.id.arrival).expect("a string takes everything");
            }
        }
        let census = self.scheduler.census();
        let preempted = census.preemptions - self.preemptions;
        self.preemptions = census.preemptions;
        let (blocks, waiting) = (census.kv_blocks, census.waiting);
        let counts = format!("used {} cached {} free {}", blocks.used, blocks.cached, blocks.free);
        writeln!(self.log, " |{ended} | waiting {waiting} preempted {preempted} {counts}")
            .expect("a string takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_gives_its_decisions() {
        let trace = "engine batch=64 seats=2 blocks=8 # small\n\n0 a batch prompt=s:70 draws=2 limit=5\n9 a batch prompt=s:70 draws=1 limit=1\n";
        let expected = "   0 +0(0) | 0:64 | | waiting 0 preempted 0 used 2 cached 0 free 6\n   \
                           1 | 0:6* | | waiting 0 preempted 0 used 3 cached 0 free 5\n   \
                           2 | 0:1* | -0 | waiting 0 preempted 0 used 0 cached 2 free 6\n   \
                           9 +1(64) | 1:6* | -1 | waiting 0 preempted 0 used 0 cached 2 free 6\n";
        assert_eq!(replay(trace).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let line = |trace: &str| replay(trace).unwrap_err().line;
        assert_eq!(line(""), 1);
        assert_eq!(line("engine batch=1 seats=2 blocks=8"), 1);
        assert_eq!(line("engine batch=8 seats=0 blocks=8"), 1);
        let arrival = |arrival: &str| {
            line(&format!("engine batch=8 seats=2 blocks=2\n3 a batch prompt=s:1 draws=1 limit=1\n{arrival}"))
        };
        for wrong in [
            "2 a batch prompt=s:1 draws=1 limit=1",
            "4 a urgent prompt=s:1 draws=1 limit=1",
            "4 a batch prompt=s draws=1 limit=1",
            "4 a batch prompt=s:0 draws=1 limit=1",
            "4 a batch prompt=s:1 draws=2 limit=1",
            "4 a batch prompt=s:64 draws=1 limit=2",
            "4 a batch",
        ] {
            assert_eq!(arrival(wrong), 3, "{wrong}");
        }
    }
}
