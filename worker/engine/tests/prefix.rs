//! The prefix cache, seen from outside: nothing changes but what is computed, and nobody sees another's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use penstock_engine::batch::{Batch, TokenId};
use penstock_engine::runner::scripted::{Script, ScriptedRunner};
use penstock_engine::runner::{self, ModelRunner, Shape};
use penstock_engine::{
    Config, Engine, Event, Events, Finished, PrefixScope, Priority, SamplingParams, Submission, Tenant, clock,
};

const VOCAB: u32 = 97;

/// The scripted runner, counting what it runs.
struct Counting(ScriptedRunner, Arc<AtomicUsize>);

impl ModelRunner for Counting {
    fn shape(&self) -> &Shape {
        self.0.shape()
    }

    fn execute(&mut self, batch: &Batch) -> Result<&mut [f32], runner::Error> {
        self.1.fetch_add(batch.tokens.len(), Ordering::SeqCst);
        self.0.execute(batch)
    }
}

fn start() -> Engine {
    start_with(64, Config::default()).0
}

/// An engine, and the rows that it has run.
fn start_with(kv_blocks: usize, config: Config) -> (Engine, Arc<AtomicUsize>) {
    let script = Script { vocab_size: VOCAB as usize, context_length: 1024, kv_blocks, ..Script::default() };
    let rows = Arc::new(AtomicUsize::new(0));
    let runner = Counting(ScriptedRunner::new(script), rows.clone());
    (Engine::start(config, Box::new(runner)).expect("the engine starts"), rows)
}

/// Tokens that look like no others with another seed.
fn text(seed: u32, length: u32) -> Vec<TokenId> {
    (0..length).map(|at| (seed * 31 + at * (seed + 7)) % VOCAB).collect()
}

fn submission(prompt: Vec<TokenId>, max_tokens: u32) -> Submission {
    Submission {
        tenant: Tenant("retail".into()),
        priority: Priority::Interactive,
        deadline: clock::now() + Duration::from_secs(3600),
        prompt,
        resume: Vec::new(),
        sampling: SamplingParams { max_tokens, seed: 5, ignore_eos: true, ..SamplingParams::default() },
        scope: PrefixScope::Tenant,
        cache_salt: Vec::new(),
    }
}

fn read(mut events: Events) -> (Vec<TokenId>, Finished) {
    let mut tokens = Vec::new();
    loop {
        match events.blocking_recv().expect("a last event comes before the end") {
            Event::Tokens { ids, .. } => tokens.extend(ids),
            Event::Finished(finished) => {
                assert_eq!(events.cached_tokens(), finished.cached_tokens);
                return (tokens, finished);
            }
            Event::Failed(failure) => panic!("{failure}"),
        }
    }
}

fn run(engine: &Engine, submission: &Submission) -> (Vec<TokenId>, Finished) {
    read(engine.submit(submission.clone()).expect("it is taken"))
}

/// Rows that a submission makes an engine compute, and the cached tokens that it is told of.
fn cost((engine, rows): &(Engine, Arc<AtomicUsize>), submission: &Submission) -> (usize, usize) {
    let before = rows.load(Ordering::SeqCst);
    let cached = run(engine, submission).1.cached_tokens;
    (rows.load(Ordering::SeqCst) - before, cached)
}

#[test]
fn a_conversation_is_read_once_and_says_the_same() {
    let engine = start();
    let mut history = text(1, 70);
    let mut told = Vec::new();
    for turn in 0..4 {
        let asked = submission(history.clone(), 40);
        let (answer, account) = run(&engine, &asked);
        assert_eq!(answer, run(&start(), &asked).0, "turn {turn}");
        told.push(account.cached_tokens);
        history.extend(answer);
        history.extend(text(turn + 2, 10));
    }
    // Prompts of 70, 120, 170 and 220 tokens; of the one before, all but its answer's last token was in the pool.
    assert_eq!(told, [0, 96, 128, 192]);
    engine.shutdown();
    let (stats, blocks) = (engine.stats(), engine.load().kv_blocks);
    assert_eq!((stats.prompt_tokens, stats.cached_tokens), (70 + 120 + 170 + 220, 96 + 128 + 192));
    // 259 tokens were in it.
    assert_eq!((blocks.used, blocks.cached, blocks.free), (0, 8, 56));
}

