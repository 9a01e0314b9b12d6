//! A tiny random model: the same bits however it is fed, and the numbers of a plain f64 implementation.

use std::num::NonZeroUsize;

use penstock_kernels::Isa;

use super::*;
use crate::batch::{BlockId, TokenId};
use crate::weights::tests::TinyLlama;

const VOCAB: usize = 96;

fn load(tiny: &TinyLlama) -> Box<dyn CausalLm> {
    let file = tiny.write();
    crate::model::load(&Weights::open(file.path()).unwrap()).unwrap()
}

fn tokens(seed: usize, len: usize) -> Vec<TokenId> {
    (0..len).map(|i| ((i * 31 + seed * 17 + i * i) % VOCAB) as TokenId).collect()
}

/// All rows' logits of sequences that are fed as `steps` of `(sequence, start, rows)` say.
fn run(
    tiny: &TinyLlama,
    threads: usize,
    sequences: &[Vec<TokenId>],
    steps: &[Vec<(usize, usize, usize)>],
) -> Vec<Vec<f32>> {
    let mut model = load(tiny);
    let mut cpu = Cpu::new(NonZeroUsize::new(threads).unwrap(), Isa::detect());
    let mut pool = KvPool::new(model.config().layers, 8 * sequences.len(), model.config().heads);
    let mut all: Vec<Vec<f32>> = vec![vec![]; sequences.len()];
    for step in steps {
        let mut batch = Batch::new();
        for &(id, start, rows) in step {
            let blocks: Vec<BlockId> = (0..8).map(|i| BlockId((i * sequences.len() + id) as u32)).collect();
            batch.push(&sequences[id][start..start + rows], start, &blocks, rows);
        }
        let mut logits = &*model.forward(&mut cpu, &mut pool, &batch);
        for &(id, _, rows) in step {
            let (own, rest) = logits.split_at(rows * VOCAB);
            all[id].extend_from_slice(own);
            logits = rest;
        }
    }
    all
}

fn bits(logits: Vec<Vec<f32>>) -> Vec<Vec<u32>> {
    logits.into_iter().map(|rows| rows.into_iter().map(f32::to_bits).collect()).collect()
}

#[test]
fn prefill_decode_chunks_and_company_give_the_same_bits() {
    for tiny in [TinyLlama::default(), TinyLlama { head: true, quantised: false, ..TinyLlama::default() }] {
        let sequences = vec![tokens(1, 150), tokens(2, 33), tokens(3, 9)];
        let alone = vec![vec![(0, 0, 150)], vec![(1, 0, 33)], vec![(2, 0, 9)]];
        let expected = bits(run(&tiny, 1, &sequences, &alone));
        let decode =
            (0..150).map(|p| [(0, 150), (1, 33), (2, 9)].iter().filter(|s| p < s.1).map(|s| (s.0, p, 1)).collect());
        let mixed = vec![vec![(0, 0, 64), (1, 0, 5)], vec![(2, 0, 8), (0, 64, 70), (1, 5, 1)], vec![(1, 6, 27)]];
        let mixed = [mixed, vec![vec![(0, 134, 16), (2, 8, 1)]]].concat();
        for steps in [decode.collect(), mixed] {
            for threads in [1, 2, 3] {
                assert_eq!(bits(run(&tiny, threads, &sequences, &steps)), expected, "{threads} threads");
            }
        }
    }
}

#[test]
fn only_wanted_logits_are_returned() {
    let mut model = load(&TinyLlama::default());
    let mut cpu = Cpu::new(NonZeroUsize::MIN, Isa::detect());
    let mut pool = KvPool::new(model.config().layers, 4, model.config().heads);
    let mut batch = Batch::new();
    let prompt = tokens(1, 10);
    batch.push(&prompt[..4], 0, &[BlockId(0)], 0);
    assert!(model.forward(&mut cpu, &mut pool, &batch).is_empty());
    batch.clear();
    batch.push(&prompt[4..], 4, &[BlockId(0)], 2);
    let last = model.forward(&mut cpu, &mut pool, &batch).to_vec();
    let all = run(&TinyLlama::default(), 1, &[prompt], &[vec![(0, 0, 10)]]);
    assert_eq!(last, all[0][8 * VOCAB..]);
}

