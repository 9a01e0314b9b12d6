//! The engine over a stand-in model whose outputs depend on every token in its pool, seen from outside.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use penstock_engine::batch::{Batch, TokenId};
use penstock_engine::runner::scripted::{Script, ScriptedRunner};
use penstock_engine::runner::{self, ModelRunner, Shape};
use penstock_engine::{
    Config, Engine, Event, Events, Failure, FinishReason, Finished, Priority, SamplingParams, Submission, SubmitError,
    Tenant, clock,
};

const VOCAB: usize = 97;
const EOS: TokenId = 96;

fn script(kv_blocks: usize) -> Script {
    Script { vocab_size: VOCAB, context_length: 512, kv_blocks, ..Script::default() }
}

fn runner(kv_blocks: usize) -> ScriptedRunner {
    ScriptedRunner::new(script(kv_blocks))
}

fn config() -> Config {
    Config { eos_token_ids: vec![EOS], ..Config::default() }
}

fn start(config: Config, runner: impl ModelRunner + 'static) -> Engine {
    Engine::start(config, Box::new(runner)).expect("the engine starts")
}

fn in_an_hour() -> Instant {
    clock::now() + Duration::from_secs(3600)
}

/// A submission that ends after exactly `max_tokens`.
fn submission(prompt: Vec<TokenId>, max_tokens: u32) -> Submission {
    Submission {
        tenant: Tenant("retail".into()),
        priority: Priority::Interactive,
        deadline: in_an_hour(),
        prompt,
        resume: Vec::new(),
        sampling: SamplingParams { max_tokens, ignore_eos: true, ..SamplingParams::default() },
    }
}

/// All tokens, checked to follow one another from `position` on, and the last event.
fn read_from(mut position: u64, events: &mut Events) -> (Vec<TokenId>, Event) {
    let mut tokens = Vec::new();
    loop {
        match events.blocking_recv().expect("a last event comes before the end") {
            Event::Tokens { first_position, ids, logprobs: _ } => {
                assert_eq!(first_position, position);
                assert!(!ids.is_empty());
                position += ids.len() as u64;
                tokens.extend(ids);
            }
            last @ (Event::Finished(_) | Event::Failed(_)) => {
                assert_eq!(events.blocking_recv(), None);
                return (tokens, last);
            }
        }
    }
}

fn read(events: &mut Events) -> (Vec<TokenId>, Event) {
    read_from(0, events)
}

fn finished(event: Event) -> Finished {
    match event {
        Event::Finished(finished) => finished,
        Event::Tokens { .. } | Event::Failed(_) => panic!("{event:?}"),
    }
}

/// What a submission gets with an engine to itself.
fn alone(submission: Submission) -> Vec<TokenId> {
    let engine = start(config(), runner(64));
    let (tokens, last) =
        read_from(submission.resume.len() as u64, &mut engine.submit(submission).expect("it is taken"));
    finished(last);
    tokens
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn is_pending(future: impl Future) -> bool {
    pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

/// Does before each step what a test wants, which may wait for the test or fail.
struct Before<F> {
    runner: ScriptedRunner,
    act: F,
}

impl<F: FnMut(&Batch) -> Result<(), runner::Error> + Send> ModelRunner for Before<F> {
    fn shape(&self) -> &Shape {
        self.runner.shape()
    }

    fn execute(&mut self, batch: &Batch) -> Result<&mut [f32], runner::Error> {
        (self.act)(batch)?;
        self.runner.execute(batch)
    }
}

/// Holds a runner before each step. Dropped, it lets it run freely; a test that fails must drop it before the engine,
/// which joins its thread.
struct Gate {
    arrived: mpsc::Receiver<()>,
    steps: mpsc::Sender<()>,
}

impl Gate {
    /// Waits until the engine stands before a step: all before it is done, and nothing more is until the next `step`.
    fn arrived(&self) {
        self.arrived.recv().expect("the engine lives");
    }

    /// Lets the next step through, be it there already or not.
    fn step(&self) {
        self.steps.send(()).expect("the engine lives");
    }
}

fn start_gated(config: Config, kv_blocks: usize) -> (Engine, Gate) {
    let (announce, arrived) = mpsc::channel();
    let (steps, gate) = mpsc::channel();
    let act = move |_: &Batch| {
        // A test that has dropped its end waits for nothing and holds nothing.
        let _ = announce.send(());
        let _ = gate.recv();
        Ok(())
    };
    (start(config, Before { runner: runner(kv_blocks), act }), Gate { arrived, steps })
}

/// SplitMix64, for tests that want variety.
fn varied(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)) % below
}

