//! Many sequences at once give what each gives alone, to the bit.

use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use penstock_engine::batch::{BLOCK_TOKENS, Batch, BlockId};
use penstock_engine::runner::{CandleRunner, KvSize, ModelRunner, Options};
use penstock_engine::{
    Config, Engine, Event, Events, FinishReason, PrefixScope, Priority, SamplingParams, Submission, Tenant,
};

use super::{golden_json, ids, model_path};

const SEQUENCES: usize = 32;

/// What a sequence gave.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    ids: Vec<u32>,
    reason: FinishReason,
}

fn start(kv_blocks: usize, max_batch_tokens: usize) -> Engine {
    let options = Options { kv: KvSize::Blocks(kv_blocks), threads: None, digest: "golden".to_owned() };
    let runner = CandleRunner::load(&model_path(), &options).expect("the model loads");
    let config = Config { max_batch_tokens, max_sequences: SEQUENCES, eos_token_ids: vec![2], ..Config::default() };
    Engine::start(config, Box::new(runner)).expect("the engine starts")
}

/// Prompts of many lengths, at temperature 1 with a seed each.
fn submissions() -> Vec<Submission> {
    let prompts = golden_json("logits.json");
    let prompts: Vec<Vec<u32>> = prompts.as_array().expect("a list").iter().map(|p| ids(&p["tokens"])).collect();
    let submission = |n: usize| {
        let prompt = &prompts[n % prompts.len()];
        let length = prompt.len().min(5 + n * 13 % 90);
        let max_tokens = 60 + (n as u32 * 7) % 29;
        Submission {
            tenant: Tenant("golden".into()),
            // Those that come later take blocks of those that came first.
            priority: if n < 20 { Priority::Batch } else { Priority::Interactive },
            deadline: penstock_engine::clock::now() + Duration::from_secs(600),
            prompt: prompt[..length].to_vec(),
            resume: Vec::new(),
            sampling: SamplingParams { seed: n as u64 + 1, max_tokens, ..SamplingParams::default() },
            scope: PrefixScope::Tenant,
            cache_salt: Vec::new(),
        }
    };
    (0..SEQUENCES).map(submission).collect()
}

/// Tokens that all sequences have given so far; those that an early end left out count as given.
#[derive(Default)]
struct Progress {
    tokens: Mutex<usize>,
    moved: Condvar,
}

impl Progress {
    fn add(&self, tokens: usize) {
        *self.tokens.lock().expect("no reader panics") += tokens;
        self.moved.notify_all();
    }

    fn wait_for(&self, tokens: usize) {
        let seen = self.tokens.lock().expect("no reader panics");
        drop(self.moved.wait_while(seen, |seen| *seen < tokens).expect("no reader panics"));
    }
}

fn read(mut events: Events, max_tokens: usize, progress: &Progress) -> Answer {
    let mut answer = Vec::new();
    loop {
        match events.blocking_recv().expect("a last event") {
            Event::Tokens { first_position, ids, logprobs: _ } => {
                assert_eq!(first_position, answer.len() as u64, "each token once and in order");
                progress.add(ids.len());
                answer.extend(ids);
            }
            Event::Finished(finished) => {
                progress.add(max_tokens - answer.len());
                return Answer { ids: answer, reason: finished.reason };
            }
            Event::Failed(failure) => panic!("{failure}"),
        }
    }
}

/// Steps of a generator that is plain to read: xorshift.
fn random(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as usize
}

#[test]
fn together_is_as_alone() {
    let submissions = submissions();
    let crowded = start(24, 64);
    let progress = Arc::new(Progress::default());
    let mut state = 0x5EED;
    let mut joins_at = 0;
    let readers: Vec<_> = submissions
        .iter()
        .map(|submission| {
            // Each joins when the others are some random number of tokens further; each gives or leaves out at least 60.
            progress.wait_for(joins_at);
            let events = crowded.submit(submission.clone()).expect("it is taken");
            joins_at += random(&mut state) % 24;
            let (progress, max_tokens) = (progress.clone(), submission.sampling.max_tokens as usize);
            thread::spawn(move || read(events, max_tokens, &progress))
        })
        .collect();
    let together: Vec<Answer> = readers.into_iter().map(|reader| reader.join().expect("it ends")).collect();
    crowded.shutdown();
    let stats = crowded.stats();
    let load = crowded.load();
    println!("{SEQUENCES} sequences in {} steps, {} preemptions", stats.batch_tokens.count(), stats.preemptions);
    assert!(stats.preemptions > 3, "the pool was hardly ever too small: nothing is shown");
    assert_eq!((load.running, load.waiting, load.kv_blocks.used), (0, 0, 0));
    drop(crowded);

    let roomy = start(8, 512);
    for (n, (submission, together)) in submissions.into_iter().zip(&together).enumerate() {
        let max_tokens = submission.sampling.max_tokens as usize;
        let alone = read(roomy.submit(submission).expect("it is taken"), max_tokens, &Progress::default());
        assert_eq!(alone, *together, "sequence {n}");
    }
    assert_eq!(roomy.stats().preemptions, 0);
}

