//! Attention against f64, and the same bits whatever the cut.

use half::f16;

use super::*;
use crate::isa::Isa;

const HEADS: [Heads; 4] = [
    Heads { query: 9, kv: 3, size: 64, rotated: 64 },
    Heads { query: 4, kv: 4, size: 16, rotated: 8 },
    Heads { query: 14, kv: 2, size: 80, rotated: 80 },
    Heads { query: 16, kv: 1, size: 128, rotated: 128 },
];

fn value(seed: usize) -> f32 {
    ((seed as f32 * 0.618_034).fract() - 0.5) * 4.0 + (seed as f32 * 0.37).sin()
}

/// Rows of queries, keys and values of a sequence.
fn sequence(id: usize, len: usize, heads: Heads) -> Vec<f32> {
    (0..len * heads.width()).map(|i| value(i * 7 + id * 1_000_003)).collect()
}

/// `(sequence, start, rows)` of each span of a step.
type Cut = (usize, usize, usize);

/// What a run of [`run`] is on.
#[derive(Clone, Copy)]
struct On {
    isa: Isa,
    threads: usize,
    window: Option<usize>,
}

/// Runs steps over sequences and returns each sequence's outputs. Block tables are interleaved.
fn run(on: On, heads: Heads, sequences: &[Vec<f32>], steps: &[Vec<Cut>]) -> Vec<Vec<f32>> {
    let mut cpu = Cpu::new(NonZeroUsize::new(on.threads).unwrap(), on.isa);
    let window = on.window.and_then(NonZeroUsize::new);
    let blocks = 16;
    let mut pool = KvPool::new(2, blocks * sequences.len(), heads);
    // What an earlier sequence left behind must not matter.
    pool.data.fill(f16::INFINITY.to_bits());
    let (width, out_width) = (heads.width(), heads.query * heads.size);
    let mut outs: Vec<Vec<f32>> = sequences.iter().map(|s| vec![f32::NAN; s.len() / width * out_width]).collect();
    for step in steps {
        let (mut positions, mut slots, mut tables, mut spans) = (vec![], vec![], vec![], vec![]);
        let (mut qkv, mut angles) = (vec![], vec![]);
        for &(id, start, rows) in step {
            let table: Vec<u32> = (0..blocks).map(|i| (i * sequences.len() + id) as u32).collect();
            spans.push(Span {
                rows: positions.len()..positions.len() + rows,
                blocks: tables.len()..tables.len() + blocks,
            });
            for position in start..start + rows {
                positions.push(position as u32);
                slots.push(table[position / BLOCK] * BLOCK as u32 + (position % BLOCK) as u32);
                angles.extend((0..heads.rotated / 2).map(|i| angle(position, i)));
            }
            tables.extend(table);
            qkv.extend_from_slice(&sequences[id][start * width..(start + rows) * width]);
        }
        let mut out = vec![f32::NAN; positions.len() * out_width];
        let step_data =
            Step { positions: &positions, slots: &slots, tables: &tables, spans: &spans, angles: &angles, window };
        attend(&mut cpu, &mut pool, 1, &step_data, Rows { qkv: &mut qkv, out: &mut out });
        let mut from = 0;
        for &(id, start, rows) in step {
            outs[id][start * out_width..(start + rows) * out_width]
                .copy_from_slice(&out[from..from + rows * out_width]);
            from += rows * out_width;
        }
    }
    outs
}

fn angle(position: usize, pair: usize) -> [f32; 2] {
    let (sin, cos) = (position as f64 / 10f64.powf(pair as f64 / 8.0)).sin_cos();
    [cos as f32, sin as f32]
}

/// One head of a row, rotated.
fn head(rows: &[f32], heads: Heads, position: usize, index: usize) -> Vec<f64> {
    let from = &rows[position * heads.width() + index * heads.size..][..heads.size];
    let mut to: Vec<f64> = from.iter().map(|&v| f64::from(v)).collect();
    if index < heads.query + heads.kv {
        let n = heads.rotated / 2;
        for i in 0..n {
            let [cos, sin] = angle(position, i).map(f64::from);
            let (a, b) = (to[i], to[i + n]);
            (to[i], to[i + n]) = (a * cos - b * sin, a * sin + b * cos);
        }
    }
    to
}

fn reference(rows: &[f32], heads: Heads, window: Option<usize>, position: usize, query: usize) -> Vec<f64> {
    let kv = query / heads.group();
    let rounded =
        |v: Vec<f64>| -> Vec<f64> { v.iter().map(|&x| f64::from(f16::from_f32(x as f32).to_f32())).collect() };
    let q = head(rows, heads, position, query);
    let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
    let scores: Vec<f64> = (first..=position)
        .map(|p| {
            let k = rounded(head(rows, heads, p, heads.query + kv));
            q.iter().zip(&k).map(|(a, b)| a * b).sum::<f64>() / (heads.size as f64).sqrt()
        })
        .collect();
    let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - greatest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut out = vec![0.0; heads.size];
    for (p, weight) in (first..).zip(&weights) {
        let v = rounded(head(rows, heads, p, heads.query + heads.kv + kv));
        out.iter_mut().zip(v).for_each(|(out, v)| *out += weight / total * v);
    }
    out
}

#[test]
fn matches_f64() {
    for heads in HEADS {
        for len in [1, 17, 33, 300] {
            let rows = sequence(1, len, heads);
            for window in [None, Some(1), Some(20), Some(32), Some(150)] {
                let on = On { isa: Isa::detect(), threads: 2, window };
                let out = run(on, heads, std::slice::from_ref(&rows), &[vec![(0, 0, len)]]);
                for position in [0, len / 2, len - 1] {
                    for query in [0, heads.query - 1] {
                        let exact = reference(&rows, heads, window, position, query);
                        let got = &out[0][(position * heads.query + query) * heads.size..][..heads.size];
                        for (got, exact) in got.iter().zip(exact) {
                            assert!(
                                (f64::from(*got) - exact).abs() < 2e-3,
                                "{heads:?} at {position} of {len}, window {window:?}: {got} {exact}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_cut_the_company_the_threads_and_the_instruction_set_change_no_bit() {
    for heads in HEADS {
        let sequences: Vec<Vec<f32>> =
            [161, 40, 7].iter().enumerate().map(|(id, &len)| sequence(id, len, heads)).collect();
        let bits = |outs: Vec<Vec<f32>>| -> Vec<Vec<u32>> {
            outs.into_iter().map(|out| out.into_iter().map(f32::to_bits).collect()).collect()
        };
        let whole = vec![vec![(0, 0, 161)], vec![(1, 0, 40)], vec![(2, 0, 7)]];
        let together =
            vec![vec![(0, 0, 100), (1, 0, 1), (2, 0, 5)], vec![(2, 5, 1), (0, 100, 61), (1, 1, 39)], vec![(2, 6, 1)]];
        let single =
            (0..161).map(|p| if p < 7 { vec![(0, p, 1), (2, p, 1)] } else { vec![(0, p, 1)] }).collect::<Vec<_>>();
        let single = [single, (0..40).map(|p| vec![(1, p, 1)]).collect()].concat();
        for window in [None, Some(50)] {
            let plain = On { isa: Isa::detect(), threads: 1, window };
            let expected = bits(run(plain, heads, &sequences, &whole));
            for isa in Isa::available() {
                for threads in [1, 3] {
                    for steps in [&whole, &together, &single] {
                        let got = bits(run(On { isa, threads, window }, heads, &sequences, steps));
                        assert_eq!(got, expected, "{heads:?} {isa} {threads}, window {window:?}");
                    }
                }
            }
        }
    }
}
