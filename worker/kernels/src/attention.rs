//! Causal attention of grouped queries over a paged f16 KV pool. A row's result depends on its own query and on the keys
//! and values of its own sequence alone, to the bit: positions are taken in order, in chunks that start at multiples of
//! `CHUNK` positions, whatever other rows are at work.

mod pool;
mod tile;

pub use pool::KvPool;

use std::num::NonZeroUsize;
use std::ops::Range;

use crate::cpu::{Cpu, grown};
use crate::isa::Kernel;
use crate::lanes::Lanes;
use crate::shared::Shared;
use crate::threads::{Pieces, Worker};

/// Positions of a block of the pool.
pub const BLOCK: usize = 32;
/// Positions whose scores are held at a time.
const CHUNK: usize = 4 * BLOCK;
/// Pairs of row and query head that share the reading of keys, at most (where a group is smaller).
const TILE: usize = 12;

/// Sizes of a model's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads; a multiple of `kv`.
    pub query: usize,
    /// Heads of keys and values.
    pub kv: usize,
    /// Elements of a head; a multiple of 16.
    pub size: usize,
    /// How many of them are rotated, in pairs `(i, i + rotated / 2)`.
    pub rotated: usize,
}

impl Heads {
    /// Elements of a row of queries, keys and values.
    pub fn width(&self) -> usize {
        (self.query + 2 * self.kv) * self.size
    }

    fn group(&self) -> usize {
        self.query / self.kv
    }
}

/// Consecutive rows of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The rows.
    pub rows: Range<usize>,
    /// Where [`Step::tables`] has the sequence's blocks.
    pub blocks: Range<usize>,
}

/// The rows of a step and where their sequences lie in the pool.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Each row's position in its sequence.
    pub positions: &'a [u32],
    /// Each row's place in the pool: `block * BLOCK + position % BLOCK`.
    pub slots: &'a [u32],
    /// Indices of blocks.
    pub tables: &'a [u32],
    /// One a sequence.
    pub spans: &'a [Span],
    /// `[rows, rotated / 2]` pairs of cosine and sine.
    pub angles: &'a [[f32; 2]],
    /// Each row attends to so many positions, its own the last of them; to all up to its own if left out.
    pub window: Option<NonZeroUsize>,
}

/// Rows of a span that one thread takes together, for one KV head at a time.
#[derive(Debug, Clone)]
pub(crate) struct Tile {
    rows: Range<usize>,
    blocks: Range<usize>,
}

/// Rows that attention reads and writes.
#[derive(Debug)]
pub struct Rows<'a> {
    /// Queries, keys and values, `[rows, heads.width()]`; queries and keys are rotated in place.
    pub qkv: &'a mut [f32],
    /// What the queries gathered, `[rows, query * size]`.
    pub out: &'a mut [f32],
}

/// Rotates queries and keys, writes keys and values of `layer` into the pool, and attends.
///
/// # Panics
/// Where the sizes do not fit each other or the pool.
pub fn attend(cpu: &mut Cpu, pool: &mut KvPool, layer: usize, step: &Step<'_>, rows: Rows<'_>) {
    let (heads, count) = (pool.heads(), step.positions.len());
    assert_eq!(rows.qkv.len(), count * heads.width(), "queries, keys and values do not fit the pool's heads");
    assert_eq!(rows.out.len(), count * heads.query * heads.size, "the output does not fit the queries");
    assert!(step.slots.len() == count && step.angles.len() == count * heads.rotated / 2, "rows without slot or angles");
    plan(&mut cpu.scratch.tiles, step, heads);
    let per_thread = tile::scratch(heads);
    let attention = Attention {
        heads,
        step,
        tiles: &cpu.scratch.tiles,
        rows: Pieces::new(count, cpu.threads.count()),
        items: Pieces::single(cpu.scratch.tiles.len() * heads.kv),
        pool: pool.layer(layer),
        qkv: Shared::new(rows.qkv),
        scratch: Shared::new(grown(&mut cpu.scratch.values, per_thread * cpu.threads.count())),
        out: Shared::new(rows.out),
    };
    let isa = cpu.isa;
    cpu.threads.run(&|worker| isa.run(AttentionPart { attention: &attention, worker }));
}