#[test]
fn a_cached_prefix_changes_no_token() {
    let prompts = golden_json("logits.json");
    let prompts = prompts.as_array().expect("a list").iter().map(|prompt| ids(&prompt["tokens"]));
    let prompt = prompts.into_iter().find(|prompt| prompt.len() > 140).expect("a long prompt");
    let asked = |length: usize| {
        let sampling = SamplingParams { seed: 3, max_tokens: 24, ..SamplingParams::default() };
        Submission { prompt: prompt[..length].to_vec(), sampling, ..submissions().remove(0) }
    };
    let ask =
        |engine: &Engine, length| read(engine.submit(asked(length)).expect("it is taken"), 24, &Progress::default());
    let warm = start(64, 512);
    for length in [100, 141, 100, 70] {
        assert_eq!(ask(&warm, length), ask(&start(64, 512), length), "{length} tokens");
    }
    // Of 141, 100 and 70 tokens: all whole blocks that an earlier one had.
    assert_eq!(warm.stats().cached_tokens, 96 + 96 + 64);
}

/// A prompt as several steps of so many rows, in blocks from `first` on, with others beside it.
struct Feed {
    threads: usize,
    steps: Vec<usize>,
    first: u32,
    beside: usize,
}

/// Bits of the logits of the prompt's last row.
fn last_logits(prompt: &[u32], feed: &Feed) -> Vec<u32> {
    let threads = NonZeroUsize::new(feed.threads);
    let options = Options { kv: KvSize::Blocks(64), threads, digest: "golden".to_owned() };
    let mut runner = CandleRunner::load(&model_path(), &options).expect("the model loads");
    let blocks: Vec<BlockId> = (feed.first..).take(prompt.len().div_ceil(BLOCK_TOKENS)).map(BlockId).collect();
    let (mut start, mut last) = (0, Vec::new());
    for rows in &feed.steps {
        let end = (start + rows).min(prompt.len());
        let mut batch = Batch::new();
        batch.push(&prompt[start..end], start, &blocks, 1);
        for other in 0..feed.beside as u32 {
            batch.push(&[1000 + other, 2000 + other], 0, &[BlockId(63 - other)], 1);
        }
        let vocab_size = runner.shape().vocab_size;
        last = runner.execute(&batch).expect("the step runs")[..vocab_size].iter().map(|l| l.to_bits()).collect();
        start = end;
    }
    assert_eq!(start, prompt.len());
    last
}

/// A prefix hit is a prompt whose first steps were another sequence's; a preempted one is read again into other blocks.
#[test]
fn logits_have_the_same_bits_however_they_are_computed() {
    let prompts = golden_json("logits.json");
    let prompt =
        prompts.as_array().and_then(|prompts| prompts.iter().map(|p| ids(&p["tokens"])).find(|p| p.len() > 140));
    let prompt = &prompt.expect("a long prompt")[..141];
    let whole = Feed { threads: 2, steps: vec![141], first: 0, beside: 0 };
    let expected = last_logits(prompt, &whole);
    let feeds = [
        Feed { threads: 1, ..whole },
        Feed { threads: 3, steps: vec![128, 13], first: 7, beside: 3 },
        Feed { threads: 2, steps: vec![32, 64, 44, 1], first: 20, beside: 15 },
        Feed { threads: 2, steps: vec![1; 141], first: 2, beside: 0 },
        Feed { threads: 4, steps: vec![7; 21], first: 0, beside: 7 },
    ];
    for feed in feeds {
        let Feed { threads, first, beside, .. } = feed;
        let same = last_logits(prompt, &feed) == expected;
        assert!(same, "{threads} threads, {} steps, blocks from {first}, {beside} beside it", feed.steps.len());
    }
}
