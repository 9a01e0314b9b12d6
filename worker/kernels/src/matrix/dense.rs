//! Weights that are floats, in panels of 16 rows, a lane a row: a column of a panel is one load. Inputs stay f32.

use std::ops::Range;

use half::{bf16, f16};

use super::panels::Sink;
use crate::format::Format;
use crate::lanes::{LANES, Lanes};

/// Input rows that are taken together at most.
const TALL: usize = 8;

/// Float weights.
pub(super) struct Dense {
    rows: usize,
    cols: usize,
    columns: Columns,
}

/// `[panel][column]`, sixteen rows each.
enum Columns {
    F32(Vec<[f32; LANES]>),
    F16(Vec<[u16; LANES]>),
    Bf16(Vec<[u16; LANES]>),
}

/// How a column is loaded; known when compiling.
trait Element {
    type Stored: Copy;

    fn load<L: Lanes>(column: &[Self::Stored; LANES]) -> L;
}

struct F32;
struct F16;
struct Bf16;

impl Dense {
    /// Repacks `parts`, whole rows of `cols` elements in `format`; none where the format is not float.
    pub(super) fn new(format: Format, cols: usize, parts: &[&[u8]]) -> Option<Self> {
        let columns = match format {
            Format::F32 => Columns::F32(transposed(cols, parts, |bytes| f32::from_le_bytes(*bytes))),
            Format::F16 => Columns::F16(transposed(cols, parts, |bytes| u16::from_le_bytes(*bytes))),
            Format::Bf16 => Columns::Bf16(transposed(cols, parts, |bytes| u16::from_le_bytes(*bytes))),
            Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 | Format::Q8_0 => return None,
            Format::Q2K | Format::Q3K | Format::Q4K | Format::Q5K | Format::Q6K | Format::Q8K => return None,
        };
        let rows = parts.iter().map(|part| part.len()).sum::<usize>() / format.row_bytes(cols)?;
        Some(Self { rows, cols, columns })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn bytes(&self) -> usize {
        match &self.columns {
            Columns::F32(columns) => size_of_val(&columns[..]),
            Columns::F16(columns) | Columns::Bf16(columns) => size_of_val(&columns[..]),
        }
    }

    /// How many panels there are; the last may be filled in part.
    pub(super) fn count(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Row `index` as f32.
    pub(super) fn row(&self, index: usize, out: &mut [f32]) {
        let (first, lane) = (index / LANES * self.cols, index % LANES);
        for (i, out) in out.iter_mut().enumerate() {
            *out = match &self.columns {
                Columns::F32(columns) => columns[first + i][lane],
                Columns::F16(columns) => f16::from_bits(columns[first + i][lane]).to_f32(),
                Columns::Bf16(columns) => bf16::from_bits(columns[first + i][lane]).to_f32(),
            };
        }
    }

    /// Multiplies the rows of `input` `[m, cols]` by the panels of `range`.
    #[inline(always)]
    pub(super) fn multiply<L: Lanes>(&self, input: &[f32], range: Range<usize>, sink: &impl Sink) {
        match &self.columns {
            Columns::F32(columns) => self.panels::<L, F32>(columns, input, range, sink),
            Columns::F16(columns) => self.panels::<L, F16>(columns, input, range, sink),
            Columns::Bf16(columns) => self.panels::<L, Bf16>(columns, input, range, sink),
        }
    }

    #[inline(always)]
    fn panels<L: Lanes, E: Element>(
        &self,
        columns: &[[E::Stored; LANES]],
        input: &[f32],
        range: Range<usize>,
        sink: &impl Sink,
    ) {
        let m = input.len() / self.cols;
        for panel in range {
            let columns = &columns[panel * self.cols..][..self.cols];
            let rows = panel * LANES..((panel + 1) * LANES).min(self.rows);
            let mut t = 0;
            while t < m {
                let rest = &input[t * self.cols..];
                match m - t {
                    TALL.. => put(sink, &mut t, &rows, some::<L, E, TALL>(columns, rest)),
                    2.. => put(sink, &mut t, &rows, some::<L, E, 2>(columns, rest)),
                    _ => put(sink, &mut t, &rows, some::<L, E, 1>(columns, rest)),
                }
            }
        }
    }
}

/// Rows of `cols` elements as columns of sixteen; lanes without a row are zero.
fn transposed<T: Copy + Default, const N: usize>(
    cols: usize,
    parts: &[&[u8]],
    read: impl Fn(&[u8; N]) -> T,
) -> Vec<[T; LANES]> {
    let rows = parts.iter().map(|part| part.len()).sum::<usize>() / (cols * N);
    let mut columns = vec![[T::default(); LANES]; rows.div_ceil(LANES) * cols];
    let all = parts.iter().flat_map(|part| part.chunks_exact(cols * N));
    for (row, bytes) in all.enumerate() {
        let panel = &mut columns[row / LANES * cols..][..cols];
        for (column, bytes) in panel.iter_mut().zip(bytes.as_chunks::<N>().0) {
            column[row % LANES] = read(bytes);
        }
    }
    columns
}

/// Passes the results of the input rows from `t` on, and counts them off.
#[inline(always)]
fn put<L: Lanes, const M: usize>(sink: &impl Sink, t: &mut usize, rows: &Range<usize>, sums: [L; M]) {
    for sums in sums {
        sink.put(*t, rows.clone(), sums);
        *t += 1;
    }
}

/// One panel times `M` rows of input. Even and odd columns are summed apart: two short chains instead of a long one.
#[inline(always)]
fn some<L: Lanes, E: Element, const M: usize>(columns: &[[E::Stored; LANES]], input: &[f32]) -> [L; M] {
    let cols = columns.len();
    let mut sums = [[L::splat(0.0); 2]; M];
    let (pairs, last) = columns.as_chunks::<2>();
    for (i, [even, odd]) in pairs.iter().enumerate() {
        let (even, odd) = (E::load::<L>(even), E::load::<L>(odd));
        for (t, sums) in sums.iter_mut().enumerate() {
            sums[0] = even.fma(L::splat(input[t * cols + 2 * i]), sums[0]);
            sums[1] = odd.fma(L::splat(input[t * cols + 2 * i + 1]), sums[1]);
        }
    }
    for column in last {
        for (t, sums) in sums.iter_mut().enumerate() {
            sums[0] = E::load::<L>(column).fma(L::splat(input[(t + 1) * cols - 1]), sums[0]);
        }
    }
    let mut totals = [L::splat(0.0); M];
    for (total, sums) in totals.iter_mut().zip(sums) {
        *total = sums[0].add(sums[1]);
    }
    totals
}

impl Element for F32 {
    type Stored = f32;

    #[inline(always)]
    fn load<L: Lanes>(column: &[f32; LANES]) -> L {
        L::load(column)
    }
}

impl Element for F16 {
    type Stored = u16;

    #[inline(always)]
    fn load<L: Lanes>(column: &[u16; LANES]) -> L {
        L::load_f16(column)
    }
}

impl Element for Bf16 {
    type Stored = u16;

    #[inline(always)]
    fn load<L: Lanes>(column: &[u16; LANES]) -> L {
        L::load_bf16(column)
    }
}
