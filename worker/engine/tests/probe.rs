//! Whether an attacker can tell from what it sees and from how long it waits which prompts another tenant has used.
//! Time is the work that is done: no clock, so that the answer is the same on a machine that does other things.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use penstock_engine::batch::{Batch, TokenId};
use penstock_engine::runner::scripted::{Script, ScriptedRunner};
use penstock_engine::runner::{self, ModelRunner, Shape};
use penstock_engine::{Config, Engine, Event, PrefixScope, Priority, SamplingParams, Submission, Tenant, clock};

const VOCAB: u32 = 500;
const PROBES: usize = 400;
/// What a step costs beyond its rows, in rows.
const STEP: usize = 4;

/// The scripted runner and what its steps have cost.
struct Metered(ScriptedRunner, Arc<AtomicUsize>);

impl ModelRunner for Metered {
    fn shape(&self) -> &Shape {
        self.0.shape()
    }

    fn execute(&mut self, batch: &Batch) -> Result<&mut [f32], runner::Error> {
        self.1.fetch_add(STEP + batch.tokens.len(), Ordering::SeqCst);
        self.0.execute(batch)
    }
}

/// What who asks can see of an answer.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// What was computed until the first token came.
    first_token: usize,
    /// Until the answer's end.
    whole: usize,
    steps: u64,
    cached_tokens: usize,
}

struct Bench {
    engine: Engine,
    cost: Arc<AtomicUsize>,
}

impl Bench {
    fn start() -> Self {
        let script =
            Script { vocab_size: VOCAB as usize, context_length: 1024, kv_blocks: 1 << 14, ..Script::default() };
        let cost = Arc::new(AtomicUsize::new(0));
        let runner = Metered(ScriptedRunner::new(script), cost.clone());
        let config = Config { max_batch_tokens: 128, ..Config::default() };
        Self { engine: Engine::start(config, Box::new(runner)).expect("the engine starts"), cost }
    }

    /// One token, so that all that is computed is computed before it comes; then, where asked, some more.
    fn ask(&self, tenant: &str, prompt: &[TokenId]) -> Seen {
        let of = |max_tokens| {
            let (cost, steps) = (self.cost.load(Ordering::SeqCst), self.engine.stats().batch_tokens.count());
            let mut events = self.engine.submit(submission(tenant, prompt, max_tokens)).expect("it is taken");
            loop {
                match events.blocking_recv().expect("a last event") {
                    Event::Tokens { .. } => {}
                    Event::Finished(finished) => {
                        let steps = self.engine.stats().batch_tokens.count() - steps;
                        return (self.cost.load(Ordering::SeqCst) - cost, steps, finished.cached_tokens);
                    }
                    Event::Failed(failure) => panic!("{failure}"),
                }
            }
        };
        let (first_token, steps, cached_tokens) = of(1);
        Seen { first_token, whole: first_token + of(3).0, steps, cached_tokens }
    }
}

fn submission(tenant: &str, prompt: &[TokenId], max_tokens: u32) -> Submission {
    Submission {
        tenant: Tenant(tenant.into()),
        priority: Priority::Interactive,
        deadline: clock::now() + Duration::from_secs(3600),
        prompt: prompt.to_vec(),
        resume: Vec::new(),
        sampling: SamplingParams { max_tokens, seed: 5, ignore_eos: true, ..SamplingParams::default() },
        scope: PrefixScope::Tenant,
        cache_salt: Vec::new(),
    }
}

/// A generator that is plain to read: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32 % end
    }

    fn text(&mut self, length: u32) -> Vec<TokenId> {
        (0..length).map(|_| self.below(VOCAB)).collect()
    }
}

/// Probes half of which the victim has used, in a random order. Both halves have the same lengths.
fn probes(random: &mut Random) -> Vec<(Vec<TokenId>, bool)> {
    let lengths: Vec<u32> = (0..PROBES / 2).map(|_| 40 + random.below(360)).collect();
    let mut probes: Vec<_> =
        [true, false].into_iter().flat_map(|used| lengths.iter().map(move |&l| (l, used))).collect();
    for i in (1..probes.len()).rev() {
        probes.swap(i, random.below(i as u32 + 1) as usize);
    }
    probes.into_iter().map(|(length, used)| (random.text(length), used)).collect()
}

/// How likely a used prompt scores below an unused one: the area under the curve of whoever guesses by that score.
fn area(seen: &[(Seen, bool)], score: impl Fn(&Seen) -> f64) -> f64 {
    let of = |used: bool| seen.iter().filter(move |(_, was)| *was == used).map(|(seen, _)| score(seen));
    let pairs = of(true).flat_map(|a| of(false).map(move |b| (a, b)));
    let (wins, count) = pairs.fold((0.0, 0), |(wins, count), (a, b)| {
        (
            wins + if a < b {
                1.0
            } else if a == b {
                0.5
            } else {
                0.0
            },
            count + 1,
        )
    });
    wins / f64::from(count)
}

/// The victim uses half of the prompts; then `who` asks all of them.
fn areas(who: &str) -> [f64; 4] {
    let mut random = Random(0x5EED_CAFE);
    let bench = Bench::start();
    let probes = probes(&mut random);
    for (prompt, _) in probes.iter().filter(|(_, used)| *used) {
        bench.ask("victim", prompt);
    }
    let seen: Vec<_> = probes.iter().map(|(prompt, used)| (bench.ask(who, prompt), *used)).collect();
    [
        area(&seen, |seen| seen.first_token as f64),
        area(&seen, |seen| seen.whole as f64),
        area(&seen, |seen| seen.steps as f64),
        area(&seen, |seen| -(seen.cached_tokens as f64)),
    ]
}

#[test]
fn another_tenant_cannot_tell_what_is_cached() {
    let areas = areas("attacker");
    println!("attacker: {areas:?}");
    assert!(areas.iter().all(|area| (area - 0.5).abs() <= 0.05), "{areas:?}");
}

#[test]
fn the_tenant_itself_can() {
    let areas = areas("victim");
    println!("victim: {areas:?}");
    assert!(areas.iter().all(|area| *area >= 0.7), "{areas:?}");
    assert!(areas[0] >= 0.95 && areas[3] == 1.0, "{areas:?}");
}
