//! One panel times a few rows of input, in registers.

use std::marker::PhantomData;
use std::ops::Range;

use super::{Activation, Line, Panel, Sink, Steps};
use crate::lanes::{LANES, Lanes};

/// Rows of activations.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// `[row][block]`.
    pub(super) rows: &'a [Activation],
    pub(super) blocks: usize,
}

/// How quants lie in lines.
pub(super) trait Quants {
    /// What a byte of a word says a quant's unit is.
    const UNIT: i32;

    /// The words of block `index` in the order of its columns.
    fn words<L: Lanes>(panel: &Panel<'_>, index: usize) -> [L::Bytes; 8];
}

/// What quants stand for; with [`Quants`] a [`super::Kind`] that is known when compiling.
pub(super) trait Layout {
    /// Adds the products of block `index` of the panel and of each of `x` to `sums`.
    fn add<L: Lanes, const M: usize>(panel: &Panel<'_>, index: usize, x: [&Activation; M], sums: &mut [L; M]);
}

/// 2 bits.
pub(super) struct Twos;
/// 3 bits.
pub(super) struct Threes;
/// 4 bits.
pub(super) struct Halves;
/// 5 bits.
pub(super) struct Fives;
/// 6 bits.
pub(super) struct Sixes;
/// 8 bits.
pub(super) struct Eights;

/// `d * (q - MINUS)`.
pub(super) struct Centred<Q, const MINUS: i32>(PhantomData<Q>);
/// `d * q + m`.
pub(super) struct Shifted<Q>(PhantomData<Q>);
/// `d * step * (q - MINUS)`, a step for each half of a block.
pub(super) struct CentredSteps<Q, const MINUS: i32>(PhantomData<Q>);
/// `d * step * q - m * step'`.
pub(super) struct ShiftedSteps<Q>(PhantomData<Q>);
/// `d * step * q - m * step'` with both steps for each half of a block.
pub(super) struct Q2K;

/// Multiplies all rows of `input` by a panel that holds the weight rows `rows`.
#[inline(always)]
pub(super) fn multiply<L: Lanes, K: Layout>(panel: Panel<'_>, input: Input<'_>, rows: Range<usize>, sink: &impl Sink) {
    let m = input.rows.len() / input.blocks;
    let mut t = 0;
    while t < m {
        // Conditions on constants, so that what is never taken is never compiled.
        t += if L::TALL >= 8 && m - t >= 8 {
            some::<L, K, 8>(panel, input, t, (rows.clone(), sink))
        } else if L::TALL >= 4 && m - t >= 4 {
            some::<L, K, 4>(panel, input, t, (rows.clone(), sink))
        } else if L::TALL >= 2 && m - t >= 2 {
            some::<L, K, 2>(panel, input, t, (rows.clone(), sink))
        } else {
            some::<L, K, 1>(panel, input, t, (rows.clone(), sink))
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

/// The same of each half of the block.
#[inline(always)]
fn halves<L: Lanes, const M: usize>(
    words: &[L::Bytes; 8],
    x: [&Activation; M],
    minus: i32,
) -> ([L::Ints; M], [L::Ints; M]) {
    let (first_words, second_words) = words.split_at(4);
    let (mut first, mut second) = ([L::ints(0); M], [L::ints(0); M]);
    for (j, (a, b)) in first_words.iter().zip(second_words).enumerate() {
        for ((first, second), x) in first.iter_mut().zip(&mut second).zip(x) {
            *first = L::dot(*first, *a, x.coarse[j]);
            *second = L::dot(*second, *b, x.coarse[j + 4]);
        }
    }
    for ((first, second), x) in first.iter_mut().zip(&mut second).zip(x) {
        *first = L::raise(*first, -minus * x.first_sum);
        *second = L::raise(*second, -minus * (x.sum - x.first_sum));
    }
    for (j, (a, b)) in first_words.iter().zip(second_words).enumerate() {
        for ((first, second), x) in first.iter_mut().zip(&mut second).zip(x) {
            *first = L::dot(*first, *a, x.fine[j]);
            *second = L::dot(*second, *b, x.fine[j + 4]);
        }
    }
    (first, second)
}

/// Adds `(first * steps.0 + second * steps.1) * d * x.d`.
#[inline(always)]
fn scaled_halves<L: Lanes, const M: usize>(
    sums: &mut [L; M],
    (first, second): ([L::Ints; M], [L::Ints; M]),
    steps: (L, L),
    d: L,
    x: [&Activation; M],
) {
    for (((sum, first), second), x) in sums.iter_mut().zip(first).zip(second).zip(x) {
        let both = L::from_ints(second).fma(steps.1, L::from_ints(first).mul(steps.0));
        *sum = both.mul(L::splat(x.d)).fma(d, *sum);
    }
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

/// 4-bit words of the first four of a block's lines.
#[inline(always)]
fn nibbles<L: Lanes>(lines: &[Line]) -> [L::Bytes; 8] {
    let mut words = [L::bytes(&lines[0].0); 8];
    for (j, line) in lines[..4].iter().enumerate() {
        (words[j], words[j + 4]) = L::nibbles(L::bytes(&line.0));
    }
    words
}

/// 2-bit words, at bits 4 and 5, of two lines.
#[inline(always)]
fn quarters<L: Lanes>(lines: &[Line]) -> [L::Bytes; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (L::quarters(L::bytes(&lines[0].0)), L::quarters(L::bytes(&lines[1].0)));
    [a, b, c, d, e, f, g, h]
}

#[inline(always)]
fn or<L: Lanes>(mut words: [L::Bytes; 8], more: [L::Bytes; 8]) -> [L::Bytes; 8] {
    for (word, more) in words.iter_mut().zip(more) {
        *word = L::or(*word, more);
    }
    words
}

impl Quants for Twos {
    const UNIT: i32 = 16;

    #[inline(always)]
    fn words<L: Lanes>(panel: &Panel<'_>, index: usize) -> [L::Bytes; 8] {
        quarters::<L>(lines::<2>(panel, index))
    }
}

impl Quants for Threes {
    const UNIT: i32 = 16;

    #[inline(always)]
    fn words<L: Lanes>(panel: &Panel<'_>, index: usize) -> [L::Bytes; 8] {
        let lines = lines::<3>(panel, index);
        let mut upper = quarters::<L>(lines);
        for word in &mut upper {
            *word = L::double(*word);
        }
        or::<L>(upper, L::eighths(L::bytes(&lines[2].0)))
    }
}

impl Quants for Halves {
    const UNIT: i32 = 1;

    #[inline(always)]
    fn words<L: Lanes>(panel: &Panel<'_>, index: usize) -> [L::Bytes; 8] {
        nibbles::<L>(lines::<4>(panel, index))
    }
}

impl Quants for Fives {
    const UNIT: i32 = 1;

    #[inline(always)]
    fn words<L: Lanes>(panel: &Panel<'_>, index: usize) -> [L::Bytes; 8] {
        let lines = lines::<5>(panel, index);
        or::<L>(nibbles::<L>(lines), L::eighths(L::bytes(&lines[4].0)))
    }
}

impl Quants for Sixes {
    const UNIT: i32 = 1;

    #[inline(always)]
    fn words<L: Lanes>(panel: &Panel<'_>, index: usize) -> [L::Bytes; 8] {
        let lines = lines::<6>(panel, index);
        or::<L>(nibbles::<L>(lines), quarters::<L>(&lines[4..]))
    }
}

impl Quants for Eights {
    const UNIT: i32 = 1;

    #[inline(always)]
    fn words<L: Lanes>(panel: &Panel<'_>, index: usize) -> [L::Bytes; 8] {
        let lines = lines::<8>(panel, index);
        let mut words = [L::bytes(&lines[0].0); 8];
        for (word, line) in words.iter_mut().zip(lines) {
            *word = L::bytes(&line.0);
        }
        words
    }
}

impl<Q: Quants, const MINUS: i32> Layout for Centred<Q, MINUS> {
    #[inline(always)]
    fn add<L: Lanes, const M: usize>(panel: &Panel<'_>, index: usize, x: [&Activation; M], sums: &mut [L; M]) {
        const { assert!(Q::UNIT == 1) };
        let ints = words::<L, M>(&Q::words::<L>(panel, index), x, MINUS);
        scaled(sums, ints, L::load_f16(&panel.scales[index].0), x);
    }
}

impl<Q: Quants> Layout for Shifted<Q> {
    #[inline(always)]
    fn add<L: Lanes, const M: usize>(panel: &Panel<'_>, index: usize, x: [&Activation; M], sums: &mut [L; M]) {
        const { assert!(Q::UNIT == 1) };
        let ints = words::<L, M>(&Q::words::<L>(panel, index), x, 0);
        scaled(sums, ints, L::load_f16(&panel.scales[2 * index].0), x);
        shifted(sums, L::load_f16(&panel.scales[2 * index + 1].0), x);
    }
}

impl<Q: Quants> Layout for ShiftedSteps<Q> {
    #[inline(always)]
    fn add<L: Lanes, const M: usize>(panel: &Panel<'_>, index: usize, x: [&Activation; M], sums: &mut [L; M]) {
        const { assert!(Q::UNIT == 1) };
        let ints = words::<L, M>(&Q::words::<L>(panel, index), x, 0);
        let (d, m) = (L::load_f16(&panel.scales[index / 8 * 2].0), L::load_f16(&panel.scales[index / 8 * 2 + 1].0));
        scaled(sums, ints, d.mul(L::load_i8(&panel.steps[2 * index].0)), x);
        let m = m.mul(L::splat(-1.0)).mul(L::load_i8(&panel.steps[2 * index + 1].0));
        shifted(sums, m, x);
    }
}

impl<Q: Quants, const MINUS: i32> Layout for CentredSteps<Q, MINUS> {
    #[inline(always)]
    fn add<L: Lanes, const M: usize>(panel: &Panel<'_>, index: usize, x: [&Activation; M], sums: &mut [L; M]) {
        let ints = halves::<L, M>(&Q::words::<L>(panel, index), x, MINUS * Q::UNIT);
        let steps = (L::load_i8(&panel.steps[2 * index].0), L::load_i8(&panel.steps[2 * index + 1].0));
        let d = L::load_f16(&panel.scales[index / 8].0).mul(L::splat(1.0 / Q::UNIT as f32));
        scaled_halves(sums, ints, steps, d, x);
    }
}

impl Layout for Q2K {
    #[inline(always)]
    fn add<L: Lanes, const M: usize>(panel: &Panel<'_>, index: usize, x: [&Activation; M], sums: &mut [L; M]) {
        let ints = halves::<L, M>(&Twos::words::<L>(panel, index), x, 0);
        let (first, second) = (both::<L>(&panel.steps[2 * index]), both::<L>(&panel.steps[2 * index + 1]));
        let (d, m) = (L::load_f16(&panel.scales[index / 8 * 2].0), L::load_f16(&panel.scales[index / 8 * 2 + 1].0));
        scaled_halves(sums, ints, (first.0, second.0), d.mul(L::splat(1.0 / Twos::UNIT as f32)), x);
        let m = m.mul(L::splat(-1.0));
        let (first, second) = (m.mul(first.1), m.mul(second.1));
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = first.fma(L::splat(x.d * x.first_sum as f32), *sum);
            *sum = second.fma(L::splat(x.d * (x.sum - x.first_sum) as f32), *sum);
        }
    }
}

/// The two steps that share a byte: `16 * min + step - 128`. Small whole numbers, so all of this is exact.
#[inline(always)]
fn both<L: Lanes>(steps: &Steps) -> (L, L) {
    let both = L::load_i8(&steps.0).add(L::splat(128.0));
    let min = both.add(L::splat(-7.5)).mul(L::splat(1.0 / 16.0)).round();
    (min.fma(L::splat(-16.0), both), min)
}

const _: () = assert!(LANES == 16, "a line has a word for each lane");
