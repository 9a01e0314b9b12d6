//! Block-quantised weights repacked into panels of 16 rows, a lane a row, multiplied by activations of 8 bits. Panels stand
//! in place of the file's blocks and take as many bytes.
//!
//! A block is 32 columns. Its quants lie in lines of 64 bytes, four bytes a row, as the dot instructions of all sets read
//! them. With 4 bits, the low halves of line `j` are columns `4j..4j + 4` and the high halves `16 + 4j..20 + 4j`: ggml's
//! own order within a row. With 8 bits, line `j` is columns `4j..4j + 4`, plus 128 to be unsigned.
//!
//! Within a block sums are integers and exact; blocks are added in order. So a row's result does not depend on how many
//! rows are taken together, and all instruction sets give the same bits.

use std::ops::Range;

use half::f16;

use crate::format::Format;
use crate::lanes::{LANES, Lanes};

/// Columns of a block.
const BLOCK: usize = 32;
/// Input rows that are taken together at most: as many sums as registers hold.
const TALL: usize = 8;

/// Which values the quants stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `d * (q - 8)`, 4 bits.
    Q4_0,
    /// `d * q + m`, 4 bits.
    Q4_1,
    /// `d * (q - 128)`, 8 bits.
    Q8_0,
}

/// Weights in panels.
pub(super) struct Panels {
    kind: Kind,
    rows: usize,
    /// Blocks of a row.
    blocks: usize,
    /// `[panel][block][1 or 2]`: d, then m, as f16.
    scales: Vec<Scales>,
    /// `[panel][block][lines]`.
    lines: Vec<Line>,
}

#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
struct Scales([u16; LANES]);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// 32 elements of an input row in 8 bits: `q * d`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(16))]
pub(crate) struct Activation {
    q: [[i8; 4]; BLOCK / 4],
    d: f32,
    /// The sum of `q`.
    sum: i32,
    /// `d * sum`.
    scaled_sum: f32,
}

impl Kind {
    /// Lines of a block.
    #[inline(always)]
    fn lines(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 => 4,
            Self::Q8_0 => 8,
        }
    }

    /// Scales of a block.
    #[inline(always)]
    fn scales(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q8_0 => 1,
            Self::Q4_1 => 2,
        }
    }

    /// What is taken off the quants.
    #[inline(always)]
    fn offset(self) -> i32 {
        match self {
            Self::Q4_0 => 8,
            Self::Q4_1 => 0,
            Self::Q8_0 => 128,
        }
    }
}

impl Panels {
    /// Repacks `parts`, whole rows of `cols` elements in `format`; none where the format has no panels.
    pub(super) fn new(format: Format, cols: usize, parts: &[&[u8]]) -> Option<Self> {
        let kind = match format {
            Format::Q4_0 => Kind::Q4_0,
            Format::Q4_1 => Kind::Q4_1,
            Format::Q8_0 => Kind::Q8_0,
            Format::F32 | Format::F16 | Format::Bf16 | Format::Q5_0 | Format::Q5_1 => return None,
            Format::Q2K | Format::Q3K | Format::Q4K | Format::Q5K | Format::Q6K | Format::Q8K => return None,
        };
        let (blocks, size) = (cols / BLOCK, format.block_bytes());
        let rows = parts.iter().map(|part| part.len() / (blocks * size)).sum::<usize>();
        let count = rows.div_ceil(LANES) * blocks;
        let mut panels = Self {
            kind,
            rows,
            blocks,
            scales: vec![Scales::default(); count * kind.scales()],
            lines: vec![Line([0; 64]); count * kind.lines()],
        };
        let all = parts.iter().flat_map(|part| part.chunks_exact(blocks * size));
        for (row, bytes) in all.enumerate() {
            for (block, bytes) in bytes.chunks_exact(size).enumerate() {
                panels.put(row, block, bytes);
            }
        }
        Some(panels)
    }

