//! Block-quantised weights repacked into panels of 16 rows, a lane a row, multiplied by activations of 16 bits. Panels stand
//! in place of the file's blocks and take about as many bytes.
//!
//! An activation is two signed bytes, coarse and fine, so that the byte instructions serve: 8 bits alone move the logits of
//! a 4-bit model by more than its best two tokens are apart (docs/adr/0002).
//!
//! Within a block of 32 columns sums are integers and exact; blocks are added in order. So a row's result does not depend
//! on how many rows are taken together, and all instruction sets give the same bits.

mod layout;
mod tile;

use std::marker::PhantomData;
use std::ops::Range;

use half::f16;

use crate::format::Format;
use crate::isa::Kernel;
use crate::lanes::{LANES, Lanes};
use layout::Kind;
use tile::{Centred, CentredSteps, Eights, Fives, Halves, Layout, Shifted, ShiftedSteps, Sixes, Threes};

/// Columns of a block.
const BLOCK: usize = 32;

/// The greatest activation, in its own steps: 127 coarse and 127 fine ones.
const GREATEST: f32 = 127.0 * 256.0 + 127.0;

/// Weights in panels.
pub(super) struct Panels {
    kind: Kind,
    rows: usize,
    /// Blocks of a row.
    blocks: usize,
    /// `[panel][group of blocks]`, then the group's f16 factors.
    scales: Vec<Scales>,
    /// `[panel][block]`, then the block's integer factors.
    steps: Vec<Steps>,
    /// `[panel][block]`, then the block's lines.
    lines: Vec<Line>,
}

/// An f16 factor a row.
#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
struct Scales([u16; LANES]);

/// A small integer factor a row.
#[derive(Clone, Copy, Default)]
#[repr(C, align(16))]
struct Steps([i8; LANES]);

/// Four bytes of quants a row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// One panel.
#[derive(Clone, Copy)]
struct Panel<'a> {
    scales: &'a [Scales],
    steps: &'a [Steps],
    lines: &'a [Line],
}

/// 32 elements of an input row in 16 bits: `(256 * coarse + fine) * d`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(16))]
pub(crate) struct Activation {
    coarse: [[i8; 4]; BLOCK / 4],
    fine: [[i8; 4]; BLOCK / 4],
    d: f32,
    /// The sum of the first half of the elements, in units of `d`.
    first_sum: i32,
    /// The sum of all of them.
    sum: i32,
    /// `d * sum`.
    scaled_sum: f32,
}

/// Some panels times all rows of an input.
struct Share<'a, K, S> {
    panels: &'a Panels,
    input: &'a [Activation],
    range: Range<usize>,
    sink: &'a S,
    layout: PhantomData<K>,
}

/// Where results go. No closure: code that uses lanes must be `#[inline(always)]`.
pub(super) trait Sink {
    /// Takes the results of input row `t` and the weight rows `rows`, at most [`LANES`]; lanes beyond them are void.
    fn put<L: Lanes>(&self, t: usize, rows: Range<usize>, sums: L);
}

impl Panels {
    /// Repacks `parts`, whole rows of `cols` elements in `format`; none where the format has no panels.
    pub(super) fn new(format: Format, cols: usize, parts: &[&[u8]]) -> Option<Self> {
        let kind = Kind::of(format)?;
        let (blocks, row_bytes) = (cols / BLOCK, format.row_bytes(cols)?);
        let rows = parts.iter().map(|part| part.len() / row_bytes).sum::<usize>();
        let count = rows.div_ceil(LANES) * blocks;
        let mut panels = Self {
            kind,
            rows,
            blocks,
            scales: vec![Scales::default(); count / kind.group() * kind.scales()],
            steps: vec![Steps::default(); count * kind.steps()],
            lines: vec![Line([0; 64]); count * kind.lines()],
        };
        let all = parts.iter().flat_map(|part| part.chunks_exact(row_bytes));
        for (row, bytes) in all.enumerate() {
            for (group, bytes) in bytes.chunks_exact(format.block_bytes()).enumerate() {
                panels.put(row, group, bytes);
            }
        }
        Some(panels)
    }

    /// Writes a ggml block: one group of blocks here.
    fn put(&mut self, row: usize, group: usize, bytes: &[u8]) {
        let (kind, lane) = (self.kind, row % LANES);
        let first = row / LANES * self.blocks + group * kind.group();
        for (i, scale) in kind.read_scales(bytes).into_iter().take(kind.scales()).enumerate() {
            self.scales[first / kind.group() * kind.scales() + i].0[lane] = scale;
        }
        for block in 0..kind.group() {
            let place = first + block;
            for (i, step) in kind.read_steps(bytes, block).into_iter().take(kind.steps()).enumerate() {
                self.steps[place * kind.steps() + i].0[lane] = step;
            }
            let lines = &mut self.lines[place * kind.lines()..][..kind.lines()];
            let words = kind.pack(&kind.read_quants(bytes, block));
            for (line, word) in lines.iter_mut().zip(words) {
                line.0[lane * 4..][..4].copy_from_slice(&word);
            }
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.scales[..]) + size_of_val(&self.steps[..]) + size_of_val(&self.lines[..])
    }