fn plan(tiles: &mut Vec<Tile>, step: &Step<'_>, heads: Heads) {
    tiles.clear();
    let tall = (TILE / heads.group()).max(1);
    for span in step.spans {
        let last = step.positions[span.rows.end - 1] as usize;
        assert!(span.blocks.len() > last / BLOCK, "a block table ends before its sequence");
        let mut row = span.rows.start;
        while row < span.rows.end {
            let end = (row + tall).min(span.rows.end);
            tiles.push(Tile { rows: row..end, blocks: span.blocks.clone() });
            row = end;
        }
    }
}

/// A step's attention in one layer while its threads work on it.
struct Attention<'a> {
    heads: Heads,
    step: &'a Step<'a>,
    tiles: &'a [Tile],
    rows: Pieces,
    /// Pairs of tile and KV head.
    items: Pieces,
    pool: pool::Layer<'a>,
    qkv: Shared<'a, f32>,
    scratch: Shared<'a, f32>,
    out: Shared<'a, f32>,
}

struct AttentionPart<'a> {
    attention: &'a Attention<'a>,
    worker: Worker<'a>,
}

impl Kernel for AttentionPart<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { attention, worker } = self;
        let Attention { rows, items, .. } = attention;
        let mut piece = worker.next(rows, None);
        while let Some(range) = piece {
            for row in range.clone() {
                attention.store::<L>(row);
            }
            piece = worker.next(rows, Some(range));
        }
        worker.wait(rows);
        let len = tile::scratch(attention.heads);
        // SAFETY: each thread has its own.
        let scratch = unsafe { attention.scratch.slice(worker.index * len, len) };
        let mut piece = worker.next(items, None);
        while let Some(range) = piece {
            attention.item::<L>(range.start, scratch);
            piece = worker.next(items, Some(range));
        }
    }
}

impl Attention<'_> {
    /// Rotates a row's queries and keys, and writes keys and values into the pool.
    #[inline(always)]
    fn store<L: Lanes>(&self, row: usize) {
        let (heads, width, pairs) = (self.heads, self.heads.width(), self.heads.rotated / 2);
        // SAFETY: each row belongs to one piece.
        let qkv = unsafe { self.qkv.slice(row * width, width) };
        let angles = &self.step.angles[row * pairs..][..pairs];
        let (rotated, values) = qkv.split_at_mut((heads.query + heads.kv) * heads.size);
        for head in rotated.chunks_exact_mut(heads.size) {
            rotate(head, angles);
        }
        let keys = &rotated[heads.query * heads.size..];
        // SAFETY: each slot belongs to one row.
        unsafe { self.pool.write::<L>(self.step.slots[row] as usize, keys, values) };
    }

    /// Attends with the rows of a tile and the query heads of a KV head.
    #[inline(always)]
    fn item<L: Lanes>(&self, item: usize, scratch: &mut [f32]) {
        let (heads, step) = (self.heads, self.step);
        let (tile, kv_head) = (&self.tiles[item / heads.kv], item % heads.kv);
        let start = step.positions[tile.rows.start] as usize;
        let mut work = tile::Work::new(heads, kv_head, start, tile.rows.len(), scratch);
        // SAFETY: all rows are stored; nobody writes queries or the pool any more.
        unsafe {
            work.gather(&self.qkv.all()[tile.rows.start * heads.width()..tile.rows.end * heads.width()]);
            work.attend::<L>(&self.pool, &step.tables[tile.blocks.clone()], step.window);
        }
        for (i, row) in tile.rows.clone().enumerate() {
            let len = heads.group() * heads.size;
            // SAFETY: a row's heads of one group belong to one item.
            work.finish(i, unsafe { self.out.slice((row * heads.kv + kv_head) * len, len) });
        }
    }
}

/// Rotates pairs `(i, i + n)` of a head by the `n` angles.
#[inline(always)]
fn rotate(head: &mut [f32], angles: &[[f32; 2]]) {
    let (first, second) = head.split_at_mut(angles.len());
    for ((a, b), &[cos, sin]) in first.iter_mut().zip(second).zip(angles) {
        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
    }
}

#[cfg(test)]
mod tests;
