//! Log-probabilities and grammars, seen from outside the engine.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use penstock_engine::batch::{Batch, TokenId};
use penstock_engine::grammar::{self, Grammar};
use penstock_engine::runner::scripted::{Script, ScriptedRunner};
use penstock_engine::runner::{self, ModelRunner, Shape};
use penstock_engine::{
    Config, Engine, Event, Events, Failure, FinishReason, PrefixScope, Priority, SamplingParams, Submission, Tenant,
    TokenLogprob, clock,
};

const VOCAB: usize = 97;
const EOS: TokenId = 96;

/// A runner whose logits the test sees too.
struct Told {
    runner: ScriptedRunner,
    rows: Arc<Mutex<Vec<f32>>>,
}

impl ModelRunner for Told {
    fn shape(&self) -> &Shape {
        self.runner.shape()
    }

    fn execute(&mut self, batch: &Batch) -> Result<&mut [f32], runner::Error> {
        let logits = self.runner.execute(batch)?;
        self.rows.lock().expect("no test panics with it").extend_from_slice(logits);
        Ok(logits)
    }
}

fn start(max_batch_tokens: usize, kv_blocks: usize) -> (Engine, Arc<Mutex<Vec<f32>>>) {
    let script = Script { vocab_size: VOCAB, context_length: 512, kv_blocks, ..Script::default() };
    let rows = Arc::new(Mutex::new(Vec::new()));
    let runner = Told { runner: ScriptedRunner::new(script), rows: rows.clone() };
    let config = Config { max_batch_tokens, max_sequences: 8, eos_token_ids: vec![EOS], ..Config::default() };
    (Engine::start(config, Box::new(runner)).expect("the engine starts"), rows)
}

fn submission(prompt: Vec<TokenId>, sampling: SamplingParams) -> Submission {
    Submission {
        tenant: Tenant("retail".into()),
        priority: Priority::Interactive,
        deadline: clock::now() + Duration::from_secs(3600),
        prompt,
        resume: Vec::new(),
        sampling,
        scope: PrefixScope::Tenant,
        cache_salt: Vec::new(),
    }
}

fn read(events: &mut Events) -> (Vec<TokenId>, Vec<TokenLogprob>, Event) {
    let (mut tokens, mut all) = (Vec::new(), Vec::new());
    loop {
        match events.blocking_recv().expect("a last event comes before the end") {
            Event::Tokens { ids, logprobs, .. } => {
                tokens.extend(ids);
                all.extend(logprobs);
            }
            last @ (Event::Finished(_) | Event::Failed(_)) => return (tokens, all, last),
        }
    }
}

#[test]
fn log_probabilities_are_the_log_softmax_of_the_runners_logits() {
    let (engine, rows) = start(512, 16);
    let sampling = SamplingParams {
        top_logprobs: Some(5),
        temperature: 0.7,
        top_k: 10,
        repetition_penalty: 1.3,
        frequency_penalty: 0.5,
        logit_bias: vec![(7, 5.0)],
        max_tokens: 30,
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let (tokens, told, _) = read(&mut engine.submit(submission(vec![1, 2, 3], sampling)).expect("it is taken"));
    let rows = rows.lock().expect("no test panics with it");
    assert_eq!((tokens.len(), told.len(), rows.len()), (30, 30, 30 * VOCAB));
    for ((token, told), row) in tokens.iter().zip(&told).zip(rows.chunks(VOCAB)) {
        let total: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        let exact = |id: TokenId| f64::from(row[id as usize]) - total;
        assert!((f64::from(told.logprob) - exact(*token)).abs() < 1e-5);
        let mut order: Vec<TokenId> = (0..VOCAB as TokenId).collect();
        order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
        assert_eq!(told.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), order[..5]);
        assert!(told.top.iter().all(|(id, logprob)| (f64::from(*logprob) - exact(*id)).abs() < 1e-5));
    }
}

#[test]
fn who_does_not_ask_gets_no_log_probabilities() {
    let (engine, _) = start(512, 16);
    let sampling = SamplingParams { max_tokens: 5, ignore_eos: true, ..SamplingParams::default() };
    let (tokens, told, _) = read(&mut engine.submit(submission(vec![1], sampling)).expect("it is taken"));
    assert_eq!((tokens.len(), told.len()), (5, 0));
}

