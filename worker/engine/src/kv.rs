//! Who owns which block of the KV pool, and which prefix each one holds. The pool's memory is the runner's; here are
//! only the books.
//!
//! A block whose key is written down is full and is never written again, so any number of sequences may hold it. Once
//! nobody does, it stays as it is until its place is needed; what was let go of longest ago goes first, and of one
//! sequence its last block first. So a block is in the cache only if all before it are.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use crate::batch::BlockId;
use crate::prefix::PrefixKey;

/// Blocks by what they are good for; together they are the pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Held by sequences.
    pub used: usize,
    /// Held by nobody, but their content may still be wanted.
    pub cached: usize,
    /// Held by nobody and empty.
    pub free: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} blocks wanted, {available} can be had")]
pub(crate) struct OutOfBlocks {
    wanted: usize,
    available: usize,
}

/// The blocks of one sequence in the order of its positions. Only the allocator that filled it may empty it.
#[derive(Debug, Default)]
pub(crate) struct BlockTable(Vec<BlockId>);

impl BlockTable {
    pub(crate) fn as_slice(&self) -> &[BlockId] {
        &self.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        // A table that still has blocks when it goes has leaked them. Not while unwinding: that would abort.
        assert!(self.0.is_empty() || std::thread::panicking(), "a block table was dropped with {} blocks", self.len());
    }
}

#[derive(Debug, Clone, Default)]
struct Block {
    holders: u32,
    /// What it holds, once it is full and others may use it.
    key: Option<PrefixKey>,
    /// When the last holder let go of it, by the allocator's count.
    idle_since: u64,
}

/// Hands out the pool's blocks and takes them back; holders are counted, so that blocks can be shared.
#[derive(Debug)]
pub(crate) struct BlockAllocator {
    blocks: Vec<Block>,
    /// Held by nobody and without a key.
    free: Vec<BlockId>,
    /// Held by nobody, with a key, by when they were let go of.
    idle: BTreeMap<u64, BlockId>,
    /// Every block with a key. Only ever asked for one key: it has no order to depend on.
    by_key: HashMap<PrefixKey, BlockId>,
    releases: u64,
}

impl BlockAllocator {
    pub(crate) fn new(blocks: usize) -> Self {
        let ids = 0..u32::try_from(blocks).expect("slots are counted in u32, so blocks are");
        Self {
            blocks: vec![Block::default(); blocks],
            free: ids.rev().map(BlockId).collect(),
            idle: BTreeMap::new(),
            by_key: HashMap::new(),
            releases: 0,
        }
    }

    pub(crate) fn counts(&self) -> BlockCounts {
        let (cached, free) = (self.idle.len(), self.free.len());
        BlockCounts { used: self.blocks.len() - cached - free, cached, free }
    }

    /// Blocks that can be had now, at the price of what is cached.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// How many of `keys`, a sequence's from its first block on, the pool holds. All before the last of them, too.
    pub(crate) fn hits(&self, keys: &[PrefixKey]) -> usize {
        keys.partition_point(|key| self.by_key.contains_key(key))
    }

    /// How many of the blocks of `keys` are held by nobody: who takes them makes as many fewer available.
    pub(crate) fn idle_among(&self, keys: &[PrefixKey]) -> usize {
        // As in the pool itself: whoever holds a block holds all before it.
        keys.len() - keys.partition_point(|key| self.by_key.get(key).is_some_and(|block| self.holders(*block) > 0))
    }

    /// How many of a table's blocks would become available if its sequence let go of them.
    pub(crate) fn held_alone(&self, table: &BlockTable) -> usize {
        table.0.len() - table.0.partition_point(|block| self.holders(*block) > 1)
    }

    /// Fills an empty table with the blocks of `keys`, all of which the pool holds.
    pub(crate) fn attach(&mut self, table: &mut BlockTable, keys: &[PrefixKey]) {
        assert!(table.is_empty(), "a prefix has nothing before it");
        for key in keys {
            let block = self.by_key[key];
            self.hold(block);
            table.0.push(block);
        }
    }

    /// Adds `more` blocks to `table`, or none where there are fewer. What they held is forgotten.
    pub(crate) fn grow(&mut self, table: &mut BlockTable, more: usize) -> Result<(), OutOfBlocks> {
        if more > self.available() {
            return Err(OutOfBlocks { wanted: more, available: self.available() });
        }
        for _ in 0..more {
            let block = self.free.pop().or_else(|| self.evict()).expect("no more than there are");
            let books = &mut self.blocks[block.0 as usize];
            assert_eq!((books.holders, books.key), (0, None), "block {} was not free", block.0);
            books.holders = 1;
            table.0.push(block);
        }
        Ok(())
    }

    /// Writes down that block `at` of `table` is full and what it holds. If the pool held the same already, the table
    /// gets that block and gives its own back.
    pub(crate) fn publish(&mut self, table: &mut BlockTable, at: usize, key: PrefixKey) {
        let own = table.0[at];
        let books = &self.blocks[own.0 as usize];
        assert_eq!((books.holders, books.key), (1, None), "block {} was written while others could hold it", own.0);
        let block = match self.by_key.entry(key) {
            Entry::Vacant(place) => {
                place.insert(own);
                self.blocks[own.0 as usize].key = Some(key);
                return;
            }
            Entry::Occupied(place) => *place.get(),
        };
        self.hold(block);
        table.0[at] = block;
        self.let_go(own);
    }

    /// Takes all blocks of `table` back. Those with a key stay in the cache.
    pub(crate) fn release(&mut self, table: &mut BlockTable) {
        for block in std::mem::take(&mut table.0).into_iter().rev() {
            self.let_go(block);
        }
    }

    fn holders(&self, block: BlockId) -> u32 {
        self.blocks[block.0 as usize].holders
    }

    fn hold(&mut self, block: BlockId) {
        let books = &mut self.blocks[block.0 as usize];
        if books.holders == 0 {
            self.idle.remove(&books.idle_since);
        }
        books.holders += 1;
    }

    fn let_go(&mut self, block: BlockId) {
        let books = &mut self.blocks[block.0 as usize];
        books.holders = books.holders.checked_sub(1).expect("a block in a table has a holder");
        match (books.holders, books.key) {
            (0, Some(_)) => {
                books.idle_since = self.releases;
                self.idle.insert(self.releases, block);
                self.releases += 1;
            }
            (0, None) => self.free.push(block),
            (_, _) => {}
        }
    }

    /// Forgets what was let go of longest ago.
    fn evict(&mut self) -> Option<BlockId> {
        let (_, block) = self.idle.pop_first()?;
        let key = self.blocks[block.0 as usize].key.take().expect("only blocks with a key are idle");
        self.by_key.remove(&key);
        Some(block)
    }
}

#[cfg(test)]
mod tests;
