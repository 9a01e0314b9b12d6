//! Logits against llama.cpp on the same file.

use half::f16;
use penstock_engine::batch::{BLOCK_TOKENS, Batch, BlockId};
use penstock_engine::runner::{CandleRunner, KvSize, ModelRunner, Options};

use super::{golden, golden_json, ids, model_path};

/// Tokens that the reference gives of each position.
const TOP: usize = 128;
/// Its bytes: the rest's probability, ids, log-probabilities.
const RECORD: usize = 4 + TOP * 2 + TOP * 2;

/// What llama.cpp says of one position.
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

#[test]
fn logits_agree_with_llama_cpp() {
    let options = Options { kv: KvSize::Blocks(20), threads: None, digest: "golden".to_owned() };
    let mut runner = CandleRunner::load(&model_path(), &options).expect("the model loads");
    let blocks: Vec<BlockId> = (0..20).map(BlockId).collect();
    let index = golden_json("logits.json");
    let data = golden("logits.bin");
    let mut records = data.chunks_exact(RECORD);
    let (mut positions, mut agreeing, mut sum, mut worst) = (0, 0, 0.0, (0.0, String::new()));
    for prompt in index.as_array().expect("a list of prompts") {
        let tokens = ids(&prompt["tokens"]);
        assert!(tokens.len() <= blocks.len() * BLOCK_TOKENS);
        let mut start = 0;
        // One chunk up to each position of the reference: how a prompt is cut makes no difference.
        for position in ids(&prompt["positions"]) {
            let end = position as usize + 1;
            let mut batch = Batch::new();
            batch.push(&tokens[start..end], start, &blocks, 1);
            let logits = runner.execute(&batch).expect("the step runs");
            let reference = Reference::read(records.next().expect("a record for every position"));
            let divergence = reference.divergence(logits);
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
            positions += 1;
            agreeing += usize::from(best == Some(reference.ids[0]));
            sum += divergence;
            if divergence > worst.0 {
                worst = (divergence, format!("{} at {position}", prompt["name"]));
            }
            start = end;
        }
    }
    assert_eq!(records.next(), None, "a position for every record");
    let (mean, agreement) = (sum / positions as f64, agreeing as f64 / positions as f64);
    println!(
        "{positions} positions: mean KL {mean:.5}, top-1 agreement {:.2} %; worst KL {:.4}, {}",
        agreement * 100.0,
        worst.0,
        worst.1
    );
    assert!(mean <= 0.01, "mean KL {mean}");
    assert!(agreement >= 0.95, "top-1 agreement {agreement}");
}