/// Submissions of many kinds: lengths, classes, filters, penalties, ends.
fn mixed(count: u64, seed: u64) -> Vec<Submission> {
    let mut state = seed;
    let mut pick = |below| varied(&mut state, below);
    (0..count)
        .map(|index| {
            let prompt = (0..1 + pick(120)).map(|_| pick(VOCAB as u64) as TokenId).collect();
            let mut submission = submission(prompt, 1 + pick(90) as u32);
            submission.priority = if pick(3) == 0 { Priority::Batch } else { Priority::Interactive };
            submission.sampling = SamplingParams {
                seed: pick(u64::MAX),
                choice_index: index as u32 % 2,
                temperature: [0.0, 0.7, 1.0, 1.5][pick(4) as usize],
                top_k: [0, 0, 20][pick(3) as usize],
                top_p: [1.0, 0.9, 0.5][pick(3) as usize],
                min_p: [0.0, 0.05][pick(2) as usize],
                repetition_penalty: [1.0, 1.3][pick(2) as usize],
                presence_penalty: [0.0, 0.5][pick(2) as usize],
                frequency_penalty: [0.0, 0.2][pick(2) as usize],
                logit_bias: vec![(pick(VOCAB as u64) as TokenId, 2.0)],
                ignore_eos: pick(2) == 0,
                stop_token_ids: vec![pick(VOCAB as u64) as TokenId],
                min_tokens: pick(u64::from(submission.sampling.max_tokens)) as u32,
                ..submission.sampling
            };
            submission
        })
        .collect()
}

#[test]
fn together_on_a_small_pool_each_gets_what_it_gets_alone() {
    for seed in 1..=4 {
        let submissions = mixed(32, seed);
        let limits = Config { max_batch_tokens: 48, max_sequences: 12, event_buffer: 4, ..config() };
        let (engine, gate) = start_gated(limits, 8);
        let mut state = seed;
        let mut streams = Vec::new();
        for submission in &submissions {
            streams.push(engine.submit(submission.clone()).unwrap());
            (0..varied(&mut state, 6)).for_each(|_| gate.step());
        }
        drop(gate);
        let together: Vec<_> = streams.iter_mut().map(read).collect();
        assert!(engine.stats().preemptions > 0);
        assert_eq!(engine.load().kv_blocks.used, 0);
        for (submission, (tokens, last)) in submissions.into_iter().zip(together) {
            let (prompt, max_tokens) = (submission.prompt.len(), submission.sampling.max_tokens as usize);
            let last = finished(last);
            assert_eq!((last.prompt_tokens, last.output_tokens), (prompt, tokens.len()));
            assert_eq!(last.reason == FinishReason::Length, tokens.len() == max_tokens && last.stop_token.is_none());
            assert!(last.compute_seconds > 0.0);
            assert_eq!(tokens, alone(submission));
        }
    }
}

#[test]
fn an_answer_goes_on_where_it_was_left() {
    for submission in mixed(8, 99) {
        let whole = alone(submission.clone());
        for cut in [1, whole.len() / 2, whole.len()] {
            let cut = cut.min(whole.len());
            let resumed = Submission { resume: whole[..cut].to_vec(), ..submission.clone() };
            assert_eq!(alone(resumed), whole[cut..]);
        }
    }
}

