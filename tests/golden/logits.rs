//! Logits against f32 arithmetic on the same weights, and against llama.cpp on the same file.

use std::fmt;
use std::process::Command;

use half::f16;
use penstock_engine::batch::{BLOCK_TOKENS, Batch, BlockId};
use penstock_engine::runner::{CandleRunner, KvSize, ModelRunner, Options};
use penstock_kernels::Isa;

use super::{golden, golden_json, ids, model_path};

/// Tokens that the reference gives of each position.
const TOP: usize = 128;
/// Tokens of the longest prompt that every instruction set runs.
const SHORT: usize = 43;
/// A record's bytes: the rest's probability, ids, log-probabilities.
const RECORD: usize = 4 + TOP * 2 + TOP * 2;

/// What a reference says of one position.
struct Reference {
    ids: Vec<usize>,
    /// Of those ids, most likely first.
    probabilities: Vec<f64>,
    /// The probability of all other ids together.
    rest: f64,
}

impl Reference {
    fn read(record: &[u8]) -> Self {
        let (rest, tables) = record.split_at(4);
        let (ids, logprobs) = tables.split_at(TOP * 2);
        let pairs = |bytes: &[u8]| bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect::<Vec<_>>();
        Self {
            ids: pairs(ids).into_iter().map(|pair| usize::from(u16::from_le_bytes(pair))).collect(),
            probabilities: pairs(logprobs).into_iter().map(|pair| f16::from_le_bytes(pair).to_f64().exp()).collect(),
            rest: f64::from(f32::from_le_bytes(rest.try_into().expect("four bytes"))),
        }
    }

    /// The Kullback-Leibler divergence of a row of logits from the reference, in nats, over the top ids and one
    /// bucket for all others.
    fn divergence(&self, logits: &[f32]) -> f64 {
        let highest = logits.iter().copied().fold(f32::MIN, f32::max);
        let weight = |logit: f32| f64::from(logit - highest).exp();
        let total: f64 = logits.iter().map(|logit| weight(*logit)).sum();
        let ours: Vec<f64> = self.ids.iter().map(|id| weight(logits[*id]) / total).collect();
        let rest = (1.0 - ours.iter().sum::<f64>()).max(f64::MIN_POSITIVE);
        // Half-precision log-probabilities do not add up to one exactly.
        let sum = self.rest + self.probabilities.iter().sum::<f64>();
        let pairs = self.probabilities.iter().copied().zip(ours).chain([(self.rest, rest)]);
        let term =
            |(theirs, ours): (f64, f64)| if theirs > 0.0 { theirs / sum * (theirs / sum / ours).ln() } else { 0.0 };
        pairs.map(term).sum()
    }
}

/// How well logits agree with one reference.
#[derive(Default)]
struct Agreement {
    positions: usize,
    /// Positions at which the most likely token is the same.
    same: usize,
    divergence: f64,
    worst: (f64, String),
}

impl Agreement {
    fn add(&mut self, reference: &Reference, logits: &[f32], place: &str) {
        let divergence = reference.divergence(logits);
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        self.positions += 1;
        self.same += usize::from(best == Some(reference.ids[0]));
        self.divergence += divergence;
        if divergence > self.worst.0 {
            self.worst = (divergence, place.to_owned());
        }
    }

    /// The mean divergence, and the share of positions with the same most likely token.
    fn figures(&self) -> (f64, f64) {
        (self.divergence / self.positions as f64, self.same as f64 / self.positions as f64)
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((mean, same), (worst, place)) = (self.figures(), &self.worst);
        let same = same * 100.0;
        write!(f, "{} positions, mean KL {mean:.5}, top-1 {same:.2} %; worst KL {worst:.4}, {place}", self.positions)
    }
}

/// What the logits of all prompts of at most `longest` tokens come to.
struct Measured {
    f32: Agreement,
    llama_cpp: Agreement,
    /// What the runner says of its numbers.
    numerics: String,
    /// Of the bits of all logits.
    digest: u64,
}