/// A matrix as the file has it, f64.
fn dense(weights: &Weights, name: &str) -> (Vec<f64>, usize) {
    let [rows, cols] = weights.shape(name).unwrap();
    let matrix = weights.matrix(cols, &[(name, rows, Order::Stored)]).unwrap();
    let mut row = vec![0.0; cols];
    let values = (0..rows).flat_map(|i| {
        matrix.row(i, &mut row);
        row.iter().map(|&v| f64::from(v)).collect::<Vec<_>>()
    });
    (values.collect(), cols)
}

fn apply(weights: &Weights, name: &str, x: &[f64]) -> Vec<f64> {
    let (matrix, cols) = dense(weights, name);
    matrix.chunks_exact(cols).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

fn normed(weights: &Weights, name: &str, x: &[f64]) -> Vec<f64> {
    let (weight, _) = dense(weights, name);
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(v, w)| v / (mean + 1e-5).sqrt() * w).collect()
}

/// Rotates neighbours, as the file has them.
fn rotated(x: &[f64], position: usize) -> Vec<f64> {
    let mut x = x.to_vec();
    for (i, pair) in x.chunks_exact_mut(2).enumerate() {
        let (sin, cos) = (position as f64 * 10_000f64.powf(-((i % 8) as f64) / 8.0)).sin_cos();
        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
    }
    x
}

/// The last row's logits.
fn reference(weights: &Weights, tokens: &[TokenId]) -> Vec<f64> {
    let (embeddings, width) = dense(weights, "token_embd.weight");
    let mut rows: Vec<Vec<f64>> = tokens.iter().map(|&t| embeddings[t as usize * width..][..width].to_vec()).collect();
    for layer in 0..2 {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let inputs: Vec<_> = rows.iter().map(|x| normed(weights, &name("attn_norm"), x)).collect();
        let project = |part: &str| inputs.iter().map(|x| apply(weights, &name(part), x)).collect::<Vec<_>>();
        let turn = |rows: Vec<Vec<f64>>| rows.iter().enumerate().map(|(p, x)| rotated(x, p)).collect::<Vec<_>>();
        let (q, k, v) = (turn(project("attn_q")), turn(project("attn_k")), project("attn_v"));
        for (p, x) in rows.iter_mut().enumerate() {
            let mut attended = vec![];
            for head in 0..4 {
                let kv = head / 2 * 16..head / 2 * 16 + 16;
                let own = &q[p][head * 16..][..16];
                let scores =
                    k[..=p].iter().map(|k| own.iter().zip(&k[kv.clone()]).map(|(a, b)| a * b).sum::<f64>() / 4.0);
                let weights: Vec<f64> = scores.map(f64::exp).collect();
                let total: f64 = weights.iter().sum();
                attended.extend(kv.map(|i| weights.iter().zip(&v).map(|(w, v)| w * v[i]).sum::<f64>() / total));
            }
            x.iter_mut().zip(apply(weights, &name("attn_output"), &attended)).for_each(|(x, y)| *x += y);
            let input = normed(weights, &name("ffn_norm"), x);
            let (gate, up) = (apply(weights, &name("ffn_gate"), &input), apply(weights, &name("ffn_up"), &input));
            let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            x.iter_mut().zip(apply(weights, &name("ffn_down"), &inner)).for_each(|(x, y)| *x += y);
        }
    }
    let last = normed(weights, "output_norm.weight", rows.last().unwrap());
    apply(weights, if weights.has("output.weight") { "output.weight" } else { "token_embd.weight" }, &last)
}

#[test]
fn logits_match_a_plain_f64_implementation() {
    for (tiny, tolerance) in [
        (TinyLlama { quantised: false, ..TinyLlama::default() }, 2e-3),
        (TinyLlama { quantised: false, head: true, ..TinyLlama::default() }, 2e-3),
        (TinyLlama::default(), 0.08),
    ] {
        let sequence = tokens(5, 40);
        let logits = run(&tiny, 2, std::slice::from_ref(&sequence), &[vec![(0, 0, 40)]]);
        let file = tiny.write();
        let exact = reference(&Weights::open(file.path()).unwrap(), &sequence);
        let scale = (exact.iter().map(|v| v * v).sum::<f64>() / VOCAB as f64).sqrt();
        for (got, exact) in logits[0][39 * VOCAB..].iter().zip(&exact) {
            assert!((f64::from(*got) - exact).abs() < tolerance * scale, "{got} is not {exact}, scale {scale}");
        }
    }
}