#[test]
fn a_reader_that_stops_stops_nobody_else() {
    // The one that is not read holds three of the four blocks, and the other one needs two.
    let limits = Config { event_buffer: 2, ..config() };
    let engine = start(limits, runner(4));
    let (slow, brisk) = (submission((0..80).collect(), 40), submission(vec![5; 20], 40));
    let mut unread = engine.submit(slow.clone()).unwrap();
    let (tokens, _) = read(&mut engine.submit(brisk.clone()).unwrap());
    assert_eq!(tokens, alone(brisk));
    assert_eq!((engine.stats().paused, engine.load().running), (1, 1));
    assert_eq!(read(&mut unread).0, alone(slow));
    engine.shutdown();
    assert_eq!(engine.stats().output_tokens, 80);
}

#[test]
fn a_reader_that_leaves_frees_its_blocks() {
    let (engine, gate) = start_gated(Config { max_sequences: 1, event_buffer: 1, ..config() }, 8);
    let mut running = engine.submit(submission(vec![1; 40], 200)).unwrap();
    let waiting = engine.submit(submission(vec![2; 40], 100)).unwrap();
    gate.step();
    assert!(matches!(running.blocking_recv(), Some(Event::Tokens { first_position: 0, .. })));
    drop(running);
    drop(waiting);
    drop(gate);
    block_on(engine.idle());
    let load = engine.load();
    assert_eq!((load.running, load.waiting, load.kv_blocks.used, load.queued_tokens), (0, 0, 0, 0));

    let paused = engine.submit(submission(vec![1; 40], 100)).unwrap();
    let (probe, _) = read(&mut engine.submit(submission(vec![3], 50)).unwrap());
    assert_eq!((probe.len(), engine.stats().paused), (50, 1));
    drop(paused);
    block_on(engine.idle());
    assert_eq!(engine.load().kv_blocks.used, 0);
}

#[test]
fn a_deadline_ends_what_waits_what_runs_and_what_is_paused() {
    let (engine, gate) = start_gated(Config { max_sequences: 1, event_buffer: 1, ..config() }, 16);
    let soon = clock::now() + Duration::from_millis(50);
    let mut running = engine.submit(Submission { deadline: soon, ..submission(vec![1], 200) }).unwrap();
    let mut waiting = engine.submit(Submission { deadline: soon, ..submission(vec![2], 200) }).unwrap();
    std::thread::sleep(soon.saturating_duration_since(clock::now()));
    gate.step();
    let failed = Event::Failed(Failure::Deadline);
    assert_eq!(read(&mut waiting), (vec![], failed.clone()));
    assert_eq!(read(&mut running).1, failed);

    drop(gate);
    let soon = clock::now() + Duration::from_secs(1);
    let mut paused = engine.submit(Submission { deadline: soon, ..submission(vec![1], 200) }).unwrap();
    block_on(engine.idle());
    assert!(clock::now() >= soon);
    let (tokens, last) = read(&mut paused);
    assert!((1..200).contains(&tokens.len()));
    assert_eq!(last, failed);
    assert_eq!(engine.load().kv_blocks.used, 0);
}

#[test]
fn a_draining_engine_finishes_and_takes_nothing() {
    let (engine, gate) = start_gated(config(), 16);
    let mut events = engine.submit(submission(vec![1], 3)).unwrap();
    engine.drain();
    assert_eq!(engine.submit(submission(vec![1], 3)).unwrap_err(), SubmitError::Draining);
    assert!(engine.load().draining);
    assert!(is_pending(engine.idle()));
    drop(gate);
    block_on(engine.idle());
    assert_eq!(read(&mut events).0.len(), 3);
    engine.undrain();
    assert!(!engine.load().draining);
    assert_eq!(read(&mut engine.submit(submission(vec![1], 3)).unwrap()).0.len(), 3);
}

#[test]
fn a_full_queue_refuses() {
    let (engine, gate) = start_gated(Config { max_sequences: 1, max_waiting: 1, ..config() }, 16);
    let mut first = engine.submit(submission(vec![1], 9)).unwrap();
    gate.step();
    first.blocking_recv().unwrap();
    // Before the first step, and before the second.
    gate.arrived();
    gate.arrived();
    let mut second = engine.submit(submission(vec![2; 7], 9)).unwrap();
    let full = SubmitError::QueueFull { waiting: 1, in_flight: 2 };
    assert_eq!(engine.submit(submission(vec![3], 9)).unwrap_err(), full);
    let load = engine.load();
    assert_eq!((load.running, load.waiting, load.queued_tokens), (1, 1, 7));
    assert!(load.prefill_rate > 0.0 && load.predicted_wait > 0.0);
    drop(gate);
    assert_eq!(read(&mut second).0.len(), 9);
}