#[test]
fn a_prompt_that_is_cached_whole_still_draws_from_its_own_end() {
    let engine = start();
    for length in [32, 33, 64, 65, 95, 96] {
        let asked = submission(text(9, length), 1);
        let cold = run(&start(), &asked).0;
        let told: Vec<_> = (0..3)
            .map(|_| {
                let (answer, account) = run(&engine, &asked);
                assert_eq!(answer, cold);
                account.cached_tokens
            })
            .collect();
        let whole = (length as usize - 1) / 32 * 32;
        assert_eq!(told[1..], [whole, whole], "{length} tokens");
    }
}

#[test]
fn copies_that_come_at_once_are_read_once() {
    let engine = start();
    let choices: Vec<_> = (0..6)
        .map(|choice_index| {
            let mut copy = submission(text(3, 100), 20);
            copy.sampling.choice_index = choice_index;
            copy
        })
        .collect();
    let streams: Vec<_> = choices.iter().map(|copy| engine.submit(copy.clone()).unwrap()).collect();
    for (copy, stream) in choices.iter().zip(streams) {
        assert_eq!(read(stream).0, run(&start(), copy).0);
    }
    // 96 tokens are in full blocks; the drawn tokens but the last are read as well.
    engine.shutdown();
    assert_eq!(engine.stats().batch_tokens.sum() as usize, 100 + 5 * 4 + 6 * 19);
}

#[test]
fn a_pool_full_of_old_prefixes_serves_new_ones() {
    let (engine, _) = start_with(8, Config { max_sequences: 3, ..Config::default() });
    let asked: Vec<_> = (0..24).map(|at| submission(text(at / 6, 40 + at * 5), 30)).collect();
    let streams: Vec<_> = asked.iter().map(|one| engine.submit(one.clone()).unwrap()).collect();
    for (one, stream) in asked.iter().zip(streams) {
        assert_eq!(read(stream).0, run(&start(), one).0);
    }
    let blocks = engine.load().kv_blocks;
    assert_eq!((blocks.used, blocks.cached + blocks.free), (0, 8));
    assert!(engine.stats().cached_tokens > 0);
}

#[test]
fn an_attacker_sees_and_saves_nothing_and_the_tenant_itself_does() {
    let secret = text(4, 200);
    let attacker = Tenant("attacker".into());
    let victim = submission(secret.clone(), 2);
    // Room for all of it, so that no guess drives out what others look for.
    let engine = start_with(256, Config::default());
    run(&engine.0, &victim);
    // Every length of a guess that is right, and one that is wrong at its end.
    for length in (1..=200).step_by(13) {
        let mut guess = secret[..length].to_vec();
        for _ in 0..2 {
            // Its own second try must find only what its first one left, so that one is kept apart by a salt.
            let salt = vec![length as u8, guess[length - 1] as u8];
            let probe = Submission { tenant: attacker.clone(), cache_salt: salt, ..submission(guess.clone(), 2) };
            assert_eq!(cost(&engine, &probe), (length + 1, 0));
            guess[length - 1] = (guess[length - 1] + 1) % VOCAB;
        }
    }
    assert_eq!(cost(&start_with(64, Config::default()), &victim), (201, 0));
    assert_eq!(cost(&engine, &victim), (9, 192));
    // Another salt is another tree, for the tenant itself, too.
    assert_eq!(cost(&engine, &Submission { cache_salt: b"s".to_vec(), ..victim }), (201, 0));
}

#[test]
fn what_is_marked_public_is_shared_and_no_more() {
    let engine = start_with(64, Config::default());
    let public = |tenant: &str, own: u32| {
        let prompt = [text(1, 64), text(own, 64)].concat();
        let scope = PrefixScope::Public { tokens: 64 };
        Submission { tenant: Tenant(tenant.into()), scope, ..submission(prompt, 2) }
    };
    assert_eq!(cost(&engine, &public("a", 2)), (129, 0));
    assert_eq!(cost(&engine, &public("b", 2)), (65, 64));
    assert_eq!(cost(&engine, &public("a", 2)), (33, 96));
}