    /// Writes a ggml block: scales as f16, then quants.
    fn put(&mut self, row: usize, block: usize, bytes: &[u8]) {
        let (kind, lane) = (self.kind, row % LANES);
        let place = row / LANES * self.blocks + block;
        let (scales, quants) = bytes.split_at(2 * kind.scales());
        for (to, from) in self.scales[place * kind.scales()..].iter_mut().zip(scales.as_chunks().0) {
            to.0[lane] = u16::from_le_bytes(*from);
        }
        for (to, from) in self.lines[place * kind.lines()..].iter_mut().zip(quants.as_chunks::<4>().0) {
            let sign = if kind == Kind::Q8_0 { 0x80 } else { 0 };
            to.0[lane * 4..][..4].copy_from_slice(&from.map(|byte| byte ^ sign));
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.scales[..]) + size_of_val(&self.lines[..])
    }

    /// How many panels there are; the last may be filled in part.
    pub(super) fn count(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Row `index` as f32.
    pub(super) fn row(&self, index: usize, out: &mut [f32]) {
        let (kind, lane) = (self.kind, index % LANES);
        for (block, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let place = index / LANES * self.blocks + block;
            let scales = &self.scales[place * kind.scales()..][..kind.scales()];
            let scale = |i: usize| scales.get(i).map_or(0.0, |scales| f16::from_bits(scales.0[lane]).to_f32());
            let (d, m) = (scale(0), scale(1));
            let value = |quant: u8| d * (i32::from(quant) - kind.offset()) as f32 + m;
            let lines = &self.lines[place * kind.lines()..][..kind.lines()];
            for (j, line) in lines.iter().enumerate() {
                for (i, &byte) in line.0[lane * 4..][..4].iter().enumerate() {
                    match kind {
                        Kind::Q4_0 | Kind::Q4_1 => {
                            out[4 * j + i] = value(byte & 15);
                            out[16 + 4 * j + i] = value(byte >> 4);
                        }
                        Kind::Q8_0 => out[4 * j + i] = value(byte),
                    }
                }
            }
        }
    }

    /// Multiplies the rows of `input` `[m, blocks]` by the panels of `range`.
    #[inline(always)]
    pub(super) fn multiply<L: Lanes>(&self, input: &[Activation], range: Range<usize>, sink: &impl Sink) {
        match self.kind {
            Kind::Q4_0 => self.panels::<L, Q4_0>(input, range, sink),
            Kind::Q4_1 => self.panels::<L, Q4_1>(input, range, sink),
            Kind::Q8_0 => self.panels::<L, Q8_0>(input, range, sink),
        }
    }

    #[inline(always)]
    fn panels<L: Lanes, K: Layout>(&self, input: &[Activation], range: Range<usize>, sink: &impl Sink) {
        let m = input.len() / self.blocks;
        for panel in range {
            let scales = &self.scales[panel * self.blocks * K::SCALES..][..self.blocks * K::SCALES];
            let lines = &self.lines[panel * self.blocks * K::LINES..][..self.blocks * K::LINES];
            let rows = panel * LANES..((panel + 1) * LANES).min(self.rows);
            let mut t = 0;
            while t < m {
                let rest = &input[t * self.blocks..];
                match m - t {
                    TALL.. => put(sink, &mut t, rows.clone(), tile::<L, K, TALL>(scales, lines, rest)),
                    4.. => put(sink, &mut t, rows.clone(), tile::<L, K, 4>(scales, lines, rest)),
                    2.. => put(sink, &mut t, rows.clone(), tile::<L, K, 2>(scales, lines, rest)),
                    _ => put(sink, &mut t, rows.clone(), tile::<L, K, 1>(scales, lines, rest)),
                }
            }
        }
    }
}

/// Where results go. No closure: code that uses lanes must be `#[inline(always)]`.
pub(super) trait Sink {
    /// Takes the results of input row `t` and the weight rows `rows`, at most [`LANES`]; lanes beyond them are void.
    fn put<L: Lanes>(&self, t: usize, rows: Range<usize>, sums: L);
}

/// Passes the results of the input rows from `t` on, and counts them off.
#[inline(always)]
fn put<L: Lanes, const M: usize>(sink: &impl Sink, t: &mut usize, rows: Range<usize>, sums: [L; M]) {
    for sums in sums {
        sink.put(*t, rows.clone(), sums);
        *t += 1;
    }
}

/// [`Kind`], known when compiling.
trait Layout {
    const KIND: Kind;
    const LINES: usize;
    const SCALES: usize;

