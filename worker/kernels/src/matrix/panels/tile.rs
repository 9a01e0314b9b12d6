//! One panel times a few rows of input, in registers.

use std::ops::Range;

use super::{Activation, Line, Panel, Sink};
use crate::lanes::{LANES, Lanes};

/// Input rows that are taken together at most: as many sums as registers hold.
const TALL: usize = 8;

/// Rows of activations.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// `[row][block]`.
    pub(super) rows: &'a [Activation],
    pub(super) blocks: usize,
}

/// A [`super::Kind`], known when compiling.
pub(super) trait Layout {
    /// Adds the products of block `index` of the panel and of each of `x` to `sums`.
    fn add<L: Lanes, const M: usize>(panel: &Panel<'_>, index: usize, x: [&Activation; M], sums: &mut [L; M]);
}

pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q8_0;
pub(super) struct Q4K;
pub(super) struct Q6K;

/// Multiplies all rows of `input` by a panel that holds the weight rows `rows`.
#[inline(always)]
pub(super) fn multiply<L: Lanes, K: Layout>(panel: Panel<'_>, input: Input<'_>, rows: Range<usize>, sink: &impl Sink) {
    let m = input.rows.len() / input.blocks;
    let mut t = 0;
    while t < m {
        t += match m - t {
            TALL.. => some::<L, K, TALL>(panel, input, t, (rows.clone(), sink)),
            4.. => some::<L, K, 4>(panel, input, t, (rows.clone(), sink)),
            2.. => some::<L, K, 2>(panel, input, t, (rows.clone(), sink)),
            _ => some::<L, K, 1>(panel, input, t, (rows.clone(), sink)),
        };
    }
}

/// The `M` input rows from `t` on; returns `M`.
#[inline(always)]
fn some<L: Lanes, K: Layout, const M: usize>(
    panel: Panel<'_>,
    input: Input<'_>,
    t: usize,
    (rows, sink): (Range<usize>, &impl Sink),
) -> usize {
    let blocks = input.blocks;
    // Loops, not closures: what is called with lanes at hand must be inlined to share their features.
    let mut rest = [&input.rows[..0]; M];
    for (i, rest) in rest.iter_mut().enumerate() {
        *rest = &input.rows[(t + i) * blocks..][..blocks];
    }
    let mut sums = [L::splat(0.0); M];
    let mut block = 0;
    while block < blocks {
        let mut x = [&rest[0][block]; M];
        for (x, rest) in x.iter_mut().zip(&rest) {
            *x = &rest[block];
        }
        K::add(&panel, block, x, &mut sums);
        block += 1;
    }
    for (i, sums) in sums.into_iter().enumerate() {
        sink.put(t + i, rows.clone(), sums);
    }
    M
}

/// The lines of block `index`.
#[inline(always)]
fn lines<'a, const N: usize>(panel: &Panel<'a>, index: usize) -> &'a [Line; N] {
    panel.lines[index * N..].first_chunk().expect("a panel has all lines of its blocks")
}

/// Integer sums of a block's words in the order of its columns, `minus` taken from each quant: the coarse halves of the
/// activations first, then, eight bits lower, the fine ones.
#[inline(always)]
fn words<L: Lanes, const M: usize>(words: &[L::Bytes; 8], x: [&Activation; M], minus: i32) -> [L::Ints; M] {
    let mut sums = [L::ints(0); M];
    for (j, word) in words.iter().enumerate() {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = L::dot(*sum, *word, x.coarse[j]);
        }
    }
    for (sum, x) in sums.iter_mut().zip(x) {
        *sum = L::raise(*sum, -minus * x.sum);
    }
    for (j, word) in words.iter().enumerate() {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = L::dot(*sum, *word, x.fine[j]);
        }
    }
    sums
}

/// The words of 4-bit quants.
#[inline(always)]
fn nibbles<L: Lanes>(lines: &[Line; 4]) -> [L::Bytes; 8] {
    let mut words = [L::bytes(&lines[0].0); 8];
    for (j, line) in lines.iter().enumerate() {
        (words[j], words[j + 4]) = L::nibbles(L::bytes(&line.0));
    }
    words
}

/// Adds `ints * d * x.d`.
#[inline(always)]
fn scaled<L: Lanes, const M: usize>(sums: &mut [L; M], ints: [L::Ints; M], d: L, x: [&Activation; M]) {
    for ((sum, ints), x) in sums.iter_mut().zip(ints).zip(x) {
        *sum = L::from_ints(ints).mul(L::splat(x.d)).fma(d, *sum);
    }
}

