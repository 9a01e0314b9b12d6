//! Attention of a few consecutive rows of a sequence and the query heads of one KV head.

use std::num::NonZeroUsize;
use std::ops::Range;

use super::pool::Layer;
use super::{BLOCK, CHUNK, Heads, TILE};
use crate::lanes::{LANES, Lanes};

/// f32 elements of scratch memory that a [`Work`] needs.
pub(super) fn scratch(heads: Heads) -> usize {
    let pairs = TILE.max(heads.group());
    pairs * (2 * heads.size + CHUNK + 2)
}

/// A tile's state; a pair is one row and one query head, rows outermost.
pub(super) struct Work<'a> {
    heads: Heads,
    kv_head: usize,
    /// The first row's position.
    start: usize,
    rows: usize,
    /// `[dimension][pair]`, scaled.
    queries: &'a mut [f32],
    /// `[pair][CHUNK]`: scores, then their exponentials.
    scores: &'a mut [f32],
    /// `[pair][dimension]`: the weighted sum of values so far.
    sums: &'a mut [f32],
    /// By pair: the greatest score so far, then the sum of exponentials.
    greatest: &'a mut [f32],
    totals: &'a mut [f32],
}

impl<'a> Work<'a> {
    #[inline(always)]
    pub(super) fn new(heads: Heads, kv_head: usize, start: usize, rows: usize, scratch: &'a mut [f32]) -> Self {
        let pairs = rows * heads.group();
        let (queries, rest) = scratch.split_at_mut(pairs * heads.size);
        let (scores, rest) = rest.split_at_mut(pairs * CHUNK);
        let (sums, rest) = rest.split_at_mut(pairs * heads.size);
        let (greatest, rest) = rest.split_at_mut(pairs);
        let totals = &mut rest[..pairs];
        sums.fill(0.0);
        greatest.fill(f32::NEG_INFINITY);
        totals.fill(0.0);
        Self { heads, kv_head, start, rows, queries, scores, sums, greatest, totals }
    }

    /// Takes the queries out of rows of queries, keys and values.
    #[inline(always)]
    pub(super) fn gather(&mut self, qkv: &[f32]) {
        let Heads { size, .. } = self.heads;
        let (group, scale) = (self.heads.group(), 1.0 / (size as f32).sqrt());
        let pairs = self.rows * group;
        for (row, qkv) in qkv.chunks_exact(self.heads.width()).enumerate() {
            let own = &qkv[self.kv_head * group * size..][..group * size];
            for (head, query) in own.chunks_exact(size).enumerate() {
                for (dimension, value) in query.iter().enumerate() {
                    self.queries[dimension * pairs + row * group + head] = value * scale;
                }
            }
        }
    }

    /// Attends over the positions up to each row's own that lie in the window.
    ///
    /// # Safety
    /// Nobody writes the pool meanwhile.
    #[inline(always)]
    pub(super) unsafe fn attend<L: Lanes>(&mut self, pool: &Layer<'_>, blocks: &[u32], window: Option<NonZeroUsize>) {
        let end = self.start + self.rows;
        // Of the row at `position`, the first that it sees.
        let first = |position: usize| window.map_or(0, |window| (position + 1).saturating_sub(window.get()));
        for from in (first(self.start) / CHUNK * CHUNK..end).step_by(CHUNK) {
            let count = (end - from).min(CHUNK).div_ceil(BLOCK);
            let blocks = &blocks[from / BLOCK..][..count];
            for (i, &block) in blocks.iter().enumerate() {
                // SAFETY: the caller's promise.
                let (keys, _) = unsafe { pool.read(block as usize, self.kv_head) };
                self.score::<L>(keys, i * BLOCK);
            }
            for row in 0..self.rows {
                let valid = (self.start + row + 1).saturating_sub(from).min(CHUNK);
                let seen = first(self.start + row).saturating_sub(from).min(valid)..valid;
                if seen.is_empty() {
                    continue;
                }
                let group = self.heads.group();
                for pair in row * group..(row + 1) * group {
                    self.soften::<L>(pair, seen.clone());
                }
                for (i, &block) in blocks.iter().enumerate() {
                    // SAFETY: the caller's promise.
                    let (_, values) = unsafe { pool.read(block as usize, self.kv_head) };
                    let here = |place: usize| place.clamp(i * BLOCK, (i + 1) * BLOCK);
                    self.weigh::<L>(row, values, i * BLOCK, here(seen.start)..here(seen.end));
                }
            }
        }
    }