    /// The dot product of a line with the input of its columns.
    fn dot<L: Lanes>(sum: L::Ints, line: &Parts<L>, index: usize, x: &Activation) -> L::Ints;
}

/// A line's quants, ready for dot products.
struct Parts<L: Lanes> {
    low: L::Bytes,
    high: L::Bytes,
}

macro_rules! layout {
    ($name:ident, $kind:expr, $lines:literal, $scales:literal, halves: $halves:literal) => {
        struct $name;

        impl Layout for $name {
            const KIND: Kind = $kind;
            const LINES: usize = $lines;
            const SCALES: usize = $scales;

            #[inline(always)]
            fn dot<L: Lanes>(sum: L::Ints, line: &Parts<L>, index: usize, x: &Activation) -> L::Ints {
                let sum = L::dot(sum, line.low, x.q[index]);
                if $halves { L::dot(sum, line.high, x.q[index + 4]) } else { sum }
            }
        }
    };
}
layout!(Q4_0, Kind::Q4_0, 4, 1, halves: true);
layout!(Q4_1, Kind::Q4_1, 4, 2, halves: true);
layout!(Q8_0, Kind::Q8_0, 8, 1, halves: false);

/// One panel times `M` input rows.
#[inline(always)]
fn tile<L: Lanes, K: Layout, const M: usize>(scales: &[Scales], lines: &[Line], input: &[Activation]) -> [L; M] {
    let blocks = scales.len() / K::SCALES;
    let rows: [&[Activation]; M] = std::array::from_fn(|i| &input[i * blocks..][..blocks]);
    let mut sums = [L::splat(0.0); M];
    for (block, (scales, lines)) in scales.chunks_exact(K::SCALES).zip(lines.chunks_exact(K::LINES)).enumerate() {
        let mut ints = [L::ints(0); M];
        if K::KIND.offset() != 0 {
            for (ints, row) in ints.iter_mut().zip(&rows) {
                *ints = L::ints(-K::KIND.offset() * row[block].sum);
            }
        }
        for (index, line) in lines.iter().enumerate() {
            let whole = L::bytes(&line.0);
            let parts = match K::KIND {
                Kind::Q4_0 | Kind::Q4_1 => {
                    let (low, high) = L::nibbles(whole);
                    Parts { low, high }
                }
                Kind::Q8_0 => Parts { low: whole, high: whole },
            };
            for (ints, row) in ints.iter_mut().zip(&rows) {
                *ints = K::dot::<L>(*ints, &parts, index, &row[block]);
            }
        }
        let d = L::load_f16(&scales[0].0);
        for ((sum, ints), row) in sums.iter_mut().zip(ints).zip(&rows) {
            *sum = L::from_ints(ints).mul(L::splat(row[block].d)).fma(d, *sum);
        }
        if K::SCALES == 2 {
            let m = L::load_f16(&scales[1].0);
            for (sum, row) in sums.iter_mut().zip(&rows) {
                *sum = m.fma(L::splat(row[block].scaled_sum), *sum);
            }
        }
    }
    sums
}

impl Activation {
    /// Blocks of a row of `cols` elements.
    pub(super) fn blocks(cols: usize) -> usize {
        cols / BLOCK
    }

    /// Rounds a row to 8 bits: each block by its own greatest element.
    #[inline(always)]
    pub(super) fn quantise<L: Lanes>(values: &[f32], to: &mut [Self]) {
        for (values, to) in values.as_chunks::<BLOCK>().0.iter().zip(to) {
            let (halves, _) = values.as_chunks::<LANES>();
            let (low, high) = (L::load(&halves[0]), L::load(&halves[1]));
            let greatest = low.abs().max(high.abs()).greatest();
            let inverse = L::splat(if greatest > 0.0 { 127.0 / greatest } else { 0.0 });
            let mut q = [[0; LANES]; 2];
            low.mul(inverse).round().store_i8(&mut q[0]);
            high.mul(inverse).round().store_i8(&mut q[1]);
            let q = q.as_flattened();
            to.q.as_flattened_mut().copy_from_slice(q);
            to.d = greatest / 127.0;
            to.sum = q.iter().map(|&q| i32::from(q)).sum();
            to.scaled_sum = to.d * to.sum as f32;
        }
    }
}