#[test]
fn a_device_that_fails_fails_everything() {
    let mut steps = 0;
    let act = move |_: &Batch| {
        steps += 1;
        if steps > 3 { Err(runner::Error::Device("unplugged".into())) } else { Ok(()) }
    };
    let engine = start(config(), Before { runner: runner(16), act });
    let mut streams: Vec<_> = (0..4).filter_map(|id| engine.submit(submission(vec![id], 20)).ok()).collect();
    for events in &mut streams {
        let (_, last) = read(events);
        assert_eq!(last, Event::Failed(Failure::Device("unplugged".into())));
    }
    let reason = "unplugged".to_owned();
    assert_eq!(engine.failed(), Some(reason.clone()));
    assert_eq!(engine.submit(submission(vec![1], 1)).unwrap_err(), SubmitError::Failed(reason));
    block_on(engine.idle());
    assert_eq!(engine.load().kv_blocks.used, 0);
}

#[test]
fn a_runner_that_panics_leaves_no_stream_without_its_end() {
    let act = |_: &Batch| -> Result<(), runner::Error> { panic!("a bug of the runner") };
    let engine = start(config(), Before { runner: runner(16), act });
    let (_, last) = read(&mut engine.submit(submission(vec![1], 20)).unwrap());
    assert!(matches!(last, Event::Failed(Failure::Device(_))));
    assert!(engine.failed().is_some());
}

/// Spoils the logits of every segment of seven rows.
struct Spoiled(ScriptedRunner);

impl ModelRunner for Spoiled {
    fn shape(&self) -> &Shape {
        self.0.shape()
    }

    fn execute(&mut self, batch: &Batch) -> Result<&mut [f32], runner::Error> {
        let rows: Vec<_> = batch.segments.iter().filter(|segment| segment.logits == 1).collect();
        let logits = self.0.execute(batch)?;
        for (segment, row) in rows.into_iter().zip(logits.chunks_exact_mut(VOCAB)) {
            if segment.rows.len() == 7 {
                row[50] = f32::NAN;
            }
        }
        Ok(logits)
    }
}

#[test]
fn logits_that_are_no_numbers_fail_their_sequence_alone() {
    let engine = start(config(), Spoiled(runner(16)));
    let mut sound = engine.submit(submission(vec![1; 8], 20)).unwrap();
    let mut spoiled = engine.submit(submission(vec![1; 7], 20)).unwrap();
    assert!(matches!(read(&mut spoiled), (tokens, Event::Failed(Failure::Device(_))) if tokens.is_empty()));
    assert_eq!(read(&mut sound).0.len(), 20);
    assert_eq!(engine.failed(), None);
}

/// Tells when it is dropped, which only the engine's thread can do.
struct Tell(ScriptedRunner, Arc<AtomicBool>);

impl ModelRunner for Tell {
    fn shape(&self) -> &Shape {
        self.0.shape()
    }

    fn execute(&mut self, batch: &Batch) -> Result<&mut [f32], runner::Error> {
        self.0.execute(batch)
    }
}

impl Drop for Tell {
    fn drop(&mut self) {
        self.1.store(true, Ordering::SeqCst);
    }
}

#[test]
fn shutdown_and_the_last_handles_drop_end_the_thread() {
    for explicitly in [true, false] {
        let gone = Arc::new(AtomicBool::new(false));
        let engine = start(Config { event_buffer: 1, ..config() }, Tell(runner(16), gone.clone()));
        let other = engine.clone();
        let mut events = engine.submit(submission(vec![1], 200)).unwrap();
        if explicitly {
            engine.shutdown();
            engine.shutdown();
            assert_eq!(other.submit(submission(vec![1], 1)).unwrap_err(), SubmitError::Stopped);
        } else {
            drop(engine);
            assert!(!gone.load(Ordering::SeqCst));
            drop(other);
        }
        assert!(gone.load(Ordering::SeqCst));
        assert_eq!(read(&mut events).1, Event::Failed(Failure::Stopped));
    }
}