    /// A row's heads, `[group, size]`.
    #[inline(always)]
    pub(super) fn finish(&self, row: usize, out: &mut [f32]) {
        let (group, size) = (self.heads.group(), self.heads.size);
        let pairs = row * group..(row + 1) * group;
        let sums = self.sums[pairs.start * size..pairs.end * size].chunks_exact(size);
        for ((out, sums), total) in out.chunks_exact_mut(size).zip(sums).zip(&self.totals[pairs]) {
            let inverse = 1.0 / total;
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum * inverse;
            }
        }
    }

    /// Scores of all pairs with a block's keys, at `offset` of the chunk.
    #[inline(always)]
    fn score<L: Lanes>(&mut self, keys: &[u16], offset: usize) {
        let pairs = self.rows * self.heads.group();
        let mut first = 0;
        while first < pairs {
            first += match pairs - first {
                12.. => self.score_pairs::<L, 12>(keys, offset, first),
                6.. => self.score_pairs::<L, 6>(keys, offset, first),
                3.. => self.score_pairs::<L, 3>(keys, offset, first),
                _ => self.score_pairs::<L, 1>(keys, offset, first),
            };
        }
    }

    #[inline(always)]
    fn score_pairs<L: Lanes, const N: usize>(&mut self, keys: &[u16], offset: usize, first: usize) -> usize {
        let pairs = self.rows * self.heads.group();
        let (keys, _) = keys.as_chunks::<LANES>();
        let (low, high) = keys.split_at(self.heads.size);
        let mut sums = [[L::splat(0.0); 2]; N];
        for ((low, high), queries) in low.iter().zip(high).zip(self.queries.chunks_exact(pairs)) {
            let (low, high) = (L::load_f16(low), L::load_f16(high));
            let queries: &[f32; N] = queries[first..].first_chunk().expect("N pairs from the first on");
            for (sums, query) in sums.iter_mut().zip(queries) {
                let query = L::splat(*query);
                sums[0] = query.fma(low, sums[0]);
                sums[1] = query.fma(high, sums[1]);
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            let (to, _) = self.scores[(first + i) * CHUNK + offset..][..BLOCK].as_chunks_mut::<LANES>();
            sums[0].store(&mut to[0]);
            sums[1].store(&mut to[1]);
        }
        N
    }

    /// Turns a pair's scores that are `seen` into exponentials, and rescales what was summed before.
    #[inline(always)]
    fn soften<L: Lanes>(&mut self, pair: usize, seen: Range<usize>) {
        let len = seen.end.next_multiple_of(LANES);
        let scores = &mut self.scores[pair * CHUNK..][..len];
        scores[..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..].fill(f32::NEG_INFINITY);
        let before = self.greatest[pair];
        let (chunks, _) = scores.as_chunks_mut::<LANES>();
        let mut greatest = L::splat(before);
        for chunk in chunks.iter() {
            greatest = greatest.max(L::load(chunk));
        }
        let now = greatest.greatest();
        let minus = L::splat(-now);
        for chunk in chunks.iter_mut() {
            L::load(chunk).add(minus).exp().store(chunk);
        }
        // The exponential has a least value, which is not 0.
        let scores = &mut self.scores[pair * CHUNK..][..len];
        scores[..seen.start].fill(0.0);
        scores[seen.end..].fill(0.0);
        let (chunks, _) = scores.as_chunks::<LANES>();
        let mut total = L::splat(0.0);
        for chunk in chunks {
            total = total.add(L::load(chunk));
        }
        self.greatest[pair] = now;
        if before == f32::NEG_INFINITY {
            self.totals[pair] = total.sum();
            return;
        }
        let factor = L::splat(before).add(minus).exp();
        let mut scale = [0.0; LANES];
        factor.store(&mut scale);
        self.totals[pair] = self.totals[pair] * scale[0] + total.sum();
        let (sums, _) = self.sums[pair * self.heads.size..][..self.heads.size].as_chunks_mut::<LANES>();
        for sum in sums {
            L::load(sum).mul(factor).store(sum);
        }
    }

    /// Adds the values at `seen` places of the chunk, weighted, to the sums of a row's pairs; the block's first place is
    /// `offset`.
    #[inline(always)]
    fn weigh<L: Lanes>(&mut self, row: usize, values: &[u16], offset: usize, seen: Range<usize>) {
        let values = &values[(seen.start - offset) * self.heads.size..][..seen.len() * self.heads.size];
        let group = self.heads.group();
        let (mut first, end) = (row * group, (row + 1) * group);
        while first < end {
            first += match end - first {
                6.. => self.weigh_pairs::<L, 6>(values, seen.clone(), first),
                4.. => self.weigh_pairs::<L, 4>(values, seen.clone(), first),
                3.. => self.weigh_pairs::<L, 3>(values, seen.clone(), first),
                _ => self.weigh_pairs::<L, 1>(values, seen.clone(), first),
            };
        }
    }

    #[inline(always)]
    fn weigh_pairs<L: Lanes, const N: usize>(&mut self, values: &[u16], seen: Range<usize>, first: usize) -> usize {
        let columns = self.heads.size / LANES;
        let mut column = 0;
        while column < columns {
            column += match columns - column {
                4.. => self.weigh_columns::<L, N, 4>(values, seen.clone(), first, column),
                _ => self.weigh_columns::<L, N, 1>(values, seen.clone(), first, column),
            };
        }
        N
    }

    #[inline(always)]
    fn weigh_columns<L: Lanes, const N: usize, const C: usize>(
        &mut self,
        values: &[u16],
        seen: Range<usize>,
        first: usize,
        column: usize,
    ) -> usize {
        let columns = self.heads.size / LANES;
        let (all, _) = self.sums.as_chunks_mut::<LANES>();
        let mut sums = [[L::splat(0.0); C]; N];
        for (i, sums) in sums.iter_mut().enumerate() {
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = L::load(&all[(first + i) * columns + column + j]);
            }
        }
        let weights: [&[f32]; N] = std::array::from_fn(|i| &self.scores[(first + i) * CHUNK..][seen.clone()]);
        let (values, _) = values.as_chunks::<LANES>();
        for (position, row) in values.chunks_exact(columns).enumerate() {
            let row: &[_; C] = row[column..].first_chunk().expect("C columns from this one on");
            let mut loaded = [L::splat(0.0); C];
            for (loaded, from) in loaded.iter_mut().zip(row) {
                *loaded = L::load_f16(from);
            }
            for (sums, weights) in sums.iter_mut().zip(&weights) {
                let weight = L::splat(weights[position]);
                for (sum, value) in sums.iter_mut().zip(loaded) {
                    *sum = weight.fma(value, *sum);
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                sum.store(&mut all[(first + i) * columns + column + j]);
            }
        }
        C
    }
}