    /// How many panels there are; the last may be filled in part.
    pub(super) fn count(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Row `index` as f32.
    pub(super) fn row(&self, index: usize, out: &mut [f32]) {
        let (kind, lane) = (self.kind, index % LANES);
        let panel = self.panel(index / LANES);
        for (block, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let scales = &panel.scales[block / kind.group() * kind.scales()..][..kind.scales()];
            let scale = |i: usize| scales.get(i).map_or(0.0, |scales| f16::from_bits(scales.0[lane]).to_f32());
            let steps = &panel.steps[block * kind.steps()..][..kind.steps()];
            let step = |i: usize| steps.get(i).map_or(1, |steps| steps.0[lane]);
            let lines = &panel.lines[block * kind.lines()..][..kind.lines()];
            let words: Vec<[u8; 4]> = lines.iter().map(|line| line.0.as_chunks().0[lane]).collect();
            let quants = kind.unpack(&words);
            for (i, (out, quant)) in out.iter_mut().zip(quants).enumerate() {
                *out = kind.value(i32::from(quant), i, &scale, &step);
            }
        }
    }

    /// Multiplies the rows of `input` `[m, blocks]` by the panels of `range`.
    #[inline(always)]
    pub(super) fn multiply<L: Lanes>(&self, input: &[Activation], range: Range<usize>, sink: &impl Sink) {
        match self.kind {
            Kind::Q4_0 => self.with::<L, Centred<Halves, 8>>(input, range, sink),
            Kind::Q4_1 => self.with::<L, Shifted<Halves>>(input, range, sink),
            Kind::Q5_0 => self.with::<L, Centred<Fives, 16>>(input, range, sink),
            Kind::Q5_1 => self.with::<L, Shifted<Fives>>(input, range, sink),
            Kind::Q8_0 => self.with::<L, Centred<Eights, 128>>(input, range, sink),
            Kind::Q2K => self.with::<L, tile::Q2K>(input, range, sink),
            Kind::Q3K => self.with::<L, CentredSteps<Threes, 4>>(input, range, sink),
            Kind::Q4K => self.with::<L, ShiftedSteps<Halves>>(input, range, sink),
            Kind::Q5K => self.with::<L, ShiftedSteps<Fives>>(input, range, sink),
            Kind::Q6K => self.with::<L, CentredSteps<Sixes, 32>>(input, range, sink),
        }
    }

    #[inline(always)]
    fn with<L: Lanes, K: Layout>(&self, input: &[Activation], range: Range<usize>, sink: &impl Sink) {
        L::call(Share { panels: self, input, range, sink, layout: PhantomData::<K> });
    }

    #[inline(always)]
    fn panel(&self, index: usize) -> Panel<'_> {
        let (kind, blocks) = (self.kind, self.blocks);
        let (scales, steps, lines) =
            (blocks / kind.group() * kind.scales(), blocks * kind.steps(), blocks * kind.lines());
        Panel {
            scales: &self.scales[index * scales..][..scales],
            steps: &self.steps[index * steps..][..steps],
            lines: &self.lines[index * lines..][..lines],
        }
    }
}

impl<K: Layout, S: Sink> Kernel for Share<'_, K, S> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { panels, input, range, sink, layout: _ } = self;
        let input = tile::Input { rows: input, blocks: panels.blocks };
        for index in range {
            let rows = index * LANES..((index + 1) * LANES).min(panels.rows);
            tile::multiply::<L, K>(panels.panel(index), input, rows, sink);
        }
    }
}

impl Activation {
    /// Blocks of a row of `cols` elements.
    pub(super) fn blocks(cols: usize) -> usize {
        cols / BLOCK
    }

    /// Rounds a row to 16 bits: each block by its own greatest element.
    #[inline(always)]
    pub(super) fn quantise<L: Lanes>(values: &[f32], to: &mut [Self]) {
        for (values, to) in values.as_chunks::<BLOCK>().0.iter().zip(to) {
            let (halves, _) = values.as_chunks::<LANES>();
            let greatest = L::load(&halves[0]).abs().max(L::load(&halves[1]).abs()).greatest();
            let inverse = L::splat(if greatest > 0.0 { GREATEST / greatest } else { 0.0 });
            let (coarse, _) = to.coarse.as_flattened_mut().as_chunks_mut::<LANES>();
            let (fine, _) = to.fine.as_flattened_mut().as_chunks_mut::<LANES>();
            let mut sums = [0; 2];
            for i in 0..2 {
                let q = L::load(&halves[i]).mul(inverse).round();
                // Half a step up, so that what is left below lies in -128..=127.
                let upper = q.add(L::splat(0.5)).mul(L::splat(1.0 / 256.0)).round();
                upper.store_i8(&mut coarse[i]);
                upper.fma(L::splat(-256.0), q).store_i8(&mut fine[i]);
                for (upper, lower) in coarse[i].iter().zip(&fine[i]) {
                    sums[i] += 256 * i32::from(*upper) + i32::from(*lower);
                }
            }
            to.d = greatest / GREATEST;
            to.first_sum = sums[0];
            to.sum = sums[0] + sums[1];
            to.scaled_sum = to.d * to.sum as f32;
        }
    }
}