/// Words of even ids that grow, each output less than 20 above the one before, up to an odd one, which ends them.
#[derive(Debug, Default)]
struct Climbing {
    last: TokenId,
    over: bool,
    allowed: [u32; 4],
}

impl Climbing {
    fn after(outputs: &[TokenId]) -> Box<dyn Grammar> {
        let mut grammar = Self::default();
        outputs.iter().for_each(|token| grammar.accept(*token).expect("it never fails"));
        Box::new(grammar)
    }
}

impl Grammar for Climbing {
    fn allowed(&mut self) -> Result<&[u32], grammar::Error> {
        self.allowed = [0; 4];
        let (last, over) = (self.last, self.over);
        let next = if over { EOS..EOS + 1 } else { last + 1..(last + 20).min(EOS) };
        next.for_each(|id| self.allowed[id as usize / 32] |= 1 << (id % 32));
        Ok(&self.allowed)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), grammar::Error> {
        self.last = token;
        self.over = token % 2 == 1;
        Ok(())
    }
}

#[test]
fn a_grammar_holds_in_company_under_preemption_and_over_every_resume() {
    // Pool and batch are so small that the eight push one another out.
    let (engine, _) = start(24, 6);
    let prompt = |n: TokenId| (0..40 + n).collect::<Vec<_>>();
    let sampling = |n: u64| SamplingParams { seed: n, max_tokens: 60, ..SamplingParams::default() };
    let constrained = |n: u32| {
        let events = engine.submit_constrained(submission(prompt(n), sampling(n.into())), Climbing::after(&[]));
        events.expect("it is taken")
    };
    let mut streams: Vec<Events> = (0..8).map(constrained).collect();
    for (n, events) in (0..).zip(&mut streams) {
        let (tokens, _, last) = read(events);
        let Event::Finished(finished) = last else { panic!("{last:?}") };
        assert_eq!((finished.reason, finished.stop_token), (FinishReason::Stop, Some(EOS)));
        let (end, body) = tokens.split_last().expect("no word is empty");
        assert!(end % 2 == 1 && body.iter().all(|token| token % 2 == 0), "{tokens:?}");
        assert!([&[0], tokens.as_slice()].concat().is_sorted_by(|a, b| a < b && b - a < 20), "{tokens:?}");
        for cut in 0..=tokens.len() {
            let resume = tokens[..cut].to_vec();
            let resumed = Submission { resume, ..submission(prompt(n), sampling(n.into())) };
            let events = engine.submit_constrained(resumed, Climbing::after(&tokens[..cut]));
            assert_eq!(read(&mut events.expect("it is taken")).0, tokens[cut..]);
        }
    }
}

/// Fails at its third output.
#[derive(Debug, Default)]
struct Brittle(usize);

impl Grammar for Brittle {
    fn allowed(&mut self) -> Result<&[u32], grammar::Error> {
        if self.0 < 3 { Ok(&[0b10]) } else { Err(grammar::Error("it is worn out".into())) }
    }

    fn accept(&mut self, _: TokenId) -> Result<(), grammar::Error> {
        self.0 += 1;
        Ok(())
    }
}

#[test]
fn a_grammar_that_fails_ends_its_own_sequence_and_no_other() {
    let (engine, _) = start(512, 16);
    let long = || SamplingParams { max_tokens: 20, ignore_eos: true, ..SamplingParams::default() };
    let mut other = engine.submit(submission(vec![5], long())).expect("it is taken");
    let brittle = engine.submit_constrained(submission(vec![1], long()), Box::<Brittle>::default());
    let (tokens, _, last) = read(&mut brittle.expect("it is taken"));
    assert_eq!(tokens, [1, 1, 1]);
    assert!(matches!(last, Event::Failed(Failure::Constraint(reason)) if reason.contains("worn out")));
    let (tokens, _, last) = read(&mut other);
    assert!(tokens.len() == 20 && matches!(last, Event::Finished(_)));
    assert!(engine.failed().is_none());
}