#[test]
fn the_token_that_ends_an_answer_is_told_and_not_emitted() {
    let mut stopping = submission(vec![1, 2, 3], 30);
    let whole = alone(stopping.clone());
    // The first token that is not among those before it.
    let at = (5..whole.len()).find(|at| !whole[..*at].contains(&whole[*at])).unwrap();
    stopping.sampling.stop_token_ids = vec![whole[at]];
    let engine = start(config(), runner(16));
    let (tokens, last) = read(&mut engine.submit(stopping).unwrap());
    let last = finished(last);
    assert_eq!(tokens, whole[..at]);
    assert_eq!((last.reason, last.stop_token, last.output_tokens), (FinishReason::Stop, Some(whole[at]), at));
    engine.shutdown();
    let stats = engine.stats();
    assert_eq!((stats.prompt_tokens, stats.output_tokens as usize), (3, at));
    assert_eq!(stats.batch_tokens.sum() as usize, 3 + at);
    assert_eq!(stats.execute_seconds.count(), stats.batch_tokens.count());
    assert_eq!(stats.compute_seconds[&Tenant("retail".into())], last.compute_seconds);
}

#[test]
fn what_could_never_run_is_refused_with_its_numbers() {
    let engine = start(config(), runner(4));
    let refuse = |submission| engine.submit(submission).unwrap_err();
    let context = 512;
    assert_eq!(refuse(submission(vec![], 1)), SubmitError::EmptyPrompt);
    let unknown = |field| SubmitError::UnknownToken { field, id: 97, vocab_size: VOCAB };
    assert_eq!(refuse(submission(vec![1, 97], 1)), unknown("prompt"));
    assert_eq!(refuse(Submission { resume: vec![97], ..submission(vec![1], 1) }), unknown("resume"));
    let mut stop = submission(vec![1], 1);
    stop.sampling.stop_token_ids = vec![97];
    assert_eq!(refuse(stop), unknown("stop_token_ids"));
    let mut bias = submission(vec![1], 1);
    bias.sampling.logit_bias = vec![(97, 1.0)];
    assert_eq!(refuse(bias), unknown("logit_bias"));
    assert_eq!(refuse(submission(vec![1; 512], 1)), SubmitError::PromptTooLong { prompt: 512, context });
    assert_eq!(refuse(submission(vec![1], 0)), SubmitError::NoTokens);
    let too_many = SubmitError::MaxTokensTooMany { prompt: 500, max_tokens: 13, context };
    assert_eq!(refuse(submission(vec![1; 500], 13)), too_many);
    let resumed = Submission { resume: vec![1; 3], ..submission(vec![1], 2) };
    assert_eq!(refuse(resumed), SubmitError::ResumeTooLong { resume: 3, max_tokens: 2 });
    assert_eq!(refuse(submission(vec![1; 100], 30)), SubmitError::PoolTooSmall { needed: 5, pool: 4 });
    let mut hot = submission(vec![1], 1);
    hot.sampling.temperature = f32::NAN;
    assert!(matches!(refuse(hot), SubmitError::Parameter(error) if error.field == "temperature"));
    // The longest that fits does run.
    assert_eq!(read(&mut engine.submit(submission(vec![1; 100], 29)).unwrap()).0.len(), 29);
}

#[test]
fn events_can_be_awaited() {
    let engine = start(config(), runner(16));
    let mut events = engine.submit(submission(vec![1], 5)).unwrap();
    let mut tokens = 0;
    block_on(async {
        while let Some(event) = events.recv().await {
            if let Event::Tokens { ids, .. } = event {
                tokens += ids.len();
            }
        }
    });
    assert_eq!(tokens, 5);
}