/// Adds `m` times the sum of each of `x`.
#[inline(always)]
fn shifted<L: Lanes, const M: usize>(sums: &mut [L; M], m: L, x: [&Activation; M]) {
    for (sum, x) in sums.iter_mut().zip(x) {
        *sum = m.fma(L::splat(x.scaled_sum), *sum);
    }
}

impl Layout for Q4_0 {
    #[inline(always)]
    fn add<L: Lanes, const M: usize>(panel: &Panel<'_>, index: usize, x: [&Activation; M], sums: &mut [L; M]) {
        let ints = words::<L, M>(&nibbles::<L>(lines(panel, index)), x, 8);
        scaled(sums, ints, L::load_f16(&panel.scales[index].0), x);
    }
}

impl Layout for Q4_1 {
    #[inline(always)]
    fn add<L: Lanes, const M: usize>(panel: &Panel<'_>, index: usize, x: [&Activation; M], sums: &mut [L; M]) {
        let ints = words::<L, M>(&nibbles::<L>(lines(panel, index)), x, 0);
        scaled(sums, ints, L::load_f16(&panel.scales[2 * index].0), x);
        shifted(sums, L::load_f16(&panel.scales[2 * index + 1].0), x);
    }
}

impl Layout for Q8_0 {
    #[inline(always)]
    fn add<L: Lanes, const M: usize>(panel: &Panel<'_>, index: usize, x: [&Activation; M], sums: &mut [L; M]) {
        let lines = lines::<8>(panel, index);
        let mut bytes = [L::bytes(&lines[0].0); 8];
        for (bytes, line) in bytes.iter_mut().zip(lines) {
            *bytes = L::bytes(&line.0);
        }
        let ints = words::<L, M>(&bytes, x, 128);
        scaled(sums, ints, L::load_f16(&panel.scales[index].0), x);
    }
}

impl Layout for Q4K {
    #[inline(always)]
    fn add<L: Lanes, const M: usize>(panel: &Panel<'_>, index: usize, x: [&Activation; M], sums: &mut [L; M]) {
        let ints = words::<L, M>(&nibbles::<L>(lines(panel, index)), x, 0);
        let (d, m) = (L::load_f16(&panel.scales[index / 8 * 2].0), L::load_f16(&panel.scales[index / 8 * 2 + 1].0));
        scaled(sums, ints, d.mul(L::load_i8(&panel.steps[2 * index].0)), x);
        let m = m.mul(L::splat(-1.0)).mul(L::load_i8(&panel.steps[2 * index + 1].0));
        shifted(sums, m, x);
    }
}

impl Layout for Q6K {
    #[inline(always)]
    fn add<L: Lanes, const M: usize>(panel: &Panel<'_>, index: usize, x: [&Activation; M], sums: &mut [L; M]) {
        let lines: &[Line; 6] = lines(panel, index);
        let upper = [L::quarters(L::bytes(&lines[4].0)), L::quarters(L::bytes(&lines[5].0))];
        let mut words = [upper[0][0]; 8];
        for (j, line) in lines.iter().take(4).enumerate() {
            let (low, high) = L::nibbles(L::bytes(&line.0));
            (words[j], words[j + 4]) = (L::or(low, upper[0][j]), L::or(high, upper[1][j]));
        }
        let (first_words, second_words) = words.split_at(4);
        let (mut first, mut second) = ([L::ints(0); M], [L::ints(0); M]);
        for (j, (a, b)) in first_words.iter().zip(second_words).enumerate() {
            for ((first, second), x) in first.iter_mut().zip(&mut second).zip(x) {
                *first = L::dot(*first, *a, x.coarse[j]);
                *second = L::dot(*second, *b, x.coarse[j + 4]);
            }
        }
        for ((first, second), x) in first.iter_mut().zip(&mut second).zip(x) {
            *first = L::raise(*first, -32 * x.first_sum);
            *second = L::raise(*second, -32 * (x.sum - x.first_sum));
        }
        for (j, (a, b)) in first_words.iter().zip(second_words).enumerate() {
            for ((first, second), x) in first.iter_mut().zip(&mut second).zip(x) {
                *first = L::dot(*first, *a, x.fine[j]);
                *second = L::dot(*second, *b, x.fine[j + 4]);
            }
        }
        let d = L::load_f16(&panel.scales[index / 8].0);
        let steps = (L::load_i8(&panel.steps[2 * index].0), L::load_i8(&panel.steps[2 * index + 1].0));
        for (((sum, first), second), x) in sums.iter_mut().zip(first).zip(second).zip(x) {
            let both = L::from_ints(second).fma(steps.1, L::from_ints(first).mul(steps.0));
            *sum = both.mul(L::splat(x.d)).fma(d, *sum);
        }
    }
}

const _: () = assert!(LANES == 16, "a line has a word for each lane");