fn measure(longest: usize) -> Measured {
    let options = Options { kv: KvSize::Blocks(20), threads: None, digest: "golden".to_owned() };
    let mut runner = CandleRunner::load(&model_path(), &options).expect("the model loads");
    let numerics = runner.shape().numerics.clone();
    let mut measured = Measured { f32: Agreement::default(), llama_cpp: Agreement::default(), numerics, digest: 0 };
    let blocks: Vec<BlockId> = (0..20).map(BlockId).collect();
    let (index, f32_data, llama_data) = (golden_json("logits.json"), golden("f32.bin"), golden("logits.bin"));
    let mut records = f32_data.chunks_exact(RECORD).zip(llama_data.chunks_exact(RECORD));
    for prompt in index.as_array().expect("a list of prompts") {
        let tokens = ids(&prompt["tokens"]);
        assert!(tokens.len() <= blocks.len() * BLOCK_TOKENS);
        let mut start = 0;
        // One chunk up to each position of the reference: how a prompt is cut makes no difference.
        for position in ids(&prompt["positions"]) {
            let (f32_record, llama_record) = records.next().expect("a record for every position");
            if tokens.len() > longest {
                continue;
            }
            let end = position as usize + 1;
            let mut batch = Batch::new();
            batch.push(&tokens[start..end], start, &blocks, 1);
            let logits = runner.execute(&batch).expect("the step runs");
            let place = format!("{} at {position}", prompt["name"]);
            measured.f32.add(&Reference::read(f32_record), logits, &place);
            measured.llama_cpp.add(&Reference::read(llama_record), logits, &place);
            for logit in &*logits {
                measured.digest = (measured.digest ^ u64::from(logit.to_bits())).wrapping_mul(0x100_0000_01b3);
            }
            start = end;
        }
    }
    assert!(records.next().is_none(), "a position for every record");
    measured
}

#[test]
fn logits_agree_with_f32_and_with_llama_cpp() {
    let measured = measure(usize::MAX);
    println!("f32: {}", measured.f32);
    let (divergence, same) = measured.f32.figures();
    assert!(divergence <= 0.005 && same >= 0.97, "f32: mean KL {divergence}, top-1 agreement {same}");
    println!("llama.cpp: {}", measured.llama_cpp);
    let (divergence, same) = measured.llama_cpp.figures();
    assert!(divergence <= 0.01 && same >= 0.95, "llama.cpp: mean KL {divergence}, top-1 agreement {same}");
}

/// What [`every_instruction_set_gives_the_same_logits`] runs with each: prompts that are short, since scalar code takes
/// its time.
#[test]
fn short_prompts_agree_with_f32() {
    let measured = measure(SHORT);
    println!("f32: {}", measured.f32);
    let (divergence, same) = measured.f32.figures();
    assert!(divergence <= 0.005 && same >= 0.97, "f32: mean KL {divergence}, top-1 agreement {same}");
    println!("{} {:016x}", measured.numerics, measured.digest);
}

#[test]
fn every_instruction_set_gives_the_same_logits() {
    let mut digests: Vec<String> = Vec::new();
    for isa in Isa::available() {
        let this = std::env::current_exe().expect("a test is a program");
        let mut child = Command::new(this);
        child.args(["--exact", "logits::short_prompts_agree_with_f32", "--nocapture"]);
        let output = child.env("PENSTOCK_ISA", isa.to_string()).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "with {isa}:\n{text}{}", String::from_utf8_lossy(&output.stderr));
        let digest = text.lines().find_map(|line| line.split_once(&format!("golden/cpu-{isa}/kv-f16 ")));
        digests.push(digest.unwrap_or_else(|| panic!("{isa} was not used:\n{text}")).1.to_owned());
    }
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "{digests:?}");
    let mut child = Command::new(std::env::current_exe().expect("a test is a program"));
    child.args(["--exact", "logits::short_prompts_agree_with_f32"]).env("PENSTOCK_ISA", "none-such");
    assert!(!child.output().expect("it runs").status.success(), "an unknown set must not pass for another");
}
