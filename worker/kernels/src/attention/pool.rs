//! The KV pool: f16 keys and values in blocks of 32 positions, by layer, block and head. Keys lie transposed in chunks of
//! 16 positions, so that a dimension of 16 keys is one load; values lie a position a row.

use super::{BLOCK, Heads};
use crate::lanes::{LANES, Lanes};
use crate::shared::Shared;

/// Keys and values of all layers. Memory is taken by the system as blocks are first written.
pub struct KvPool {
    heads: Heads,
    layers: usize,
    blocks: usize,
    /// `[layer][block][kv head]`, then `[chunk][dimension][position]` of keys and `[position][dimension]` of values.
    pub(super) data: Vec<u16>,
}

/// One layer's part of the pool, shared by threads.
pub(super) struct Layer<'a> {
    heads: Heads,
    data: Shared<'a, u16>,
}

impl KvPool {
    /// A pool of `blocks` blocks a layer.
    ///
    /// # Panics
    /// Where `heads` break their contract, or the size exceeds the address space.
    pub fn new(layers: usize, blocks: usize, heads: Heads) -> Self {
        assert!(heads.size.is_multiple_of(LANES) && heads.size > 0, "heads of {} elements", heads.size);
        assert!(heads.kv > 0 && heads.query.is_multiple_of(heads.kv), "{} query, {} kv", heads.query, heads.kv);
        assert!(heads.rotated <= heads.size && heads.rotated.is_multiple_of(2), "{} rotated", heads.rotated);
        let len = layers.checked_mul(blocks).and_then(|n| n.checked_mul(heads.kv * block_len(heads)));
        // Zeroed memory of the system is mapped when it is touched, not before.
        let data = vec![0; len.expect("a pool fits the address space")];
        Self { heads, layers, blocks, data }
    }

    /// Bytes of one block in all `layers`.
    pub fn block_bytes(layers: usize, heads: Heads) -> usize {
        layers * heads.kv * block_len(heads) * size_of::<u16>()
    }

    /// Its heads.
    pub fn heads(&self) -> Heads {
        self.heads
    }

    /// Its blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    pub(super) fn layer(&mut self, layer: usize) -> Layer<'_> {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        let len = self.blocks * self.heads.kv * block_len(self.heads);
        Layer { heads: self.heads, data: Shared::new(&mut self.data[layer * len..][..len]) }
    }
}

/// Elements of one head's block: keys and values.
fn block_len(heads: Heads) -> usize {
    2 * BLOCK * heads.size
}

impl Layer<'_> {
    /// Writes a position's keys and values `[kv, size]` at `slot`.
    ///
    /// # Safety
    /// No other thread reads the block's head or writes the slot.
    #[inline(always)]
    pub(super) unsafe fn write<L: Lanes>(&self, slot: usize, keys: &[f32], values: &[f32]) {
        let Heads { kv, size, .. } = self.heads;
        let (block, position) = (slot / BLOCK, slot % BLOCK);
        for head in 0..kv {
            let start = (block * kv + head) * block_len(self.heads);
            let first = start + position / LANES * size * LANES + position % LANES;
            let (keys, _) = keys[head * size..][..size].as_chunks::<LANES>();
            let (values, _) = values[head * size..][..size].as_chunks::<LANES>();
            for (i, (key, value)) in keys.iter().zip(values).enumerate() {
                let mut halves = [0; LANES];
                L::load(key).store_f16(&mut halves);
                for (j, half) in halves.into_iter().enumerate() {
                    // SAFETY: this slot's elements, which are this call's alone.
                    unsafe { self.data.slice(first + (i * LANES + j) * LANES, 1)[0] = half };
                }
                L::load(value).store_f16(&mut halves);
                let to = start + (BLOCK + position) * size + i * LANES;
                // SAFETY: as above.
                unsafe { self.data.slice(to, LANES).copy_from_slice(&halves) };
            }
        }
    }

    /// The keys `[chunk][dimension][position]` and values `[position][dimension]` of a head's block.
    ///
    /// # Safety
    /// Nobody writes the pool meanwhile.
    #[inline(always)]
    pub(super) unsafe fn read(&self, block: usize, head: usize) -> (&[u16], &[u16]) {
        let len = block_len(self.heads);
        // SAFETY: unwritten by the caller's promise.
        let all = unsafe { self.data.all() };
        all[(block * self.heads.kv + head) * len..][..len].split_at(len / 2)
    }
}
